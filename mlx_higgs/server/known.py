"""The voices a server knows: clips encoded once, and prompts prefilled once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import audio
from ..hearing import Clip, recording
from ..loading import Higgs
from ..prefix import ClipCodes, PrefixCache, fingerprint, stored_as, voice_folder
from ..types import HEARING_RATE, InputError, Profile, Recording, Voice
from ..voices import Reference, no_transcript, reference
from .request import SpeechRequest, check_clips, references

if TYPE_CHECKING:
    import mlx.core as mx

    from .chat import ChatRequest


class KnownVoices:
    """What was computed of voices, in memory, and in a folder for the next process if there is one.

    Args:
        voice_cache, keep_encoder: as ``HiggsAudioServer`` takes them.

    Attributes:
        prepared: the voices of requests that name none.
    """

    def __init__(
        self, higgs: Higgs, *, voice_cache: str | Path | None = None, keep_encoder: bool = False
    ):
        self._higgs, self._keep_encoder = higgs, keep_encoder
        self.prepared: list[Voice] = []
        # what one rank finds in its folder and another does not would keep the other waiting
        self._folder = voice_folder(None if higgs.ranks.size > 1 else voice_cache, higgs.path)
        self._clips: ClipCodes | None = None
        self._prefixes: PrefixCache | None = None

    def prepare(self, path: str | os.PathLike, text: str | None) -> Voice:
        """Encode a clip for the requests that name none.

        Raises:
            InputError: the clip or its transcript cannot be used.
        """
        clip = reference(path, text, wordless=True)
        self._check_words([clip])
        voice = self.encode(clip)
        self.release_encoder()
        self.prepared = [voice]
        return voice

    def clear(self) -> None:
        """Forget the prepared voice and all that is in memory of others; files stay."""
        self.prepared = []
        for kept in (self._clips, self._prefixes):
            if kept is not None:
                kept.clear()

    def asked(self, request: SpeechRequest | ChatRequest) -> list[Voice | Profile]:
        """The voices of a request, encoded: those it names, or those prepared.

        Raises:
            InputError: a clip or a transcript that cannot be used, an unknown name.
        """
        asked = references(request) or list(self.prepared)
        if asked and not self._higgs.defaults.clones:
            check_clips(asked)
            warnings.warn("This checkpoint cannot clone: the voice is left out.", stacklevel=4)
            return []
        if not request.references_in_system:
            self._check_words(asked)
        voices = [self.encode(v) if isinstance(v, Reference) else v for v in asked]
        self.release_encoder()
        return voices

    def hear(self, clip: Clip) -> Recording:
        """A clip by what the checkpoint needs of it.

        Raises:
            InputError: a clip that cannot be used, or a checkpoint that hears none.
        """
        if why := self._higgs.prompts.NO_CHAT:
            raise InputError(f"This model does not listen. {why}")
        hearing, rate = self._higgs.talker.hearing, self._higgs.codec.sample_rate
        return recording(clip, hearing, rate, self.codes)

    def encode(self, clip: Reference) -> Voice:
        """A clip as the voice it shows.

        Raises:
            InputError: the clip cannot be used.
        """
        higgs, wave = self._higgs, clip.wave
        if wave is None:
            wave = audio.read_reference(clip.path, higgs.codec.sample_rate)
        codes = higgs.ranks.same(self.codes(wave))
        heard = None
        if higgs.talker.hearing.features:
            heard = audio.to_rate(wave, higgs.codec.sample_rate, HEARING_RATE)
        return Voice(codes, clip.transcript, clip.name, heard)

    def codes(self, wave: np.ndarray) -> mx.array:
        """Samples ``[N]`` at the codec's rate -> codes ``[T, K]``."""
        if self._clips is None:
            higgs = self._higgs
            weights, folder = self._known(lambda: fingerprint(higgs.codec_folder))
            self._clips = ClipCodes(higgs.codec, weights, folder=folder)
        return self._clips.get(wave)

    def prefixes(self) -> PrefixCache:
        """The prompts' beginnings that were prefilled; reads the talker's weights."""
        if self._prefixes is None:
            higgs, model = self._higgs, self._higgs.model
            weights, folder = self._known(
                lambda: fingerprint(higgs.path, stored_as(model), higgs.adapter, higgs.codec_folder)
            )
            self._prefixes = PrefixCache(model, weights, folder=folder, original=higgs.original)
        return self._prefixes

    def release_encoder(self) -> None:
        """Before the talker's weights are read, where they still are on disk."""
        if self._clips is not None and not self._keep_encoder:
            self._higgs.codec.release_encoder()

    def _check_words(self, asked: Iterable[Reference | Voice | Profile]) -> None:
        """Raises InputError for a clip without its transcript, if this model needs it."""
        wordless = [v for v in asked if isinstance(v, Reference) and not v.transcript]
        if wordless and self._higgs.prompts.NEEDS_WORDS:
            raise no_transcript(wordless[0].path)

    def _known(self, weights: Callable[[], str]) -> tuple[str, Path | None]:
        """A fingerprint and the folder that needs it; neither if the weights' files are gone."""
        if self._folder is not None:
            with suppress(OSError):
                return weights(), self._folder
        return "", None
