"""Laws of the batch: everybody says what they would say alone, whoever comes and goes."""

from __future__ import annotations

import gc

import mlx.core as mx
import numpy as np
import pytest
from tiny_model import tiny_model

from mlx_higgs import batch as batch_module
from mlx_higgs import frames
from mlx_higgs.batch import Batch
from mlx_higgs.frames import Rows, prefill
from mlx_higgs.models.v2 import Model
from mlx_higgs.prefix import Prefix
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.types import Audio, GenerationError, InputError, Prompt, Text

Asked = tuple[Prompt, SamplingParams]


def requests(seed: int, count: int, **choices) -> list[Asked]:
    """Prompts of different lengths, some with a clip, drawn in different ways."""
    rng = np.random.default_rng(seed)
    asked = []
    for number in range(count):
        prompt: Prompt = [Text(rng.integers(0, 30, rng.integers(2, 40)).tolist())]
        if number % 2:
            prompt = [Text([5]), Audio(mx.array(rng.integers(0, 20, (rng.integers(3, 30), 4))))]
            prompt.append(Text([6, number]))
        params = SamplingParams(
            temperature=[0.0, 0.7, 1.2][number % 3],
            top_p=[0.95, 1.0][number % 2],
            top_k=[0, 5, 50][number % 3],
            ras_window=[7, 0, 3][number % 3],
            max_frames=int(rng.integers(8, 40)),
            seed=number,
            **choices,
        )
        asked.append((prompt, params))
    return asked


def alone(model: Model, asked: Asked) -> tuple[list, str | None]:
    rows = Rows(model, *asked, loop="eager")
    return [row.tolist() for row in rows], rows.stop_reason


def test_all_at_once_as_each_alone(seed: int):
    model, asked = tiny_model(seed), requests(seed, 6)
    batch = Batch(model)
    joined = [batch.join(*request) for request in asked]
    for rows, request in zip(joined, asked, strict=True):
        made = [row.tolist() for row in rows]
        assert (made, rows.stop_reason) == alone(model, request)


def test_requests_join_and_leave_at_any_frame(seed: int):
    """Arrivals, departures and cancellations in the middle; more than there is room for."""
    rng = np.random.default_rng(seed)
    model, asked = tiny_model(seed), requests(seed, 9)
    batch, joined, closed = Batch(model, max_rows=3), {}, {2, 5}
    waiting = list(range(9))
    while waiting or not all(rows.ended for rows in joined.values()):
        if waiting and rng.random() < 0.4:
            number = waiting.pop(0)
            joined[number] = batch.join(*asked[number])
        if len(joined) > 5:
            for number in closed & set(joined):
                joined[number].close()
        batch.step()
    for number, rows in joined.items():
        made, (expected, reason) = [row.tolist() for row in rows], alone(model, asked[number])
        if number in closed and len(made) < len(expected):
            assert made == expected[: len(made)]
        else:
            assert (made, rows.stop_reason) == (expected, reason)


def test_a_long_request_outgrows_its_bucket_beside_a_short_one(seed: int):
    model = tiny_model(seed)
    long: Asked = ([Text([1] * 250)], SamplingParams(max_frames=30, seed=1))
    short: Asked = ([Text([2])], SamplingParams(max_frames=20, seed=2))
    batch = Batch(model)
    for rows, request in [(batch.join(*request), request) for request in (long, short)]:
        assert [row.tolist() for row in rows] == alone(model, request)[0]


def test_the_two_machines_take_turns(seed: int):
    model = tiny_model(seed)
    asked = requests(seed, 2) + requests(seed, 2, machine="transformers") + requests(seed, 1)
    batch = Batch(model)
    joined = [batch.join(*request) for request in asked]
    for rows, request in zip(joined, asked, strict=True):
        assert [row.tolist() for row in rows] == alone(model, request)[0]


def test_a_prefix_is_shared(seed: int):
    model = tiny_model(seed)
    voice: Prompt = [Text([1, 2]), Audio(mx.random.randint(0, 20, (9, 4)))]
    known = Prefix(2, prefill(model, voice))
    batch, positions = Batch(model), []
    hidden = model.hidden
    model.hidden = lambda x, *rest: (positions.append(x.shape[1]), hidden(x, *rest))[1]
    asked = [([*voice, Text([n, n])], SamplingParams(max_frames=12, seed=n)) for n in range(3)]
    joined = [batch.join(*request, prefix=known) for request in asked]
    made = [[row.tolist() for row in rows] for rows in joined]
    assert max(positions) == 2
    model.hidden = hidden
    assert made == [alone(model, request)[0] for request in asked]


def test_one_that_is_no_number_stops_alone(seed: int):
    """The others go on; it says so when it is read."""
    model, asked = tiny_model(seed), requests(seed, 3)
    broken: Asked = ([Text([31])], SamplingParams(max_frames=9, seed=0))
    model.embed_tokens.weight[31] = mx.nan
    batch = Batch(model)
    joined = [batch.join(*request) for request in [*asked[:1], broken, *asked[1:]]]
    with pytest.raises(GenerationError, match="not a number"):
        list(joined.pop(1))
    for rows, request in zip(joined, asked, strict=True):
        assert [row.tolist() for row in rows] == alone(model, request)[0]


def test_a_prompt_that_cannot_be_computed_fails_alone(seed: int):
    model, asked = tiny_model(seed), requests(seed, 2)
    batch = Batch(model)
    wrong = batch.join([Text([1, 60])], SamplingParams(max_frames=9, seed=0))
    joined = [batch.join(*request) for request in asked]
    with pytest.raises(InputError, match="Token id 60"):
        list(wrong)
    for rows, request in zip(joined, asked, strict=True):
        assert [row.tolist() for row in rows] == alone(model, request)[0]


def test_what_breaks_a_batch_is_told_to_all_and_does_not_stay(seed: int, monkeypatch):
    """Out of memory while a third prompt is computed: nobody waits for ever, the next ones run."""
    model, asked = tiny_model(seed), requests(seed, 4)
    batch = Batch(model)
    joined = [batch.join(*request) for request in asked[:2]]
    batch.step()
    batch.step()

    def full(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(frames, "read_prompt", full)
        joined.append(batch.join(*asked[2]))
        with pytest.raises(RuntimeError, match="no memory"):
            batch.step()
    for rows in joined:
        with pytest.raises(GenerationError, match="no memory"):
            list(rows)
    later = batch.join(*asked[3])
    assert [row.tolist() for row in later] == alone(model, asked[3])[0]


def test_a_request_can_be_given_up_before_its_turn(seed: int):
    model, asked = tiny_model(seed), requests(seed, 2)
    batch = Batch(model, max_rows=1)
    first, second = (batch.join(*request) for request in asked)
    second.close()
    positions, hidden = [], model.hidden
    model.hidden = lambda x, *rest: (positions.append(x.shape[:2]), hidden(x, *rest))[1]
    list(first)
    batch.step()
    assert list(second) == []
    assert sum(shape[1] > 1 for shape in positions) == 1  # only one prompt was computed


def test_a_closed_batch_says_so_to_those_under_way(seed: int):
    model, asked = tiny_model(seed), requests(seed, 2)
    batch = Batch(model, max_rows=1)
    under_way, waiting = (batch.join(*request) for request in asked)
    batch.step()
    batch.close()
    with pytest.raises(GenerationError, match="closed"):
        list(under_way)
    assert list(waiting) == []


def test_a_batch_keeps_nothing_of_those_who_have_ended(seed: int):
    """Not even in a cycle that waits for the garbage collector."""
    model, (asked,) = tiny_model(seed), requests(seed, 1)
    mx.eval(model.parameters())
    list(Rows(model, *asked))
    gc.collect()
    before = mx.get_active_memory()
    gc.disable()
    try:
        list(Batch(model).join(*asked))
        mx.synchronize()
        assert mx.get_active_memory() <= before + 4096  # a few numbers; the caches are 64 kB
    finally:
        gc.enable()


def test_the_host_reads_once_a_frame_and_a_frame_late(seed: int, monkeypatch):
    """Nothing waits for the device but the frame before the one just launched."""
    events: list[str] = []
    launch, read = mx.async_eval, np.array
    spy = batch_module.mx
    monkeypatch.setattr(spy, "async_eval", lambda *a: (events.append("launch"), launch(*a))[1])

    def reading(value, *args, **kwargs):
        if isinstance(value, mx.array):
            events.append("read")
        return read(value, *args, **kwargs)

    model = tiny_model(seed)
    logits, eos = model.audio_logits, mx.arange(22) == 21
    model.audio_logits = lambda h: mx.where(eos, -1e9, logits(h))  # nobody leaves
    batch = Batch(model)
    for request in requests(seed, 2):
        batch.join(*request)
    batch.step()
    monkeypatch.setattr(batch_module.np, "array", reading)
    events.clear()
    for _ in range(5):
        batch.step()
    assert events == ["launch", "read"] * 5


def test_a_batch_needs_room_and_seeds(seed: int):
    with pytest.raises(InputError, match="batch of 0"):
        Batch(tiny_model(seed), max_rows=0)
    with pytest.raises(ValueError, match="seed"):
        Batch(tiny_model(seed)).join([Text([1])], SamplingParams())
