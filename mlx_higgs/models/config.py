"""What the talkers' configs have in common: sizes, and what a module builds one way only."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..types import CheckpointError

MAX_SIZE = 1 << 20  # no width, count or id of a config is larger


def check_sizes(args: Any) -> None:
    """Raises CheckpointError for a ``ModelArgs`` with a size that is none, or heads that differ."""
    for field in fields(args):
        value = getattr(args, field.name)
        if field.type == "int" and not (type(value) is int and 0 < value < MAX_SIZE):
            raise CheckpointError(f"The config's {field.name} is {value!r}: not a size.")
    if args.num_attention_heads % args.num_key_value_heads or args.head_dim % 2:
        raise CheckpointError(
            f"{args.num_attention_heads} heads of {args.head_dim} cannot share "
            f"{args.num_key_value_heads} of keys and values."
        )


def check_fixed(config: dict, table: dict[str, tuple[Any, Any, str]]) -> None:
    """Raises CheckpointError for a variant that is not built.

    Args:
        table: field -> the reference's default, what is built, how a person calls it.
    """
    for field, (default, wanted, name) in table.items():
        if (config.get(field, default) or False) != wanted:  # None and 0 mean off
            raise CheckpointError(f"This checkpoint has {name} ({field}), which is not supported.")
