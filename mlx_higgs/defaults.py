"""What a checkpoint prefers where a request leaves it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sampling import SamplingParams
from .types import CheckpointError, InputError
from .weights import read_json

if TYPE_CHECKING:
    from .models.base import SpeechModel

SAMPLING = {  # transformers' name -> SamplingParams'
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "ras_win_len": "ras_window",
    "ras_win_max_num_repeat": "ras_max_repeats",
}
EXTRAS: dict[str, type] = {  # ours, which transformers ignores
    "scene": str,
    "notice": str,
    "normalize": bool,
    "clones": bool,
    "chats": bool,
    "words": list,
    "context": int,
    "letters": int,
}
LEAST = {"context": 0, "letters": 1}


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint prefers, from its ``generation_config.json``."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    scene: str | None = None  # who speaks when no voice is named
    notice: str | None = None  # a line to announce it with
    normalize: bool = True
    clones: bool = True
    chats: bool = True  # False: it has a text head that was never taught to write
    words: list[str] | None = None  # what it says best
    context: int = 1  # pieces of a long text that the next one is told of; 0: never trained so
    letters: int | None = None  # of a piece of a long text, see pieces.Chunking
    presets: Mapping[str, SamplingParams] = field(default_factory=dict)  # of its kind of model

    @classmethod
    def from_pretrained(cls, folder: Path, model: type[SpeechModel] | None = None) -> Defaults:
        """Read ``generation_config.json``: transformers' names, and ours for what it lacks.

        Args:
            model: says what holds where the file is silent.

        Raises:
            CheckpointError: a value that means nothing, named.
        """
        path = folder / "generation_config.json"
        config = read_json(path, required=False)
        try:
            sampling = replace(model.SAMPLING if model else SamplingParams(), **_ours(config))
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from error
        extra: dict[str, Any] = {"normalize": model.NORMALIZE} if model else {}
        extra |= {name: config[name] for name in EXTRAS if name in config}
        for name, value in extra.items():
            if type(value) is not EXTRAS[name] or (name in LEAST and value < LEAST[name]):
                raise CheckpointError(f"{path}: {name} is {value!r}.")
        return cls(sampling, presets=model.PRESETS if model else {}, **extra)

    def under(self, said: Mapping[str, Any]) -> Defaults:
        """With what a recipe says of the sampling, by transformers' names."""
        return replace(self, sampling=replace(self.sampling, **_ours(said)))

    def preset(self, name: str | None) -> SamplingParams:
        """How rows are drawn by a preset; by the checkpoint's own choice for None.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        if name is None:
            return self.sampling
        if name not in self.presets:
            known = f"use {', '.join(self.presets)}" if self.presets else "this model has none"
            raise InputError(f"There is no preset {name!r:.60}: {known}.")
        return self.presets[name]


def check_sampling(said: Mapping[str, Any]) -> None:
    """Raises InputError for a name that transformers does not have, or a value out of bounds."""
    for key in said:
        if key not in SAMPLING:
            raise InputError(f"sampling knows no {key!r}: use {', '.join(SAMPLING)}.")
    replace(SamplingParams(), **_ours(said))


def with_sampling(config: dict, said: Mapping[str, Any]) -> dict:
    """A ``generation_config.json`` that says this, too, and nothing against it."""
    changed = config | dict(said)
    if said.get("temperature") and config.get("do_sample") is False:
        changed["do_sample"] = True
    return changed


def _ours(config: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers' names, and its ways to say off, as ``SamplingParams`` has them."""
    found = {key: config[key] for key in SAMPLING if config.get(key) is not None}
    named: dict[str, Any] = {SAMPLING[key]: value for key, value in found.items()}
    if config.get("do_sample") is False:
        named["temperature"] = 0
    if "ras_win_len" in config and config["ras_win_len"] in (None, 0, -1):
        named["ras_window"] = 0  # how the references say off
    return named
