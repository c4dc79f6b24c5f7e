"""Our hand-overs beside vLLM-Omni's adapters, which run here, on codes that nobody chose.

They come from the folder that ``$VLLM_OMNI`` names: see CONTRIBUTING.md. What they are known to do
otherwise is said in ``test_pipeline.py``, which needs no such folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from handoffs import V3, delivery_of, speak

from convert import dump_pipeline
from convert.dump_pipeline import LONGEST, SETTINGS, our_rows, scripted, their_rows
from convert.vllm_repo import Settings, VllmOmni
from mlx_higgs.delay import codes_from_rows
from mlx_higgs.delivery import WHOLE
from mlx_higgs.loading import load_codec
from mlx_higgs.sources import DEMO

pytest.importorskip("torch", reason="the reference gates need torch")

FOLDER = os.environ.get("VLLM_OMNI")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="$VLLM_OMNI names no folder that holds vLLM-Omni's package"
)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "pipeline_v3.json").read_text())
DEPLOYED, CODES = SETTINGS[0], 1024
ROUNDING = 1e-5  # measured: 0.0 on a CPU; four frames of look-ahead miss by 5e-3 to 2e-2


@pytest.fixture(scope="module")
def omni() -> VllmOmni:
    return VllmOmni(Path(str(FOLDER)))


def stream(seed: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Our rows of so many random frames, and theirs."""
    codes = np.random.default_rng([seed, frames]).integers(0, CODES, (frames + 1, 8))
    return np.array(V3.apply(mx.array(codes[:-1]))), their_rows(codes[:-1], codes[-1])


def test_the_golden_is_what_they_answer(omni: VllmOmni):
    assert GOLDEN["chunked"][0] == dump_pipeline.chunked(omni, DEPLOYED)
    assert GOLDEN["whole"] == dump_pipeline.whole(omni)
    assert GOLDEN["short"] == dump_pipeline.short(omni)
    assert GOLDEN["ramps"][0] == dump_pipeline.ramp(omni, dump_pipeline.RAMPS[0])
    assert GOLDEN["streams"] == dump_pipeline.streams(omni)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s)))
def test_chunks_hold_the_same_codes(monkeypatch, omni: VllmOmni, seed: int, settings: Settings):
    step = 1 if settings == DEPLOYED else 19
    for frames in range(1, LONGEST + 1, step):
        rows, theirs = stream(seed, frames)
        handed, _ = speak(monkeypatch, rows, delivery_of(settings))
        for (_, ours), other in zip(handed, omni.chunks(theirs, settings), strict=True):
            assert (ours.row, ours.finished) == (other.row - other.finished, other.finished)
            if not settings.left and not settings.right and not len(ours.codes):
                assert other.finished
                assert len(other.codes) == 1  # that to cut, and none before it
                continue
            assert np.array_equal(ours.codes, np.reshape(other.codes, (-1, 8)))
            assert (ours.left, ours.right) == (other.left, other.right)


def test_at_once_the_same_codes_are_handed_over(monkeypatch, omni: VllmOmni, seed: int):
    for frames in range(1, LONGEST + 1):
        rows, theirs = stream(seed, frames)
        assert np.array_equal(codes_from_rows(rows, V3), omni.whole(theirs))
        if frames % 19 == 1:
            ((_, ours),), _ = speak(monkeypatch, rows, WHOLE)
            assert np.array_equal(ours.codes, omni.whole(theirs))


@pytest.mark.parametrize("end", [8, 9, 25])
def test_the_machines_say_the_same_frames(omni: VllmOmni, seed: int, end: int):
    logits = scripted(seed, end, rows=end + 9)
    ours, theirs = our_rows(V3, logits), np.array(omni.machine(logits))
    assert len(theirs) == len(ours) + 1 == end + 8
    assert np.array_equal(codes_from_rows(ours, V3), omni.whole(theirs))


def test_only_theirs_ends_before_every_codebook_has_begun(omni: VllmOmni, seed: int):
    """The end in row 5 is five frames there; here as in the reference, it is not heard."""
    logits = scripted(seed, 5, rows=24)
    assert len(omni.whole(np.array(omni.machine(logits)))) == 5
    assert len(our_rows(V3, logits)) == 24


@pytest.mark.parametrize("settings", [DEPLOYED, Settings(12, 25, 10, 10)])
def test_the_chunks_sound_the_same(monkeypatch, omni: VllmOmni, seed: int, settings: Settings):
    """Their windows, decoded by our codec and cut by their second stage, beside our stream."""
    codec = load_codec(DEMO / "codec")
    codes = np.random.default_rng(seed).integers(0, 256, (61, 8))
    handed = omni.chunks(their_rows(codes[:-1], codes[-1]), settings)
    waves = []
    for handoff in handed:
        window = np.array(codec.decode(mx.array(handoff.codes)))
        waves.append(omni.trim(window, codec.hop, handoff.left, handoff.right))
    rows = np.array(V3.apply(mx.array(codes[:-1])))
    _, ours = speak(monkeypatch, rows, delivery_of(settings), codec)
    assert len(ours) == 60 * codec.hop
    assert np.abs(ours - np.concatenate(waves)).max() <= ROUNDING
    whole = np.array(codec.decode(mx.array(codes[:-1])))
    assert (np.abs(ours - whole).max() <= ROUNDING) == (settings.right == 10)
