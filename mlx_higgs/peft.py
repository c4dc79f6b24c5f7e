"""PEFT's names and scales, as ms-swift writes them too, against mlx-lm's. No files here.

=================  =====================================  ===============================
what               PEFT                                   mlx-lm
=================  =====================================  ===============================
linear layer       ``lora_A.weight`` ``[r, in]``          ``lora_a`` ``[in, r]``
\\                  ``lora_B.weight`` ``[out, r]``         ``lora_b`` ``[r, out]``
embedding          ``lora_embedding_A`` ``[r, rows]``     ``lora_a`` ``[rows, r]``
\\                  ``lora_embedding_B`` ``[width, r]``    ``lora_b`` ``[r, width]``
DoRA's lengths     ``lora_magnitude_vector`` ``[out]``    ``m`` ``[out]``
factor             alpha / r, or alpha / sqrt(r)          ``scale``, and one for all
=================  =====================================  ===============================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import mlx.core as mx

from .lora import LEAVES
from .types import CheckpointError, InputError

WEIGHTS = "adapter_model.safetensors"
LAYOUTS = ("transformers", "boson")
PREFIX = "base_model.model."  # PEFT's two wrappers around the model
LEAF = {
    "lora_A": "lora_a",
    "lora_B": "lora_b",
    "lora_embedding_A": "lora_a",
    "lora_embedding_B": "lora_b",
    "lora_magnitude_vector": "m",
}
UPDATE = re.compile(rf"(?P<module>.+)\.(?P<leaf>{'|'.join(LEAF)})(\.default)?(\.weight)?")
WHOLE = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.(weight|bias)$)")
# Settings that change what the tensors mean. They are off unless one of these names something.
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # others start by changing it

Tensors = dict[str, mx.array]
WeightNames = list[tuple[str, str]]  # a talker's WEIGHT_NAMES: theirs -> ours


def from_peft(tensors: Tensors, config: dict, source: str) -> tuple[Tensors, dict]:
    """PEFT's tensors and config -> mlx-lm's, still under the names of the model they came from.

    Where modules differ in rank or factor, the smaller ranks are padded with zeros and the factors
    moved into ``lora_b``: the same function, in a format that has one of each.

    Raises:
        CheckpointError: what mlx-lm's format cannot say, or tensors that do not fit the config.
    """
    _check_config(config, source)
    updates, whole = _sorted_out(tensors, config, source)
    factors = {path: _factor(path, update, config, source) for path, update in updates.items()}
    rank = max((update["lora_a"].shape[1] for update in updates.values()), default=0)
    scale = max(factors.values(), default=1.0)
    out = dict(whole)
    for path, update in updates.items():
        for leaf, array in _evened(update, rank, factors[path] / scale).items():
            out[f"{path}.{leaf}"] = array
    kind = "dora" if config.get("use_dora") else "lora"
    name = config.get("base_model_name_or_path")
    dropout = float(config.get("lora_dropout") or 0.0)
    return out, {
        "fine_tune_type": kind,
        "model": None if name in (None, "", "None") else name,  # PEFT writes a model's str()
        "num_layers": -1,  # all: mlx-lm counts from the last, and the names say the rest
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": dropout},
    }


def _check_config(config: dict, source: str) -> None:
    def refuse(what: str) -> None:
        raise CheckpointError(
            f"{source} has {what}, which cannot be mapped to LoRA's two matrices."
        )

    if config.get("peft_type") != "LORA":
        refuse(f"peft_type {config.get('peft_type')!r}")
    for name in UNSUPPORTED:
        if config.get(name):
            refuse(f"{name} {config[name]!r:.80}")
    if config.get("bias", "none") not in ("none", None):
        refuse(f"bias {config['bias']!r}")
    how = config.get("init_lora_weights", True)
    if how not in KEEPS_BASE:
        raise CheckpointError(
            f"{source} was started with init_lora_weights {how!r}, which changes the base: save it "
            "with path_initial_model_for_weight_conversion."
        )


def _sorted_out(tensors: Tensors, config: dict, source: str) -> tuple[dict[str, Tensors], Tensors]:
    """Updates by module, in mlx-lm's shapes, and tensors that were saved whole."""
    updates: dict[str, Tensors] = {}
    whole: Tensors = {}
    for name, array in tensors.items():
        plain = name.removeprefix(PREFIX)
        if match := UPDATE.fullmatch(plain):
            if config.get("use_dora") and "embedding" in match["leaf"]:
                raise CheckpointError(
                    f"{source}: {name} belongs to a DoRA of an embedding, whose lengths PEFT takes "
                    "by column and mlx-lm by row: train that module with plain LoRA."
                )
            leaf = LEAF[match["leaf"]]
            updates.setdefault(match["module"], {})[leaf] = array if leaf == "m" else array.T
        elif "lora_" in plain or "token_adapter" in plain:
            raise CheckpointError(f"{source}: {name} cannot be mapped to mlx-lm's adapters.")
        else:
            whole[WHOLE.sub("", plain)] = array
    for path, update in updates.items():
        wanted = set(LEAVES if config.get("use_dora") else LEAVES[:2])
        if update.keys() != wanted:
            differing = ", ".join(sorted(update.keys() ^ wanted))
            raise CheckpointError(f"{source}: {path} does not match use_dora: see its {differing}.")
    return updates, whole


def _factor(path: str, update: Tensors, config: dict, source: str) -> float:
    """alpha / r of one module, by the patterns that may single it out."""
    rank = _by_pattern(config.get("rank_pattern"), path, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha"))
    found = update["lora_a"].shape[1]
    if rank != found:
        raise CheckpointError(f"{source}: {path} has rank {found}, its config says {rank}.")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{source}: lora_alpha is {alpha!r}.")
    return alpha / (math.sqrt(found) if config.get("use_rslora") else found)


def _by_pattern(patterns: dict | None, path: str, default: object) -> object:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _evened(update: Tensors, rank: int, factor: float) -> Tensors:
    a, b = update["lora_a"], update["lora_b"]
    missing = rank - a.shape[1]
    if missing:
        a, b = mx.pad(a, [(0, 0), (0, missing)]), mx.pad(b, [(0, missing), (0, 0)])
    if factor != 1:
        b = factor * b.astype(mx.float32)
    return update | {"lora_a": a, "lora_b": b}


def to_peft(tensors: Tensors, config: dict, source: str) -> tuple[Tensors, dict]:
    """mlx-lm's tensors, renamed to the model they are for -> PEFT's tensors and config.

    Raises:
        InputError: a full fine-tune, or a DoRA of an embedding: PEFT has neither.
    """
    if config["fine_tune_type"] == "full":
        raise InputError(f"{source} holds whole weights, not LoRA: make a checkpoint with fuse.")
    ranks = {
        n.removesuffix(".lora_a"): a.shape[1] for n, a in tensors.items() if is_leaf(n, "lora_a")
    }
    dora, scale = config["fine_tune_type"] == "dora", config["lora_parameters"]["scale"]
    if dora and (tables := sorted(filter(_is_table, ranks))):
        raise InputError(f"{source}: PEFT's DoRA of an embedding is another function: {tables}.")
    rank = max(ranks.values(), default=1)
    odd = {path: r for path, r in ranks.items() if r != rank}
    whole = sorted({n.rpartition(".")[0] for n in tensors if not is_leaf(n)})
    return {PREFIX + _peft_name(n): _peft_array(n, a) for n, a in tensors.items()}, {
        "base_model_name_or_path": config.get("model"),
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _alpha(scale, rank),
        "rank_pattern": odd,
        "alpha_pattern": {path: _alpha(scale, r) for path, r in odd.items()},
        "lora_dropout": config["lora_parameters"].get("dropout", 0.0),
        "use_dora": dora,
        "use_rslora": False,
        "target_modules": sorted(ranks),
        "modules_to_save": whole or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def is_leaf(name: str, *leaves: str) -> bool:
    """Whether a tensor is part of an update, and not a weight saved whole."""
    return name.rpartition(".")[2] in (leaves or LEAVES)


def _alpha(scale: float, rank: int) -> float | int:
    alpha = scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def _peft_name(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    if leaf == "m":
        return f"{path}.lora_magnitude_vector"
    if leaf not in LEAVES:
        return name
    side = leaf[-1].upper()
    return f"{path}.lora_embedding_{side}" if _is_table(path) else f"{path}.lora_{side}.weight"


def _peft_array(name: str, array: mx.array) -> mx.array:
    return mx.contiguous(array.T) if is_leaf(name, "lora_a", "lora_b") else array


def _is_table(path: str) -> bool:
    """``embed_tokens``, ``audio_codebook_embeddings``: a file does not say what a module is."""
    return "embed" in path.rpartition(".")[2]


def ours(name: str, table: WeightNames) -> str:
    """A name of any known layout -> this package's."""
    for theirs_, ours_ in table:
        if name.startswith(theirs_):
            return ours_ + name.removeprefix(theirs_)
    return name


def theirs(name: str, table: WeightNames) -> str:
    """This package's name -> transformers'."""
    for theirs_, ours_ in table:
        if name.startswith(ours_):
            return theirs_ + name.removeprefix(ours_)
    return name


def lora_keys(names: Iterable[str]) -> list[str]:
    """mlx-lm's ``keys``: adapted modules by their name within a layer, or within the model."""
    paths = {name.rpartition(".")[0] for name in names if is_leaf(name)}
    return sorted({re.sub(r"^layers\.\d+\.", "", path) for path in paths})
