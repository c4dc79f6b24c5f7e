"""The v3 talker against transformers' Qwen3Model, on random checkpoints of several shapes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from convert.dump_golden import delay, dump_model, random_prompt
from convert.reference import Prompt
from convert.reference_v3 import QwenTalker, Stream
from convert.tiny_v3 import write_v3
from mlx_higgs.delay import DelayPattern
from mlx_higgs.evaluate.parity import embed_golden, parity
from mlx_higgs.loading import load_model
from mlx_higgs.prompts.v3 import PromptBuilder
from mlx_higgs.types import Audio, Text

torch = pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")

FRAMES = 60
LIMIT = 1e-4  # measured: 2e-6 to 8e-6 for logits of a std near 2, sums in another order
SHAPES = {
    "narrow": {"hidden_size": 32, "intermediate_size": 48, "head_dim": 32},  # 128 wide attention
    "one-kv": {"num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 3},
    "other-base": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
}


@pytest.fixture(params=SHAPES)
def shape(request) -> dict:
    return SHAPES[request.param]


def clear(logits: np.ndarray) -> np.ndarray:
    """Where the best lies further ahead than two runs of one model may differ."""
    best = np.sort(logits, axis=-1)
    return best[..., -1] - best[..., -2] > 2 * LIMIT


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= LIMIT
    same = ours.argmax(-1) == theirs.argmax(-1)
    assert same[clear(theirs)].all()
    assert clear(theirs).mean() > 0.98


@pytest.mark.parametrize("tied", [True, False])
def test_every_position_equals_the_reference(tmp_path: Path, seed: int, shape: dict, tied: bool):
    """Words and rows mixed, in one forward and step by step, as stored and as joined."""
    folder = write_v3(tmp_path / "v3", seed=seed, codes=24, tied=tied, **shape)
    talker = QwenTalker(folder)
    prompt = random_prompt(talker.config, seed)
    assert -100 in prompt.ids
    audio, text = talker.prefill(prompt)
    assert text is not None
    audio, text = audio.numpy(), text.numpy()
    model = load_model(folder)
    for _ in ("stored", "joined"):
        x, is_audio = embed_golden(model, np.array(prompt.ids), np.array(prompt.rows))
        whole = model.hidden(x, model.make_cache(), is_audio)[0]
        cache = model.make_cache()
        steps = [
            model.hidden(x[:, t : t + 1], cache, is_audio[:, t : t + 1])[0]
            for t in range(x.shape[1])
        ]
        for h in (whole, mx.concatenate(steps)):
            agree(np.array(model.audio_logits(h)), audio)
            agree(np.array(model.text_logits(h)), text)
        model.fuse()


def test_a_golden_of_the_reference_is_met(tmp_path: Path, seed: int, shape: dict):
    """The dumper's file through the command: logits, words' too, and the greedy rows."""
    folder, golden = tmp_path / "v3", tmp_path / "golden.safetensors"
    write_v3(folder, seed=seed, codes=24, **shape)
    asked = {"prompt_json": None, "text_positions": None, "reference": "transformers"}
    dump_model(Namespace(checkpoint=folder, out=golden, seed=seed, frames=FRAMES, **asked))
    report = parity(folder, golden)
    assert report.max_abs <= LIMIT
    assert report.text_max_abs is not None
    assert report.text_max_abs <= LIMIT
    assert report.machine == "sglang"
    assert report.greedy_rows_equal


def test_prompts_are_the_same_positions(tmp_path: Path, seed: int):
    """Our builder's clone prompt and the reference's placeholders: one embedding each."""
    folder = write_v3(tmp_path / "v3", seed=seed, codes=24)
    talker, model = QwenTalker(folder), load_model(folder)
    codes = np.random.default_rng(seed).integers(0, 24, (5, 8))
    words = [5, 6, 7]
    parts = talker.config.cloning(words, codes.tolist(), words)
    rows = delay(codes.tolist(), 24, 25, 0)
    ids = [*parts[0], *[-100] * len(rows), *parts[2]]
    ours, _ = model.embed_prompt([Text(parts[0]), Audio(mx.array(codes)), Text(parts[2])])
    with torch.no_grad():
        theirs = talker.embed(Prompt(ids, rows))
    assert np.abs(np.array(ours[0]) - theirs.numpy()).max() <= 1e-5
    plain = PromptBuilder.from_pretrained(folder).build("Hello.")
    assert [i for part in plain for i in part.ids] == talker.config.plain("Hello.")


def test_the_stream_is_the_references(seed: int):
    """The machine ``sglang`` row by row, on noise full of markers."""
    from convert.reference_v3 import Config

    rng = np.random.default_rng(seed)
    pattern = DelayPattern(8, 24, 25, machine="sglang")
    for _ in range(20):
        theirs, state = Stream(Config(Path(), 8, 100, 26)), pattern.start()
        for _ in range(60):
            fresh = rng.choice([0, 1, 2, 24, 25], p=[0.4, 0.3, 0.2, 0.05, 0.05], size=8)
            row, state = pattern.advance(mx.array(fresh[None]), state)
            assert np.array(row)[0].tolist() == theirs.take(fresh.tolist())
            assert bool(state.done.item()) == theirs.done
            if theirs.done:
                break
