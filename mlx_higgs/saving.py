"""A talker in memory -> a checkpoint folder and its card, there whole or not at all."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import __version__
from .models.base import Origin
from .quantization import Plan, Quantization
from .types import InputError
from .weights import INDEX

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
| Quantised | {quantized} |
| Kept in {dtype} | {kept} |
| Codec | {codec} |
| Tokenizer | {tokenizer} |

## Use

```
python -m mlx_higgs.generate --model PATH --text "Good morning."
```
"""
    + LICENCE
)
SHARD_LIMIT = 5_000_000_000  # bytes in one weight file, the hub's custom
TOKENIZER = "tokenizer.json"
COPIED = (  # beside the weights: what the prompts and other loaders read, and the licence
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
)


def check_target(target: Path, sources: Iterable[Path], *, force: bool = False) -> None:
    """Whether ``target`` may be written, before any work is done.

    Raises:
        InputError: a file, a source or its parent, a folder with content (without ``force``),
            or with content that is no checkpoint (with it).
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a folder to write to.")
    for source in sources:
        if source.resolve().is_relative_to(target):
            raise InputError(
                f"{target} holds the source {source}: name another folder to write to."
            )
    if not target.exists() or not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{target} holds files already: --force replaces it, or name another.")
    if not (target / "config.json").is_file():
        raise InputError(f"{target} is not a checkpoint, so --force does not replace it.")


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder beside ``target`` that takes its name once the block has ended well.

    Raises:
        InputError: it cannot be made there.
    """
    partial = _beside(target, "partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}.") from error
    try:
        yield partial
        _rename(partial, target, force=force)
    except BaseException:  # an interrupt, too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}-{secrets.token_hex(4)}")


def _rename(new: Path, target: Path, *, force: bool) -> None:
    old = _beside(target, "old")
    try:
        if force and target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """MLX reports a full disk as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{folder} could not be written: {error}") from error


def save_weights(
    model: nn.Module,
    folder: Path,
    limit: int = SHARD_LIMIT,
    rename: Callable[[str], str] = str,
    beside: Mapping[str, mx.array] = MappingProxyType({}),
) -> int:
    """Write ``model.safetensors``, or shards of at most ``limit`` bytes and their index.

    Args:
        rename: the model's name of a tensor -> its name in the file.
        beside: what else goes into the file, by its name there.

    Returns:
        The bytes of all tensors.
    """
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    shards = split({**{rename(k): array for k, array in arrays.items()}, **beside}, limit)
    total = sum(array.nbytes for shard in shards for array in shard.values())
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    with disk_errors(folder):
        for name, shard in zip(names, shards, strict=True):
            mx.save_safetensors(str(folder / name), shard, {"format": "mlx"})
    if len(shards) > 1:
        homes = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": homes})
    return total


def split(tensors: dict[str, mx.array], limit: int) -> list[dict[str, mx.array]]:
    """Tensors in their order, cut into runs of at most ``limit`` bytes (or one tensor)."""
    shards: list[dict[str, mx.array]] = [{}]
    room = limit
    for name, array in tensors.items():
        if shards[-1] and array.nbytes > room:
            shards.append({})
            room = limit
        shards[-1][name] = array
        room -= array.nbytes
    return shards


def converted_config(config: dict, block: dict | None, dtype: str | None) -> dict:
    """The source's config with what has changed, spelled as mlx-lm does.

    Args:
        block: how the weights are quantised (``Plan.config``).
    """
    config = dict(config)
    if dtype:
        config = _with_dtype(config, dtype)
    if block:
        # mlx-lm reads the first name, the hub's file browser the second
        config["quantization"] = config["quantization_config"] = block
    return config


def _with_dtype(config: dict, dtype: str) -> dict:
    changed: dict = {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = _with_dtype(config["text_config"], dtype)
    return config | changed


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def copy_files(source: Path, folder: Path) -> None:
    """Copy the files of ``COPIED`` that ``source`` has."""
    for pattern in COPIED:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


@dataclass(frozen=True)
class Recipe:
    """What is made of which source."""

    source: str
    revision: str | None = None
    quantize: Quantization | Plan | None = None
    dtype: str | None = None

    @property
    def plan(self) -> Plan:
        return Plan.of(self.quantize)

    @property
    def repo(self) -> str | None:
        """The source's name on the hub, where it comes from there."""
        local = self.source == "demo" or Path(self.source).expanduser().is_dir()
        return None if local else self.source

    @property
    def title(self) -> str:
        """The source, by a name that says nothing of this machine's folders."""
        return self.repo or Path(self.source).expanduser().resolve().name

    def describe(self) -> str:
        audio, text = (_in_words(side) for side in (self.plan.audio, self.plan.text))
        return audio if audio == text else f"{audio}; what only a prompt's text uses: {text}"

    def command(self) -> str:
        words = ["python -m mlx_higgs.convert", f"--hf-path {self.title}"]
        if self.revision:
            words.append(f"--revision {self.revision}")
        if how := self.plan.audio or self.plan.text:
            bits = f"--q-bits {self.plan.name}"
            words.append(f"{bits} --q-group-size {how.group_size} --q-mode {how.mode}")
        if self.dtype:
            words.append(f"--dtype {self.dtype}")
        return " \\\n    ".join(words)


@dataclass(frozen=True)
class Result:
    """What was written, for the card."""

    parameters: int
    size: int  # bytes
    kept: list[str]  # modules that could be quantised and are not
    dtype: str  # theirs
    codec: str  # how and where
    tokenizer: bool
    original: Origin

    @property
    def bits(self) -> float:
        """Stored bits per parameter, scales included."""
        return 8 * self.size / self.parameters


def _in_words(how: Quantization | None) -> str:
    return f"{how.bits} bits in groups of {how.group_size} ({how.mode})" if how else "no"


def _every_layer(paths: list[str]) -> list[str]:
    """Modules by path, those of layers once for all of them: ``layers.*.mlp``."""
    return sorted({re.sub(r"\.\d+\.", ".*.", path) for path in paths})


def model_card(name: str, recipe: Recipe, result: Result) -> str:
    """The README of a converted checkpoint."""
    return CARD.format(
        base_model=f"base_model: {recipe.repo}\n" if recipe.repo else "",
        name=name,
        origin=recipe.title,
        version=__version__,
        mlx_version=version("mlx"),
        command=recipe.command(),
        parameters=result.parameters,
        size=result.size,
        bits=result.bits,
        quantized=recipe.describe(),
        dtype=result.dtype,
        kept=", ".join(_every_layer(result.kept)) if recipe.quantize else "all",
        codec=result.codec,
        tokenizer="included" if result.tokenizer else "not included",
        original=result.original,
    )
