"""A float talker on the bench: its matrices are swapped, and what it says is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..memory import on_cpu
from ..quantization import Quantization
from ..train.batches import Batch, collate, in_order
from ..train.samples import Sample
from .forced import divergence, forced_logits
from .rounding import Rounded

BATCH = 8  # passages at once


class Passages:
    """Samples in batches, and what the unrounded model says to them."""

    def __init__(self, model: Any, samples: Sequence[Sample], batch_size: int = BATCH):
        self.batches = [collate(some) for some in in_order(samples, batch_size)]
        self.known = [forced_logits(model, batch) for batch in self.batches]
        for logits in self.known:
            mx.eval(logits)
        self.targets = [mx.array(batch.audio_targets) for batch in self.batches]
        self.num_scored = sum(int((batch.audio_targets >= 0).sum()) for batch in self.batches)
        self.num_frames = sum(len(batch.audio_targets) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Bench:
    """Holds the matrices to be rounded; while it does, the model computes with what is put in.

    On a CPU all is float32 meanwhile: rounded values are exact in it, and MLX multiplies nothing
    else quickly there.

    Args:
        paths: of the modules that may be rounded.
    """

    def __init__(self, model: Any, paths: Iterable[str]):
        self.model = model
        self._original: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        if on_cpu():
            model.set_dtype(mx.float32)
        modules = dict(model.named_modules())
        self.modules: dict[str, Any] = {path: modules[path] for path in paths}
        self.exact = {path: module.weight for path, module in self.modules.items()}

    def dtype_of(self, path: str) -> mx.Dtype:
        """Of a matrix, as the checkpoint has it: its scales will be of it, too."""
        return self._original[f"{path}.weight"].dtype

    def fitted(self, path: str, how: Quantization) -> bool:
        """Whether a matrix can be rounded for what it reads: one with inputs, in affine steps.

        The text head has none here: nobody asks what word would come next.
        """
        alike = type(self.modules[path]) is nn.Linear and how.mode == "affine"
        return alike and path != self.model.TEXT_HEAD

    def put(self, rounded: Mapping[str, Rounded]) -> None:
        """Compute with the values that rounded matrices stand for."""
        for path, new in rounded.items():
            self.modules[path].weight = new.dense(self.exact[path].dtype)

    def restore(self, paths: Iterable[str] | None = None) -> None:
        """Compute with the exact matrices again."""
        for path in self.exact if paths is None else paths:
            self.modules[path].weight = self.exact[path]

    def replace_exact(self) -> None:
        """What the modules hold now is what is to be rounded."""
        self.exact = {path: module.weight for path, module in self.modules.items()}

    def plain(self, table: Mapping[str, Quantization]) -> dict[str, Rounded]:
        """Every matrix of a table of widths in MLX's own rounding."""
        self.restore(table)
        return {
            path: Rounded.plain(self.modules[path], how, self.dtype_of(path))
            for path, how in table.items()
        }

    def divergence(self, passages: Passages) -> float:
        """Mean KL of the unrounded model to what it is now, in nats per code."""
        total = 0.0
        for batch, known, targets in zip(
            passages.batches, passages.known, passages.targets, strict=True
        ):
            total += float(divergence(known, forced_logits(self.model, batch), targets).sum())
        return total / passages.num_scored

    def finish(self, rounded: Mapping[str, Rounded]) -> None:
        """Make the model what it will be: quantised modules, all else in its own width."""
        self.restore()
        arrays = dict(tree_flatten(self.model.parameters()))
        back = [(name, arrays[name].astype(old.dtype)) for name, old in self._original.items()]
        self.model.update(tree_unflatten(back))
        for path, new in rounded.items():
            quantized = new.put_into(self.modules[path])
            mx.eval(quantized.parameters())
            self.model.update_modules(tree_unflatten([(path, quantized)]))
        mx.eval(self.model.parameters())

    def give_up(self) -> None:
        """Leave the model as it was."""
        self.model.update(tree_unflatten(list(self._original.items())))
        self.replace_exact()


def inputs_of(bench: Bench, paths: Sequence[str], batch: Batch) -> dict[str, mx.array]:
    """What linear layers read while the model hears one passage: ``[N, I]`` each.

    Codes alone where only codes pass (the audio FFN), words alone where only words do, and both in
    attention, which hears both when it speaks.

    Args:
        batch: of one sample, for padding would count as words.
    """
    seen: dict[str, mx.array] = {}
    taps = {path: Tap(bench.modules[path], _keeper(seen, path)) for path in paths}
    bench.model.update_modules(tree_unflatten(list(taps.items())))
    try:
        forced_logits(bench.model, batch)
        mx.eval(seen)  # and no layer after the last of them
    finally:
        whole = {path: bench.modules[path] for path in paths}
        bench.model.update_modules(tree_unflatten(list(whole.items())))
    return seen


def _keeper(seen: dict[str, mx.array], path: str) -> Callable[[mx.array], None]:
    def keep(x: mx.array) -> None:
        seen[path] = x.reshape(-1, x.shape[-1])

    return keep


class Tap(nn.Module):
    """Shows what a layer reads."""

    def __init__(self, layer: nn.Module, tell: Callable[[mx.array], None]):
        super().__init__()
        self.layer = layer
        self._tell = tell

    def __call__(self, x: mx.array) -> mx.array:
        self._tell(x)
        return self.layer(x)
