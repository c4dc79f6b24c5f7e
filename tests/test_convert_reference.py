"""Laws of the workshop: every layout is one model, and the goldens are the reference's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convert.dump_golden import random_prompt
from convert.layouts import LAYOUTS, rename
from convert.reference import (
    LENGTH_MODES,
    Prompt,
    TransformersCodec,
    TransformersTalker,
    read_tensors,
    sinc_resample,
)
from convert.reference_v3 import QwenTalker, is_v3
from convert.tiny import write_checkpoint, write_codec
from convert.tiny_chat import write_talkative
from mlx_higgs.types import CheckpointError

torch = pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("shards", [1, 3])
def test_four_layouts_are_one_model(tmp_path: Path, seed: int, shards: int) -> None:
    seen = []
    for config in LAYOUTS:
        for weights in LAYOUTS:
            folder = tmp_path / f"{config}-{weights}"
            write_checkpoint(
                folder, seed=seed, config_layout=config, weight_layout=weights, shards=shards
            )
            talker = TransformersTalker(folder)
            seen.append(talker.prefill(random_prompt(talker.config, seed)))
    for audio, text in seen[1:]:
        assert torch.equal(audio, seen[0][0])
        assert torch.equal(text, seen[0][1])
    assert 0.5 < seen[0][0].std() < 5


@pytest.mark.parametrize("name", ["tiny_transformers", "tiny_boson", "tiny_v3"])
def test_goldens_are_the_references(name: str) -> None:
    from safetensors.torch import load_file

    golden = load_file(GOLDEN / f"model_{name}.safetensors")
    talker = (QwenTalker if is_v3(GOLDEN / name) else TransformersTalker)(GOLDEN / name)
    prompt = Prompt(golden["input_ids"].tolist(), golden["audio_rows"].tolist())
    audio, text = talker.prefill(prompt)
    # other machines add up in another order
    torch.testing.assert_close(audio, golden["audio_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(text, golden["text_logits"], atol=1e-4, rtol=0)
    rows = talker.greedy(prompt, len(golden["greedy_rows"]))  # raises unless generate() agrees
    assert rows == golden["greedy_rows"].tolist()


def test_missing_weight_is_an_error(tmp_path: Path, seed: int) -> None:
    from safetensors.torch import load_file, save_file

    write_checkpoint(tmp_path, seed=seed)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        TransformersTalker(tmp_path)


def test_names_go_round(seed: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, seed=seed)
    for name in read_tensors(tmp_path):
        assert rename(name, "transformers") == name
        assert rename(name, "boson") != name
        assert rename(rename(name, "boson"), "transformers") == name


def test_codec_length_modes(tmp_path: Path, seed: int) -> None:
    write_codec(tmp_path, seed=seed)
    codec = TransformersCodec(tmp_path)
    wave = 0.1 * torch.randn(4 * 960, generator=torch.Generator().manual_seed(seed))
    whole = [codec.encode(wave, mode) for mode in LENGTH_MODES]
    assert all(torch.equal(codes, whole[0]) for codes in whole)
    assert codec.decode(whole[0]).shape == (4 * 960,)
    cut = wave[: 3 * 960 + 300]  # where the two encoders disagree by a frame
    assert [len(codec.encode(cut, mode)) for mode in LENGTH_MODES] == [4, 4, 4]


def test_resampling_keeps_a_tone() -> None:
    def tone(rate: int):
        return torch.sin(2 * torch.pi * 440 * torch.arange(rate, dtype=torch.float64) / rate)

    resampled = sinc_resample(tone(24_000), 24_000, 16_000)
    assert len(resampled) == 16_000
    # 2e-4 is the ripple of a Hann-windowed sinc this short
    assert (resampled - tone(16_000))[100:-100].abs().max() < 5e-4


def test_tiny_chat_is_a_command(tmp_path: Path) -> None:
    """From a folder of its own, with the same numbers as from Python."""
    script = Path(__file__).parent.parent / "convert" / "tiny_chat.py"
    made = [sys.executable, str(script), str(tmp_path / "said"), "--seed", "3", "--ends", "5"]
    subprocess.run(made, cwd=tmp_path, check=True)
    write_talkative(tmp_path / "ours", seed=3, ends=5)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "said" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
