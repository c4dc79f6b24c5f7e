"""Laws of the loop: seeds, prefix reuse, host reads, and how a stream ends."""

from __future__ import annotations

from typing import get_args

import mlx.core as mx
import numpy as np
import pytest
from tiny_model import tiny_model

from mlx_higgs import frames
from mlx_higgs.batch import Batch
from mlx_higgs.delay import DelayPattern
from mlx_higgs.frames import Rows
from mlx_higgs.models.v2 import Model
from mlx_higgs.prefix import Prefix
from mlx_higgs.ranks import ALONE
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.step import Loop
from mlx_higgs.types import Audio, GenerationError, InputError, Prompt, Text

LOOPS = get_args(Loop)
PROMPT: Prompt = [Text([3, 1, 4, 1, 5])]


def params(seed: int = 0, **choices) -> SamplingParams:
    return SamplingParams(**{"max_frames": 40, "seed": seed, **choices})


def rows_of(model: Model, prompt: Prompt, chosen: SamplingParams, **options):
    stream = Rows(model, prompt, chosen, **options)
    return np.stack(list(stream)), stream.stop_reason


def without_eos(model: Model) -> Model:
    """A talker that never ends by itself."""
    eos = mx.arange(model.args.codebook_vocab) == model.args.audio_stream_eos_id
    logits = model.audio_logits
    model.audio_logits = lambda h: mx.where(eos, -1e9, logits(h))
    return model


def test_a_stream_starts_with_bos_and_wakes_one_codebook_a_row(seed: int):
    rows, _ = rows_of(without_eos(tiny_model(seed)), PROMPT, params(seed))
    assert (rows[0] == 20).all()
    for step in range(1, 4):
        assert (rows[step][step:] == 20).all()


def test_a_seed_repeats_and_another_differs(seed: int):
    model = without_eos(tiny_model(seed))
    first, _ = rows_of(model, PROMPT, params(seed))
    again, _ = rows_of(model, PROMPT, params(seed))
    other, _ = rows_of(model, PROMPT, params(seed + 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_cap_cuts_and_says_so(seed: int):
    model = without_eos(tiny_model(seed))
    for cap in (1, 2, 17):
        rows, reason = rows_of(model, PROMPT, params(seed, temperature=0, max_frames=cap))
        assert (len(rows), reason) == (cap, "length")
    long, _ = rows_of(model, PROMPT, params(seed, temperature=0, ras_window=0))
    short, _ = rows_of(model, PROMPT, params(seed, temperature=0, ras_window=0, max_frames=9))
    assert np.array_equal(long[:9], short)


def test_the_loop_equals_full_forwards(seed: int):
    """Greedy rows step by step, each from a forward over everything so far, without a cache."""
    model = without_eos(tiny_model(seed))
    rows, _ = rows_of(model, PROMPT, params(temperature=0, ras_window=0, max_frames=25))
    x, is_audio = model.embed_prompt(PROMPT)
    pattern: DelayPattern = model.delay
    state = pattern.start()
    made = [mx.full((4,), 20, dtype=mx.int32)]
    for _ in range(24):
        speech = model.embed_rows(mx.stack(made))[None]
        mask = np.concatenate([is_audio, np.ones((1, len(made)), bool)], axis=1)
        h = model.hidden(mx.concatenate([x, speech], axis=1), model.make_cache(), mask)
        best = mx.argmax(model.audio_logits(h[:, -1]), axis=-1).astype(mx.int32)
        row, state = pattern.advance(best, state)
        made.append(row[0])
    assert np.array_equal(rows, np.array(mx.stack(made)))


def test_a_prefilled_prefix_changes_nothing(seed: int):
    model = without_eos(tiny_model(seed))
    codes = mx.random.randint(0, 20, (6, 4), key=mx.random.key(seed))
    prefix: Prompt = [Text([1, 2]), Audio(codes), Text([7, 8])]
    whole, _ = rows_of(model, [*prefix, *PROMPT], params(seed))
    cache = model.make_cache()
    x, is_audio = model.embed_prompt(prefix)
    model.hidden(x, cache, is_audio)
    known = Prefix(len(prefix), cache)
    for _ in range(2):  # the second finds it as the first did
        reused, _ = rows_of(model, [*prefix, *PROMPT], params(seed), prefix=known)
        assert np.array_equal(whole, reused)


def test_the_ras_window_spans_the_spoken_reference_only(seed: int, monkeypatch):
    model = tiny_model(seed)
    seen = []

    def spy(rows, chosen, codebook_size):
        seen.append(np.array(rows))

    monkeypatch.setattr(frames, "start_window", spy)
    codes = mx.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    list(Rows(model, [Audio(codes, spoken=False), *PROMPT], params(max_frames=1)))
    list(Rows(model, [Audio(codes), *PROMPT], params(max_frames=1)))
    everything = params(max_frames=1, machine="transformers")
    list(Rows(model, [Audio(codes, spoken=False), *PROMPT], everything))
    assert seen[0].tolist() == [[20] * 4]
    assert np.array_equal(seen[2], seen[1])
    assert np.array_equal(seen[1][:-1], np.array(model.delay.apply(codes)))


class Scripted:
    """A talker that says what it is told; counts what the host reads."""

    ranks = ALONE

    def __init__(self, script: list[list[int]], logit: float = 50.0):
        self.delay = DelayPattern(3, 8, 9, edge_frames=1)
        self._script, self._logit = iter(script), logit

    def make_cache(self):
        return []

    def embed_prompt(self, prompt):
        return mx.zeros((1, 1, 1)), np.zeros((1, 1), bool)

    def embed_rows(self, rows):
        return mx.zeros((1, 1, 1))

    def hidden(self, x, cache, is_audio=None):
        return x

    def audio_logits(self, h):
        row = next(self._script, [1, 2, 3])
        return mx.where(mx.arange(10) == mx.array([row])[..., None], self._logit, 0.0)


def run_script(script: list[list[int]], **options):
    stream = Rows(Scripted(script), PROMPT, params(temperature=0, ras_window=0), **options)
    return [row.tolist() for row in stream], stream.stop_reason


def test_an_eos_ramps_out_and_ends_the_stream():
    talk = [[1, 1, 1], [2, 2, 2], [3, 3, 3], [9, 4, 4], [5, 9, 5], [6, 6, 9], [7, 7, 7]]
    rows, reason = run_script(talk)
    assert reason == "eos"
    assert rows == [[8, 8, 8], [1, 8, 8], [2, 2, 8], [3, 3, 3], [9, 4, 4], [9, 9, 5], [9, 9, 9]]


def test_one_row_again_and_again_is_stopped_unless_allowed():
    rows, reason = run_script([[1, 2, 3]] * 40, max_identical_rows=5)
    assert reason == "repetition"
    assert len(rows) == 3 + 5
    rows, reason = run_script([[1, 2, 3]] * 40, max_identical_rows=0)
    assert (len(rows), reason) == (40, "length")


def test_logits_that_are_no_numbers_are_an_error():
    with pytest.raises(GenerationError, match="not a number"):
        list(Rows(Scripted([[1, 1, 1]], logit=float("nan")), PROMPT, params()))


def test_the_host_reads_each_row_once_and_one_frame_late(monkeypatch):
    """Every frame but the last is launched before the one before it is read."""
    events: list[str] = []
    launch, read = mx.async_eval, np.array
    monkeypatch.setattr(frames.mx, "async_eval", lambda *a: (events.append("launch"), launch(*a)))

    def reading(value, *args, **kwargs):
        if isinstance(value, mx.array):
            events.append("read")
        return read(value, *args, **kwargs)

    monkeypatch.setattr(frames.np, "array", reading)
    count = len(list(Rows(Scripted([]), PROMPT, params(max_frames=10))))
    assert events == ["launch", *["launch", "read"] * count]


def test_every_loop_makes_the_same_rows(seed: int):
    """Across a bucket of positions, with a clip in the prompt, until the model ends by itself."""
    model = tiny_model(seed)
    codes = mx.random.randint(0, 20, (200, 4), key=mx.random.key(seed))
    prompt: Prompt = [Text([1, 2]), Audio(codes), *PROMPT]
    for chosen in (
        params(seed, max_frames=80),
        params(seed, temperature=0, machine="transformers"),
    ):
        made = {loop: rows_of(model, prompt, chosen, loop=loop) for loop in LOOPS}
        alone = Batch(model).join(prompt, chosen)
        made["batch of one"] = (np.stack(list(alone)), alone.stop_reason)
        rows, reason = made.pop("eager")
        for other, why in made.values():
            assert np.array_equal(rows, other)
            assert why == reason


def test_a_compiled_loop_sees_weights_that_were_replaced(seed: int):
    model, chosen = without_eos(tiny_model(seed)), params(seed)
    first, _ = rows_of(model, PROMPT, chosen, loop="compiled")
    head = model.audio_decoder_proj.audio_lm_head
    head.weight = mx.random.normal(head.weight.shape, key=mx.random.key(seed))
    again, _ = rows_of(model, PROMPT, chosen, loop="compiled")
    assert not np.array_equal(first, again)
    assert np.array_equal(again, rows_of(model, PROMPT, chosen, loop="eager")[0])


def test_closed_rows_end(seed: int):
    rows = Rows(without_eos(tiny_model(seed)), PROMPT, params(seed))
    rows.close()
    assert list(rows) == []
    rows = Rows(without_eos(tiny_model(seed)), PROMPT, params(seed))
    for count, _ in enumerate(rows, 1):
        if count == 3:
            rows.close()
    assert count == 3


def test_another_loop_is_refused(seed: int):
    with pytest.raises(InputError, match="no loop 'fast'"):
        Rows(tiny_model(seed), PROMPT, params(), loop="fast")


def test_rows_need_a_seed(seed: int):
    with pytest.raises(ValueError, match="seed"):
        Rows(tiny_model(seed), PROMPT, SamplingParams())
