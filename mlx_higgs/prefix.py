"""Voices prefilled once: the keys and values of a prompt's beginning, up to its last clip.

A request in a known voice computes its text alone. What is kept depends on the weights, and on
every id and code before the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from . import __version__
from .delay import DelayPattern
from .frames import prefill
from .models.cache import Holds, KVCache, length
from .models.snapshot import Snapshot
from .models.tower import feature_positions
from .store import Folder, Store, Tensors, user_folder
from .types import Audio, Heard, Prompt, Text
from .weights import INDEX, named_arrays, weight_files

if TYPE_CHECKING:
    from .codec import HiggsCodec
    from .models.base import SpeechModel

MAX_BYTES = 512 << 20  # of voices in memory: twelve of 10 s for the 3B model in bfloat16
MAX_FOLDER_BYTES = 4 << 30  # of voices on disk: a hundred of them
MAX_CODES_BYTES = 8 << 20  # of clips' codes in memory: a thousand of 10 s
WORTH_A_FILE = 256 << 20  # bytes of weights
AUTO = "auto"
CONFIGS = ("config.json", "adapter_config.json", INDEX)
WEIGHTS = (".safetensors", ".pth")


@dataclass(frozen=True)
class Prefix:
    """The first ``parts`` of a prompt, already prefilled.

    Attributes:
        cache: one a layer, without spare room; shared by all who start from it, so never to be
            appended to.
    """

    parts: int
    cache: list[KVCache]

    def start(self) -> list[KVCache]:
        """Caches that a request may append to."""
        return [layer.copy() for layer in self.cache]

    @property
    def positions(self) -> int:
        return length(self.cache)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.cache)


def split(prompt: Prompt, said: int = 0) -> int:
    """How many leading parts are the voice: up to and with its last clip; 0 without any.

    Args:
        said: clips at the end that are no voice, but what was said before.
    """
    clips = [i + 1 for i, part in enumerate(prompt) if not isinstance(part, Text)]
    return max(clips[: len(clips) - said], default=0)


def positions(prompt: Prompt, delay: DelayPattern, holds: Holds = "all") -> int:
    """Positions that a prompt takes, or those of one modality; what is heard counts as text."""
    sizes = {"text": 0, "audio": 0}
    for part in prompt:
        if isinstance(part, Audio):
            sizes["audio"] += delay.num_rows(len(part.codes))
        elif isinstance(part, Heard):
            sizes["text"] += feature_positions(len(part.wave))
        else:
            sizes["text"] += len(part.ids)
    return sum(sizes.values()) if holds == "all" else sizes[holds]


class PrefixCache:
    """The prefixes of one model: those used last in memory, and in a folder if there is one.

    A model whose weights were replaced since (training, an adapter) starts anew, and without the
    folder, whose files are found by what its checkpoint was.

    Args:
        fingerprint: of the files the model came from (``fingerprint``); only a folder needs it.
        max_bytes: in memory; a larger voice is prefilled for every request.
        folder: shared with other processes, made when needed.
        original: the weights as the files have them; None for those that the model has now.
    """

    def __init__(
        self,
        model: SpeechModel,
        fingerprint: str,
        *,
        max_bytes: int = MAX_BYTES,
        folder: Path | None = None,
        max_folder_bytes: int = MAX_FOLDER_BYTES,
        original: Snapshot | None = None,
    ):
        self._model, self._fingerprint = model, fingerprint
        self._store = Store(max_bytes, folder and Folder(folder, max_folder_bytes))
        self._weights = original or Snapshot(model)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._store.nbytes

    def get(self, prompt: Prompt, said: int = 0) -> Prefix | None:
        """The prefix of a prompt, computed if need be; None when it holds no clip of a voice.

        Args:
            said: clips of what was said before: another time it is something else.

        Raises:
            InputError: an id or a code that the model does not have.
        """
        parts = split(prompt, said)
        if not parts:
            return None
        self._check_weights()
        voice = prompt[:parts]
        tensors = self._store.get(self.key(voice), lambda: self._prefill(voice), self._fits(voice))
        cache = self._model.make_cache()
        for index, layer in enumerate(cache):
            if f"{index}.keys" in tensors:
                _fill(layer, tensors[f"{index}.keys"], tensors[f"{index}.values"])
        return Prefix(parts, cache)

    def key(self, voice: Prompt) -> str:
        """64 hex digits that stand for the model, what runs it, and all of the parts' content."""
        content = [item for part in voice for item in _content(part)]
        return _digest("prefix", *_computed_by(), self._fingerprint, *content)

    def clear(self) -> None:
        """Forget what is in memory."""
        self._store.clear()

    def _prefill(self, voice: Prompt) -> Tensors:
        tensors = {}
        for index, layer in enumerate(prefill(self._model, voice)):
            if layer.keys is None or layer.values is None:
                continue  # a voice without any position of the kind that it holds
            tensors[f"{index}.keys"] = mx.contiguous(layer.keys[..., : layer.offset, :])
            tensors[f"{index}.values"] = mx.contiguous(layer.values[..., : layer.offset, :])
        mx.eval(tensors)
        return tensors

    def _fits(self, voice: Prompt) -> Callable[[Tensors], bool]:
        args, pattern = self._model.args, self._model.delay
        shapes = {}
        for index, layer in enumerate(self._model.make_cache()):
            if count := positions(voice, pattern, layer.holds):
                shape = (1, args.num_key_value_heads, count, args.head_dim)
                shapes |= {f"{index}.keys": shape, f"{index}.values": shape}
        return lambda tensors: (
            {name: array.shape for name, array in tensors.items()} == shapes
            and all(mx.issubdtype(array.dtype, mx.floating) for array in tensors.values())
        )

    def _check_weights(self) -> None:
        if not self._weights.holds(self._model):
            self._weights = Snapshot(self._model)
            self._store.folder = None
            self.clear()


class ClipCodes:
    """The codes of clips, each encoded once: in memory, and in a folder if there is one."""

    def __init__(
        self,
        codec: HiggsCodec,
        fingerprint: str,
        *,
        folder: Path | None = None,
        max_folder_bytes: int = MAX_FOLDER_BYTES,
    ):
        """As `PrefixCache`, for the codec; it may share the folder."""
        self._codec, self._fingerprint = codec, fingerprint
        self._store = Store(MAX_CODES_BYTES, folder and Folder(folder, max_folder_bytes))

    def get(self, wave: np.ndarray) -> mx.array:
        """Samples float32 ``[N]`` at the codec's rate -> codes int32 ``[T, K]``."""
        key = _digest("codes", *_computed_by(), self._fingerprint, wave.tobytes())
        kept = self._store.get(key, lambda: {"codes": self._codec.encode(wave)}, self._fits)
        return kept["codes"]

    def clear(self) -> None:
        """Forget what is in memory."""
        self._store.clear()

    def _fits(self, tensors: Tensors) -> bool:
        codes, codec = tensors.get("codes"), self._codec
        if codes is None or codes.dtype != mx.int32 or codes.ndim != 2 or not codes.size:
            return False
        in_range = mx.all((codes >= 0) & (codes < codec.codebook_size))
        return codes.shape[1] == codec.num_codebooks and bool(in_range.item())


def voice_folder(choice: str | Path | None, checkpoint: Path) -> Path | None:
    """Where a checkpoint's voices are kept on disk.

    Args:
        choice: a folder, None for nowhere, or ``auto``: ``voices`` in the user's folder for caches
            (``$MLX_HIGGS_CACHE``, ``~/Library/Caches/mlx_higgs`` on macOS, ``~/.cache/mlx_higgs``
            or what ``$XDG_CACHE_HOME`` says elsewhere), for weights of at least 256 MB. A smaller
            model, such as the bundled demo, takes well below a second and leaves no files behind.
    """
    if choice is None:
        return None
    if not isinstance(choice, str) or choice != AUTO:
        return Path(choice).expanduser()
    base = user_folder()
    size = sum(path.stat().st_size for path in weight_files(checkpoint))
    return base / "voices" if base is not None and size >= WORTH_A_FILE else None


def stored_as(model: SpeechModel) -> list[tuple]:
    """How a model's weights are held, tensor by tensor: tells widths of bits apart."""
    return [(name, str(array.dtype), array.shape) for name, array in named_arrays(model).items()]


def fingerprint(
    folder: Path,
    quantize: Any = None,
    adapter: Path | None = None,
    codec_folder: Path | None = None,
) -> str:
    """Tells one set of weights from another without reading them.

    Of each checkpoint: its configs' content, and of each weight file where it really is, its size,
    when it was written, and its safetensors header.

    Args:
        quantize: how the weights were changed while loading, or how they are held since
            (``stored_as``); its ``repr`` counts.
        adapter: a folder, or one file in it.

    Raises:
        OSError: files that cannot be read.
    """
    parts = [folder, adapter, codec_folder]
    return _digest(repr(quantize), *(_digest(*(_facts(part) if part else ())) for part in parts))


def _facts(source: Path) -> Iterator[str | bytes]:
    folder = source if source.is_dir() else source.parent
    for path in (folder / name for name in CONFIGS):
        if path.is_file():
            yield path.name
            yield path.read_bytes()
    files = [source] if source.is_file() else sorted(folder.iterdir())
    for path in files:
        if path.suffix in WEIGHTS and path.is_file():
            about = path.stat()
            yield f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"
            yield _header(path)


def _header(path: Path) -> bytes:
    """The names, dtypes and places of a safetensors file's tensors, as it has them."""
    if path.suffix != ".safetensors":
        return b""
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))


def _computed_by() -> tuple[str, ...]:
    """What else decides about the last bits of a result."""
    return __version__, version("mlx"), str(mx.default_device().type)


def _content(part: Text | Audio | Heard) -> tuple[str | bytes, ...]:
    if isinstance(part, Text):
        return "text", np.array(part.ids, dtype=np.int64).tobytes()
    if isinstance(part, Heard):
        return "heard", np.asarray(part.wave, np.float32).tobytes()
    codes = np.array(part.codes.astype(mx.int32))
    return "audio", f"{codes.shape} {part.spoken}", codes.tobytes()


def _digest(*items: str | bytes) -> str:
    """Of the items and of where each ends: 64 hex digits."""
    digest = hashlib.sha256()
    for item in items:
        data = item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _fill(cache: KVCache, keys: mx.array, values: mx.array) -> None:
    cache.keys, cache.values, cache.offset = keys, values, keys.shape[2]
