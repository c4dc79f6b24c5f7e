"""Codec checkpoints: Boson's and transformers' tensors, told apart by their names.

Everything is brought to transformers' names and axis order first (weight norm folded, float32),
and from there to the names and axis order of the modules here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..types import CheckpointError
from ..weights import load_tensors, read_header, read_json, weight_files
from .config import CodecConfig, Shapes
from .pth import read_pth

Tensors = dict[str, mx.array]

# Boson's names -> transformers'. The first pattern that matches the whole name counts.
BOSON_NAMES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (
        r"(encoder|decoder_2)\.(?:block|model)\.0\.(.+)",
        lambda m: f"{ACOUSTIC[m[1]]}.conv1.{m[2]}",
    ),
    (
        r"(encoder|decoder_2)\.(?:block|model)\.\d+\.(alpha)",
        lambda m: f"{ACOUSTIC[m[1]]}.snake1.{m[2]}",
    ),
    (
        r"(encoder|decoder_2)\.(?:block|model)\.\d+\.(weight\w*|bias|parametrizations\..+)",
        lambda m: f"{ACOUSTIC[m[1]]}.conv2.{m[2]}",
    ),
    (
        r"encoder\.block\.(\d+)\.block\.([0-2])\.block\.([0-3])\.(.+)",
        lambda m: (
            f"acoustic_encoder.block.{int(m[1]) - 1}.res_unit{int(m[2]) + 1}"
            f".{UNIT[int(m[3])]}.{m[4]}"
        ),
    ),
    (
        r"encoder\.block\.(\d+)\.block\.([34])\.(.+)",
        lambda m: f"acoustic_encoder.block.{int(m[1]) - 1}.{DOWN[m[2]]}.{m[3]}",
    ),
    (
        r"decoder_2\.model\.(\d+)\.block\.([2-4])\.block\.([0-3])\.(.+)",
        lambda m: (
            f"acoustic_decoder.block.{int(m[1]) - 1}.res_unit{int(m[2]) - 1}"
            f".{UNIT[int(m[3])]}.{m[4]}"
        ),
    ),
    (
        r"decoder_2\.model\.(\d+)\.block\.([01])\.(.+)",
        lambda m: f"acoustic_decoder.block.{int(m[1]) - 1}.{UP[m[2]]}.{m[3]}",
    ),
    (
        r"quantizer\.vq\.layers\.(\d+)\.(?:_(?=codebook))?(.+)",
        lambda m: f"quantizer.quantizers.{m[1]}.{m[2]}",
    ),
    (r"fc_(prior|post1|post2)\.(.+)", lambda m: f"{LINEAR[m[1]]}.{m[2]}"),
    (
        r"((?:en|de)coder_semantic\..*?conv\d?)(?:\.conv)?\.(weight|bias)",
        lambda m: f"{m[1]}.{m[2]}",
    ),
    (r"(semantic_model\..+)", lambda m: m[1]),
]
ACOUSTIC = {"encoder": "acoustic_encoder", "decoder_2": "acoustic_decoder"}
UNIT = ("snake1", "conv1", "snake2", "conv2")
DOWN = {"3": "snake1", "4": "conv1"}
UP = {"0": "snake1", "1": "conv_t1"}
LINEAR = {"prior": "fc", "post1": "fc1", "post2": "fc2"}

# Only training reads these: the semantic decoder, the codebooks' running means, HuBERT's mask.
UNUSED = re.compile(
    r"decoder_semantic\..+|fc1\..+|.+\.codebook\.(embed_avg|cluster_size|inited)"
    r"|semantic_model\.masked_spec_embed"
)

# Weight norm is stored as a magnitude and a direction, in torch's older and newer spelling.
NORM_PARTS = {
    ".weight_g": "magnitude",
    ".weight_v": "direction",
    ".parametrizations.weight.original0": "magnitude",
    ".parametrizations.weight.original1": "direction",
}
BUNDLED = "tied.embedding.modality_embeddings.0.model."  # in a v3 talker's files
POSITION = "semantic_model.encoder.pos_conv_embed.conv"


@dataclass(frozen=True)
class TensorSource:
    """Named tensors whose shapes are known and whose data is read on demand."""

    shapes: Shapes
    read: Callable[[Iterable[str]], Tensors]


def open_folder(folder: Path) -> tuple[TensorSource, dict[str, Any]]:
    """A codec folder's tensors, as the file names them, and its ``config.json``.

    ``model.pth`` counts only where there are no safetensors, or they are not a codec's: Boson's
    repository holds the language model as ``model.safetensors``.

    A v3 talker's folder holds its codec among its own tensors, and no config of it.

    Raises:
        CheckpointError: no folder, no config, no weights, or weights that are not a codec's.
    """
    if is_bundled(folder):
        return from_safetensors(weight_files(folder), BUNDLED), {}
    declared = read_json(folder / "config.json")
    pth = folder / "model.pth"
    if pth.is_file() and not any(folder.glob("*.safetensors")):
        return from_pth(pth), declared
    source = from_safetensors(weight_files(folder))
    if layout(source.shapes) is None and pth.is_file():
        source = from_pth(pth)
    return source, declared


def is_bundled(folder: Path) -> bool:
    """Whether a talker's weight files hold its codec, too."""
    if not any(folder.glob("*.safetensors")):
        return False
    names = (name for path in weight_files(folder) for name in read_header(path))
    return any(name.startswith(BUNDLED) for name in names)


def bundled_tensors(folder: Path) -> Tensors:
    """That codec's tensors by the file's names, as they are stored; not read yet."""
    return load_tensors(weight_files(folder), lambda name: name.startswith(BUNDLED))


def from_safetensors(paths: list[Path], prefix: str = "") -> TensorSource:
    """The tensors under ``prefix``, named without it."""
    shapes = {
        name.removeprefix(prefix): info.shape
        for path in paths
        for name, info in read_header(path).items()
        if name.startswith(prefix)
    }

    def read(names: Iterable[str]) -> Tensors:
        full = {prefix + name for name in names}
        tensors = load_tensors(paths, full.__contains__)
        return {name.removeprefix(prefix): array for name, array in tensors.items()}

    return TensorSource(shapes, read)


def from_pth(path: Path) -> TensorSource:
    tensors = read_pth(path)

    def read(names: Iterable[str]) -> Tensors:
        return {name: mx.array(tensors[name].numpy()) for name in names}

    return TensorSource({name: tensor.shape for name, tensor in tensors.items()}, read)


def from_arrays(tensors: Mapping[str, mx.array]) -> TensorSource:
    def read(names: Iterable[str]) -> Tensors:
        return {name: tensors[name] for name in names}

    return TensorSource({name: array.shape for name, array in tensors.items()}, read)


def layout(names: Iterable[str]) -> str | None:
    """``"boson"``, ``"transformers"`` or None for what is no codec."""
    starts = {name.split(".")[1] for name in names if name.startswith("quantizer.")}
    if "vq" in starts:
        return "boson"
    return "transformers" if "quantizers" in starts else None


def as_transformers(source: TensorSource) -> TensorSource:
    """The same tensors in transformers' names, weight norm folded, read as float32.

    Raises:
        CheckpointError: names of no known layout, or half of a weight-norm pair.
    """
    kind = layout(source.shapes)
    if kind is None:
        raise CheckpointError(_not_a_codec(source.shapes))
    origins: dict[str, dict[str, str]] = {}
    for original in source.shapes:
        name, part = _split_norm(original if kind == "transformers" else _boson_name(original))
        if part in origins.setdefault(name, {}):
            raise CheckpointError(f"The codec's weights hold {name} twice.")
        origins[name][part] = original
    for name, parts in origins.items():
        if set(parts) not in ({"whole"}, {"magnitude", "direction"}):
            raise CheckpointError(f"The codec's weights hold only the {set(parts)} of {name}.")

    def read(names: Iterable[str]) -> Tensors:
        wanted = {name: origins[name] for name in names}
        raw = source.read([original for parts in wanted.values() for original in parts.values()])
        return {name: _whole(name, parts, raw) for name, parts in wanted.items()}

    shapes = {
        name: source.shapes[parts.get("whole") or parts["direction"]]
        for name, parts in origins.items()
    }
    return TensorSource(shapes, read)


def _boson_name(name: str) -> str:
    for pattern, target in BOSON_NAMES:
        if match := re.fullmatch(pattern, name):
            return target(match)
    raise CheckpointError(f"The codec's weights hold {name}, which no Boson codec has.")


def _split_norm(name: str) -> tuple[str, str]:
    for ending, part in NORM_PARTS.items():
        if name.endswith(ending):
            return f"{name.removesuffix(ending)}.weight", part
    return name, "whole"


def _whole(name: str, parts: Mapping[str, str], raw: Tensors) -> mx.array:
    if "whole" in parts:
        return raw[parts["whole"]].astype(mx.float32)
    direction = raw[parts["direction"]].astype(mx.float32)
    magnitude = raw[parts["magnitude"]].astype(mx.float32)
    norm = _norm(name, direction)
    if magnitude.shape != norm.shape:
        raise CheckpointError(
            f"{parts['magnitude']} has shape {magnitude.shape}, expected {norm.shape}."
        )
    return direction * (magnitude / norm)


def _norm(name: str, direction: mx.array) -> mx.array:
    """DAC: one norm per first axis (a transposed convolution's inputs). HuBERT: per tap."""
    axes = (0, 1) if name.startswith(POSITION) else (1, 2)
    return mx.sqrt(mx.sum(mx.square(direction), axes, keepdims=True))


def _not_a_codec(names: Iterable[str]) -> str:
    names = sorted(names)
    if any("embed_tokens" in name or re.match(r"(model\.)?layers\.", name) for name in names):
        return (
            "These weights are a language model, not a codec (Boson's tokenizer repository holds "
            "a copy of it as model.safetensors). Take the codec's model.pth, or its "
            "transformers release."
        )
    return f"These weights are no Higgs Audio codec: they begin with {', '.join(names[:3])}."


def module_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Transformers' shapes -> those of the modules here; what only training reads is left out."""
    used = (name for name in shapes if not UNUSED.fullmatch(name))
    return {name: _module_shape(name, shapes[name]) for name in used}


def _axes(name: str, rank: int) -> tuple[int, ...]:
    """Torch's ``[out, in, taps]`` (transposed: ``[in, out, taps]``) -> ``[out, taps, in]``."""
    if rank != 3:
        return tuple(range(rank))
    return (1, 2, 0) if ".conv_t1." in name else (0, 2, 1)


def _module_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith(".alpha"):
        return tuple(size for size in shape if size != 1) or (1,)
    return tuple(shape[axis] for axis in _axes(name, len(shape)))


def module_tensors(tensors: Tensors) -> Tensors:
    """Transformers' tensors -> parameters of the modules here."""
    return {
        name: array.transpose(_axes(name, array.ndim)).reshape(_module_shape(name, array.shape))
        for name, array in tensors.items()
    }


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Every name and shape accounted for.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or of another shape.
    """
    for name in sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"The codec's weights lack {name}.")
    for name in sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"The codec's weights hold {name}, which no Higgs codec has.")
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(f"{name} has shape {found[name]}, expected {shape}.")


def save(source: TensorSource, config: CodecConfig, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` as transformers reads them, in float32.

    ``source`` is in transformers' names. What only training reads is kept where the source has
    it: transformers would otherwise report it missing.
    """
    tensors = source.read([n for n in source.shapes if not n.endswith(".masked_spec_embed")])
    direction = tensors.pop(f"{POSITION}.weight")
    tensors[f"{POSITION}.parametrizations.weight.original0"] = _norm(POSITION, direction)
    tensors[f"{POSITION}.parametrizations.weight.original1"] = direction
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
