"""Loss and gradients against transformers and torch: every tensor of a padded batch."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

torch = pytest.importorskip("torch", reason="the reference gates need torch")
transformers = pytest.importorskip("transformers", reason="the reference gates need transformers")

from test_train_loss import GOLDEN, random_samples  # noqa: E402

from convert.tiny import write_checkpoint  # noqa: E402 (needs torch)
from mlx_higgs.loading import load_model  # noqa: E402
from mlx_higgs.train.batches import collate  # noqa: E402
from mlx_higgs.train.loss import Weights, sums  # noqa: E402
from mlx_higgs.train.samples import IGNORED, ROW, Sample  # noqa: E402


def reference(folder: Path, samples: list[Sample]) -> tuple[float, dict[str, np.ndarray]]:
    """transformers' loss of the batch, padded its way, and its gradients by our names' values."""
    model = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(
        folder, use_text_head=True, dtype=torch.float32, attn_implementation="eager"
    ).train()
    S, R = max(map(len, samples)), max(len(sample.rows) for sample in samples)
    K, token = samples[0].rows.shape[1], model.config.audio_token_id
    B = len(samples)
    ids, labels = np.zeros((B, S), np.int64), np.full((B, S), IGNORED)
    rows, row_labels = np.zeros((B, R, K), np.int64), np.full((B, R, K), IGNORED)
    seen, there = np.zeros((B, S), np.int64), np.zeros((B, R), bool)
    for i, sample in enumerate(samples):
        ids[i, : len(sample)] = np.where(sample.ids == ROW, token, sample.ids)
        labels[i, : len(sample)], seen[i, : len(sample)] = sample.text_labels, 1
        count = len(sample.rows)
        rows[i, :count], row_labels[i, :count] = sample.rows, sample.audio_labels
        there[i, :count] = True
    out = model(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(seen),
        audio_input_ids=torch.tensor(rows),
        audio_input_ids_mask=torch.tensor(there),
        labels=torch.tensor(labels),
        audio_labels=torch.tensor(row_labels),
        use_cache=False,
    )
    out.loss.backward()
    named = model.named_parameters()
    return out.loss.item(), {name: p.grad.numpy() for name, p in named if p.grad is not None}


def test_loss_and_every_gradient_of_a_padded_batch(tmp_path: Path, seed: int):
    write_checkpoint(tmp_path, seed=seed)
    model = load_model(tmp_path, text_head=True)
    samples = without_marks(random_samples(model, seed, 3), model, tmp_path)
    loss, expected = reference(tmp_path, samples)
    batch = collate(samples)
    weights = Weights((1.0,) * model.delay.num_codebooks, audio_loss="sum")
    books, text = weights.of_targets([batch])

    def objective(model):
        by_book, by_text = sums(model, batch, mx.array(batch.rows))
        return mx.sum(by_book * books) + by_text * text

    found, gradients = nn.value_and_grad(model, objective)(model)
    assert found.item() == pytest.approx(loss, rel=1e-5)
    ours = dict(tree_flatten(gradients))
    renamed = model.sanitize({name: mx.array(array) for name, array in expected.items()})
    assert renamed.keys() == ours.keys(), "every tensor has a gradient in both"
    for name, gradient in renamed.items():
        exact = np.array(gradient, np.float64)
        error = np.linalg.norm(np.array(ours[name], np.float64) - exact) / np.linalg.norm(exact)
        # measured: at most 2e-6, the rounding of sums of a hundred positions in another order
        assert error < 1e-5, f"{name}: {error:.1e}"


def without_marks(samples: list[Sample], model, folder: Path) -> list[Sample]:
    """Words that are neither the reference's marks of rows nor its padding.

    torch keeps an embedding's padding row as it is: its gradient there is 0 whatever was read.
    """
    padding = json.loads((folder / "config.json").read_text())["pad_token_id"]
    marks = [*model.args.placeholder_ids, padding]
    for sample in samples:
        sample.ids[np.isin(sample.ids, marks)] = 1
        sample.text_labels[np.isin(sample.text_labels, marks)] = 1
    return samples


@pytest.mark.parametrize(
    ("labels", "result"), [("", "reference_labels"), ("_hf", "hf_processor_labels")]
)
def test_the_golden_is_what_transformers_answers(labels, result):
    """tests/golden/golden_loss.json, made again: its model, its labels, its loss."""
    config = {**GOLDEN["config"], "rope_parameters": GOLDEN["rope"]}
    model = transformers.HiggsAudioV2ForConditionalGeneration(
        transformers.HiggsAudioV2Config(**config, attn_implementation="eager"), use_text_head=True
    )
    random = np.random.RandomState(0)
    weights = {}
    for name, weight in sorted(model.state_dict().items()):
        noise = random.standard_normal(tuple(weight.shape)).astype(np.float32)
        weights[name] = torch.tensor(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    assert list(weights) == GOLDEN["param_order"]
    model.load_state_dict(weights)
    rows = torch.tensor(GOLDEN["audio_input_ids"])
    out = model(
        input_ids=torch.tensor(GOLDEN["input_ids"]),
        audio_input_ids=rows,
        audio_input_ids_mask=torch.ones(rows.shape[:2], dtype=torch.bool),
        labels=torch.tensor(GOLDEN["labels" + labels]),
        audio_labels=torch.tensor(GOLDEN["audio_labels" + labels]),
        use_cache=False,
    )
    assert out.loss.item() == pytest.approx(GOLDEN["results"][result]["loss"], rel=1e-6)
