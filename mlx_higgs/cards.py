"""What is made of which source, and what it says of itself: in its README and its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from . import __version__
from .models.base import Origin
from .quantization import Plan
from .recipes import NOTHING, Recipe

FRONT = """\
---
library_name: mlx
pipeline_tag: text-to-speech
license: other
tags:
- mlx
- higgs-audio
- text-to-speech
{base_model}---

# {name}
"""
LICENCE = """
## Licence

These weights are derived from {origin} and inherit its licence. What goes back to Boson AI's
{original.name} is under the [{original.licence}](https://huggingface.co/{original.repos[0]}).
"""
CARD = (
    FRONT
    + """
Made from {origin} with mlx_higgs {version} (MLX {mlx_version}):

```
{command}
```

| | |
|---|---|
| Parameters | {parameters:,} |
| Weights | {size:,} bytes, {bits:.2f} bits per parameter |
| Recipe | {recipe}: {per_weight:.2f} bits per weight that may be quantised |
| Quantised | {quantized} |
{calibration}| Kept in {dtype} | {kept} |
| Codec | {codec} |
| Tokenizer | {tokenizer} |

## Use

```
python -m mlx_higgs.generate --model PATH --text "Good morning."
```
"""
    + LICENCE
)


@dataclass(frozen=True)
class Conversion:
    """What is made of which source.

    Args:
        passages: options of the command that say what it is calibrated on.
    """

    source: str
    revision: str | None = None
    recipe: Recipe = NOTHING
    dtype: str | None = None
    passages: tuple[str, ...] = ()

    @property
    def repo(self) -> str | None:
        """The source's name on the hub, where it comes from there."""
        local = self.source == "demo" or Path(self.source).expanduser().is_dir()
        return None if local else self.source

    @property
    def title(self) -> str:
        """The source, by a name that says nothing of this machine's folders."""
        return self.repo or Path(self.source).expanduser().resolve().name

    @property
    def quantized(self) -> bool:
        return self.recipe.measured or self.recipe.plan != Plan()

    def command(self) -> str:
        words = ["python -m mlx_higgs.convert", f"--hf-path {self.title}"]
        if self.revision:
            words.append(f"--revision {self.revision}")
        words += filter(None, [self.recipe.options(), *self.passages])
        if self.dtype:
            words.append(f"--dtype {self.dtype}")
        return " \\\n    ".join(words)


@dataclass(frozen=True)
class Result:
    """What was written, for the card.

    Args:
        record: of the calibration.
    """

    parameters: int
    size: int  # bytes
    kept: list[str]  # modules that could be quantised and are not
    dtype: str  # theirs
    codec: str  # how and where
    tokenizer: bool
    original: Origin
    bits_per_weight: float  # stored, of those that may be quantised
    record: Mapping[str, object] | None = None

    @property
    def bits(self) -> float:
        """Stored bits per parameter, scales included."""
        return 8 * self.size / self.parameters


def recipe_block(conversion: Conversion, caution: str | None, record: Mapping | None) -> dict:
    """Ours in a converted checkpoint's config: what was done, and what is known against it."""
    said = {
        "recipe": conversion.recipe.name,
        "rules": conversion.recipe.words(),
        "version": __version__,
        "calibration": None if record is None else dict(record),
        "caution": caution,
    }
    return {key: value for key, value in said.items() if value is not None}


def _calibration(record: Mapping[str, object] | None) -> str:
    """A record as a row of the card's table."""
    if record is None:
        return ""
    pairs = (f"{key.replace('_', ' ')} {_short(value)}" for key, value in record.items())
    return f"| Calibration | {'; '.join(pairs)} |\n"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return str(value)


def _every_layer(paths: list[str]) -> list[str]:
    """Modules by path, those of layers once for all of them: ``layers.*.mlp``."""
    return sorted({re.sub(r"\.\d+\.", ".*.", path) for path in paths})


def model_card(name: str, conversion: Conversion, result: Result) -> str:
    """The README of a converted checkpoint."""
    return CARD.format(
        base_model=f"base_model: {conversion.repo}\n" if conversion.repo else "",
        name=name,
        origin=conversion.title,
        version=__version__,
        mlx_version=version("mlx"),
        command=conversion.command(),
        parameters=result.parameters,
        size=result.size,
        bits=result.bits,
        per_weight=result.bits_per_weight,
        recipe=conversion.recipe.name,
        quantized="; ".join(conversion.recipe.words()),
        calibration=_calibration(result.record),
        dtype=result.dtype,
        kept=", ".join(_every_layer(result.kept)) if conversion.quantized else "all",
        codec=result.codec,
        tokenizer="included" if result.tokenizer else "not included",
        original=result.original,
    )
