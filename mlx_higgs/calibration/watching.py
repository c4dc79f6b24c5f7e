"""How long work is told while it lasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Watch(Protocol):
    """Hands on what it is given, and may show how far that is."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterable[T]: ...


def unwatched(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Nothing is shown."""
    return items


def with_bars(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """A bar on standard error for each kind of work."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total)
