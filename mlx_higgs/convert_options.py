"""How ``convert`` spells what is asked of it: the recipe, and what it is calibrated on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from .quantization import DTYPES, MODES, Plan
from .recipes import (
    AUTO,
    CUSTOM,
    METHODS,
    Recipe,
    check_auto,
    exceptions,
    find,
    of,
    refined,
    shipped,
)
from .types import InputError

SAMPLES = 96  # passages: what the calibrations shipped here were tried with
EPILOG = """\
examples:
  python -m mlx_higgs.convert --q-bits 8
  python -m mlx_higgs.convert --hf-path bosonai/higgs-tts-2-3b-base --recipe q6-q4 \\
      --mlx-path higgs-6bit
  python -m mlx_higgs.convert --q-bits 4 --q-attention 8 --q-first-last 8 --q-path 'o_proj$=6'
  python -m mlx_higgs.convert --q-bits auto --target-bpw 4.5 --calibrate dwq --mlx-path small
Measuring and calibrating read the float model: they need room for it, and time.
"""


@dataclass(frozen=True)
class Texts:
    """What to calibrate on: the model's own speech of some texts, or recordings.

    Args:
        folder: recordings, NAME.wav with NAME.txt. file: texts, one a line. Neither: texts of the
            words the checkpoint knows, or English sentences.
        count: passages at most.
    """

    folder: Path | None = None
    file: Path | None = None
    count: int = SAMPLES
    seed: int = 0

    def __post_init__(self):
        if self.folder is not None and self.file is not None:
            raise InputError("--calibration-data and --calibration-texts are two ways: use one.")
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"There is no folder {self.folder}.")
        if self.file is not None and not self.file.is_file():
            raise InputError(f"There is no file {self.file}.")
        if self.count < 2:
            raise InputError(
                f"--calibration-samples is {self.count}: one to fit and one to try are the least."
            )

    def options(self) -> tuple[str, ...]:
        """How the command says it, by names that say nothing of this machine's folders."""
        said = [f"--calibration-samples {self.count} --calibration-seed {self.seed}"]
        if self.folder is not None:
            said.append(f"--calibration-data {self.folder.resolve().name}")
        if self.file is not None:
            said.append(f"--calibration-texts {self.file.name}")
        return tuple(said)


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """What `asked_recipe` reads."""
    parser.add_argument("--dtype", choices=DTYPES, help="of what is not quantised")
    group = parser.add_argument_group(
        "quantisation (any of these asks for it; the audio head, the table of codes and the codec "
        "never are)"
    )
    group.add_argument("-q", "--quantize", action="store_true", help="with the mode's defaults")
    group.add_argument(
        "--recipe", metavar="NAME", help="a named one, or FILE.toml; the options below refine it"
    )
    group.add_argument(
        "--list-recipes", action="store_true", help="show the named ones and do nothing else"
    )
    group.add_argument(
        "--q-bits",
        metavar="BITS",
        help="of all, or of what speaks and of what only reads the prompt's text, as 8/4, or auto: "
        "each matrix as many as it needs (default: the mode's, 8 in affine)",
    )
    group.add_argument(
        "--q-group-size", type=int, metavar="N", help="default: the mode's, 64 in affine"
    )
    group.add_argument("--q-mode", choices=tuple(MODES), help="default: affine")
    group.add_argument("--q-attention", metavar="BITS", help="of attention, where it differs")
    group.add_argument(
        "--q-first-last",
        metavar="BITS",
        help="of the first and the last layer, or N:BITS, of N at either end",
    )
    group.add_argument(
        "--q-path",
        action="append",
        metavar="REGEX=BITS",
        help="of modules whose path REGEX finds; none leaves them as they are; repeat for more, "
        "later ones win",
    )
    group.add_argument(
        "--target-bpw", type=float, metavar="X", help="of auto: stored bits per weight, as 4.5"
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """What `asked_texts` reads."""
    group = parser.add_argument_group(
        "calibration (reads the float model: it needs the memory for that, and time)"
    )
    group.add_argument(
        "--calibrate",
        metavar="METHOD",
        help=f"fit the rounding to speech: {', '.join(METHODS)}, or several as gptq+dwq",
    )
    group.add_argument(
        "--calibration-data",
        type=Path,
        metavar="FOLDER",
        help="recordings, NAME.wav with NAME.txt (default: the model's own speech)",
    )
    group.add_argument(
        "--calibration-texts",
        type=Path,
        metavar="FILE",
        help="what it says for that, one text a line (default: words it knows, or sentences)",
    )
    group.add_argument(
        "--calibration-samples", type=int, default=SAMPLES, metavar="N", help="%(default)s"
    )
    group.add_argument("--calibration-seed", type=int, default=0, metavar="N", help="%(default)s")
    group.add_argument(
        "--memory-limit", metavar="SIZE", help="what it may take, as 8GB (default: the machine's)"
    )


def asked_recipe(arguments: argparse.Namespace) -> Recipe | None:
    """What the options ask for: any of them is enough.

    Raises:
        InputError: a recipe or a width that there is not, options that do not go together.
    """
    said = _said(arguments)
    if not said and not arguments.quantize:
        return None
    named = None if arguments.recipe is None else find(arguments.recipe)
    if named is not None and len(said) == 1:
        return replace(named, asked=tuple(said))
    auto, target = _target(arguments, named)
    before = named or Recipe(CUSTOM)
    plan = replace(_sides(arguments, before, auto=auto), rules=before.plan.rules)
    plan = plan.but(
        *exceptions(
            plan,
            attention=arguments.q_attention,
            first_last=arguments.q_first_last,
            paths=[_path(path) for path in arguments.q_path or []],
        )
    )
    method = arguments.calibrate or before.calibrate
    plain = named is None and not (auto or method)
    made = of(plan) if plain else before if named is None else refined(before)
    return replace(made, plan=plan, target_bpw=target, calibrate=method, asked=tuple(said))


def _target(arguments: argparse.Namespace, named: Recipe | None) -> tuple[bool, float | None]:
    """Whether widths are chosen, and how many bits they may take."""
    bits, target = arguments.q_bits, arguments.target_bpw
    before = None if named is None else named.target_bpw
    auto = bits == AUTO or (bits is None and before is not None)
    target = before if auto and target is None else target
    check_auto(AUTO if auto else bits, target)
    return auto, target


def asked_texts(arguments: argparse.Namespace, recipe: Recipe | None) -> Texts:
    """Raises InputError for what is not there, or not needed."""
    given = arguments.calibration_data or arguments.calibration_texts
    if given is not None and (recipe is None or not recipe.measured):
        raise InputError(f"{given} is for --calibrate or --q-bits auto: say which.")
    return Texts(
        arguments.calibration_data,
        arguments.calibration_texts,
        arguments.calibration_samples,
        arguments.calibration_seed,
    )


def recipe_table(arguments: argparse.Namespace) -> str:
    """The named recipes, a line each.

    Raises:
        InputError: options that ask for something else as well.
    """
    said = [*(["-q"] if arguments.quantize else []), *_said(arguments)]
    if said:
        raise InputError(f"--list-recipes does nothing else: leave out {', '.join(said)}.")
    recipes = shipped()
    width = max(map(len, recipes))
    return "\n".join(f"{name:<{width}}  {recipe.about}" for name, recipe in recipes.items())


def _said(arguments: argparse.Namespace) -> list[str]:
    """The options given, as they make the same again; a file by its name alone."""
    spelled = {
        "--recipe": arguments.recipe and Path(arguments.recipe).name,
        "--q-bits": arguments.q_bits,
        "--q-group-size": arguments.q_group_size,
        "--q-mode": arguments.q_mode,
        "--q-attention": arguments.q_attention,
        "--q-first-last": arguments.q_first_last,
        "--target-bpw": arguments.target_bpw,
        "--calibrate": arguments.calibrate,
    }
    said = [f"{option} {value}" for option, value in spelled.items() if value is not None]
    return said + [f"--q-path '{path}'" for path in arguments.q_path or []]


def _sides(arguments: argparse.Namespace, before: Recipe, *, auto: bool) -> Plan:
    """Both sides' widths: those of the recipe, where no option says another."""
    bits, size, mode = arguments.q_bits, arguments.q_group_size, arguments.q_mode
    if auto:
        if size is not None or mode is not None:
            raise InputError("auto chooses groups by itself, in mode affine: leave those out.")
        return Plan()
    like = before.plan.audio or before.plan.text
    if like is None or (bits, size, mode) == (None, None, None):
        return Plan.parse(bits, size, mode or "affine") if like is None else before.plan
    same = replace(before.plan, rules=(), table=())
    if size is None and mode in (None, like.mode):
        size = like.group_size
    return Plan.parse(bits or same.name, size, mode or like.mode)


def _path(text: str) -> tuple[str, str]:
    """``REGEX=BITS``, at the last ``=``."""
    pattern, equals, bits = text.rpartition("=")
    if not (pattern and equals and bits):
        raise InputError(f"--q-path {text!r} lacks its bits: write REGEX=BITS, or REGEX=none.")
    return pattern, bits
