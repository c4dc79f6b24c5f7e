"""Widths by measured sensitivity: what each unit's rounding does to the model's next codes.

mlx-lm's ``dynamic_quant`` asks the same of gradients: one backward pass through a second copy of
the model, with all of it in the low width, and a threshold between two widths. It does not fit
here: the copy and the gradients of everything need three times the memory, a first-order estimate
says little of widths as far apart as 3 and 8 bits, and two widths are fewer than there are. Ours
rounds one unit at a time, hears the calibration rows again, and takes the divergence. What a unit
of the text's side does shows through the keys and values of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..quantization import Quantization
from ..types import InputError
from .allocate import allocate
from .bench import Bench, Passages
from .rounding import stored_bits
from .units import Unit
from .watching import Watch, unwatched

WIDTHS = (3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Option:
    """One way to store a unit.

    Attributes:
        bits: stored, with scales and biases. loss: mean KL in nats when it alone is rounded.
    """

    how: Quantization
    bits: int
    loss: float


def measure(
    bench: Bench,
    units: Sequence[Unit],
    passages: Passages,
    widths: Sequence[int] = WIDTHS,
    watch: Watch = unwatched,
) -> list[list[Option]]:
    """Every option of every unit, the rest of the model exact."""
    work = [(index, how) for index, unit in enumerate(units) for how in unit.choices(widths)]
    found: list[list[Option]] = [[] for _ in units]
    for index, how in watch(work, "measuring sensitivity", len(work)):
        found[index].append(_measured(bench, units[index], how, passages))
    return found


def _measured(bench: Bench, unit: Unit, how: Quantization, passages: Passages) -> Option:
    bench.put(bench.plain(dict.fromkeys(unit.paths, how)))
    loss = bench.divergence(passages)
    bench.restore(unit.paths)
    return Option(how, unit_bits(bench, unit, how), loss)


def unit_bits(bench: Bench, unit: Unit, how: Quantization) -> int:
    """Bits that a unit takes."""
    pairs = zip(unit.paths, unit.shapes, strict=True)
    return sum(stored_bits(shape, how, bench.dtype_of(path)) for path, shape in pairs)


def check_budget(
    bench: Bench, units: Sequence[Unit], widths: Sequence[int], budget: int, parameters: int
) -> None:
    """Before anything is measured, whether the smallest options fit.

    Args:
        budget: bits for these units. parameters: of all that is rounded.

    Raises:
        InputError: they do not; by how much.
    """
    choices = [(unit, unit.choices(widths)) for unit in units]
    least = sum(min(unit_bits(bench, unit, how) for how in hows) for unit, hows in choices)
    if least > budget:
        raise InputError(
            f"These widths take {(least - budget) / parameters:.2f} bits per weight more than the "
            "target allows: raise the target, or allow smaller widths."
        )


def choose(
    units: Sequence[Unit], options: Sequence[Sequence[Option]], budget: int
) -> dict[str, Quantization]:
    """The table of widths with the least summed loss for so many bits."""
    costs = [[option.bits for option in unit] for unit in options]
    losses = [[option.loss for option in unit] for unit in options]
    picked = allocate(costs, losses, budget)
    return {
        path: options[index][option].how
        for index, option in enumerate(picked)
        for path in units[index].paths
    }
