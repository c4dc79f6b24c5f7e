"""Laws of the loop that answers in words and speech; test_chat_reference.py has Boson beside it."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scripted import Script, Scripted, stretch
from tiny_model import tiny_model

from mlx_higgs.answer import Answering, Segment, resumed, unfinished
from mlx_higgs.frames import Rows
from mlx_higgs.loading import load_model
from mlx_higgs.prompts.base import Marks
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.step import BROKEN, AudioStep, first_state
from mlx_higgs.types import Audio, GenerationError, InputError, Text

GOLDEN = Path(__file__).parent / "golden"
MARKS = Marks(opens=52, speech=50, closes=53, stops=frozenset({54, 55}), barred=(50, 51))
GREEDY = SamplingParams(temperature=0, ras_window=0, max_frames=60, seed=0)
PROMPT = [Text([1, 2, 3])]


def answered(model, prompt=PROMPT, params=GREEDY, **options) -> tuple[list[int], list[np.ndarray]]:
    """The ids, and the rows of each stretch."""
    answering = Answering(model, prompt, params, MARKS, max_identical_rows=0, **options)
    rows = [np.stack(list(event)) for event in answering if isinstance(event, Segment)]
    return answering.ids, rows


def scripted(model, script: Script, positions: int = 3) -> Scripted:
    return Scripted(model, script, positions)


# -- against recordings of Boson's own generate ---------------------------------------------------

CASES = json.loads((GOLDEN / "chat_cases.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_answers_are_those_that_boson_gave(case):
    """Made by: python convert/dump_chat.py tests/golden/tiny_boson OUT --boson-repo CHECKOUT"""
    model = load_model(GOLDEN / "tiny_boson", text_head=True, dtype="float32")
    marks = Marks(**{**case["marks"], "stops": frozenset(case["marks"]["stops"])})
    begun = mx.array(case["begun"]) if case["begun"] else None
    prompt = [Text(case["prompt"])]
    if case["script"]:
        positions = len(case["prompt"]) + len(case["begun"] or ())
        model = Scripted(model, case["script"], positions)
    params = SamplingParams(temperature=0, ras_window=0, max_frames=case["limit"], seed=0)
    answering = Answering(model, prompt, params, marks, begun=begun, max_identical_rows=0)
    segments = [[row.tolist() for row in e] for e in answering if isinstance(e, Segment)]
    assert (answering.ids, segments) == (case["ids"], case["segments"])


# -- laws -----------------------------------------------------------------------------------------


def test_an_answer_that_opens_with_speech_says_what_speech_alone_says(seed):
    """The rows, drawn, are those of ``Rows`` with the same seed."""
    model = tiny_model(seed, text_head=True)
    params = SamplingParams(max_frames=25, seed=seed)
    prompt = [Text([1, 2, MARKS.opens])]
    rows = np.stack(list(Rows(model, prompt, params, max_identical_rows=0)))
    _, (said, *_) = answered(model, prompt, params)
    assert np.array_equal(said[: len(rows)], rows)


def test_one_seed_one_answer(seed):
    model = tiny_model(seed, text_head=True)
    params = [SamplingParams(max_frames=50, seed=s) for s in (seed, seed, seed + 1)]
    first, again, other = (answered(model, params=p) for p in params)
    assert first[0] == again[0] != other[0]
    assert all(map(np.array_equal, first[1], again[1]))


def test_stretches_are_drawn_apart(seed):
    """Each has a key of its own, as the words have."""
    rng = np.random.default_rng(seed)
    model = tiny_model(seed, text_head=True)
    script = [52, None, *stretch(rng, model.delay), 52, None, *stretch(rng, model.delay), 54]
    params = SamplingParams(temperature=0, seed=seed)
    answering = Answering(scripted(model, script), PROMPT, params, MARKS)
    keys = [event._step.keys for event in answering if isinstance(event, Segment)]
    distinct = {tuple(np.array(key).ravel().tolist()) for key in [*keys, answering._words._key]}
    assert len(distinct) == 3


@pytest.mark.parametrize("cut", [1, 2, 5, 14])
def test_a_stretch_cut_anywhere_goes_on_as_if_it_were_not(seed, cut):
    """In the ramp-in and after it; greedy."""
    model = tiny_model(seed, text_head=True)
    prompt = [Text([1, 2, MARKS.opens])]
    ids, (whole, *_) = answered(model, prompt)
    if len(whole) <= cut or (whole[:cut] == model.delay.eos_id).any():
        pytest.skip("this seed ends its speech before")
    params = SamplingParams(temperature=0, ras_window=0, max_frames=60 - cut, seed=0)
    more, (joined, *_) = answered(model, prompt, params, begun=mx.array(whole[:cut]))
    assert np.array_equal(joined, whole)
    assert more == ids[1:]  # without the placeholder, which the prompt has


def test_codes_go_on_where_their_last_row_ends(seed):
    rng = np.random.default_rng(seed)
    pattern = tiny_model(0).delay
    codes = mx.array(rng.integers(0, pattern.codebook_size, (9, 4)).astype(np.int32))
    rows = unfinished(codes, pattern)
    assert np.array_equal(rows, pattern.apply(codes)[:10])
    assert not (np.array(rows) == pattern.eos_id).any()
    delay = resumed(pattern, rows, first_state(pattern, None)).delay
    assert [part.item() for part in delay] == [4, -1, False]


def test_speech_that_has_ended_is_not_gone_on_with():
    pattern = tiny_model(0).delay
    row = mx.array([[1, 2, 3, pattern.eos_id]])
    with pytest.raises(InputError, match="has ended"):
        resumed(pattern, row, first_state(pattern, None))


def test_what_nobody_reads_is_made_all_the_same(seed):
    """A stretch left unread leaves the words after it as they are."""
    rng = np.random.default_rng(seed)
    model = tiny_model(seed, text_head=True)
    script = [5, 52, None, *stretch(rng, model.delay), 7, 52, None, *stretch(rng, model.delay), 54]
    read = answered(scripted(model, script), params=SamplingParams(temperature=0, seed=0))
    answering = Answering(
        scripted(model, script), PROMPT, SamplingParams(temperature=0, ras_window=0, seed=0), MARKS
    )
    list(answering)
    assert answering.ids == read[0] == [5, 52, 50, 53, 7, 52, 50, 53, 54]
    assert answering.stop_reason == "eos"


def test_the_row_made_ahead_leaves_no_trace(seed):
    """Words after speech: computed with caches, as from the whole prompt at once."""
    rng = np.random.default_rng(seed)
    model = tiny_model(seed, text_head=True)
    speech = stretch(rng, model.delay)
    answering = Answering(scripted(model, [52, None, *speech]), PROMPT, GREEDY, MARKS)
    events = iter(answering)
    next(events)
    rows = np.stack(list(next(events)))
    words = model.embed_ids(np.array([1, 2, 3, 52]))
    x = mx.concatenate(
        [words, model.embed_rows(mx.array(rows[:-1])), model.embed_ids(np.array([53]))]
    )
    is_audio = np.array([[False] * 4 + [True] * (len(rows) - 1) + [False]])
    alone = model.hidden(x[None], model.make_cache(), is_audio)[:, -1:]
    answering._model = model
    assert np.allclose(answering._read(53), alone, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_ids_and_rows_share_one_limit(seed, limit):
    model = tiny_model(seed, text_head=True)
    rows = [[1, 1, 1, 1]] * 9
    params = SamplingParams(temperature=0, ras_window=0, max_frames=limit, seed=0)
    answering = Answering(scripted(model, [52, None, *rows]), PROMPT, params, MARKS)
    made = 0
    for event in answering:
        made += sum(1 for _ in event) if isinstance(event, Segment) else 1
    assert made == limit
    assert answering.stop_reason == "length"


@pytest.mark.parametrize("side", ["text", "audio"])
def test_each_mode_reads_its_own_weights_alone(seed, side):
    """The other side's are no numbers."""
    model = tiny_model(seed, text_head=True)
    own = ("audio", "rotary")
    for name, module in model.named_modules():
        if module.children() or "self_attn" in name or name in ("norm", "embed_tokens"):
            continue
        is_audio = any(part in name for part in own) and "text_lm_head" not in name
        if is_audio == (side == "text") and "weight" in module:
            module.weight = mx.full(module.weight.shape, mx.nan)
    if side == "text":
        answering = Answering(scripted(model, [4, 5, 54]), PROMPT, GREEDY, MARKS)
        assert list(answering) == [4, 5, 54]
    else:
        caches = model.make_cache()
        h = model.hidden(model.embed_rows(mx.array([[[1, 1, 1, 1]]])), caches)
        step = AudioStep.of(model, [GREEDY])
        state = step.after(h, first_state(model.delay, None))
        for _ in range(3):
            state = step(state, caches)
        assert state.report[0, -1].item() != BROKEN


def test_barred_ids_are_never_written(seed):
    model = tiny_model(seed, text_head=True)
    head = model.audio_decoder_proj.text_lm_head
    head.weight = mx.concatenate([mx.zeros((50, 32)), 100 * head.weight[50:52], head.weight[52:]])
    ids, _ = answered(model, params=SamplingParams(max_frames=40, seed=seed))
    assert not {50, 51} & {i for i, before in zip(ids, [0, *ids], strict=False) if before != 52}


def test_no_numbers_are_told(seed):
    model = tiny_model(seed, text_head=True)
    head = model.audio_decoder_proj.text_lm_head
    head.weight = mx.full(head.weight.shape, mx.nan)
    with pytest.raises(GenerationError, match="not a number"):
        list(Answering(model, PROMPT, GREEDY, MARKS))


def test_without_a_text_head_no_word_is_written(seed):
    with pytest.raises(InputError, match="text_head=True"):
        list(Answering(tiny_model(seed), PROMPT, GREEDY, MARKS))


def test_closing_ends_it_within_an_id(seed):
    answering = Answering(tiny_model(seed, text_head=True), PROMPT, GREEDY, MARKS)
    for made, event in enumerate(answering):
        if isinstance(event, Segment):
            list(event)
        if made == 3:
            answering.close()
    assert made <= 4
    assert answering.stop_reason in (None, "eos")


def test_clips_of_a_prompt_are_heard(seed):
    """Repetition-aware sampling looks back over them, and over earlier stretches."""
    model = tiny_model(seed, text_head=True)
    pattern = model.delay
    codes = mx.full((8, 4), 3, mx.int32)
    prompt = [Text([1, MARKS.opens]), Audio(codes), Text([MARKS.closes, MARKS.opens])]
    answering = Answering(model, prompt, SamplingParams(max_frames=9, seed=seed), MARKS)
    window = answering._heard(None)
    assert window is not None
    assert np.array_equal(window[0, :-1], np.array(pattern.apply(codes))[-6:])
    assert (np.array(window[0, -1]) == pattern.bos_id).all()
