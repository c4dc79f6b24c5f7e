"""What every talker offers, whatever its generation. The loop and the tools rely on this alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..delay import DelayPattern
from ..ranks import Ranks
from ..sampling import SamplingParams
from ..types import Hearing, Prompt
from .cache import KVCache
from .layers import Cache


@dataclass(frozen=True)
class Origin:
    """Where published weights are, and what holds for what is made of them.

    Args:
        licence: its name; its words are in the repository.
        repos: names on the hub, today's first.
    """

    name: str
    licence: str
    repos: tuple[str, ...]


class SpeechModel(Protocol):
    """A talker: prompt in, one row of ``audio_logits`` per step out."""

    WEIGHT_NAMES: ClassVar[list[tuple[str, str]]]  # prefix in a file -> prefix here
    TEXT_PARTS: ClassVar[str]  # pattern of the modules that a frozen language model keeps
    TEXT_TABLE: ClassVar[str]  # the module that embeds token ids
    TEXT_HEAD: ClassVar[str]  # the module that scores token ids
    FROZEN: ClassVar[str]  # pattern of the modules that no training changes

    SAMPLING: ClassVar[SamplingParams]  # what a checkpoint that says nothing prefers
    PRESETS: ClassVar[Mapping[str, SamplingParams]]  # by name, whatever the checkpoint says
    NORMALIZE: ClassVar[bool]  # whether it was trained on normalised texts
    ORIGIN: ClassVar[Origin]
    LEAST_BITS: ClassVar[int]  # of what speaks: with fewer, its speech is known to suffer
    FEW_BITS: ClassVar[str]  # as is known of fewer

    args: Any
    layers: list[nn.Module]  # whose parts may have a SPLIT: how ``shard`` cuts their matrices
    ranks: Ranks  # that it is cut among
    ADAPTED: tuple[str, ...]  # modules of a layer that adapters go to
    TEXT_SIDE: str  # pattern of the modules that no frame of speech reads

    @property
    def delay(self) -> DelayPattern: ...

    @property
    def hearing(self) -> Hearing:
        """What a prompt's recordings must bring."""
        ...

    @property
    def listening_bytes(self) -> int:
        """What the longest stretch of a recording takes while it is listened to."""
        ...

    def make_cache(self) -> list[KVCache]: ...

    def fuse(self) -> None:
        """Join matrices that read the same input, for generation; a layer has this, too."""
        ...

    def embed_prompt(self, prompt: Prompt) -> tuple[mx.array, np.ndarray]:
        """Embeddings ``[1, S, D]`` and which positions hold codes, bool ``[1, S]``."""
        ...

    def embed_ids(self, ids: np.ndarray) -> mx.array:
        """Token ids ``[S]`` -> ``[S, D]``."""
        ...

    def embed_rows(self, rows: mx.array) -> mx.array:
        """Delayed rows ``[..., K]`` -> ``[..., D]``."""
        ...

    def hidden(
        self, x: mx.array, cache: Sequence[Cache] | None, is_audio: np.ndarray | None = None
    ) -> mx.array:
        """Last hidden states ``[B, S, D]``; ``is_audio`` None means every position is audio.

        ``cache`` None: ``x`` is all there is, as in training.
        """
        ...

    def audio_logits(self, h: mx.array) -> mx.array:
        """``[..., D]`` -> float32 ``[..., K, V]``."""
        ...

    def text_logits(self, h: mx.array) -> mx.array:
        """``[..., D]`` -> float32 ``[..., vocab_size]``, where the text head was loaded."""
        ...

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """Whether a module may be quantised. The one home of that choice."""
        ...

    def names_in(self, config: dict) -> list[tuple[str, str]]:
        """The part of ``WEIGHT_NAMES`` that a checkpoint with this config is written with."""
        ...

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors by any known layout's names -> by this module's names."""
        ...
