"""A float talker -> one in fewer bits that says as nearly the same as its passages can make it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..quantization import Plan, Quantization, quantizable
from ..train.samples import Sample
from ..types import InputError
from . import awq, dwq, gptq
from .bench import Bench, Passages
from .passages import split
from .rounding import Rounded, stored_bits
from .sensitivity import WIDTHS, check_budget, choose, measure, unit_bits
from .units import Unit, units_of
from .watching import Watch, unwatched

METHODS = ("awq", "gptq", "dwq")  # in the order in which they are done
HELD_OUT = 1 / 8  # of the passages, to judge the result on
TRIED = 12  # passages that sensitivity is measured on
READ = 48  # passages whose inputs are looked at, layer by layer


@dataclass(frozen=True)
class Calibrated:
    """What became of a model.

    Attributes:
        chosen: path -> width of every module that is quantised now.
        record: what a config and a model card tell of it; plain JSON.
    """

    chosen: dict[str, Quantization]
    record: dict[str, Any]


def methods_of(method: str | None) -> tuple[str, ...]:
    """``"gptq+dwq"`` -> its methods, in the order in which they are done.

    Raises:
        InputError: one that does not exist.
    """
    asked = method.split("+") if method else []
    for name in asked:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise InputError(f"There is no calibration {name!r:.40}: use {known}, or a+b of them.")
    return tuple(name for name in METHODS if name in asked)


def calibrate(
    model: Any,
    plan: Plan,
    samples: Sequence[Sample],
    *,
    method: str | None = None,
    target_bpw: float | None = None,
    widths: Sequence[int] = WIDTHS,
    seed: int = 0,
    watch: Watch | None = None,
) -> Calibrated:
    """Quantise a float model in place, judged on passages it should say the same of.

    Nothing is written. Interrupted or failed, it leaves the model as it was. The same passages and
    seed make the same weights (on the same machine). It takes the float model and, at times, as
    much again of one layer; on a CPU all is computed in float32.

    Args:
        model: a SpeechModel, not fused.
        plan: the widths; with ``target_bpw`` its rules alone, which hold whatever is measured.
        method: ``awq``, ``gptq``, ``dwq`` or several as ``gptq+dwq``; None rounds plainly.
        target_bpw: choose the widths by measured sensitivity, to so many stored bits per weight
            of all that is quantised.
        widths: to choose among.
        seed: of the order in which ``dwq`` learns.

    Raises:
        InputError: no such method, a target out of reach, too few passages, nothing to quantise.
    """
    wanted, watch = methods_of(method), watch or unwatched
    work_on, judge_on = split(samples, HELD_OUT)
    bench = Bench(model, _paths(model, plan, target_bpw, widths))
    try:
        table = _table(bench, plan, work_on, target_bpw, widths, watch)
        held_out = Passages(model, judge_on)
        _check_fitted(bench, table, wanted)
        plain = bench.plain(table)
        before = _judged(bench, plain, held_out)
        rounded = _calibrated(bench, table, plain, work_on, wanted, seed, watch)
        after = _judged(bench, rounded, held_out)
        if kept := after <= before:
            bench.finish(rounded)
        else:  # too little to learn from: plainly rounded it is better
            bench.give_up()
            bench.finish(plain)
    except BaseException:
        bench.give_up()
        raise
    record = {
        "method": "+".join(wanted) or None if kept else None,
        "target_bpw": target_bpw,
        "bits_per_weight": round(bits_per_weight(bench, table), 4),
        "widths": sorted({how.bits for how in table.values()}),
        "seed": seed,
        "passages": len(work_on),
        "frames": sum(len(sample.rows) for sample in work_on),
        "held_out_passages": len(judge_on),
        "held_out_frames": held_out.num_frames,
        "kl_plain": before,
        "kl": min(before, after),
    }
    if not kept:
        record |= {"tried": "+".join(wanted), "kl_tried": after}
    return Calibrated(table, record)


def _check_fitted(bench: Bench, table: Mapping[str, Quantization], wanted: Sequence[str]) -> None:
    """Raises InputError where a method would find nothing that it can fit."""
    if wanted and not any(bench.fitted(path, how) for path, how in table.items()):
        modes = ", ".join(sorted({how.mode for how in table.values()}))
        raise InputError(
            f"{'+'.join(wanted)} fits linear layers in affine steps, and there are none (mode "
            f"{modes}): leave --calibrate out, or take --q-mode affine."
        )


def bits_per_weight(bench: Bench, table: Mapping[str, Quantization]) -> float:
    """Stored bits per parameter of what a table quantises."""
    shapes = {path: bench.exact[path].shape for path in table}
    bits = sum(stored_bits(shapes[p], how, bench.dtype_of(p)) for p, how in table.items())
    return bits / sum(rows * width for rows, width in shapes.values())


def _judged(bench: Bench, rounded: Mapping[str, Rounded], passages: Passages) -> float:
    bench.put(rounded)
    return round(bench.divergence(passages), 6)


def _calibrated(
    bench: Bench,
    table: Mapping[str, Quantization],
    plain: Mapping[str, Rounded],
    samples: Sequence[Sample],
    wanted: Sequence[str],
    seed: int,
    watch: Watch,
) -> Mapping[str, Rounded]:
    bench.restore()
    learn_on, check_on = split(samples, HELD_OUT) if "dwq" in wanted else (samples, ())
    if "dwq" in wanted:  # while the model is the original's
        course = dwq.Course()
        lessons = Passages(bench.model, learn_on, course.batch_size)
        checks = Passages(bench.model, check_on)
    rounded = plain
    if "awq" in wanted:
        awq.transform(bench, table, learn_on[:READ], watch=watch)
        rounded = bench.plain(table)
    if "gptq" in wanted:
        rounded = gptq.round_with_gptq(bench, table, learn_on[:READ], watch)
    if "dwq" in wanted:
        rounded = dwq.train(bench, rounded, lessons, checks, course=course, seed=seed, watch=watch)
    return rounded


# ---------------------------------------------------------------- widths


def _paths(model: Any, plan: Plan, target_bpw: float | None, widths: Sequence[int]) -> list[str]:
    """What is quantised, or may be."""
    chosen = quantizable(model, plan)
    if target_bpw is not None:
        free = [
            path
            for path, module in model.named_modules()
            if model.quant_predicate(path, module) and Unit.of({path: module}).choices(widths)
        ]
        pinned = _pinned(plan, free, len(model.layers))
        chosen = {p for p in chosen if p in pinned} | {p for p in free if p not in pinned}
    if not chosen:
        raise InputError("Nothing is quantised by this plan: there is nothing to calibrate.")
    return sorted(chosen, key=_in_order)


def _in_order(path: str) -> tuple[int, str]:
    found = re.match(r"layers\.(\d+)\.", path)
    return (int(found[1]) if found else -1, path)


def _pinned(plan: Plan, paths: Sequence[str], layers: int) -> set[str]:
    """What the plan's rules speak of: the choice leaves these alone."""
    return {path for path in paths if any(rule.covers(path, layers) for rule in plan.rules)}


def _table(
    bench: Bench,
    plan: Plan,
    samples: Sequence[Sample],
    target_bpw: float | None,
    widths: Sequence[int],
    watch: Watch,
) -> dict[str, Quantization]:
    """The width of every module."""
    if target_bpw is None:
        known = quantizable(bench.model, plan)
        return {path: known[path] for path in bench.modules}
    pinned = _pinned(plan, list(bench.modules), len(bench.model.layers))
    free = {path: module for path, module in bench.modules.items() if path not in pinned}
    units = units_of(free)
    fixed = {path: how for path, how in quantizable(bench.model, plan).items() if path in pinned}
    for unit in _unheard(bench, units):
        units.remove(unit)
        fixed |= dict.fromkeys(unit.paths, _plainest(bench, unit, widths, target_bpw))
    spent = sum(stored_bits(bench.exact[p].shape, h, bench.dtype_of(p)) for p, h in fixed.items())
    total = sum(unit.size for unit in units) + sum(bench.exact[path].size for path in fixed)
    budget = int(target_bpw * total) - spent
    check_budget(bench, units, widths, budget, total)
    options = measure(bench, units, Passages(bench.model, samples[:TRIED]), widths, watch)
    found = choose(units, options, budget)
    return {path: (fixed | found)[path] for path in bench.modules}


def _unheard(bench: Bench, units: Sequence[Unit]) -> list[Unit]:
    """A text head that is nothing else: no passage of speech tells what it needs."""
    head, table = bench.model.TEXT_HEAD, bench.model.TEXT_TABLE
    return [unit for unit in units if head in unit.paths and head != table]


def _plainest(bench: Bench, unit: Unit, widths: Sequence[int], target_bpw: float) -> Quantization:
    """What the whole would be at if all were alike: the widest that the target allows."""
    choices = sorted(unit.choices(widths), key=lambda how: unit_bits(bench, unit, how))
    fitting = [how for how in choices if unit_bits(bench, unit, how) <= target_bpw * unit.size]
    return (fitting or choices)[-1 if fitting else 0]
