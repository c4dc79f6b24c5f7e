"""Shared fixtures: a fresh seed for every test, printed when the test fails."""

from __future__ import annotations

import secrets

import pytest


@pytest.fixture
def seed(record_property, request) -> int:
    """A seed nobody chose. Set ``--seed N`` to repeat a failure."""
    value = request.config.getoption("--seed")
    if value is None:
        value = secrets.randbelow(2**31)
    record_property("seed", value)
    print(f"seed {value}: repeat with pytest --seed {value}")
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="repeat a test with this seed")


@pytest.fixture(scope="session")
def server():
    """The bundled demo, loaded once."""
    from mlx_higgs import HiggsAudioServer

    return HiggsAudioServer.from_pretrained()
