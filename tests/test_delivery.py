"""The schedule: what is sent when. test_pipeline.py has vLLM-Omni's own hand-overs beside it."""

from __future__ import annotations

from itertools import islice

import pytest

from mlx_higgs.delivery import ALL, EXACT, LOW, STEADY, WHOLE, Delivery, Payload, Schedule, choose
from mlx_higgs.types import InputError

DELAY = 7  # rows, of 8 codebooks


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
