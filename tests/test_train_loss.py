"""The loss: equal to the reference's, whatever stands beside a sample."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_model import tiny_model

from mlx_higgs.delay import DelayPattern
from mlx_higgs.loading import build_model
from mlx_higgs.train.batches import Batch, Schedule, collate, epoch_batches, in_order, with_noise
from mlx_higgs.train.loss import Weights, cross_entropy, hidden, sums
from mlx_higgs.train.samples import IGNORED, ROW, Sample, row_labels

# transformers' own loss of a random model whose weights numpy draws, by transformers 5.23 and
# torch 2.13. `reference_labels` are Boson's collator's.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "golden_loss.json").read_text())
EIGHT = (1.0,) * 8


def golden_model():
    """The golden's model: its weights are drawn in the order of the reference's names."""
    config = {**GOLDEN["config"], "model_type": "higgs_audio_v2", "hidden_act": "silu"}
    model = build_model({**config, "rope_parameters": GOLDEN["rope"]}, text_head=True)
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    random = np.random.RandomState(0)
    weights = {}
    for name in GOLDEN["param_order"]:
        (ours,) = model.sanitize({name: mx.array(0.0)})
        noise = random.standard_normal(shapes[ours]).astype(np.float32)
        weights[ours] = mx.array(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    model.load_weights(list(weights.items()))
    return model


def golden_sample(labels: str = "") -> Sample:
    ids = np.array(GOLDEN["input_ids"][0], np.int32)
    placeholders = [GOLDEN["config"]["audio_token_id"], GOLDEN["config"]["audio_delay_token_id"]]
    return Sample(
        np.where(np.isin(ids, placeholders), ROW, ids),
        np.array(GOLDEN["audio_input_ids"][0], np.int16),
        np.array(GOLDEN["labels" + labels][0], np.int32),
        np.array(GOLDEN["audio_labels" + labels][0], np.int16),
    )


def loss_of(model, batch, weights: Weights) -> float:
    books, text = weights.of_targets([batch])
    by_book, by_text = sums(model, batch, mx.array(batch.rows))
    return float(mx.sum(by_book * books) + by_text * text)


@pytest.mark.parametrize(
    ("labels", "result"), [("", "reference_labels"), ("_hf", "hf_processor_labels")]
)
def test_loss_is_the_references(labels, result):
    expected, model = GOLDEN["results"][result], golden_model()
    batch = collate([golden_sample(labels)])
    # measured: 1e-6 of the total, which is float32 rounding of a value of 31
    assert loss_of(model, batch, Weights(EIGHT, audio_loss="sum")) == pytest.approx(
        expected["loss"], abs=1e-5
    )
    mean = Weights(EIGHT, text=0.0)
    assert loss_of(model, batch, mean) == pytest.approx(expected["audio_mean"], abs=1e-5)
    by_book, by_text = sums(model, batch, mx.array(batch.rows))
    np.testing.assert_allclose(
        np.array(by_book) / batch.audio_counts, expected["audio_per_codebook"], atol=1e-5
    )
    assert by_text.item() / batch.text_count == pytest.approx(expected["text_loss"], abs=1e-5)
    assert batch.audio_counts.sum() == expected["n_audio_labels"]
    assert batch.text_count == expected["n_text_labels"]


@pytest.mark.parametrize(
    ("labels", "result"), [("", "reference_labels"), ("_hf", "hf_processor_labels")]
)
def test_gradients_are_the_references(labels, result):
    model, weights = golden_model(), Weights(EIGHT, audio_loss="sum")
    batch = collate([golden_sample(labels)])
    books, text = weights.of_targets([batch])

    def objective(model):
        by_book, by_text = sums(model, batch, mx.array(batch.rows))
        return mx.sum(by_book * books) + by_text * text

    gradients = dict(tree_flatten(nn.value_and_grad(model, objective)(model)[1]))
    for name, expected in GOLDEN["results"][result]["grad_norms"].items():
        (ours,) = model.sanitize({name: mx.array(0.0)})
        found = mx.linalg.norm(gradients[ours]).item()
        assert found == pytest.approx(expected, rel=1e-5), name


# -- batches -----------------------------------------------------------------------------------


def random_sample(model, random, frames: int, words: int) -> Sample:
    """Words, a heard clip, words, a learnt clip, two learnt tokens."""
    delay, vocab = model.delay, model.args.vocab_size
    ids, rows, text, audio = [], [], [], []
    for count, trained in ((1 + frames // 2, False), (frames, True)):
        before = random.integers(0, vocab, words).tolist()
        codes = random.integers(0, delay.codebook_size, (count, delay.num_codebooks))
        rows.append(np.array(delay.apply(mx.array(codes))))
        audio.append(row_labels(codes, delay, trained))
        after = random.integers(0, vocab, 2).tolist()
        ids += [*before, *[ROW] * len(rows[-1]), *after]
        text += [IGNORED] * (len(before) + len(rows[-1])) + (after if trained else [IGNORED] * 2)
    return Sample(
        np.array(ids, np.int32),
        np.concatenate(rows).astype(np.int16),
        np.array(text, np.int32),
        np.concatenate(audio).astype(np.int16),
    )


def random_samples(model, seed: int, count: int) -> list[Sample]:
    random = np.random.default_rng(seed)
    return [
        random_sample(model, random, int(random.integers(1, 12)), int(random.integers(2, 9)))
        for _ in range(count)
    ]


def scores(model, batch: Batch) -> tuple[np.ndarray, float]:
    books, text = sums(model, batch, mx.array(batch.rows))
    return np.array(books), float(text)


def test_a_padded_batch_scores_as_its_samples_alone(seed):
    model = tiny_model(seed, text_head=True)
    samples = random_samples(model, seed, 4)
    together = scores(model, collate(samples))
    alone = [scores(model, collate([sample])) for sample in samples]
    np.testing.assert_allclose(together[0], sum(books for books, _ in alone), rtol=1e-5)
    assert together[1] == pytest.approx(sum(text for _, text in alone), rel=1e-5)


def test_the_golden_beside_another_sample(seed):
    """The loss of a batch is the mean over all targets, not over samples."""
    model = golden_model()
    golden, other = golden_sample(), random_sample(model, np.random.default_rng(seed), 9, 30)
    batch, alone = collate([golden, other]), collate([other])
    expected, beside = GOLDEN["results"]["reference_labels"], scores(model, alone)
    books = np.array(expected["audio_per_codebook"]) * 5 + beside[0]
    text = expected["text_loss"] * 3 + beside[1]
    total = (books / batch.audio_counts).sum() + text / batch.text_count
    found = loss_of(model, batch, Weights(EIGHT, audio_loss="sum"))
    assert found == pytest.approx(total, abs=1e-5)


def test_nothing_looks_at_padding(seed):
    model = tiny_model(seed, text_head=True)
    short, long = sorted(random_samples(model, seed, 8), key=len)[::7]
    batch = collate([short, long])
    h = hidden(model, batch, mx.array(batch.rows))
    batch.ids[len(short) : len(long)] = 7  # what stands in the padding of the first
    changed = hidden(model, batch, mx.array(batch.rows))
    kept = np.r_[: len(short), len(long) : 2 * len(long)]
    assert mx.array_equal(h[mx.array(kept)], changed[mx.array(kept)])
    scored = [*batch.audio_from, *batch.text_from]
    assert not set(scored) & set(range(len(short), len(long)))


def test_each_target_is_predicted_from_the_position_before(seed):
    model = tiny_model(seed, text_head=True)
    (sample,) = random_samples(model, seed, 1)
    batch = collate([sample])
    h = hidden(model, batch, mx.array(batch.rows))
    audio, text = np.array(model.audio_logits(h)), np.array(model.text_logits(h))
    books, row = np.zeros(model.delay.num_codebooks), 0
    words = 0.0
    for position, (token, label) in enumerate(zip(sample.ids, sample.text_labels, strict=True)):
        if token == ROW:
            for k, code in enumerate(sample.audio_labels[row]):
                if code != IGNORED:
                    books[k] += surprise(audio[position - 1, k], code)
            row += 1
        elif label != IGNORED:
            words += surprise(text[position - 1], label)
    found = scores(model, batch)
    np.testing.assert_allclose(found[0], books, rtol=1e-4)
    assert found[1] == pytest.approx(words, rel=1e-4)


def surprise(logits: np.ndarray, target: int) -> float:
    logits = logits.astype(np.float64)
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])


def test_without_edge_frames_the_first_row_is_predicted_from_the_word_before():
    delay = DelayPattern(2, 6, 7, edge_frames=0)
    codes = np.array([[1, 2], [3, 4]])
    labels = row_labels(codes, delay)
    ids = np.array([5, *[ROW] * len(labels), 5], np.int32)
    rows = np.array(delay.apply(mx.array(codes)))
    batch = collate([Sample(ids, rows, np.full(len(ids), IGNORED), labels)])
    assert batch.audio_from.tolist() == [0, 1, 2]
    assert batch.audio_targets.tolist() == [[1, IGNORED], [3, 2], [7, 4]]


def test_cross_entropy_survives_large_logits_and_ignores(seed):
    logits = mx.array([[1000.0, 0.0], [-1000.0, 0.0], [3.0, 3.0]])
    found = cross_entropy(logits, mx.array([0, 0, IGNORED]))
    np.testing.assert_allclose(np.array(found), [0.0, 1000.0, 0.0])


# -- weights -----------------------------------------------------------------------------------


def test_weights_add_the_parts(seed):
    model = tiny_model(seed, text_head=True)
    batch = collate(random_samples(model, seed, 3))
    books, text = scores(model, batch)
    books, text = books / batch.audio_counts, text / batch.text_count
    factors = tuple(np.random.default_rng(seed).uniform(0, 2, 4).tolist())
    summed = Weights(factors, text=0.3, audio=0.7, audio_loss="sum")
    expected = 0.7 * float(np.dot(factors, books)) + 0.3 * text
    assert loss_of(model, batch, summed) == pytest.approx(expected, rel=1e-5)
    assert summed.total(books, text) == pytest.approx(expected, rel=1e-6)
    mean = Weights(factors, text=0.0)
    assert loss_of(model, batch, mean) == pytest.approx(np.dot(factors, books) / 4, rel=1e-5)


def test_without_text_the_head_is_not_run(seed):
    model = tiny_model(seed)  # has none
    batch = collate(random_samples(model, seed, 2))
    _, text = sums(model, batch, mx.array(batch.rows), text=False)
    assert text.item() == 0


def test_batches_in_turn_add_up_to_one(seed):
    """What accumulation rests on: targets are counted over all batches of an update."""
    model, weights = tiny_model(seed, text_head=True), Weights((1.0, 2.0, 0.5, 1.0))
    samples = random_samples(model, seed, 5)
    parts = [collate(samples[:1]), collate(samples[1:3]), collate(samples[3:])]
    books, text = weights.of_targets(parts)
    total = 0.0
    for batch in parts:
        by_book, by_text = sums(model, batch, mx.array(batch.rows))
        total += float(mx.sum(by_book * books) + by_text * text)
    assert total == pytest.approx(loss_of(model, collate(samples), weights), rel=1e-5)


# -- order -------------------------------------------------------------------------------------


def test_an_epoch_holds_every_sample_once(seed):
    random = np.random.default_rng(seed)
    lengths, size = random.integers(1, 100, random.integers(1, 200)), int(random.integers(1, 9))
    batches = epoch_batches(lengths, size, [seed, 0])
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size


def test_batches_are_alike_in_length(seed):
    lengths = np.random.default_rng(seed).integers(1, 1000, 640)
    spread = [np.ptp(lengths[batch]) for batch in epoch_batches(lengths, 4, [seed, 0])]
    assert np.mean(spread) < 100  # drawn at random, four are 600 apart


def test_the_order_is_the_seeds_and_changes_with_the_epoch(seed):
    model = tiny_model(seed)
    samples = random_samples(model, seed, 7)
    runs = [Schedule(samples, 2, seed) for _ in range(2)]
    forwards = [[id(s) for s in runs[0][n]] for n in range(12)]
    backwards = [[id(s) for s in runs[1][n]] for n in reversed(range(12))]
    assert forwards == backwards[::-1], "a batch does not depend on those before it"
    assert forwards[:4] != forwards[4:8] or forwards[4:8] != forwards[8:]


def test_scoring_takes_samples_in_a_fixed_order_and_spreads_a_limit(seed):
    samples = random_samples(tiny_model(seed), seed, 20)
    batches = in_order(samples, 3)
    assert sum(map(len, batches)) == 20
    few = in_order(samples, 3, 2)
    assert [b is not None for b in few] == [True, True]
    assert [len(s) for s in few[0]] == [len(s) for s in batches[0]]
    assert [len(s) for s in few[1]] == [len(s) for s in batches[-1]]


# -- noise -------------------------------------------------------------------------------------


def test_noise_changes_codes_that_are_seen_and_no_target(seed):
    model = tiny_model(seed)
    batch, size = collate(random_samples(model, seed, 60)), model.delay.codebook_size
    seen = np.array(with_noise(batch, 0.25, size, np.random.default_rng(seed)))
    special = batch.rows >= size
    np.testing.assert_array_equal(seen[special], batch.rows[special])
    assert seen.min() >= 0
    assert seen[~special].max() < size
    changed = (seen != batch.rows)[~special].mean()
    expected = 0.25 * (1 - 1 / size)
    # five standard deviations of a share
    assert abs(changed - expected) < 5 * (0.25 / (~special).sum()) ** 0.5
    none = np.array(with_noise(batch, 0.0, size, np.random.default_rng(seed)))
    np.testing.assert_array_equal(none, batch.rows)
