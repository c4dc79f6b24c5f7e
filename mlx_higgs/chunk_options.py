"""How commands spell the way a long text is cut and joined."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pieces import Chunking


def add_chunk_options(group: Any, modes: Sequence[str]) -> None:
    """What `chunking` reads."""
    group.add_argument(
        "--chunk",
        choices=modes,
        default="auto",
        help="how a long text is cut into pieces (auto: at sentences, or at speakers' turns)",
    )
    group.add_argument(
        "--chunk-size",
        type=int,
        metavar="N",
        help="letters in a piece, or words with --chunk word (default: the checkpoint's, or 300)",
    )
    group.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="earlier pieces that each is told of, beside its voice (default: the checkpoint's)",
    )
    group.add_argument("--gap-ms", type=float, help="silence between pieces (150)")
    group.add_argument("--retries", type=int, help="other seeds for a piece that failed (2)")
    group.add_argument("--language", default="en", help="of the text, for its abbreviations (en)")


def chunking(arguments: argparse.Namespace) -> Chunking:
    """The options of `add_chunk_options`."""
    from .pieces import Chunking

    given = {"gap_ms": arguments.gap_ms, "retries": arguments.retries}
    return Chunking(
        arguments.chunk,
        arguments.chunk_size,
        arguments.context,
        language=arguments.language,
        **{name: value for name, value in given.items() if value is not None},
    )
