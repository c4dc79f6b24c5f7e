"""The trainer's options: mlx-lm's names, from YAML and the command line, which wins."""

# `option` is dataclasses' `field` with a help text
# ruff: noqa: RUF009

from __future__ import annotations

import argparse
import difflib
import math
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..types import InputError

FineTuneType = Literal["lora", "dora", "full"]
OptimizerName = Literal["adam", "adamw", "muon", "sgd", "adafactor"]
OPTIMIZER_NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)
AudioLoss = Literal["mean", "sum"]


def option(default: Any, help: str, *, yaml_only: bool = False) -> Any:
    meta = {"help": help, "yaml_only": yaml_only}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Options:
    """Everything that decides about a run. One iteration is one update of the weights."""

    model: str = option("demo", "folder or hub name")
    data: str = option("", "folder with train, valid and test data (.jsonl), or one file or folder")
    codec: str | None = option(None, "folder or hub name, when not beside the model")
    tokenizer: str | None = option(None, "folder or hub name, when not beside the model")
    revision: str | None = option(None, "commit or branch of a hub model")
    adapter_path: str = option("adapters", "folder to write to")
    codes_cache: str | None = option(None, "folder for encoded clips (default: DATA/.codes)")
    fine_tune_type: FineTuneType = option("lora", "what is trained")
    num_layers: int = option(-1, "layers to adapt, counted from the last; -1 is all")
    lora_parameters: dict = option({}, "keys, rank, scale (or alpha) and dropout", yaml_only=True)
    freeze_llm: bool = option(False, "train no part that text alone uses")
    freeze_embed_until_idx: int | None = option(None, "keep rows below this of the text embedding")
    freeze_text_head_until_idx: int | None = option(None, "keep rows below this of the text head")
    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "precision of the weights (default: as stored)"
    )
    quantize: int | None = option(None, "quantise the base while loading, to so many bits")
    train: bool = option(True, "train; --no-train only tests")
    iters: int = option(1000, "updates of the weights")
    batch_size: int = option(4, "samples in a batch")
    grad_accumulation_steps: int = option(1, "batches in an update")
    grad_checkpoint: bool = option(False, "less memory for more time: compute layers again")
    max_seq_length: int = option(2048, "positions of a sample at most, 25 and more a second")
    optimizer: OptimizerName = option("adam", "how the weights are updated")
    optimizer_config: dict = option({}, "arguments, by optimizer", yaml_only=True)
    learning_rate: float = option(1e-4, "step size")
    lr_schedule: dict | None = option(
        None, "name, arguments, warmup and warmup_init", yaml_only=True
    )
    grad_clip: float = option(1.0, "largest norm of the gradient; 0 is off")
    audio_loss: AudioLoss = option("mean", "over the codebooks; sum is transformers'")
    codebook_weights: list[float] | None = option(None, "one factor for each codebook")
    text_loss_weight: float = option(1.0, "factor of the text's loss")
    train_reference: bool = option(False, "learn the turns before start_index, too")
    code_noise: float = option(0.0, "share of the codes it sees that are drawn at random")
    seed: int = option(0, "decides about everything drawn")
    steps_per_report: int = option(10, "iterations between two lines of the log")
    steps_per_eval: int = option(200, "iterations between two validations")
    val_batches: int = option(25, "batches of a validation; -1 is all")
    save_every: int = option(100, "iterations between two saves")
    eval_prompt: str | None = option(None, "text to say at every validation, as a WAV")
    eval_voice: str | None = option(None, "its voice: a clip (with .txt beside it) or a name")
    test: bool = option(False, "score the test data at the end")
    test_batches: int = option(-1, "batches of the test; -1 is all")
    tensorboard: bool = option(False, "log for TensorBoard, too")
    resume: bool = option(False, "go on with the run in the folder")
    resume_adapter_file: str | None = option(None, "start from this adapter's weights")
    force: bool = option(False, "start anew in a folder that holds a run")
    max_minutes: float | None = option(None, "stop and save after so long")


FIELDS = {f.name: f for f in fields(Options)}
HINTS = get_type_hints(Options)
KINDS = {
    bool: "true or false",
    dict: "names with values",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
}
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
POSITIVE = (
    "iters",
    "batch_size",
    "grad_accumulation_steps",
    "max_seq_length",
    "steps_per_report",
    "steps_per_eval",
    "save_every",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option that fits on a command line. What is not given is None."""
    parser.add_argument("-c", "--config", type=Path, help="YAML file with these options")
    for name, f in FIELDS.items():
        if not f.metadata["yaml_only"]:
            _add(parser, name, f)


def _add(parser: argparse.ArgumentParser, name: str, f: Any) -> None:
    flag, default = "--" + name.replace("_", "-"), f.default
    shown = "" if default in (None, "", False, True) else f" (default: {default})"
    text = (f.metadata["help"] + shown).replace("%", "%%")
    kind, choices = _kind(HINTS[name])
    if kind is bool:
        action = argparse.BooleanOptionalAction if name == "train" else "store_true"
        parser.add_argument(flag, action=action, default=None, help=text)
    elif kind is list:
        parser.add_argument(flag, type=float, nargs="+", metavar="X", help=text)
    else:
        metavar = None if choices else name.rsplit("_")[-1].upper()
        parser.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=text)


def _kind(hint: Any) -> tuple[type, tuple | None]:
    """The type of an option, and its values if they are few."""
    if NoneType in get_args(hint):  # Literal | None is of another class than str | None
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return get_origin(hint) or hint, None


def read_options(arguments: argparse.Namespace) -> Options:
    """The command line over the YAML file over the defaults.

    Raises:
        InputError: an unknown name, or a value that cannot be used.
    """
    chosen = _from_yaml(arguments.config) if arguments.config else {}
    given = {k: v for k, v in vars(arguments).items() if k in FIELDS and v is not None}
    options = replace(Options(), **{**chosen, **given})
    check(options)
    return options


def _from_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise InputError("-c needs PyYAML: pip install 'mlx_higgs[train]'") from error
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The config {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            f"The config {path} is not YAML: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(found or {}, dict):
        raise InputError(f"The config {path} holds no names with values.")
    return {str(k).replace("-", "_"): _value(path, str(k), v) for k, v in (found or {}).items()}


def _value(path: Path, name: str, value: Any) -> Any:
    name = name.replace("-", "_")
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see --help."
        raise InputError(f"{path}: there is no option {name!r}: {hint}")
    kind, choices = _kind(HINTS[name])
    if value is None:
        return FIELDS[name].default if FIELDS[name].default is not None else None
    value = _number(kind, value)
    if kind is list and isinstance(value, list):
        value = [_number(float, entry) for entry in value]
        if odd := [entry for entry in value if type(entry) is not float]:
            raise InputError(f"{path}: {name} has {odd[0]!r}, not a number.")
    if kind is dict:
        value = _numbers(value)
    if type(value) is not kind or (choices and value not in choices):
        wanted = f"one of {', '.join(choices)}" if choices else KINDS[kind]
        raise InputError(f"{path}: {name} is {value!r}, not {wanted}.")
    return value


def _number(kind: type, value: Any) -> Any:
    """YAML reads 1e-4 as text and 1 as a whole number."""
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _numbers(value: Any) -> Any:
    """The same for what is inside of a dict: 1e-2 is a number wherever it stands."""
    if isinstance(value, dict):
        return {name: _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return value


def check(options: Options) -> None:
    """Raises InputError for a value that no run can have."""
    for name in POSITIVE:
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}: it must be at least 1.")
    if not 0 <= options.code_noise < 1:
        raise InputError(f"code_noise is {options.code_noise}: a share from 0 to below 1.")
    for name in ("learning_rate", "grad_clip", "text_loss_weight"):
        if not 0 <= getattr(options, name) < math.inf:
            raise InputError(f"{name} is {getattr(options, name)}: it must be 0 or above.")
    weights = options.codebook_weights
    if weights and not all(0 <= w < math.inf for w in weights):
        raise InputError(f"codebook_weights are {weights}: each must be 0 or above.")
    if options.max_minutes is not None and not options.max_minutes > 0:
        raise InputError(f"max_minutes is {options.max_minutes}: it must be above 0.")
    if not options.data:
        raise InputError("There is no training data: name its folder with --data.")
    if not options.train and not options.test:
        raise InputError("There is nothing to do: --no-train goes with --test.")
    if not 0 <= options.seed < 1 << 31:
        raise InputError(f"seed is {options.seed}: it must be from 0 to {(1 << 31) - 1}.")
