"""The hand-overs between the two stages, frame by frame beside those of vLLM-Omni's adapters.

``golden/pipeline_v3.json`` holds what the adapters themselves answered for every length from 1 to
259 frames (``convert/dump_pipeline.py``). Where ours differ, a test says how:

- Theirs take a row more, because their talker makes one more, and cut the frame that it completes.
  So they hand over after L + 1 rows what we do after L.
- Without context on either side their last hand-over can be that frame alone, which they then keep,
  as they do of a speech that has no other; ours is empty.
- A marker among the codes becomes code 0 there, and here the code before it; frames that end a
  speech with markers in them are kept there, and cut here.
- An exact stream hands every frame over once: the decoder remembers what was to its left.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from handoffs import CONTEXT, V3, delivery_of, speak

from convert.dump_pipeline import ENDS, LONGEST, SEED, marked_codes, our_rows, scripted
from convert.vllm_repo import Settings, VllmOmni
from mlx_higgs.delay import codes_from_rows
from mlx_higgs.delivery import EXACT, STEADY, WHOLE, Delivery, Schedule
from mlx_higgs.types import CheckpointError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "pipeline_v3.json").read_text())
CHUNKED = {Settings(*case["settings"]): case for case in GOLDEN["chunked"]}
EVERY = range(1, LONGEST + 1)
DELAY = V3.num_codebooks - 1


SOME = range(1, LONGEST + 1, 9)
SWEPT = {
    (1, 25, 25, 4),
    (25, 25, 10, 10),
    (5, 12, 0, 0),
}  # others: some lengths


@cache
def rows_of(frames: int) -> np.ndarray:
    return np.array(V3.apply(mx.array(marked_codes(frames))))


def theirs(settings: Settings, frames: int) -> list[tuple]:
    """After which row, the frames ``[start, stop)`` of the window, and of it left and right."""
    case = CHUNKED[settings]
    sent, start, stop, left = case["last"][frames - 1]
    running = [tuple(handoff) for handoff in case["running"][:sent]]
    return [*running, (frames + V3.num_codebooks, start, stop, left, 0)]


def test_the_golden_holds_every_length():
    assert len(GOLDEN["whole"]) == LONGEST
    assert all(len(case["last"]) == LONGEST for case in GOLDEN["chunked"])


@pytest.mark.parametrize("settings", CHUNKED, ids=lambda s: "-".join(map(str, s)))
def test_chunks_hold_the_same_frames_after_the_same_row(monkeypatch, settings: Settings):
    delivery = delivery_of(settings)
    for frames in EVERY if settings in SWEPT else SOME:
        marks = marked_codes(frames)
        handed, wave = speak(monkeypatch, rows_of(frames), delivery)
        expected = theirs(settings, frames)
        assert len(handed) == len(expected)
        for (payload, ours), (row, start, stop, left, right) in zip(handed, expected, strict=True):
            last = ours.finished
            assert last == (row == frames + 8)
            assert ours.row == row - last  # theirs makes one more
            stop = min(stop, frames) if left == right == 0 else stop  # it may be the one to cut
            assert np.array_equal(ours.codes, marks[start:stop])
            assert (ours.left, ours.right) == (left, right) or start >= stop
            assert payload.rows(DELAY) == slice(start, stop + DELAY) or start >= stop
        assert np.array_equal(wave, marks[:, 0])


def test_their_junk_is_kept_only_where_there_is_no_context():
    """Every frame is out, and the last hand-over is the frame that is to be cut."""
    kept = [
        (settings, frames)
        for settings in CHUNKED
        for frames in EVERY
        if theirs(settings, frames)[-1][2] > frames
    ]
    assert {settings[2:] for settings, _ in kept} == {(0, 0)}
    assert [frames for _, frames in kept] == list(range(5, LONGEST + 1, 12))


def test_at_once_the_same_frames_are_handed_over(monkeypatch):
    assert GOLDEN["whole"] == list(EVERY)
    for frames in EVERY:
        ((payload, ours),), wave = speak(monkeypatch, rows_of(frames), WHOLE)
        assert np.array_equal(ours.codes, marked_codes(frames))
        assert payload == (0, frames, 0, 0, True)
        assert np.array_equal(wave, marked_codes(frames)[:, 0])


def test_too_few_rows_are_no_frame(monkeypatch):
    """Theirs, with a row more, say something after 8: the frame that they cut elsewhere."""
    assert GOLDEN["short"]["whole"] == GOLDEN["short"]["chunked"] == [0] * 7 + [1, 1]
    for count in range(9):
        for delivery in (WHOLE, delivery_of(next(iter(CHUNKED)))):
            handed, wave = speak(monkeypatch, rows_of(1)[:count], delivery)
            assert sum(len(ours.codes) for _, ours in handed) == len(wave) == (count == 8)
            assert handed[-1][1].finished


def test_a_folder_without_the_adapter_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no vLLM-Omni that knows Higgs v3"):
        VllmOmni(tmp_path)


# ---------------------------------------------------------------- the exact stream


def test_an_exact_stream_sends_the_same_frames_and_decodes_each_once(monkeypatch):
    """Beside their windows with all the context that a sample needs."""
    settings = Settings(25, 25, CONTEXT, CONTEXT)
    for frames in EVERY:
        handed, wave = speak(monkeypatch, rows_of(frames), STEADY)
        for (payload, ours), window in zip(handed, theirs(settings, frames), strict=True):
            row, start, stop, left, right = window
            assert (payload.start, payload.stop) == (start + left, stop - right)
            assert (ours.row, ours.left, ours.right) == (row - ours.finished, 0, right)
            assert payload.frames == slice(start + left, stop)
        assert np.array_equal(wave, marked_codes(frames)[:, 0])


def test_an_early_first_chunk_waits_for_as_few_rows_as_theirs(monkeypatch):
    settings = Settings(4, 25, 0, 4)
    for frames in SOME:
        handed, _ = speak(monkeypatch, rows_of(frames), Delivery(4, 25, 25, right=4))
        (payload, ours), (row, start, stop, left, _) = handed[0], theirs(settings, frames)[0]
        assert (ours.row, payload.frames) == (row - ours.finished, slice(start + left, stop))
        later = [payload.right for payload, _ in handed[1:-1]]
        assert later == [CONTEXT] * len(later)


@pytest.mark.parametrize("delivery", [EXACT, Delivery(2, 4, 25)])
def test_chunks_grow_as_their_ramp_does(delivery: Delivery):
    """That of their adapters that hold nothing back: ours, without the frames waited for."""
    sizes = list(islice(delivery.sizes(), 6))
    ramp = next(ramp for ramp in GOLDEN["ramps"] if ramp["sizes"] == sizes[: len(ramp["sizes"])])
    for frames, stops in zip(EVERY, ramp["stops"], strict=True):
        schedule = Schedule(delivery, context=0)
        sent = [schedule.next(count, count == frames) for count in range(1, frames + 1)]
        assert [payload.stop for payload in sent if payload] == stops


# ---------------------------------------------------------------- what the machines make


@pytest.mark.parametrize("case", GOLDEN["streams"], ids=lambda c: f"{c['machine']}-{c['end']}")
def test_markers_never_reach_the_codec(monkeypatch, case: dict):
    """Theirs become 0, one by one; ours are cut at the end and else concealed."""
    rows, handed = np.array(case["rows"]), np.array(case["codes"])
    reverted = np.array(V3.revert(mx.array(rows)))
    marker = reverted >= 1024
    assert np.array_equal(handed, np.where(marker, 0, reverted))
    assert marker.any() == (case["machine"] == "sglang")

    ours = codes_from_rows(rows, V3)
    clean = np.flatnonzero(~marker.any(axis=1))
    assert len(ours) == clean[-1] + 1
    marker = marker[: len(ours)]
    assert np.array_equal(ours[~marker], handed[: len(ours)][~marker])
    before = np.concatenate([np.zeros((1, 8), int), ours[:-1]])
    assert np.array_equal(ours[marker], before[marker])
    for delivery in (WHOLE, EXACT, delivery_of(Settings(1, 25, 25, 4))):
        sent, _ = speak(monkeypatch, rows, delivery)
        frames = [ours.codes[ours.left :][: p.stop - p.start] for p, ours in sent]
        assert np.array_equal(np.concatenate(frames), ours)


@pytest.mark.parametrize("end", ENDS)
def test_the_strict_machine_says_what_theirs_says(end: int | None):
    """Of the same logits: the same frames, in one row less; its EOC come one row earlier each."""
    case = next(c for c in GOLDEN["streams"] if (c["machine"], c["end"]) == ("strict", end))
    ours, theirs = our_rows(V3, scripted(SEED + (end or 0), end)), np.array(case["their_rows"])
    assert np.array_equal(ours, case["rows"])
    if end is None:  # cut short, and of that a frame is cut, though it is as good as the others
        assert np.array_equal(ours, theirs)
        assert np.array_equal(codes_from_rows(ours, V3)[:-1], case["their_codes"])
        return
    assert (len(ours), len(theirs)) == (end + 7, end + 8)
    assert np.array_equal(ours[: end + 1], theirs[: end + 1])
    assert np.array_equal(codes_from_rows(ours, V3), case["their_codes"])
    assert len(case["their_codes"]) == end
    book = np.arange(8)
    for ramp, row in enumerate(theirs[end:]):
        assert np.array_equal(row == 1025, book < max(ramp, 1))
    for ramp, row in enumerate(ours[end:]):
        assert np.array_equal(row == 1025, book <= ramp)
