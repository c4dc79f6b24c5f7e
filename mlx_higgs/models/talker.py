"""What the talkers share: tables that make vectors of words and of rows, caches, weights' names."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..delay import DelayPattern
from ..ranks import ALONE, Ranks
from ..types import Audio, Heard, Hearing, InputError, Prompt, Text
from .cache import KVCache


class Talker(nn.Module):
    """The common half of a ``SpeechModel``; its subclass makes the tables and the layers.

    ``audio_codebook_embeddings`` holds all codebooks in one matrix ``[K * V, D]``, codebook-major.
    """

    WEIGHT_NAMES: ClassVar[list[tuple[str, str]]]  # beginnings of names: published, ours
    FROZEN: ClassVar[str] = r"audio_tower|audio_encoder_proj"  # where there is a tower

    ranks: Ranks = ALONE  # that it is cut among
    args: Any
    layers: list[Any]
    embed_tokens: nn.Embedding
    audio_codebook_embeddings: nn.Embedding

    @property
    def delay(self) -> DelayPattern:
        raise NotImplementedError

    @property
    def hearing(self) -> Hearing:
        return Hearing()

    @property
    def listening_bytes(self) -> int:
        return 0

    def make_cache(self) -> list[KVCache]:
        return [KVCache() for _ in self.layers]

    def embed_prompt(self, prompt: Prompt) -> tuple[mx.array, np.ndarray]:
        """Embeddings ``[1, S, D]`` and which positions hold codes, bool ``[1, S]``.

        Raises:
            InputError: an id or a code that the tables do not hold, an empty prompt, or one that
                is to be listened to without an audio tower.
        """
        if not prompt:
            raise InputError("The prompt is empty.")
        parts = [self._embed_part(part) for part in prompt]
        is_audio = [
            np.full(len(x), isinstance(p, Audio)) for x, p in zip(parts, prompt, strict=True)
        ]
        return mx.concatenate(parts)[None], np.concatenate(is_audio)[None]

    def _embed_part(self, part: Text | Audio | Heard) -> mx.array:
        if isinstance(part, Text):
            return self.embed_ids(np.asarray(part.ids))
        if isinstance(part, Heard):
            return self.embed_wave(part.wave)
        _check_ids(np.array(part.codes), self.delay.codebook_size, "Code")
        return self.embed_rows(self.delay.apply(part.codes))

    def embed_ids(self, ids: np.ndarray) -> mx.array:
        """Token ids ``[S]`` -> ``[S, D]``; an id outside the table raises InputError."""
        _check_ids(ids, self.args.vocab_size, "Token id")
        return self.embed_tokens(mx.array(ids.astype(np.int32)))

    def embed_wave(self, wave: np.ndarray) -> mx.array:
        """A stretch of a recording ``[N]`` at 16 kHz -> ``[S, D]``, by the audio tower."""
        raise InputError("This checkpoint has no audio tower to listen with.")

    def embed_rows(self, rows: mx.array) -> mx.array:
        """Delayed rows ``[..., K]`` -> ``[..., D]``: the sum of one lookup per codebook."""
        places = rows + mx.arange(rows.shape[-1]) * self.args.codebook_vocab
        return self.audio_codebook_embeddings(places).sum(axis=-2)

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """All but the table of codes and the audio head, whose rounding is audible."""
        kept = ("audio_codebook_embeddings", "audio_lm_head")
        return hasattr(module, "to_quantized") and not path.endswith(kept)

    def _rename(self, name: str) -> str:
        for theirs, ours in self.WEIGHT_NAMES:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name


def _check_ids(values: np.ndarray, limit: int, what: str) -> None:
    """MLX does not check bounds: an id outside the table would read other memory."""
    if values.size and (values.min() < 0 or values.max() >= limit):
        bad = values[(values < 0) | (values >= limit)].flat[0]
        raise InputError(f"{what} {bad} is outside 0..{limit - 1}.")
