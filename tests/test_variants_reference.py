"""Every v2 variant against Boson's own ``HiggsAudioModel``, on random checkpoints.

``HIGGS_AUDIO`` names a checkout of github.com/boson-ai/higgs-audio:

    HIGGS_AUDIO=FOLDER python -m pytest tests/test_variants_reference.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.boson_repo import BosonTalker
from convert.dump_golden import random_prompt
from convert.tiny_variants import VARIANTS, write_variant
from mlx_higgs.evaluate.parity import embed_golden, parity
from mlx_higgs.loading import load_model

torch = pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")
REPO = os.environ.get("HIGGS_AUDIO")
pytestmark = pytest.mark.skipif(not REPO, reason="no checkout of boson-ai/higgs-audio: HIGGS_AUDIO")

FRAMES = 40
# float32 noise is 7e-6 on logits of a std near 2
TOLERANCE = 1e-4


@pytest.fixture(params=VARIANTS)
def folder(request, tmp_path: Path, seed: int) -> Path:
    write_variant(tmp_path / "checkpoint", request.param, seed=seed)
    return tmp_path / "checkpoint"


@pytest.fixture
def talker(folder: Path) -> BosonTalker:
    return BosonTalker(folder, Path(REPO or ""))


def test_logits_and_greedy_rows_equal_the_reference(folder: Path, talker: BosonTalker, seed: int):
    """The rows are those of its own ``_sample``."""
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
    save_file(golden, folder / "golden.safetensors", {"machine": talker.machine})
    report = parity(folder, folder / "golden.safetensors")
    assert report.max_abs <= TOLERANCE
    assert report.text_max_abs is not None
    assert report.text_max_abs <= TOLERANCE
    assert report.regret <= TOLERANCE
    assert report.greedy_rows_equal


def test_hidden_states_equal_the_reference(folder: Path, talker: BosonTalker, seed: int):
    prompt = random_prompt(talker.config, seed)
    states = talker._forward(**talker._inputs(prompt)).hidden_states
    model = load_model(folder)
    x, is_audio = embed_golden(model, np.array(prompt.ids), np.array(prompt.rows))
    assert np.abs(np.array(x) - states[0].numpy()).max() <= TOLERANCE
    h = model.hidden(x, model.make_cache(), is_audio)
    assert np.abs(np.array(h) - states[-1].numpy()).max() <= TOLERANCE


def test_words_after_speech_equal_the_reference(folder: Path, talker: BosonTalker, seed: int):
    """Frames and then words, one by one through both caches: what was spoken is kept as there."""
    rng = np.random.default_rng(seed)
    prompt = random_prompt(talker.config, seed)
    K = talker.config.num_codebooks
    fed: list[Any] = [*rng.integers(0, 16, (4, K)), *rng.integers(0, 60, 3), rng.integers(0, 16, K)]
    model = load_model(folder, text_head=True)
    cache = model.make_cache()
    x, is_audio = embed_golden(model, np.array(prompt.ids), np.array(prompt.rows))
    model.hidden(x, cache, is_audio)
    out = talker._forward(**talker._inputs(prompt))
    mask = out.audio_in_discrete_codes_mask | out.audio_out_mask
    for item in fed:
        out, mask = _boson_step(talker, item, out, mask)
        spoken = np.ndim(item) == 1
        x = model.embed_rows(mx.array(item)[None]) if spoken else model.embed_ids(np.array([item]))
        h = model.hidden(x[None], cache, np.array([[spoken]]))
        assert np.abs(np.array(model.text_logits(h[0])) - out.logits[0].numpy()).max() <= TOLERANCE
        if spoken:
            ours = np.array(model.audio_logits(h[0]))
            assert np.abs(ours - out.audio_logits.numpy()).max() <= TOLERANCE


def _boson_step(talker: BosonTalker, item: Any, out: Any, mask: Any) -> tuple[Any, Any]:
    """One position more: a row ``[K]`` or a token id."""
    spoken = np.ndim(item) == 1
    inputs = {}
    if spoken:
        inputs = {
            "audio_out_ids": torch.tensor(item)[:, None],
            "audio_out_ids_start": torch.tensor([0]),
        }
    out = talker._forward(
        input_ids=torch.tensor([[talker.config.audio_token_id if spoken else int(item)]]),
        attention_mask=torch.ones(1, mask.shape[1] + 1, dtype=torch.long),
        past_key_values=out.past_key_values,
        cache_audio_discrete_codes_mask=mask,
        **inputs,
    )
    new = out.audio_in_discrete_codes_mask | out.audio_out_mask
    return out, torch.cat([mask, new], dim=1)


def test_what_it_freezes_in_part_is_read_back(folder: Path, talker: BosonTalker, seed: int):
    """A checkpoint saved after ``freeze_llm`` and ``freeze_text_head``, split where they split."""
    whole = load_model(folder, text_head=True)
    talker.model.freeze_llm(freeze_embed_until_idx=1 + seed % 80)
    talker.model.freeze_text_head(1 + seed % 70)
    split = {name: tensor.numpy() for name, tensor in talker.model.state_dict().items()}
    assert sum("_frozen." in name for name in split) == 2
    save_file(split, folder / "model.safetensors")
    found = load_model(folder, text_head=True)
    ids = np.arange(90)
    assert mx.array_equal(found.embed_ids(ids), whole.embed_ids(ids))
    h = mx.random.normal((2, 32), key=mx.random.key(seed))
    assert mx.array_equal(found.text_logits(h), whole.text_logits(h))


def test_layers_of_the_decoder_projector_fail_there_too(tmp_path: Path, seed: int):
    """Why ``audio_decoder_proj_num_layers`` is refused: its code has no such layers any more."""
    write_variant(tmp_path, "stack", seed=seed)
    talker = BosonTalker(tmp_path, Path(REPO or ""))
    talker.model.config.audio_decoder_proj_num_layers = 1
    with pytest.raises(AttributeError, match="rotary_emb"):
        talker.prefill(random_prompt(talker.config, seed))
