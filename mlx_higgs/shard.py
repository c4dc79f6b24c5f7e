"""A talker cut among ranks: each holds some of the heads and some of the FFNs' columns.

The layers say which of their matrices are cut and how (``SPLIT``): q, k, v, gate and up by rows, so
that a rank computes its heads and columns; o and down by columns, so that what the ranks make of
theirs adds up. That is two sums a layer among the ranks. Tables, heads of codes and norms are whole
on every rank (Shoeybi et al. 2019, "Megatron-LM"; ``mlx.nn.layers.distributed``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx.nn.layers.distributed import shard_inplace, shard_linear
from mlx.utils import tree_unflatten

from .ranks import Ranks, processes
from .types import InputError

if TYPE_CHECKING:
    import mlx.nn as nn

    from .quantization import Quantization

ROWS, COLUMNS = "all-to-sharded", "sharded-to-all"  # of a matrix, as MLX calls what they do
Chosen = Mapping[str, "Quantization"]  # what quantization.quantizable says


def split_modules(model: nn.Module) -> dict[str, str]:
    """Path -> ROWS or COLUMNS of the modules that are cut."""
    return {
        f"{path}.{name}": how
        for path, module in model.named_modules()
        for name, how in getattr(module, "SPLIT", {}).items()
        if name in module
    }


def working_sizes(model: Any, chosen: Chosen) -> list[int]:
    """Numbers of ranks, ascending, that every cut matrix can be divided among; 1 is always there.

    Args:
        chosen: which modules are to be quantised, and how: groups that share a scale stay whole.
    """
    args = model.args
    common = math.gcd(args.num_attention_heads, args.num_key_value_heads)
    modules = dict(model.named_modules())
    for path, how in split_modules(model).items():
        module: Any = modules[path]
        if how == ROWS:
            units = module.weight.shape[0]
        elif "scales" in module:
            units = module.scales.shape[-1]
        else:
            width = module.weight.shape[-1]
            units = width // chosen[path].group_size if path in chosen else width
        common = math.gcd(common, units)
    return [size for size in range(1, common + 1) if common % size == 0]


def check(model: Any, ranks: Ranks, chosen: Chosen) -> None:
    """Raises InputError for a number of ranks that does not divide what is cut."""
    sizes = working_sizes(model, chosen)
    if ranks.size in sizes:
        return
    args, works = model.args, ", ".join(map(str, sizes[1:])) or "no number"
    groups = sorted(_groups(model, chosen))
    among = f", in groups of {groups[-1]}," if groups else ""
    smaller = ", more in smaller groups (mlx_higgs.convert --q-group-size 32)" if groups else ""
    raise InputError(
        f"{ranks.size} ranks cannot share {args.num_attention_heads} heads "
        f"({args.num_key_value_heads} of keys and values) and {args.intermediate_size} columns of "
        f"the FFNs{among} of this model: {works} can{smaller}."
    )


def _groups(model: Any, chosen: Chosen) -> set[int]:
    """Weights that share a scale, in the matrices that are cut within their rows."""
    modules = dict(model.named_modules())
    cut = [path for path, how in split_modules(model).items() if how == COLUMNS]
    stored = {modules[path].group_size for path in cut if "scales" in modules[path]}
    return stored | {chosen[path].group_size for path in cut if path in chosen}


def shard(model: Any, ranks: Ranks, chosen: Chosen) -> None:
    """Keep this rank's part of a talker, and sum among the ranks where parts must be summed.

    To be called before matrices are joined. Weights that are still on disk stay there: each is cut
    when it is read. ``model.args`` then has this rank's numbers of heads and columns.

    Raises:
        InputError: a number of ranks that does not divide what is cut.
    """
    check(model, ranks, chosen)
    modules = dict(model.named_modules())
    for path, how in split_modules(model).items():
        if how == ROWS:
            shard_inplace(modules[path], how)  # still a linear layer, which can be joined
        else:
            part: Any = tree_unflatten([(path, shard_linear(modules[path], how))])
            model.update_modules(part)
    for module in modules.values():
        if narrow := getattr(module, "narrow", None):
            narrow(ranks.size)
    args = model.args
    model.args = replace(
        args,
        num_attention_heads=args.num_attention_heads // ranks.size,
        num_key_value_heads=args.num_key_value_heads // ranks.size,
        intermediate_size=args.intermediate_size // ranks.size,
    )
    model.ranks = ranks


def sharing(adapter: object = None) -> Ranks:
    """The ranks that a talker is cut among: the processes started with this one.

    Raises:
        InputError: this process is alone, or ``adapter`` is given, which is not cut.
    """
    ranks = processes()
    if ranks.size == 1:
        raise InputError(
            "One process holds all of a model: to shard it, start several with mlx.launch "
            "(see docs/distributed.md)."
        )
    if adapter is not None:
        raise InputError(
            "An adapter is not sharded: put it into the weights first, with mlx_higgs.fuse."
        )
    return ranks
