"""The best choice of widths that a budget allows, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import InputError


def allocate(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """One option per unit, of the least summed loss whose costs add up to ``budget`` at most.

    Unit by unit, all sums that no other beats in both cost and loss are kept: what is left at the
    end holds the best choice, whatever the shape of the losses (a Lagrangian finds only those on
    their convex hull). Costs are whole bits of few different sizes, so that the sums stay few:
    some ten thousand for a model of 36 layers.

    Args:
        costs, losses: of every option of every unit.

    Raises:
        InputError: the cheapest options cost more than the budget.
    """
    least = sum(min(options) for options in costs)
    if least > budget:
        raise InputError(f"The least these widths need is {least} bits; the budget is {budget}.")
    spent, lost = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    rest = least
    for cost, loss in zip(costs, losses, strict=True):
        rest -= min(cost)
        sums = (spent[:, None] + np.array(cost, np.int64)).reshape(-1)
        harm = (lost[:, None] + np.array(loss)).reshape(-1)
        kept = _unbeaten(sums, harm, budget - rest)
        steps.append((kept // len(cost), kept % len(cost)))
        spent, lost = sums[kept], harm[kept]
    return _traced(steps)


def _unbeaten(sums: np.ndarray, harm: np.ndarray, limit: int) -> np.ndarray:
    """Which sums are within the limit and beaten by no cheaper one; the cheapest first."""
    order = np.lexsort((harm, sums))
    order = order[sums[order] <= limit]
    best = np.minimum.accumulate(harm[order])
    first = np.ones(len(order), bool)
    first[1:] = best[1:] < best[:-1]
    return order[first]


def _traced(steps: list[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    """The options that led to the last sum, which is the dearest and the best."""
    at, chosen = -1, []
    for before, option in reversed(steps):
        chosen.append(int(option[at]))
        at = before[at]
    return chosen[::-1]
