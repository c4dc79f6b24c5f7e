"""Laws of loading: every layout is one model, and nothing is taken or lost in silence."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_higgs
from mlx_higgs.defaults import Defaults
from mlx_higgs.loading import load, load_model
from mlx_higgs.models.v2 import ModelArgs
from mlx_higgs.sources import CODEC_REPO, DEMO, PINNED, find_codec, resolve
from mlx_higgs.types import CheckpointError, InputError
from mlx_higgs.weights import INDEX, load_tensors, read_header, weight_files

GOLDEN = Path(__file__).parent / "golden"
TRANSFORMERS, BOSON = GOLDEN / "tiny_transformers", GOLDEN / "tiny_boson"
HEAD = "audio_decoder_proj.audio_lm_head"
TO_BOSON = [  # transformers' prefix -> Boson's, the inverse of what the model reads
    ("model.embed_audio_tokens.embed_audio_tokens.", "audio_codebook_embeddings."),
    ("audio_lm_head.", "audio_decoder_proj.audio_lm_head."),
    ("text_lm_head.", "audio_decoder_proj.text_lm_head."),
    ("model.", ""),
]


def boson_name(name: str) -> str:
    for theirs, ours in TO_BOSON:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise AssertionError(name)


def write(folder: Path, config: dict, tensors: dict[str, mx.array], shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        return folder
    names, index = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        mx.save_safetensors(str(folder / file), part)
        index.update(dict.fromkeys(part, file))
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


def parts(folder: Path) -> tuple[dict, dict[str, mx.array]]:
    config = json.loads((folder / "config.json").read_text())
    return config, load_tensors(weight_files(folder))


def parameters(folder: Path, **options) -> dict[str, mx.array]:
    return dict(tree_flatten(load_model(folder, **options).parameters()))


def boson_config(flat: dict) -> dict:
    """Boson's nested form of a transformers config."""
    text = {f.name for f in fields(ModelArgs)} & flat.keys() | {"hidden_act", "rope_parameters"}
    return {
        "model_type": "higgs_audio",
        "text_config": {name: flat[name] for name in text},
        "audio_adapter_type": "dual_ffn",
        "audio_dual_ffn_layers": list(range(flat["num_hidden_layers"])),
        "encode_audio_in_tokens": True,
        "encode_whisper_embed": False,
        "skip_audio_tower": True,
        "use_delay_pattern": True,
        "audio_num_codebooks": flat["num_codebooks"],
        "audio_codebook_size": flat["codebook_size"] - 2,
        "audio_stream_bos_id": flat["audio_stream_bos_id"],
        "audio_stream_eos_id": flat["audio_stream_eos_id"],
        "audio_out_token_idx": flat["audio_token_id"],
        "audio_out_bos_token_id": flat["audio_bos_token_id"],
    }


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("weights", ["transformers", "boson", "model.boson"])
@pytest.mark.parametrize("config", ["transformers", "boson"])
def test_every_layout_is_one_model(tmp_path: Path, config: str, weights: str, shards: int):
    flat, tensors = parts(TRANSFORMERS)
    expected = parameters(TRANSFORMERS, text_head=True)
    if weights != "transformers":
        prefix = weights.removesuffix("boson")
        tensors = {prefix + boson_name(name): array for name, array in tensors.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros(4)
    written = flat if config == "transformers" else boson_config(flat)
    found = parameters(write(tmp_path / "made", written, tensors, shards), text_head=True)
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)


def test_the_text_head_is_left_out_unless_asked_for():
    names = parameters(BOSON).keys()
    assert not any("text_lm_head" in name for name in names)
    extra = parameters(BOSON, text_head=True).keys() - names
    assert extra == {"audio_decoder_proj.text_lm_head.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"model.layers.0.extra.weight": mx.zeros(3)}), "not know .*extra"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "misses layers.1.mlp.up_proj"),
        (
            lambda t: t.update({"model.norm.weight": mx.zeros(3)}),
            r"norm.weight is mlx.core.float32 \(3,\)",
        ),
    ],
)
def test_every_tensor_is_accounted_for_by_name(tmp_path: Path, change, message: str):
    config, tensors = parts(TRANSFORMERS)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_model(write(tmp_path / "made", config, tensors))


def test_an_index_without_its_shards_gives_way_to_the_single_file(tmp_path: Path):
    """The hub's v2 repository held both in April 2026; the two are never merged."""
    folder = shutil.copytree(TRANSFORMERS, tmp_path / "made")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"layers.0.x": "model-1.safetensors"}}))
    assert weight_files(folder) == [folder / "model.safetensors"]
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    assert weight_files(folder) == [folder / "model-1.safetensors"]
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the weight files model-1"):
        weight_files(folder)


def test_a_truncated_shard_is_named(tmp_path: Path):
    folder = shutil.copytree(BOSON, tmp_path / "made")
    shard = weight_files(folder)[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{shard.name} is truncated"):
        load_model(folder)
    for content in (b"", b"PK\x03\x04 no safetensors", b"\x10\0\0\0\0\0\0\0not json at all!"):
        shard.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{shard.name} is not a safetensors"):
            load_model(folder)


def test_headers_tell_names_without_reading_data():
    header = read_header(TRANSFORMERS / "model.safetensors")
    assert header["model.norm.weight"].shape == (32,)
    assert header["model.norm.weight"].dtype == "F32"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": 3}'])
def test_a_broken_config_raises(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_a_folder_without_a_config_or_weights_raises(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_model(tmp_path)
    shutil.copy(TRANSFORMERS / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(tmp_path)


def test_resolve_takes_folders_the_demo_and_hub_names(tmp_path: Path, monkeypatch):
    assert resolve("demo") == DEMO
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="no folder"):
        resolve("./missing/deep/folder")
    calls = []

    def fake(repo, revision, allow_patterns):
        calls.append((repo, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    assert resolve("owner/name", "abc") == tmp_path
    assert resolve(CODEC_REPO) == tmp_path
    assert calls == [
        ("owner/name", "abc"),
        (CODEC_REPO, PINNED[CODEC_REPO]),
    ]


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"owner/name .* \(no route\)"):
        resolve("owner/name")


def test_the_codec_must_fit_the_model(tmp_path: Path):
    higgs = load(TRANSFORMERS, codec=DEMO / "codec")
    with pytest.raises(CheckpointError, match="do not belong together"):
        _ = higgs.codec


def test_no_codec_beside_a_local_model_says_the_way_out(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match="--codec"):
        _ = load(TRANSFORMERS).codec


def test_matrices_split_by_fine_tuning_are_joined(tmp_path: Path):
    config, tensors = parts(TRANSFORMERS)
    tensors = {boson_name(name): array for name, array in tensors.items()}
    splits = {
        "embed_tokens.weight": "embed_tokens.embedding_{}.weight",
        f"{HEAD}.weight": f"{HEAD}.linear_{{}}.weight",
    }
    for whole, name in splits.items():
        matrix = tensors.pop(whole)
        tensors[name.format("trainable")], tensors[name.format("frozen")] = matrix[9:], matrix[:9]
    found = parameters(write(tmp_path / "made", config, tensors))
    expected = parameters(TRANSFORMERS)
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)
    del tensors["embed_tokens.embedding_frozen.weight"]
    with pytest.raises(CheckpointError, match="embedding_trainable"):
        load_model(write(tmp_path / "half", config, tensors))


def test_a_codec_may_lie_in_a_folder_of_the_one_named(tmp_path: Path):
    shutil.copytree(DEMO / "codec", tmp_path / "audio_tokenizer")
    assert find_codec(TRANSFORMERS, tmp_path) == tmp_path / "audio_tokenizer"
    assert find_codec(TRANSFORMERS, DEMO / "codec") == DEMO / "codec"


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("top_k", 1.5), ("scene", 5), ("clones", "no"), ("ras_win_len", -3)],
)
def test_defaults_that_mean_nothing_are_named(tmp_path: Path, name: str, value):
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(CheckpointError, match="generation_config"):
        Defaults.from_pretrained(tmp_path)


def test_defaults_speak_as_the_references_do(tmp_path: Path):
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "ras_win_len": null}')
    sampling = Defaults.from_pretrained(tmp_path).sampling
    assert (sampling.temperature, sampling.ras_window) == (0, 0)


def test_defaults_come_from_the_checkpoint(tmp_path: Path):
    assert Defaults.from_pretrained(tmp_path) == Defaults()
    (tmp_path / "generation_config.json").write_text(
        json.dumps(
            {
                "temperature": 0.3,
                "ras_win_len": 5,
                "top_k": None,
                "eos_token_id": 3,
                "scene": "A room.",
                "max_frames": 3,
                "seed": 4,
            }
        )
    )
    defaults = Defaults.from_pretrained(tmp_path)
    assert (defaults.sampling.temperature, defaults.sampling.ras_window) == (0.3, 5)
    assert (defaults.sampling.top_k, defaults.sampling.seed) == (50, None)
    assert defaults.sampling.max_frames == mlx_higgs.SamplingParams().max_frames
    assert defaults.scene == "A room."


def test_dtype_casts_everything():
    assert {v.dtype for v in parameters(BOSON).values()} == {mx.bfloat16}
    wide = parameters(BOSON, dtype="float32")
    assert {v.dtype for v in wide.values()} == {mx.float32}
    narrow = parameters(BOSON)
    assert all(np.array_equal(wide[n], narrow[n].astype(mx.float32)) for n in wide)
