"""What is known against a checkpoint's rounding: what was measured on it, or on others like it.

A doubtful one is watched: its speech is drawn again when it does not end by itself, and may be less
long before it counts as runaway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .recipes import Recipe
from .types import CheckpointError
from .weights import num_weights

BLOCK = "mlx_higgs"  # ours in config.json
MEASURED, CALIBRATION, CAUTION, RECIPE = "measured", "calibration", "caution", "recipe"
# Of these, `evaluate quant` writes the first four; beyond them a checkpoint is weak.
MOST_KL = 0.03  # nat a codebook: what 6 bits cost; more is heard in a voice's colour first
LEAST_ENDED = 0.99  # share of runs that ended by themselves: one runaway in 100 is what is noticed
MOST_WORDS = 3.0  # points of word error rate beyond the original's: a word in 33 lost
MOST_DRIFT = 0.5  # semitones of the median pitch: half of what listeners tell apart in speech
CAP_SHARE = 0.6  # of text.frame_cap, twice the slowest speech: 1.2 times that


def of_recipe(recipe: Recipe, family: str, talker: Any) -> str:
    """What is known against a recipe for a kind of model; "" if nothing is.

    Args:
        family: the kind, as ``models.family`` says it.
        talker: stored by it, its weights read or not.
    """
    if caution := recipe.cautions.get(family):
        return _cautious(recipe.name, caution)
    return few_bits(talker)


def of_config(config: Mapping[str, Any], talker: Any, path: Path) -> str:
    """What is known against a stored checkpoint; "" if nothing is.

    Figures that were measured on it count more than those of its calibration, and these more than
    what is said of its recipe and of its bits.

    Raises:
        CheckpointError: a block that says what means nothing.
    """
    block = config.get(BLOCK) or {}
    if not isinstance(block, dict):
        raise CheckpointError(f"{path}: {BLOCK} is {block!r:.60}.")
    if measured := block.get(MEASURED):
        return _measured(measured, path)
    if calibration := block.get(CALIBRATION):
        return _calibrated(calibration, path)
    if caution := block.get(CAUTION):
        return _cautious(str(block.get(RECIPE)), str(caution))
    return few_bits(talker)


def few_bits(talker: Any) -> str:
    """What a person should know of a talker with fewer bits than its kind needs; or ""."""
    bits = spoken_bits(talker)
    if bits is None or bits >= talker.LEAST_BITS:
        return ""
    return (
        f"with {bits:.3g} bits this model is known to be weak: {talker.FEW_BITS}; "
        f"{talker.LEAST_BITS} or more are safer, 8 are the usual choice"
    )


def spoken_bits(model: Any) -> float | None:
    """Bits of an average weight that a frame of speech reads and that is quantised; None: none is.

    Scales are not counted.
    """
    bits = weights = 0
    for path, module in model.named_modules():
        if "scales" in module and not re.fullmatch(model.TEXT_SIDE, path):
            bits += 32 * module.weight.size  # packed into words of 32 bits
            weights += num_weights(module)
    return bits / weights if weights else None


def _cautious(name: str, caution: str) -> str:
    return f"{name} is known to be weak: {caution}. It was not measured on this checkpoint"


def _measured(measured: Any, path: Path) -> str:
    if not isinstance(measured, dict):
        raise CheckpointError(f"{path}: {BLOCK}.{MEASURED} is {measured!r:.60}.")
    faults = [fault for fault in _faults(measured, path) if fault]
    if not faults:
        return ""
    day = measured.get("date", "an unknown day")
    return f"measured on {day} against its original: {', '.join(faults)}"


def _calibrated(record: Any, path: Path) -> str:
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: {BLOCK}.{CALIBRATION} is {record!r:.60}.")
    kl = _figure(record, "kl", f"{path}: {BLOCK}.{CALIBRATION}")
    if kl is None or kl <= MOST_KL:
        return ""
    return (
        f"held-out speech was {kl:.2g} nat a code off when it was made (good: {MOST_KL:g} or less)"
    )


def _figure(said: Mapping[str, Any], name: str, where: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{where}.{name} is {value!r:.60}.")
    return float(value)


def _faults(measured: Mapping[str, Any], path: Path) -> list[str]:
    figure = partial(_figure, measured, where=f"{path}: {BLOCK}.{MEASURED}")
    ended, kl = figure("end_of_speech"), figure("kl_mean")
    words, drift = figure("wer_change_points"), figure("f0_drift_semitones")
    faults = []
    if ended is not None and ended < LEAST_ENDED:
        runs = _runs(measured)
        faults.append(f"{100 * (1 - ended):.1f} % of {runs} never ended")
    if kl is not None and kl > MOST_KL:
        faults.append(f"KL {kl:.2g} nat (good: {MOST_KL:g} or less)")
    if words is not None and words > MOST_WORDS:
        faults.append(f"{words:.1f} points more words wrong")
    if drift is not None and abs(drift) > MOST_DRIFT:
        faults.append(f"pitch {drift:+.1f} semitones off")
    return faults


def _runs(measured: Mapping[str, Any]) -> str:
    texts, seeds = measured.get("texts"), measured.get("seeds")
    if isinstance(texts, int) and isinstance(seeds, int):
        return f"{texts * seeds} runs"
    return "its runs"
