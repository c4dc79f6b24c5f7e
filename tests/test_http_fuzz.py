"""A short run of ``fuzz_server.py``: the real process, and requests that mean it harm."""

from __future__ import annotations

import pytest
from fuzz_server import fuzz

pytest.importorskip("schemathesis")


def test_harm_is_refused_and_nothing_breaks(seed):
    tally = fuzz(120, seed)
    assert not tally.complaints, "\n".join(tally.complaints[:5])
    assert tally.total >= 120
    assert tally.statuses["400"] > 25
