"""The schedule: what is sent when, beside the rules of vLLM's adapter, spelled out here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.delay import DelayPattern, RowReverter
from mlx_higgs.delivery import ALL, EXACT, LOW, STEADY, WHOLE, Delivery, Payload, Schedule, choose
from mlx_higgs.types import InputError

V3 = DelayPattern(num_codebooks=8, bos_id=1024, eos_id=1025)  # its rows are counted by vLLM
DELAY = V3.num_codebooks - 1


class Message(NamedTuple):
    """What the talker's stage sends to the codec's: after which row, and what."""

    row: int
    codes: list
    left: int
    right: int
    finished: bool


def adapter(rows: np.ndarray, first: int, chunk: int, left: int, hold: int) -> Iterator[Message]:
    """vLLM's rules for one request, with a row more than there are frames and ramps."""
    emitted = 0
    for count in range(1, len(rows) + 1):
        finished = count == len(rows)
        total, held = max(0, count - DELAY), 0 if finished else hold
        target = max(0, total - held)
        pending = target - emitted
        need = first if emitted == 0 and 0 < first < chunk else chunk
        if not finished and pending < need:
            continue
        if pending <= 0:
            if finished:
                yield Message(count, [], 0, 0, True)
            continue
        context = min(left, emitted)
        window = rows[emitted - context : min(target + held + DELAY, count)]
        codes = [[window[t + k][k] for k in range(8)] for t in range(len(window) - DELAY)]
        codes = [[code if code < 1024 else 0 for code in frame] for frame in codes]
        if finished:
            codes, pending = codes[:-1], pending - 1
        yield Message(count, codes, context, held, finished)
        emitted += pending


def ours(rows: np.ndarray, delivery: Delivery) -> Iterator[Message]:
    reverter, schedule, frames = RowReverter(V3), Schedule(delivery, context=10), []
    for count, row in enumerate(rows, start=1):
        frames += reverter.push(row).tolist()
        payload = schedule.next(len(frames), finished=count == len(rows))
        if payload is not None:
            codes = frames[payload.frames]
            yield Message(count, codes, payload.left, payload.right, payload.finished)


def vllm_rows(seed: int, frames: int) -> np.ndarray:
    """So many frames with their ramps, and the row that says the end once more."""
    codes = np.random.default_rng(seed).integers(0, 1024, (frames, 8))
    rows = np.array(V3.apply(mx.array(codes)))
    return np.concatenate([rows, np.full((1, 8), V3.eos_id, np.int32)])


@pytest.mark.parametrize(
    "numbers", [(1, 25, 25, 4), (1, 25, 10, 10), (5, 12, 0, 0), (25, 25, 8, 4)]
)
def test_windows_are_handed_off_as_vllm_does(seed: int, numbers: tuple):
    first, chunk, left, hold = numbers
    delivery = Delivery(first, chunk, chunk, left=left, right=hold)
    for frames in range(1, 131):
        rows = vllm_rows(seed + frames, frames)
        expected = list(adapter(rows, first, chunk, left, hold))
        assert [m for m in ours(rows, delivery) if m.codes] == [m for m in expected if m.codes]
        assert sum(m.finished for m in ours(rows, delivery)) == 1


def test_vllms_own_numbers():
    """What its adapter was seen to do: rows 12, 37, 62, 87 and the end, of 100 frames."""
    sent = list(ours(vllm_rows(0, 100), Delivery(1, 25, 25, left=25, right=4)))
    assert [m.row for m in sent] == [12, 37, 62, 87, 108]
    assert [len(m.codes) - m.left - m.right for m in sent] == [1, 25, 25, 25, 24]


@pytest.mark.parametrize(
    "delivery", [EXACT, LOW, STEADY, WHOLE, Delivery(3, 7, 20, left=4, right=2)]
)
def test_every_frame_is_sent_once_and_no_sooner_than_it_may(delivery: Delivery):
    for total in range(131):
        schedule, sent = Schedule(delivery, context=10), []
        for frames in range(total + 1):
            payload = schedule.next(frames)
            if payload is not None:
                assert payload.stop + payload.right <= frames
                sent.append(payload)
        sent.append(schedule.next(total, finished=True))
        assert sent[0].start == 0
        assert [p.start for p in sent[1:]] == [p.stop for p in sent[:-1]]
        assert sent[-1].stop == total
        assert [p.finished for p in sent] == [False] * (len(sent) - 1) + [True]
        sizes = [p.stop - p.start for p in sent[:-1]]
        assert sizes == list(islice(delivery.sizes(), len(sizes)))


def test_chunks_grow_to_the_largest():
    assert list(islice(Delivery(5, 25, 80).sizes(), 5)) == [5, 25, 50, 80, 80]
    assert list(islice(EXACT.sizes(), 7)) == [5, 5, 10, 20, 40, 50, 50]


def test_a_payload_names_its_rows():
    payload = Payload(26, 51, 25, 4, False)
    assert payload.frames == slice(1, 55)
    assert payload.rows(DELAY) == slice(1, 62)


def test_presets():
    assert all(preset.exact for preset in (EXACT, STEADY, WHOLE))
    assert not LOW.exact
    assert [preset.whole for preset in (EXACT, LOW, STEADY, WHOLE)] == [False, False, False, True]
    assert LOW.first + LOW.right < EXACT.first + 10


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"first": 0}, "first is 0: it must be a whole number of frames from 1 to 50"),
        ({"first": 51}, "first is 51: .* from 1 to 50 .with chunk=25, largest=50"),
        ({"chunk": 60}, "chunk is 60: .* from 1 to 50"),
        ({"largest": 0}, "largest is 0"),
        ({"largest": ALL + 1}, "largest is 2147483648"),
        ({"first": 2.5}, r"first is 2\.5: it must be a whole number"),
        ({"first": True}, "first is True"),
        ({"left": -1, "right": 4}, "left is -1: .* from 0 to 250"),
        ({"left": 251}, "left is 251"),
        ({"right": -1}, "right is -1: .* from 0 to 250"),
        ({"left": 10, "largest": 251}, "largest is 251: .* from 1 to 250"),
        ({"first": ALL, "chunk": ALL, "largest": ALL, "right": 4}, "no left or right"),
    ],
)
def test_numbers_out_of_bounds_are_said(numbers: dict, message: str):
    with pytest.raises(InputError, match=message):
        Delivery(**numbers)


def test_a_delivery_by_name_by_length_or_as_it_is():
    assert choose() is EXACT
    assert choose("low") is LOW
    assert choose(chunk_ms=400) == Delivery(10, 10, 10)
    assert choose(chunk_ms=1) == Delivery(1, 1, 1)
    assert choose(delivery=STEADY) is STEADY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": "lowest"}, "latency is 'lowest': it must be exact or low"),
        ({"latency": "low", "chunk_ms": 200}, "one of latency, chunk_ms and delivery"),
        ({"chunk_ms": 200, "delivery": EXACT}, "one of latency, chunk_ms and delivery"),
        ({"chunk_ms": float("nan")}, "chunk_ms is nan"),
        ({"chunk_ms": 0}, "chunk_ms is 0"),
    ],
)
def test_a_choice_that_is_none_is_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        choose(**options)
