"""What rounding is judged on: the passages, and the divergence over them."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import mlx.core as mx
import numpy as np
import pytest
from tiny_calibration import passages
from tiny_model import tiny_model

from mlx_higgs.calibration.forced import divergence, forced_logits
from mlx_higgs.calibration.passages import (
    draw,
    heard,
    recorded,
    scored_labels,
    split,
    spoken,
)
from mlx_higgs.delay import DelayPattern
from mlx_higgs.train.batches import collate
from mlx_higgs.train.samples import IGNORED, ROW, row_labels
from mlx_higgs.types import Audio, GenerationError, InputError, Text
from mlx_higgs.vocabulary import draw_sentences

CLIPS = Path(__file__).parent.parent / "examples" / "voice_prompts"


@pytest.mark.parametrize("edge", [0, 1])
def test_what_is_scored_of_rows_is_what_is_learnt_of_their_codes(seed, edge):
    rng = np.random.default_rng(seed)
    delay = DelayPattern(4, 20, 21, edge_frames=edge)
    codes = rng.integers(0, 20, (rng.integers(1, 9), 4))
    rows = np.array(delay.apply(mx.array(codes)))
    assert (scored_labels(rows, delay) == row_labels(codes, delay)).all()


def test_a_passage_is_its_prompt_and_its_rows(seed):
    model = tiny_model(seed)
    rng = np.random.default_rng(seed)
    clip, codes = (mx.array(rng.integers(0, 20, (n, 4))) for n in (3, 5))
    rows = np.array(model.delay.apply(codes))
    sample = heard([Text([1, 2]), Audio(clip), Text([3])], rows, model.delay)
    lengths = [model.delay.num_rows(n) for n in (3, 5)]
    assert sample.ids.tolist() == [1, 2, *[ROW] * lengths[0], 3, *[ROW] * lengths[1]]
    assert (sample.audio_labels[: lengths[0]] == IGNORED).all()  # a clip is only heard
    assert (sample.rows[lengths[0] :] == rows).all()
    assert (sample.text_labels == IGNORED).all()


def test_forced_is_what_the_loop_would_have_said(seed):
    """Each scored row's logits are those of the model fed everything before it."""
    model = tiny_model(seed)
    (sample,) = passages(model, seed, 1, 4)
    batch = collate([sample])
    words = sample.ids[sample.ids >= 0]
    cache = model.make_cache()
    h = model.hidden(model.embed_ids(words)[None], cache, np.zeros((1, len(words)), bool))
    said = []
    for row in sample.rows:
        said.append(model.audio_logits(h[:, -1])[0])
        h = model.hidden(model.embed_rows(mx.array(row.astype(np.int32)))[None, None], cache)
    scored = (sample.audio_labels >= 0).any(axis=1)
    expected = np.stack([np.array(logits) for logits in said])[scored]
    # float32 sums in another order: 2e-6 was measured
    np.testing.assert_allclose(np.array(forced_logits(model, batch)), expected, atol=1e-4)


def test_the_company_in_a_batch_changes_nothing(seed):
    model = tiny_model(seed)
    samples = passages(model, seed, 3)
    together = forced_logits(model, collate(samples))
    alone = mx.concatenate([forced_logits(model, collate([sample])) for sample in samples])
    np.testing.assert_allclose(np.array(together), np.array(alone), atol=1e-4)


def test_divergence_is_kullback_and_leibler_s(seed):
    rng = np.random.default_rng(seed)
    known, guessed = rng.normal(0, 3, (2, 5, 4, 22))
    scored = rng.integers(-1, 2, (5, 4))
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (known, guessed))
    expected = np.where(scored >= 0, (p * np.log(p / q)).sum(axis=-1), 0)
    arrays = [mx.array(x.astype(np.float32)) for x in (known, guessed)]
    found = np.array(divergence(*arrays, mx.array(scored)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.array(divergence(arrays[0], arrays[0], mx.array(scored))).any()


def test_the_held_out_are_nobody_s_else(seed):
    samples = passages(tiny_model(0), seed, 9)
    ours, theirs = split(samples, 1 / 4)
    assert len(theirs) == 2
    assert ours + theirs == samples
    assert [len(part) for part in split(samples[:2], 0.9)] == [1, 1]
    with pytest.raises(InputError, match="1 passages are too few"):
        split(samples[:1], 0.5)


def test_drawn_texts(server, seed):
    defaults = server.higgs.defaults
    texts = draw(defaults, 20, seed)
    assert texts == draw(defaults, 20, seed) != draw(defaults, 20, seed + 1)
    assert not set(texts) & set(draw(defaults, 20, seed, exclude=texts))
    assert set(" ".join(texts).split()) <= set(defaults.words)


def test_sentences_are_drawn_where_there_are_no_words(seed):
    texts = draw_sentences(50, seed)
    assert len(set(texts)) == 50
    assert all(text.endswith(".") for text in texts)
    assert not set(texts) & set(draw_sentences(50, seed, exclude=texts))


def test_the_model_s_own_speech(server, seed):
    """The same whatever company it was made in, and what the model finds likely."""
    texts = ["one two three", "the river is cold today", "four five six"]  # one piece each
    samples = spoken(server.higgs, texts, seed=seed)
    again = spoken(server.higgs, texts, seed=seed, max_batch=1)
    assert [s.source for s in samples] == [s.source for s in again]
    assert all((a.rows == b.rows).all() for a, b in zip(samples, again, strict=True))
    said = server.generate(samples[0].source, seed=seed + texts.index(samples[0].source))
    assert said.num_frames_raw == len(samples[0].rows)


def test_speech_that_never_ends_is_no_passage(server, monkeypatch):
    monkeypatch.setattr("mlx_higgs.server.engine.fit", lambda params, *_, **__: _short(params))
    with pytest.raises(GenerationError, match="None of 2 texts was said to its end"):
        spoken(server.higgs, ["one two three", "four five six"])


def _short(params):
    from dataclasses import replace

    return replace(params, max_frames=5)


def test_recordings_are_heard_as_the_model_s_own(server, tmp_path):
    for suffix in (".wav", ".txt"):
        copyfile(CLIPS / f"en_woman{suffix}", tmp_path / f"one{suffix}")
    (sample,) = recorded(server.higgs, tmp_path)
    assert sample.source == "one.wav"
    assert (sample.audio_labels >= 0).any()
    with pytest.raises(InputError, match="There is no sound file in"):
        recorded(server.higgs, _empty(tmp_path / "empty"))
    with pytest.raises(InputError, match="There is no folder"):
        recorded(server.higgs, tmp_path / "nowhere")


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
