"""Whether a model still has the weights it had."""

from __future__ import annotations

import weakref
from typing import Any

from ..weights import named_arrays


class Snapshot:
    """The arrays of a model at one time, none of them kept alive.

    Who changes a weight puts another array in its place (an adapter, training, ``update``).
    """

    def __init__(self, model: Any):
        self._weights = [weakref.ref(array) for array in named_arrays(model).values()]

    def holds(self, model: Any) -> bool:
        """Whether all of them are still there, and no others."""
        now = named_arrays(model).values()
        return len(now) == len(self._weights) and all(
            ref() is array for ref, array in zip(self._weights, now, strict=True)
        )
