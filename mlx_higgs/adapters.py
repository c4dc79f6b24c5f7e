"""What training made of a talker: folders in mlx-lm's adapter format, written, read and applied.

``adapters.safetensors`` holds the trained tensors alone, by module path: ``PATH.lora_a``,
``PATH.lora_b`` and DoRA's ``PATH.m``, or whole weights. ``adapter_config.json`` says what they
mean. PEFT's folders are read as well.
"""

from __future__ import annotations

import math
import secrets
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from . import peft
from .lora import LEAVES, adapt, float_layer, fused, is_embedding, is_quantized
from .saving import disk_errors, write_json
from .types import CheckpointError, InputError
from .weights import load_tensors, read_json

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"
KINDS = ("lora", "dora", "full")
JOINED = {  # for generation, as the talker's `fuse` does
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
SKETCH = 8  # numbers of a norm's weight that tell one base from another
SKETCH_TOLERANCE = 0.02  # bfloat16 keeps 8 bits: a base in another dtype is the same base

Tensors = dict[str, mx.array]


@dataclass(frozen=True)
class Adapter:
    """One adapter: tensors by the names of the model it was made with, and mlx-lm's config."""

    source: Path
    tensors: Tensors
    config: dict

    @property
    def kind(self) -> str:
        return self.config["fine_tune_type"]

    @property
    def scale(self) -> float:
        return 1.0 if self.kind == "full" else float(self.config["lora_parameters"]["scale"])


# -- writing ------------------------------------------------------------------------------------


def save_adapter(folder: Path, model: Any, config: dict, step: int | None = None) -> None:
    """Write a talker's trainable tensors and what they are.

    What was there before stays until all the new files are whole.

    Args:
        config: ``fine_tune_type``, ``num_layers``, ``lora_parameters`` and whatever mlx-lm has;
            facts of the base are added.
        step: also keep a copy of this step, ``NNNNNNN_adapters.safetensors``.

    Raises:
        InputError: nothing is trainable, or the folder cannot be made.
    """
    tensors = dict(tree_flatten(model.trainable_parameters()))
    if not tensors:
        raise InputError("Nothing in this model is trainable: there is no adapter to save.")
    config = _checked({**config, "base": base_facts(model)}, str(folder))
    partial = folder / f".partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}.") from error
    try:
        write_json(partial / CONFIG, config)
        for name in [WEIGHTS] if step is None else [f"{step:07}_{WEIGHTS}", WEIGHTS]:
            write_tensors(partial / name, tensors, "mlx")
        for path in partial.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_tensors(path: Path, tensors: Tensors, made_for: str) -> None:
    with disk_errors(path):
        mx.save_safetensors(str(path), tensors, {"format": made_for})


def base_facts(model: Any) -> dict:
    """What tells whether a model is the one an adapter was trained on: sizes, and a few weights.

    The weights are the first of the last norm that is frozen, since those survive quantisation.
    """
    trained = {name for name, _ in tree_flatten(model.trainable_parameters())}
    sizes = {f.name: getattr(model.args, f.name) for f in fields(model.args)}
    facts: dict = {name: value for name, value in sizes.items() if type(value) is int}
    arrays: Tensors = dict(tree_flatten(model.parameters()))
    for name, array in reversed(arrays.items()):
        if name.endswith("norm.weight") and name not in trained:
            values = np.array(array[:SKETCH].astype(mx.float32))
            return facts | {"weights": {name: [float(f"{value:.5g}") for value in values]}}
    return facts


# -- reading ------------------------------------------------------------------------------------


def read_adapter(source: Path) -> Adapter:
    """An adapter folder of mlx-lm's or PEFT's form, or one ``.safetensors`` of the first.

    Raises:
        InputError: nothing there. CheckpointError: files that are missing or say nothing usable.
    """
    if not source.exists():
        raise InputError(f"There is no adapter {source}.")
    folder = source if source.is_dir() else source.parent
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}: it is not an adapter.")
    config = read_json(folder / CONFIG)
    if "peft_type" in config:
        tensors, config = peft.from_peft(_tensors(folder / peft.WEIGHTS), config, str(folder))
    else:
        tensors = _tensors(folder / WEIGHTS if source.is_dir() else source)
    return Adapter(source, tensors, _checked(config, str(folder)))


def _tensors(path: Path) -> Tensors:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} holds no {path.name}: save the adapter as safetensors."
        )
    tensors = load_tensors([path])
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")
    return tensors


def _checked(config: dict, source: str) -> dict:
    """The config, if it says what kind of adapter this is and, for LoRA, how strong."""
    kind = config.get("fine_tune_type", "lora")  # mlx-lm's default
    if kind not in KINDS:
        raise CheckpointError(
            f"{source}: fine_tune_type is {kind!r}, not one of {', '.join(KINDS)}."
        )
    if kind != "full":
        parameters = config.get("lora_parameters")
        scale = parameters.get("scale") if isinstance(parameters, dict) else None
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise CheckpointError(
                f"{source}: lora_parameters.scale is {scale!r}, not a number (PEFT's alpha / rank)."
            )
    return {**config, "fine_tune_type": kind}


def load_adapter(model: Any, source: Path) -> None:
    """Fill a talker whose layers are trainable already, by mlx-lm's, and go on from there.

    Trainable modules that the adapter lacks stay as they are.

    Raises:
        CheckpointError: an adapter of another base, strength, rank or choice of layers.
    """
    adapter = read_adapter(source)
    check_base(adapter, model)
    tensors = model.sanitize(adapter.tensors)
    shapes = {name: array.shape for name, array in tensors.items()}
    paths = {name.rpartition(".")[0] for name in shapes}
    trainable: Tensors = dict(tree_flatten(model.trainable_parameters()))
    wanted = {n: a.shape for n, a in trainable.items() if n.rpartition(".")[0] in paths}
    if shapes != wanted:
        names = sorted(n for n in shapes | wanted if shapes.get(n) != wanted.get(n))
        raise CheckpointError(
            f"{source} was made with other layers or ranks than are to be trained now: "
            f"{', '.join(names[:5])}. Use its fine_tune_type, lora_parameters and num_layers."
        )
    scales = {module.scale for module in model.modules() if "lora_a" in module}
    if scales - {adapter.scale}:
        raise CheckpointError(
            f"{source} has scale {adapter.scale:g}, this run {max(scales):g}: set it in "
            "lora_parameters."
        )
    model.load_weights(list(tensors.items()), strict=False)


# -- applying -----------------------------------------------------------------------------------


def apply_adapter(model: Any, source: Path, *, fuse: bool | None = None) -> Any:
    """Put an adapter into a loaded talker, and return it.

    Args:
        source: as `read_adapter` takes it.
        fuse: True adds the updates to the weights, which then cost nothing; False keeps them
            beside, exactly as trained. None fuses into floats (16-bit weights lose no more by it
            than their own rounding) and keeps beside quantised weights, which cannot hold them.

    Raises:
        CheckpointError: an adapter of another model: the tensors that do not fit, named.
        InputError: ``fuse`` with quantised weights.
    """
    adapter = read_adapter(source)
    check_base(adapter, model)
    tensors = model.sanitize(adapter.tensors)
    check_fit(adapter, tensors, model)
    whole, updates = _split(tensors, adapter.kind)
    _replace_whole(model, whole)
    for path, tensors in updates.items():
        layer = adapt(_module(model, path), tensors, adapter.scale)
        _install(model, path, layer if fuse is False else _maybe_fused(layer, path, fuse))
    return model


def fuse_adapter(model: Any, *, dequantize: bool = False) -> Any:
    """Add all updates of a talker, ours or those of mlx-lm's trainer, to its weights.

    Raises:
        InputError: quantised weights, without ``dequantize``, which makes those layers floats.
    """
    for path, module in model.named_modules():
        if "lora_a" in module:
            _install(model, path, _maybe_fused(module, path, True, dequantize))
    return model


def _maybe_fused(layer: Any, path: str, fuse: bool | None, dequantize: bool = False) -> nn.Module:
    base = layer.embedding if "embedding" in layer else layer.linear
    if is_quantized(base) and not dequantize:
        if fuse:
            raise InputError(
                f"{path} is quantised, and quantising it again would lose the adapter: fuse with "
                "--dequantize (then quantise the result), or keep it beside with --adapter."
            )
        return layer
    return fused(layer)


def _module(model: nn.Module, path: str) -> Any:
    module: Any = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else module[part]
    return module


def _install(model: nn.Module, path: str, layer: nn.Module) -> None:
    mx.eval(layer.parameters())  # one layer at a time: what it replaces goes
    model.update_modules(tree_unflatten([(path, layer)]))


def _split(tensors: Tensors, kind: str) -> tuple[Tensors, dict[str, Tensors]]:
    """Whole weights by name, and updates by module and leaf."""
    whole, updates = {}, {}
    for name, array in tensors.items():
        path, _, leaf = name.rpartition(".")
        if kind != "full" and leaf in LEAVES:
            updates.setdefault(path, {})[leaf] = array
        else:
            whole[name] = array
    return whole, updates


def check_base(adapter: Adapter, model: Any) -> None:
    """Whether a talker is the one that an adapter was trained on.

    Raises:
        CheckpointError: it has other sizes, or other weights.
    """
    recorded, facts = adapter.config.get("base") or {}, base_facts(model)
    for name, value in recorded.items():
        if type(value) is int and facts.get(name, value) != value:
            raise CheckpointError(
                f"{adapter.source} belongs to another model: its {name} is {value}, "
                f"here it is {facts[name]}."
            )
    weights = dict(tree_flatten(model.parameters()))
    for name, expected in recorded.get("weights", {}).items():
        found = weights[name][: len(expected)].astype(mx.float32) if name in weights else None
        if found is None or not mx.allclose(found, mx.array(expected), rtol=SKETCH_TOLERANCE):
            raise CheckpointError(
                f"{adapter.source} was trained on another base: {name} begins "
                f'{expected[:3]} there. Name that base, or delete "base" from {CONFIG} to try.'
            )


def check_fit(adapter: Adapter, tensors: Tensors, model: Any) -> None:
    """Whether ``tensors``, an adapter's under the talker's names, belong to its modules.

    Raises:
        CheckpointError: the first that do not, named. InputError: their layers were joined.
    """
    whole, updates = _split(tensors, adapter.kind)
    modules = dict(model.named_modules())
    for path in [*updates, *(name.rpartition(".")[0] for name in whole)]:
        if joined := _joined(modules, path):
            raise InputError(
                f"{adapter.source} is for {path}, which was joined into {joined} for generation: "
                "load the model with adapter= (--adapter)."
            )
    problems = [*_misfits(model, modules, whole), *_misfit_updates(modules, updates, adapter.kind)]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{adapter.source} does not fit this model: {'; '.join(problems[:5])}{more}."
        )


def _joined(modules: dict[str, Any], path: str) -> str | None:
    """The matrix that holds a layer's rows since it was joined with others."""
    parent, _, leaf = path.rpartition(".")
    names = (name for name, parts in JOINED.items() if leaf in parts)
    found = next(names, "")
    return found if path not in modules and found in modules.get(parent, {}) else None


def _misfits(model: nn.Module, modules: dict[str, Any], whole: Tensors) -> list[str]:
    known, problems = dict(tree_flatten(model.parameters())), []
    for name, array in sorted(whole.items()):
        path, _, leaf = name.rpartition(".")
        if name not in known:
            problems.append(f"{name} is not in it")
            continue
        replaced = leaf == "weight" and is_quantized(modules[path])
        wanted = weight_shape(modules[path]) if replaced else known[name].shape
        if array.shape != wanted:
            problems.append(f"{name} is {array.shape}, not {wanted}")
    return problems


def _misfit_updates(modules: dict, updates: dict[str, Tensors], kind: str) -> list[str]:
    problems = []
    wanted = set(LEAVES if kind == "dora" else LEAVES[:2])
    for path, update in sorted(updates.items()):
        module = modules.get(path)
        if not isinstance(module, nn.Linear | nn.Embedding) and not is_quantized(module):
            problems.append(f"{path} is no layer of it")
        elif update.keys() != wanted:
            differing = ", ".join(sorted(update.keys() ^ wanted))
            problems.append(f"{path} lacks, or is not to have, {differing}")
        elif (found := _update_shape(module, update)) != weight_shape(module):
            problems.append(f"{path} is {weight_shape(module)}, its update {found}")
    return problems


def _update_shape(module: Any, update: Tensors) -> tuple:
    """Rows and columns of the weight an update is for; what disagrees is spelled out."""
    a, b = update["lora_a"].shape, update["lora_b"].shape
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        return (a, b)
    rows, columns = (a[0], b[1]) if is_embedding(module) else (b[1], a[0])
    if "m" in update and update["m"].shape != (rows,):
        return (rows, columns, update["m"].shape)
    return (rows, columns)


def weight_shape(module: Any) -> tuple[int, int]:
    """Rows and columns of a layer's weight, quantised or not."""
    rows, columns = module.weight.shape
    return rows, columns * 32 // module.bits if is_quantized(module) else columns


def _replace_whole(model: nn.Module, whole: Tensors) -> None:
    """Weights keep the dtype they were trained in, unless a quantised layer has to be replaced."""
    for name, array in whole.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and is_quantized(module := _module(model, path)):
            _install(model, path, float_layer(module, array))
        else:
            model.load_weights([(name, array)], strict=False)  # the name is known to be there
    mx.eval(model.parameters())
