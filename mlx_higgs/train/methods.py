"""Which weights are trained, and how they are updated: LoRA, DoRA, full; mlx's optimizers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.optimizers as optim
import mlx.optimizers.schedulers as schedulers
from mlx.utils import tree_flatten, tree_unflatten

from ..types import InputError
from .options import Options

if TYPE_CHECKING:
    from ..models.base import SpeechModel

LORA_DEFAULTS = {"rank": 8, "scale": 20.0, "dropout": 0.0}  # mlx-lm's
SCHEDULES = ("cosine_decay", "exponential_decay", "linear_schedule", "step_decay")
OPTIMIZERS = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


def prepare(model: Any, options: Options) -> dict[str, mx.array]:
    """Make the chosen weights trainable, adapters included.

    Returns:
        Row masks ``[rows, 1]`` by parameter: 0 where a row must stay as it is.

    Raises:
        InputError: parts that the model lacks, or a method that it does not allow.
    """
    if options.fine_tune_type == "full":
        _full(model, options)
    else:
        _adapted(model, options)
    if not tree_flatten(model.trainable_parameters()):
        raise InputError("Nothing is left to train: freeze less.")
    if options.grad_checkpoint:
        checkpoint_layers(model)
    return frozen_rows(model, options)


def _full(model: Any, options: Options) -> None:
    if any(hasattr(module, "bits") for module in model.modules()):
        raise InputError(
            "A quantised model cannot be trained in full: use fine_tune_type lora, or the "
            "original weights."
        )
    model.unfreeze()
    keep = re.compile(f"{model.FROZEN}|{model.TEXT_PARTS}" if options.freeze_llm else model.FROZEN)
    for path, module in model.named_modules():
        if keep.fullmatch(path):
            module.freeze()
    if options.freeze_embed_until_idx is not None:
        _part(model, model.TEXT_TABLE).unfreeze()


def _adapted(model: Any, options: Options) -> None:
    try:
        from mlx_lm.tuner.utils import linear_to_lora_layers
    except ImportError as error:
        raise InputError("LoRA and DoRA need mlx-lm: pip install 'mlx_higgs[train]'") from error
    for name in ("freeze_llm", "freeze_embed_until_idx", "freeze_text_head_until_idx"):
        if getattr(options, name):
            raise InputError(f"{name} goes with fine_tune_type full: adapters freeze all the rest.")
    count = len(model.layers)
    if options.num_layers != -1 and not 0 < options.num_layers <= count:
        raise InputError(f"num_layers is {options.num_layers}: use 1 to {count}, or -1 for all.")
    parameters = lora_parameters(model, options.lora_parameters)
    mx.random.seed(options.seed)
    model.freeze()
    use_dora = options.fine_tune_type == "dora"
    linear_to_lora_layers(model, options.num_layers, parameters, use_dora=use_dora)


def lora_parameters(model: SpeechModel, given: dict) -> dict:
    """``keys``, ``rank``, ``scale`` and ``dropout`` as mlx-lm takes them; ``alpha`` is PEFT's."""
    unknown = given.keys() - {"keys", "alpha", *LORA_DEFAULTS}
    if unknown:
        raise InputError(
            f"lora_parameters has no {', '.join(sorted(unknown))}: use keys, rank, scale or alpha, "
            "dropout."
        )
    if "alpha" in given and "scale" in given:
        raise InputError("lora_parameters has scale and alpha: scale is alpha / rank, give one.")
    found = {**LORA_DEFAULTS, "keys": list(model.ADAPTED), **given}
    if not (isinstance(found["rank"], int) and found["rank"] > 0):
        raise InputError(f"lora_parameters: rank is {found['rank']!r}, not a positive number.")
    for name in found.keys() - {"keys"}:
        if type(found[name]) not in (int, float) or not math.isfinite(found[name]):
            raise InputError(f"lora_parameters: {name} is {found[name]!r}, not a number.")
    if not 0 <= found["dropout"] < 1:
        raise InputError(f"lora_parameters: dropout is {found['dropout']}: from 0 to below 1.")
    if "alpha" in found:
        found["scale"] = float(found.pop("alpha")) / found["rank"]
    _check_keys(model, found["keys"])
    return found


def _check_keys(model: Any, keys: Any) -> None:
    if not isinstance(keys, list):
        raise InputError(f"lora_parameters: keys are {keys!r}, not a list of modules.")
    known = {path for layer in model.layers for path, _ in layer.named_modules()}
    known |= {path for path, _ in model.named_modules()}
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        some = ", ".join(sorted(path for path in known if path.endswith("_proj"))[:12])
        raise InputError(f"The model has no module {missing}: keys are such as {some}.")


def _part(model: Any, path: str) -> Any:
    found = dict(model.named_modules()).get(path)
    if found is None:
        raise InputError(f"The model has no {path}, or its checkpoint lacks it.")
    return found


def frozen_rows(model: Any, options: Options) -> dict[str, mx.array]:
    """Boson's partially frozen embedding and head, as masks of one matrix ``[rows, 1]``."""
    counts = {
        model.TEXT_TABLE: options.freeze_embed_until_idx,
        model.TEXT_HEAD: options.freeze_text_head_until_idx,
    }
    masks = {}
    for path, count in counts.items():
        if count is None:
            continue
        rows = len(_part(model, path).weight)
        if not 0 <= count <= rows:
            raise InputError(f"{path} has {rows} rows: it cannot keep the first {count}.")
        masks[f"{path}.weight"] = (mx.arange(rows) >= count)[:, None]
    return masks


def build_optimizer(options: Options) -> optim.Optimizer:
    """An optimizer of mlx with its learning rate or schedule.

    Raises:
        InputError: arguments it does not have.
    """
    arguments = options.optimizer_config.get(options.optimizer) or {}
    unknown = options.optimizer_config.keys() - OPTIMIZERS.keys()
    if unknown or not isinstance(arguments, dict):
        raise InputError(
            f"optimizer_config names {', '.join(sorted(unknown)) or arguments!r}: it holds "
            "arguments under the optimizer's name, such as adamw: {weight_decay: 0.01}."
        )
    if odd := [name for name, value in arguments.items() if isinstance(value, str | dict)]:
        raise InputError(
            f"optimizer_config of {options.optimizer}: {odd[0]} is {arguments[odd[0]]!r}, "
            "not a number."
        )
    if options.optimizer == "adafactor":
        arguments = {"relative_step": False, "scale_parameter": False, **arguments}
    try:
        return OPTIMIZERS[options.optimizer](learning_rate=learning_rate(options), **arguments)
    except TypeError as error:
        raise InputError(f"optimizer_config of {options.optimizer}: {error}.") from error


def learning_rate(options: Options) -> float | Callable[[mx.array], mx.array]:
    """The rate, or mlx-lm's ``lr_schedule`` (``mlx_lm.tuner.utils.build_schedule``).

    Raises:
        InputError: no such schedule, or arguments it does not take.
    """
    wanted = options.lr_schedule
    if not wanted:
        return options.learning_rate
    name, arguments = wanted.get("name"), wanted.get("arguments")
    make = getattr(schedulers, name) if name in SCHEDULES else None
    extra = wanted.keys() - {"name", "arguments", "warmup", "warmup_init"}
    if make is None or not isinstance(arguments, list) or not arguments or extra:
        raise InputError(
            f"lr_schedule is {wanted}: it takes name ({', '.join(SCHEDULES)}), "
            "arguments (a list), warmup and warmup_init."
        )
    try:
        arguments = [float(argument) for argument in arguments]
        schedule = make(*arguments)
        if not (warmup := int(wanted.get("warmup", 0))):
            return schedule
        first = float(wanted.get("warmup_init", 0.0))
        rise = schedulers.linear_schedule(first, arguments[0], warmup)
        return schedulers.join_schedules([rise, schedule], [warmup + 1])
    except (TypeError, ValueError) as error:
        raise InputError(f"lr_schedule is {wanted}: {error}.") from error


def checkpoint_layers(model: Any) -> None:
    """Compute each layer's inside again for its gradient instead of keeping it."""
    for layer in model.layers:
        layer.__class__ = _checkpointed(type(layer))


def _checkpointed(kind: type) -> type:
    """A layer's class with the same name and weights, whose call keeps its input only."""

    def call(self, x, *rest):
        if not self.training:
            return kind.__call__(self, x, *rest)
        trained = tree_flatten(self.trainable_parameters())
        if not trained:
            return kind.__call__(self, x, *rest)
        names, arrays = zip(*trained, strict=True)
        seed = int(mx.random.randint(0, (1 << 31) - 1))  # type: ignore[arg-type]

        def inner(x, *arrays):
            mx.random.seed(seed)  # the same dropout both times
            self.update(tree_unflatten(list(zip(names, arrays, strict=True))))
            return kind.__call__(self, x, *rest)

        return _recomputed(inner)(x, *arrays)

    return type(kind.__name__, (kind,), {"__call__": call})


def _recomputed(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``mx.checkpoint`` in an order that frees memory: layer after layer, the weights first.

    Left to itself, MLX computes the gradients of all weights last, and keeps every layer for them.
    """
    again: Any = mx.custom_function(function)

    @again.vjp
    def _(primals, cotangent, _output):
        x, *arrays = primals
        (x,) = mx.depends([x], [cotangent])
        _, gradients = mx.vjp(function, [x, *arrays], [cotangent])
        return (*mx.depends(gradients[:1], gradients[1:]), *gradients[1:])

    return again
