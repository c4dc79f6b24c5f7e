"""Codec files: every tensor accounted for, both layouts, configs, and pickles that bite."""

from __future__ import annotations

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_higgs
from mlx_higgs.codec import CodecConfig, HiggsCodec
from mlx_higgs.codec.checkpoint import UNUSED, as_transformers, from_arrays, layout
from mlx_higgs.codec.pth import read_pth
from mlx_higgs.types import CheckpointError

DEMO = Path(mlx_higgs.__file__).parent / "demo" / "codec"
POSITION = "semantic_model.encoder.pos_conv_embed.conv"
LAYOUT_A = {
    "n_filters": 32,
    "D": 64,
    "codebook_dim": 32,
    "target_bandwidths": [0.5, 1, 1.5, 2, 4],
    "ratios": [8, 5, 4, 2, 3],
    "sample_rate": 24000,
    "bins": 256,
    "n_q": 8,
    "semantic_techer": "hubert_base_general",
}


@pytest.fixture
def tensors() -> dict[str, mx.array]:
    loaded = mx.load(str(DEMO / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def write(folder: Path, tensors: dict[str, mx.array], config: Any = LAYOUT_A) -> Path:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Sizes


def test_demo_sizes_come_from_its_tensors() -> None:
    config = HiggsCodec.from_pretrained(DEMO).config
    assert (config.hop, config.latent, config.semantic_step) == (960, 128, 2)
    assert (config.encoder_width, config.decoder_width, config.hidden) == (8, 192, 64)
    assert (config.semantic.width, config.semantic.heads, config.semantic.num_layers) == (64, 2, 2)


def test_defaults_are_the_real_codecs() -> None:
    config = CodecConfig()
    assert (config.hop, config.frame_rate, config.latent, config.semantic_step) == (
        960,
        25.0,
        1024,
        2,
    )
    declared = config.to_dict()
    bits = 10 * 25  # one codebook, per second
    assert int(1000 * declared["target_bandwidths"][-1] // bits) == 8
    assert declared["acoustic_model_config"]["upsampling_ratios"] == [8, 5, 4, 2, 3]


def test_bosons_config_is_accepted(tensors: dict, tmp_path: Path) -> None:
    codec = HiggsCodec.from_pretrained(write(tmp_path, tensors))
    assert codec.num_codebooks == 8  # its bandwidths would make it 20
    assert codec.config.semantic.heads == 1  # nothing says 2: heads of 64, as HuBERT has them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_q": 9}, "n_q = 9"),
        ({"bins": 1024}, "bins = 1024"),
        ({"ratios": [3, 2, 4, 5, 8]}, "ratios"),
        ({"acoustic_model_config": {"upsampling_ratios": [3, 2, 4, 5, 8]}}, "upsampling_ratios"),
        ({"semantic_model_config": {"num_hidden_layers": 12}}, "num_hidden_layers = 12"),
        ({"semantic_model_config": {"do_stable_layer_norm": True}}, "pre-norm"),
    ],
)
def test_a_config_that_contradicts_the_weights(
    tensors: dict, tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        HiggsCodec.from_pretrained(write(tmp_path, tensors, LAYOUT_A | change))


@pytest.mark.parametrize(
    "change",
    [
        {"block_dilations": [3, 1]},
        {"strides": [2, 1]},
        {"semantic_model_config": {"hidden_act": "relu"}},
        {"semantic_model_config": "x"},
        {"sample_rate": 0},
        {"sample_rate": "x"},
    ],
)
def test_what_no_shape_shows_is_refused(tensors: dict, tmp_path: Path, change: dict) -> None:
    with pytest.raises(CheckpointError, match="config"):
        HiggsCodec.from_pretrained(write(tmp_path / "codec", tensors, LAYOUT_A | change))


def test_heads_that_nothing_says_are_not_guessed(tensors: dict) -> None:
    """No tensor shows them: HuBERT's heads are 64 wide, and another width needs a config."""
    shapes = dict(as_transformers(from_arrays(tensors)).shapes)
    assert CodecConfig.from_shapes(shapes).semantic.heads == 1
    up = "semantic_model.encoder.layers.0.feed_forward.intermediate_dense.weight"
    shapes[up] = (shapes[up][0], 96)
    assert CodecConfig.from_shapes(shapes).semantic.heads is None


def test_without_heads_it_decodes_and_does_not_encode(tensors: dict) -> None:
    whole = CodecConfig.from_shapes(as_transformers(from_arrays(tensors)).shapes)
    semantic = dataclasses.replace(whole.semantic, heads=None)
    codec = HiggsCodec.from_tensors(tensors, dataclasses.replace(whole, semantic=semantic))
    assert codec.decode(mx.zeros((1, 8), dtype=mx.int32)).shape == (960,)
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        codec.encode(np.zeros(960, np.float32))


@pytest.mark.parametrize("config", [None, "{", "[]"])
def test_no_config(tensors: dict, tmp_path: Path, config: str | None) -> None:
    write(tmp_path, tensors)
    (tmp_path / "config.json").unlink()
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        HiggsCodec.from_pretrained(tmp_path)


# Names and shapes


def test_every_tensor_is_needed_or_dropped_on_purpose(tensors: dict, seed: int) -> None:
    for name in np.random.default_rng(seed).choice(sorted(tensors), 30):
        rest = {other: array for other, array in tensors.items() if other != name}
        if UNUSED.fullmatch(name):
            HiggsCodec.from_tensors(rest)
        else:
            with pytest.raises(CheckpointError, match=name.split(".parametrizations")[0]):
                HiggsCodec.from_tensors(rest)


def test_the_last_feature_convolution_is_needed(tensors: dict) -> None:
    """It is the only tensor of its layer: no gap in the numbers would show."""
    del tensors["semantic_model.feature_extractor.conv_layers.6.conv.weight"]
    with pytest.raises(CheckpointError, match=r"lack .*conv_layers\.6"):
        HiggsCodec.from_tensors(tensors)


def test_every_shape_counts(tensors: dict, seed: int) -> None:
    used = sorted(name for name in tensors if not UNUSED.fullmatch(name))
    for name in np.random.default_rng(seed).choice(used, 30):
        twice = mx.concatenate([tensors[name], tensors[name]], axis=0)
        with pytest.raises(CheckpointError, match="shape"):
            HiggsCodec.from_tensors(tensors | {name: twice})._loaded_encoder()


@pytest.mark.parametrize("name", ["semantic_model.extra", "fc3.weight", "acoustic_decoder.w"])
def test_unknown_tensors(tensors: dict, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        HiggsCodec.from_tensors(tensors | {name: mx.zeros((2,))})


def test_unknown_boson_tensors() -> None:
    known = "quantizer.vq.layers.0._codebook.embed"
    with pytest.raises(CheckpointError, match=r"decoder_3\.weight"):
        as_transformers(from_arrays({known: mx.zeros((2, 2)), "decoder_3.weight": mx.zeros(1)}))


def test_masked_spec_embed_is_dropped(tensors: dict) -> None:
    HiggsCodec.from_tensors(tensors | {"semantic_model.masked_spec_embed": mx.zeros((64,))})


@pytest.mark.parametrize("prefix", ["model.layers.0.", "layers.0.", "tied.embed_tokens."])
def test_the_language_model_is_refused_by_its_header(tmp_path: Path, prefix: str) -> None:
    """Boson's tokenizer repository holds 11.5 GB of it as model.safetensors."""
    folder = write(tmp_path, {f"{prefix}weight": mx.zeros((2, 2))})
    with pytest.raises(CheckpointError, match="language model"):
        HiggsCodec.from_pretrained(folder)


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no Higgs Audio codec"):
        HiggsCodec.from_pretrained(write(tmp_path, {"conv.weight": mx.zeros((2, 2))}))


def test_layouts_are_told_apart_by_names(tensors: dict) -> None:
    assert layout(tensors) == "transformers"
    assert layout(["quantizer.vq.layers.0.project_in.weight"]) == "boson"
    assert layout(["model.embed_tokens.weight"]) is None


# Weight norm


@pytest.mark.parametrize(
    ("name", "axes", "shape"),
    [
        ("acoustic_decoder.block.0.conv_t1", (1, 2), (6, 4, 10)),  # transposed: input channels
        ("acoustic_decoder.conv1", (1, 2), (6, 4, 7)),
        (POSITION, (0, 1), (6, 4, 16)),  # per tap
    ],
)
@pytest.mark.parametrize(
    "spelling",
    [
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ],
)
def test_weight_norm_is_folded(
    name: str, axes: tuple[int, ...], shape: tuple[int, ...], spelling: tuple[str, str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(shape).astype(np.float32)
    norm = np.sqrt((direction**2).sum(axes, keepdims=True))
    magnitude = rng.uniform(0.5, 2, norm.shape).astype(np.float32)
    known = {"quantizer.quantizers.0.codebook.embed": mx.zeros((2, 2))}
    pair = dict(zip(spelling, (mx.array(magnitude), mx.array(direction)), strict=True))
    source = as_transformers(
        from_arrays(known | {f"{name}.{part}": array for part, array in pair.items()})
    )
    assert source.shapes[f"{name}.weight"] == shape
    folded = np.array(source.read([f"{name}.weight"])[f"{name}.weight"])
    np.testing.assert_allclose(folded, magnitude * direction / norm, rtol=1e-5)


def test_half_a_weight_norm(tensors: dict) -> None:
    del tensors[f"{POSITION}.parametrizations.weight.original0"]
    with pytest.raises(CheckpointError, match=r"only the \{'direction'\} of .*pos_conv_embed"):
        HiggsCodec.from_tensors(tensors)


def test_weight_norm_of_the_wrong_axes(tensors: dict) -> None:
    name = f"{POSITION}.parametrizations.weight.original0"
    tensors[name] = mx.ones((64, 1, 1))
    with pytest.raises(CheckpointError, match="original0 has shape"):
        HiggsCodec.from_tensors(tensors)._loaded_encoder()


# Pickles. Opcodes are written out, so that torch is not needed.


def text(value: str) -> bytes:
    return b"V" + value.encode() + b"\n"


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"


def tensor(
    key: str = "0",
    numel: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    kind: str = "FloatStorage",
) -> bytes:
    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
        + b"I%d\nt" % numel + b"Q"
    )  # fmt: skip
    arguments = storage + b"I%d\n" % offset + numbers(*shape) + numbers(*strides) + b"I00\nN"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def archive(path: Path, entries: dict[str, bytes], **data: bytes) -> Path:
    body = b"".join(text(name) + value for name, value in entries.items())
    files = {"data.pkl": b"\x80\x02}(" + body + b"u.", "byteorder": b"little"}
    files |= {f"data/{key[1:]}": value for key, value in data.items()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(f"model/{name}", content)
    return path


SIX = np.arange(6, dtype="<f4").tobytes()


def test_pth_reads_views(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.pth",
        {
            "w": tensor(),
            "t": tensor(shape=(3, 2), strides=(1, 3)),
            "s": tensor(offset=5, shape=(), strides=()),
        },
        _0=SIX,
    )
    read = read_pth(path)
    np.testing.assert_array_equal(read["w"].numpy(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["t"].numpy(), [[0, 3], [1, 4], [2, 5]])
    assert read["s"].numpy() == 5


def test_pth_reads_bfloat16(tmp_path: Path) -> None:
    bits = np.array([1.5, -2.0, 0.0, 3.0, 4.0, 0.25], "<f4").view("<u4") >> 16
    data = bits.astype("<u2").tobytes()
    path = archive(tmp_path / "a.pth", {"w": tensor(kind="BFloat16Storage")}, _0=data)
    np.testing.assert_array_equal(read_pth(path)["w"].numpy(), [[1.5, -2, 0], [3, 4, 0.25]])


def test_pth_leaves_file_objects_out(tmp_path: Path) -> None:
    content = b"c_codecs\nencode\n(" + text("x") + text("latin1") + b"tR"
    file = b"c_io\nBytesIO\n)\x81(" + content + b"I0\nNtb"
    path = archive(tmp_path / "a.pth", {"file": file, "w": tensor()}, _0=SIX)
    assert list(read_pth(path)) == ["w"]


@pytest.mark.parametrize(
    "view",
    [
        {"offset": 1},
        {"offset": -1},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"strides": (1,)},
        {"shape": (3, 3)},
        {"shape": (-1, 3)},
        {"shape": (2**40, 2**40), "strides": (2**40, 1)},
    ],
)
def test_pth_refuses_views_beyond_their_storage(tmp_path: Path, view: dict) -> None:
    path = archive(tmp_path / "a.pth", {"w": tensor(**view)}, _0=SIX)
    with pytest.raises(CheckpointError, match=r"storage|not understood"):
        read_pth(path)


def test_pth_refuses_a_storage_shorter_than_it_says(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", {"w": tensor()}, _0=SIX[:-1])
    with pytest.raises(CheckpointError, match="23 bytes"):
        read_pth(path)["w"].numpy()


def test_pth_refuses_a_missing_storage(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pth", {"w": tensor(key="9")}, _0=SIX)
    with pytest.raises(CheckpointError, match="damaged"):
        read_pth(path)["w"].numpy()


def test_pth_views_cannot_be_changed_by_the_pickle(tmp_path: Path) -> None:
    build = b"}(" + text("offset") + b"I1000\nub"
    path = archive(tmp_path / "a.pth", {"w": tensor() + build}, _0=SIX)
    with pytest.raises(CheckpointError):
        read_pth(path)


@pytest.mark.parametrize(
    "call",
    [
        b"cos\nsystem\n(Vfalse\ntR",
        b"cbuiltins\neval\n(V1\ntR",
        b"cmlx_higgs.codec.pth\nStorage\n(Vx\ntR",
        b"ctorch\nload\n(Vx\ntR",
        b"cnumpy.core.multiarray\n_reconstruct\n(Vx\ntR",
    ],
)
def test_pth_calls_nothing_it_does_not_know(tmp_path: Path, call: bytes) -> None:
    path = archive(tmp_path / "a.pth", {"w": call}, _0=SIX)
    with pytest.raises(CheckpointError, match="refused"):
        read_pth(path)


class Canary:
    """Unpickled by Python's own reader, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "ran")


def test_pth_runs_no_code(tmp_path: Path) -> None:
    canary = pickle.dumps({"w": Canary(tmp_path / "ran")}, protocol=2)
    pickle.loads(canary)
    assert (tmp_path / "ran").is_file()  # the canary sings
    (tmp_path / "ran").unlink()
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("model/data.pkl", canary)
    with pytest.raises(CheckpointError, match="refused"):
        read_pth(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_pth_refuses_what_is_not_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a tensor"):
        read_pth(archive(tmp_path / "a.pth", {"epoch": b"I3\n"}))
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as file:
        file.writestr("model/data.pkl", b"\x80\x02I3\n.")
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_pth(tmp_path / "b.pth")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "compressed", "big"])
def test_pth_refuses_damaged_files(tmp_path: Path, damage: str) -> None:
    path = archive(tmp_path / "a.pth", {"w": tensor()}, _0=SIX)
    if damage in ("empty", "text"):
        path.write_bytes(b"" if damage == "empty" else b"version https://git-lfs")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        compression = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("model/data.pkl", b"\x80\x02}.")
            file.writestr("model/byteorder", b"big" if damage == "big" else b"little")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_pth(path)
