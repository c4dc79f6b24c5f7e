"""What a run needs to go on: one file that is replaced whole.

The order of the data and every random draw are functions of the seed and the iteration, so the
trained weights, the optimizer's state and the iteration's number are all there is.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from ..saving import disk_errors
from ..types import CheckpointError, InputError

if TYPE_CHECKING:
    import mlx.nn as nn
    import mlx.optimizers as optim

STATE = "state.safetensors"
# options that a run cannot change half-way; others (iters, save_every) it can
KEPT = (
    "fine_tune_type",
    "num_layers",
    "lora_parameters",
    "freeze_llm",
    "optimizer",
    "batch_size",
    "grad_accumulation_steps",
    "seed",
)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file that takes its name once it is on the disk."""
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        with disk_errors(path.parent):
            write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_state(
    folder: Path, model: nn.Module, optimizer: optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write ``state.safetensors``. ``facts``: the iteration, and what the run was asked for."""
    arrays = {f"model.{k}": v for k, v in _flat(model.trainable_parameters()).items()}
    arrays |= {f"optimizer.{k}": v for k, v in _flat(optimizer.state).items()}
    meta = {"facts": json.dumps(facts)}
    write_whole(folder / STATE, lambda path: mx.save_safetensors(str(path), arrays, meta))


def has_state(folder: Path) -> bool:
    return (folder / STATE).is_file()


def load_state(
    folder: Path, model: nn.Module, optimizer: optim.Optimizer, facts: dict[str, Any]
) -> dict[str, Any]:
    """Put weights and optimizer back as they were; the facts saved with them.

    Raises:
        CheckpointError: not such a file. InputError: a run of another kind.
    """
    path = folder / STATE
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, meta = loaded
        saved = json.loads(meta["facts"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no state of a run ({error}): --force starts anew."
        ) from error
    for name in KEPT:
        if saved.get(name) != facts.get(name):
            raise InputError(
                f"The run in {folder} has {name} {saved.get(name)!r}, not {facts.get(name)!r}: "
                "use the same, another --adapter-path, or --force to start anew."
            )
    optimizer.init(model.trainable_parameters())
    trained = _flat(model.trainable_parameters())
    wanted = {f"model.{k}": v for k, v in trained.items()}
    wanted |= {f"optimizer.{k}": v for k, v in _flat(optimizer.state).items()}
    different = wanted.keys() ^ arrays.keys() or {
        name for name, array in wanted.items() if array.shape != arrays[name].shape
    }
    if different:
        raise InputError(
            f"The run in {folder} trained other weights ({min(different)}): use the same model and "
            "options, or --force to start anew."
        )
    model.load_weights([(k, arrays[f"model.{k}"]) for k in trained], strict=False)
    rate = optimizer.learning_rate  # which this run may have changed
    optimizer.state = tree_map_with_path(
        lambda name, _: arrays[f"optimizer.{name}"], optimizer.state
    )
    optimizer.state["learning_rate"] = rate
    mx.eval(model.parameters(), optimizer.state)
    return saved


def _flat(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))
