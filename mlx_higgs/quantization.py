"""How weights are stored in fewer bits.

MLX is imported where it is used, because ``--help`` reads the tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .types import CheckpointError, InputError

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

DTYPES = ("float32", "float16", "bfloat16")  # of what is not quantised
# mode -> (group sizes, widths); the first of each is the default
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (8, 2, 3, 4, 5, 6)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
BITS = re.compile(r"(\d+)(?:/(\d+))?")  # of both sides, or of the audio's and the text's
ATTENTION = r"^layers\.\d+\.(\w+_)?attn\."
LAYER = re.compile(r"layers\.(\d+)\.")
ELEMENTS_AT_ONCE = 1 << 15  # some 3 MB of temporaries


@dataclass(frozen=True)
class Quantization:
    """``bits`` per weight, in groups of ``group_size`` that share a scale."""

    bits: int = 8
    group_size: int = 64
    mode: str = "affine"

    @classmethod
    def of(
        cls, bits: int | None = None, group_size: int | None = None, mode: str = "affine"
    ) -> Quantization:
        """Fill in what was left open by the mode's defaults.

        Raises:
            InputError: a mode, width or group size that MLX does not have.
        """
        if mode not in MODES:
            raise InputError(f"Mode {mode!r} does not exist: use one of {', '.join(MODES)}.")
        groups, widths = MODES[mode]
        bits = widths[0] if bits is None else bits
        group_size = groups[0] if group_size is None else group_size
        _check(mode, "bits", bits, widths)
        _check(mode, "group size", group_size, groups)
        return cls(bits, group_size, mode)

    def nbytes(self, weights: int, itemsize: int) -> int:
        """Bytes that so many weights of ``itemsize`` bytes take, with their scales and biases."""
        # affine: a scale and a bias in the weights' own dtype; the float modes: a byte
        scales = 2 * itemsize if self.mode == "affine" else 1
        return weights * self.bits // 8 + weights // self.group_size * scales

    def config(self) -> dict:
        """The ``quantization`` block of mlx-lm's config."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class Rule:
    """How some modules are stored, whatever their side: those whose path ``pattern`` finds.

    Args:
        how: None leaves them as they are.
        ends: in place of a pattern, of so many layers at either end of the stack.

    Raises:
        InputError: a pattern that cannot be read, or less than one layer.
    """

    pattern: str = ""
    how: Quantization | None = None
    ends: int | None = None

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"{self.pattern!r} is no regular expression: {error}.") from error
        if self.ends is not None and self.ends < 1:
            raise InputError(f"{self.ends} layers at either end: it must be 1 or more.")

    def covers(self, path: str, layers: int) -> bool:
        """Whether it is for the module at ``path`` of a model of so many layers."""
        if self.ends is None:
            return re.search(self.pattern, path) is not None
        found = LAYER.match(path)
        return found is not None and not self.ends <= int(found[1]) < layers - self.ends

    @property
    def where(self) -> str:
        """For people."""
        if self.ends is not None:
            return "the first and the last " + (
                "layer" if self.ends == 1 else f"{self.ends} layers"
            )
        return "attention" if self.pattern == ATTENTION else f"what {self.pattern!r} finds"


@dataclass(frozen=True)
class Plan:
    """How a talker's modules are stored, by what uses them; None leaves a side as it is.

    Args:
        audio: of all that a frame of speech reads.
        text: of what only a prompt's text reads (a model's ``TEXT_SIDE``), once per request.
        rules: exceptions; a later one beats an earlier.
        table: in place of all these, every module's own: pairs of path and width.
    """

    audio: Quantization | None = None
    text: Quantization | None = None
    rules: tuple[Rule, ...] = ()
    table: tuple[tuple[str, Quantization | None], ...] = ()

    @classmethod
    def of(cls, how: Quantization | Plan | None) -> Plan:
        """One width for both sides; a plan as it is."""
        return how if isinstance(how, Plan) else cls(how, how)

    @classmethod
    def exact(cls, chosen: Mapping[str, Quantization | None]) -> Plan:
        """Each module as a table says; what is not in it stays as it is."""
        return cls(table=tuple(sorted(chosen.items(), key=lambda pair: pair[0])))

    @classmethod
    def parse(cls, bits: str | None, group_size: int | None = None, mode: str = "affine") -> Plan:
        """``8`` or, audio before text, ``8/4``; ``none`` leaves all as it is, None takes defaults.

        Raises:
            InputError: anything else, or what MLX does not have.
        """
        if bits == "none":
            return cls()
        if bits is None:
            return cls.of(Quantization.of(None, group_size, mode))
        if not (found := BITS.fullmatch(bits)):
            raise InputError(
                f"{bits!r} is no way to quantise: say how many bits (8), or how many for speech "
                "and for the prompt's text (8/4)."
            )
        audio, text = (
            Quantization.of(int(n), group_size, mode) for n in (found[1], found[2] or found[1])
        )
        return cls(audio, text)

    def but(self, *rules: Rule) -> Plan:
        """With more exceptions, which beat those there are."""
        return replace(self, rules=self.rules + rules)

    @property
    def name(self) -> str:
        """As ``parse`` reads it; with a ``+`` where there is more to say than it can."""
        if self.table:
            return "mixed"
        bits = [str(side.bits) if side else "none" for side in (self.audio, self.text)]
        return "/".join(dict.fromkeys(bits)) + ("+" if self.rules else "")

    def side(self, text: bool) -> Quantization | None:
        return self.text if text else self.audio

    def words(self) -> list[str]:
        """Its rules for people, each of which beats those before it."""
        if self.table:
            counts = Counter(in_words(how) for _, how in self.table)
            return [f"{count} modules: {how}" for how, count in counts.most_common()]
        said = [in_words(self.audio)]
        if self.text != self.audio:
            said.append(f"what only a prompt's text uses: {in_words(self.text)}")
        return said + [f"{rule.where}: {in_words(rule.how)}" for rule in self.rules]

    def config(self, chosen: Mapping[str, Quantization]) -> dict | None:
        """The ``quantization`` block of mlx-lm's config: one for all, and entries of their own.

        Args:
            chosen: what ``quantizable`` says.
        """
        if not chosen:
            return None
        first = self.audio or self.text or Counter(chosen.values()).most_common(1)[0][0]
        other = {path: how.config() for path, how in chosen.items() if how != first}
        return first.config() | other


ORIGINAL = Plan()  # all as it is


def in_words(how: Quantization | None) -> str:
    return f"{how.bits} bits in groups of {how.group_size} ({how.mode})" if how else "no"


# what a name stands for, best first: the audio side is what rounding is heard in
PLANS = {
    "none": Plan(),
    "8": Plan(Quantization(8), Quantization(8)),
    "8/4": Plan(Quantization(8), Quantization(4)),
    "6/4": Plan(Quantization(6), Quantization(4)),
    "4": Plan(Quantization(4), Quantization(4)),
}


def _check(mode: str, name: str, value: int, allowed: tuple[int, ...]) -> None:
    if value not in allowed:
        known = ", ".join(map(str, sorted(allowed)))
        raise InputError(f"Mode {mode} has no {name} {value}: use one of {known}.")


def quantizable(model: Any, plan: Plan) -> dict[str, Quantization]:
    """Path -> width of a talker's modules to quantise: those that its own predicate allows.

    What the predicate keeps (the table of codes, the audio head) stays as it is, whatever a rule
    or a table says.

    Raises:
        InputError: a width that is no multiple of the group size, a rule that is for no module.
    """
    allowed = {p: m for p, m in model.named_modules() if model.quant_predicate(p, m)}
    _check_rules(plan, allowed, len(model.layers))
    table = dict(plan.table)
    chosen = {}
    for path, module in allowed.items():
        if how := table.get(path) if table else _how(plan, path, model):
            width = module.weight.shape[-1]
            if width % how.group_size:
                raise InputError(
                    f"{path} is {width} wide, which groups of {how.group_size} do not divide: "
                    "choose another group size or mode."
                )
            chosen[path] = how
    return chosen


def _how(plan: Plan, path: str, model: Any) -> Quantization | None:
    how = plan.side(re.fullmatch(model.TEXT_SIDE, path) is not None)
    for rule in plan.rules:
        if rule.covers(path, len(model.layers)):
            how = rule.how
    return how


def _check_rules(plan: Plan, allowed: Mapping[str, Any], layers: int) -> None:
    """A rule for nothing is a slip of the pen."""
    for rule in plan.rules:
        if not any(rule.covers(path, layers) for path in allowed):
            some = ", ".join(sorted(path for path in allowed if LAYER.match(path))[:3])
            raise InputError(
                f"{rule.pattern!r} finds no module that may be quantised: the paths are like "
                f"{some}."
            )
        if rule.ends is not None and rule.ends > 1 and 2 * rule.ends >= layers:
            raise InputError(
                f"{rule.where.capitalize()} are all of this model, which has {layers}: name fewer, "
                "or give all the same bits."
            )


def quantize_module(module: nn.Linear | nn.Embedding, how: Quantization) -> nn.Module:
    """The module in fewer bits. What it holds of ``module`` is released once it is evaluated."""
    import mlx.core as mx

    from .memory import on_cpu

    quantized = module.to_quantized(how.group_size, how.bits, how.mode)
    if how.mode != "affine" and on_cpu():
        weight, scales = _quantize_slowly(module.weight, how)
        mx.eval(weight, scales)
        quantized.update({"weight": weight, "scales": scales})
    return quantized


def _quantize_slowly(weight: mx.array, how: Quantization) -> list[mx.array]:
    """A few rows at a time: without a GPU the 4-bit float modes need 20 to 40 times their input."""
    import mlx.core as mx

    rows = max(1, ELEMENTS_AT_ONCE // weight.shape[1])
    pieces = []
    for start in range(0, len(weight), rows):
        piece = weight[start : start + rows]
        pieces.append(mx.quantize(piece, how.group_size, how.bits, mode=how.mode))
        mx.eval(pieces[-1])
    return [mx.concatenate(list(parts)) for parts in zip(*pieces, strict=True)]


def stored_quantization(config: dict) -> dict | None:
    """How a checkpoint's weights are stored already; None for floats."""
    return config.get("quantization") or config.get("quantization_config")


def prepare_quantized(model: nn.Module, stored: dict, names: set[str]) -> None:
    """Quantised modules wherever a file holds scales, by its config's ``quantization`` block.

    Reads mlx-lm's form, per-path entries included, and mlx-audio's (which adds
    ``class_predicate_skip``): the tensor names say the same and cannot be out of date.
    """

    def choose(path: str, module: nn.Module) -> bool | dict:
        if f"{path}.scales" not in names:
            return False
        return stored[path] if isinstance(stored.get(path), dict) else True

    import mlx.nn as nn

    try:
        nn.quantize(
            model,
            stored["group_size"],
            stored["bits"],
            mode=stored.get("mode", "affine"),
            class_predicate=choose,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The quantization block {stored} cannot be used: {error}") from error
