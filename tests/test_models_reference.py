"""The talker against transformers' own, on random checkpoints in every layout."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.dump_golden import random_prompt
from convert.layouts import LAYOUTS
from convert.reference import TransformersTalker
from convert.tiny import write_checkpoint
from mlx_higgs.evaluate.parity import embed_golden, parity
from mlx_higgs.loading import load_model

pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")

FRAMES = 60


@pytest.mark.parametrize("weights", LAYOUTS)
@pytest.mark.parametrize("config", LAYOUTS)
def test_logits_and_greedy_rows_equal_the_reference(tmp_path: Path, seed: int, config, weights):
    folder = tmp_path / "checkpoint"
    write_checkpoint(
        folder, seed=seed, config_layout=config, weight_layout=weights, shards=1 + seed % 3
    )
    talker = TransformersTalker(folder)
    prompt = random_prompt(talker.config, seed)
    audio, text = talker.prefill(prompt)
    assert text is not None
    golden = {
        "input_ids": np.array(prompt.ids, np.int32),
        "audio_rows": np.array(prompt.rows, np.int32),
        "audio_logits": audio.numpy(),
        "text_logits": text.numpy(),
        "greedy_rows": np.array(talker.greedy(prompt, FRAMES), np.int32),
    }
    save_file(golden, tmp_path / "golden.safetensors")
    report = parity(folder, tmp_path / "golden.safetensors")
    assert report.max_abs <= 1e-4
    assert report.text_max_abs is not None
    assert report.text_max_abs <= 1e-4
    assert report.regret <= 1e-4
    assert report.greedy_rows_equal


def test_cached_steps_equal_the_reference_forward(tmp_path: Path, seed: int):
    """The prompt position by position through the cache: every logit, not only the last."""
    write_checkpoint(tmp_path / "checkpoint", seed=seed)
    talker = TransformersTalker(tmp_path / "checkpoint")
    prompt = random_prompt(talker.config, seed)
    reference, _ = talker.prefill(prompt)
    model = load_model(tmp_path / "checkpoint")
    ids, rows = np.array(prompt.ids), np.array(prompt.rows)
    x, is_audio = embed_golden(model, ids, rows)
    cache = model.make_cache()
    steps = [
        model.audio_logits(model.hidden(x[:, t : t + 1], cache, is_audio[:, t : t + 1]))[0]
        for t in range(x.shape[1])
    ]
    assert np.abs(np.array(mx.concatenate(steps)) - reference.numpy()).max() <= 1e-4
