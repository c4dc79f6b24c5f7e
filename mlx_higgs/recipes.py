"""Named ways to store a talker: data, read from ``recipes.toml`` or a file of one's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from .quantization import ATTENTION, BITS, ORIGINAL, Plan, Quantization, Rule
from .types import InputError

SHIPPED = Path(__file__).with_name("recipes.toml")
AUTO = "auto"  # as bits: chosen by what each matrix costs when it is rounded
METHODS = ("awq", "dwq", "gptq")
WIDTHS = (3, 4, 5, 6, 8)  # that auto chooses from
CUSTOM = "custom"  # the name of what has none
KINDS: dict[str, tuple[type, ...]] = {
    "about": (str,),
    "bits": (int, str),
    "group_size": (int,),
    "mode": (str,),
    "attention": (int, str),
    "first_last": (int, str),
    "paths": (list,),
    "target_bpw": (int, float),
    "widths": (list,),
    "calibrate": (str,),
    "sampling": (dict,),
    "cautions": (dict,),
}


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is stored, and what goes with that.

    Args:
        plan: the widths; with ``target_bpw``, those that are not to be chosen: its rules.
        target_bpw: stored bits per weight that the chosen widths may take in all; None chooses
            nothing.
        widths: to choose from.
        calibrate: how the rounding is fitted to speech; None leaves it to the nearest.
        sampling: what ``generation_config.json`` is to say, by transformers' names.
        cautions: kind of model (``models.family``) -> what is known against it.
        asked: the options of ``mlx_higgs.convert`` that make it; () spells them from the plan.

    Raises:
        InputError: a target that its widths cannot meet, a method or a sampling that there is not.
    """

    name: str
    about: str = ""
    plan: Plan = ORIGINAL
    target_bpw: float | None = None
    widths: tuple[int, ...] = WIDTHS
    calibrate: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    cautions: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()

    def __post_init__(self):
        if self.calibrate is not None and not set(self.calibrate.split("+")) <= set(METHODS):
            known = ", ".join(METHODS)
            raise InputError(
                f"There is no calibration {self.calibrate!r:.60}: use {known}, or a+b."
            )
        for bits in self.widths:
            Quantization.of(bits)
        if self.target_bpw is not None:
            self._check_target()
        elif self.calibrate and self.plan == Plan():
            raise InputError(
                f"--calibrate {self.calibrate} is for what is quantised: add --q-bits 4, or "
                "--q-bits auto --target-bpw 4.5."
            )
        if self.sampling:
            _check_sampling(self.sampling)

    @property
    def measured(self) -> bool:
        """Whether making it takes the float model, to measure it or to be fitted to it."""
        return self.target_bpw is not None or self.calibrate is not None

    def words(self) -> list[str]:
        """Its rules for people."""
        said = self.plan.words()
        if self.target_bpw is not None:
            widths = ", ".join(map(str, self.widths))
            chosen = f"{self.target_bpw:g} bits per weight, each matrix in one of {widths}"
            said = [f"{chosen}, as measured", *said[1:]]
        if self.calibrate:
            said.append(f"calibrated by {self.calibrate}")
        return said + [f"{key} {value}" for key, value in self.sampling.items()]

    def options(self) -> str:
        """What `mlx_higgs.convert` makes it with."""
        if self.asked:
            return " ".join(self.asked)
        if self == shipped().get(self.name) and (self.measured or self.plan.rules):
            return f"--recipe {self.name}"
        how = self.plan.audio or self.plan.text
        if how is None:
            return ""
        return f"--q-bits {self.plan.name} --q-group-size {how.group_size} --q-mode {how.mode}"

    def _check_target(self) -> None:
        assert self.target_bpw is not None
        if not self.widths:
            raise InputError("auto needs at least one width to choose from.")
        # 16-bit scale and bias of each group of 64; wider and narrower groups are chosen, too
        low, high = min(self.widths) + 32 / 128, max(self.widths) + 32 / 32
        if not low <= self.target_bpw <= high:
            raise InputError(
                f"--target-bpw {self.target_bpw:g} cannot be met with {min(self.widths)} to "
                f"{max(self.widths)} bits: they take {low:g} to {high:g} with their scales."
            )


NOTHING = Recipe("none")


def shipped() -> dict[str, Recipe]:
    """The recipes that come with this package, best first."""
    return read_file(SHIPPED)


@cache
def read_file(path: Path) -> dict[str, Recipe]:
    """Name -> recipe of a TOML file.

    Raises:
        InputError: it cannot be read, or says what means nothing; the table is named.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The recipes {path} cannot be read: {error}.") from error
    if not tables:
        raise InputError(f"There is no recipe in {path}: a table [NAME] is one.")
    return {name: _recipe(name, table, path) for name, table in tables.items()}


def find(asked: str) -> Recipe:
    """A recipe by its name, or the one in a ``.toml`` file.

    Raises:
        InputError: there is none, or several; the message lists them.
    """
    if asked in shipped():
        return shipped()[asked]
    if not asked.endswith(".toml"):
        raise InputError(
            f"There is no recipe {asked!r:.80}: use {', '.join(shipped())}, or a FILE.toml."
        )
    found = read_file(Path(asked).expanduser())
    if len(found) > 1:
        raise InputError(f"{asked} holds {len(found)} recipes ({', '.join(found)}): leave one.")
    return next(iter(found.values()))


def read(asked: str) -> Recipe:
    """What a command's ``--quantize`` means: a recipe, or bits as ``8`` and ``8/4``.

    Raises:
        InputError: neither.
    """
    if asked in shipped() or asked.endswith(".toml"):
        return find(asked)
    if asked != "none" and not BITS.fullmatch(asked):
        raise InputError(
            f"{asked!r} is no way to quantise: say how many bits (8), or how many for speech and "
            f"for the prompt's text (8/4), or a recipe: {', '.join(shipped())}."
        )
    return of(Plan.parse(asked))


def of(how: str | Recipe | Plan | Quantization | None) -> Recipe:
    """The recipe of a plan: the named one that is the same, or one without a name.

    Raises:
        InputError: a name that is none.
    """
    if isinstance(how, Recipe):
        return how
    if isinstance(how, str):
        return read(how)
    plan = Plan.of(how)
    if plan == Plan():
        return NOTHING
    same = (r for r in shipped().values() if r.plan == plan and not r.measured and not r.sampling)
    return next(same, Recipe(CUSTOM, plan=plan))


def at_once(recipe: Recipe, model: str) -> Recipe:
    """A recipe that can be followed while loading.

    Raises:
        InputError: it has to be measured first; the message says how.
    """
    if recipe.measured:
        raise InputError(
            f"The recipe {recipe.name} is fitted to the model by measuring it. Convert first: "
            f"python -m mlx_higgs.convert --recipe {recipe.name} --hf-path {model} --mlx-path "
            "FOLDER, then --model FOLDER."
        )
    return recipe


def _recipe(name: str, table: Any, path: Path) -> Recipe:
    try:
        return _made(name, table)
    except InputError as error:
        raise InputError(f"{path}: [{name}]: {error}") from error


def _made(name: str, table: Any) -> Recipe:
    if not isinstance(table, dict):
        raise InputError("it is no table: write [NAME] above the keys of a recipe.")
    for key, value in table.items():
        if key not in KINDS:
            raise InputError(f"{key!r} means nothing: use {', '.join(KINDS)}.")
        if not isinstance(value, KINDS[key]) or isinstance(value, bool):
            raise InputError(f"{key} is {value!r:.60}.")
    bits, target = str(table.get("bits", "none")), table.get("target_bpw")
    check_auto(bits, target)
    size, mode = table.get("group_size"), table.get("mode", "affine")
    plan = Plan() if bits == AUTO else Plan.parse(bits, size, mode)
    rules = exceptions(
        plan,
        attention=_text(table.get("attention")),
        first_last=_text(table.get("first_last")),
        paths=[_pair(pair) for pair in table.get("paths", [])],
    )
    chosen = {
        key: table[key] for key in ("about", "calibrate", "sampling", "cautions") if key in table
    }
    widths = tuple(table.get("widths", WIDTHS))
    return Recipe(name, plan=plan.but(*rules), target_bpw=target, widths=widths, **chosen)


def check_auto(bits: str | None, target: float | None) -> None:
    """Raises InputError where ``auto`` and its target do not come together."""
    if bits == AUTO and target is None:
        raise InputError("--q-bits auto needs --target-bpw, as 4.5: how many bits to spend.")
    if bits != AUTO and target is not None:
        raise InputError("--target-bpw is for --q-bits auto, which chooses the widths.")


def exceptions(
    plan: Plan,
    *,
    attention: str | None = None,
    first_last: str | None = None,
    paths: list[tuple[str, str]] | None = None,
) -> list[Rule]:
    """Rules as they are spelled: bits, or ``none``; of the first and last layers, ``N:BITS``.

    In groups and mode they are as the plan's widths.

    Raises:
        InputError: what is no width, or no number of layers.
    """
    rules = []
    if attention is not None:
        rules.append(Rule(ATTENTION, width(attention, plan)))
    if first_last is not None:
        count, colon, bits = first_last.rpartition(":")
        if colon and not count.isdecimal():
            raise InputError(f"{first_last!r}: write BITS, or N:BITS for N layers at either end.")
        rules.append(Rule(how=width(bits, plan), ends=int(count or 1)))
    return rules + [Rule(pattern, width(bits, plan)) for pattern, bits in paths or []]


def width(bits: str, plan: Plan) -> Quantization | None:
    """One width as it is spelled, in the groups and the mode of a plan.

    Raises:
        InputError: no number, or one that MLX does not have.
    """
    if bits == "none":
        return None
    if not bits.isdecimal():
        raise InputError(f"{bits!r} is no number of bits: write 8, or none to leave it as it is.")
    like = plan.audio or plan.text or Quantization()
    return Quantization.of(int(bits), like.group_size, like.mode)


def refined(recipe: Recipe) -> Recipe:
    """The recipe to change something in: a name that says so, and nothing known against it."""
    return replace(recipe, name=f"{recipe.name} refined", about="", cautions={})


def _text(value: int | str | None) -> str | None:
    return None if value is None else str(value)


def _pair(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"{pair!r:.60} is no pair of a regular expression and its bits.")
    return pair[0], str(pair[1])


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    from .defaults import check_sampling

    check_sampling(sampling)
