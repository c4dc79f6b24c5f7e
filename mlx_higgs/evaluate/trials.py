"""One run after the other: what is to be said, by whom, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import SAMPLE_RATE, CheckpointError, GenerationError, InputError
from .texts import Recording

if TYPE_CHECKING:
    from ..server import HiggsAudioServer


@dataclass(frozen=True)
class Trial:
    """A text to say with a seed, and the clip to clone (None: the checkpoint's own voice)."""

    text: str
    seed: int
    clip: Recording | None = None


@dataclass(frozen=True)
class Take:
    """What a trial or a recording brought.

    Attributes:
        pcm: mono float32 ``[N]`` at ``rate`` Hz; empty when it failed.
        clip: the clip that was cloned.
        spent: seconds it took; None for a recording, as are ``seed`` and ``stop_reason``.
        failure: why there is no speech.
    """

    text: str
    pcm: np.ndarray
    rate: int
    voice: str = ""
    clip: Recording | None = None
    seed: int | None = None
    stop_reason: str | None = None
    spent: float | None = None
    failure: str | None = None


def plan(
    texts: Sequence[str],
    seeds: Sequence[int],
    clips: Mapping[str, Sequence[Recording]] | None = None,
) -> list[Trial]:
    """Every text with every seed, for every voice; a voice's clips take turns."""
    voices = clips or {"": [None]}
    return [
        Trial(text, seed, voices[voice][index % len(voices[voice])])
        for voice in voices
        for index, text in enumerate(texts)
        for seed in seeds
    ]


def perform(
    server: HiggsAudioServer, trials: Sequence[Trial], options: Mapping[str, Any]
) -> Iterator[Take]:
    """Speak the trials; ``options`` are fields of SpeechRequest. A failure is a take too."""
    for trial in trials:
        clip = trial.clip
        named = {"reference_audio_path": clip.path, "reference_text": clip.text} if clip else {}
        voice = clip.voice if clip else ""
        try:
            speech = server.generate(trial.text, seed=trial.seed, **named, **options)
        except CheckpointError:
            raise  # no text would fare better
        except (GenerationError, InputError) as error:
            none = np.zeros(0, np.float32)
            yield Take(trial.text, none, SAMPLE_RATE, voice, clip, trial.seed, failure=str(error))
            continue
        yield Take(
            trial.text,
            speech.pcm,
            speech.sampling_rate,
            voice,
            clip,
            trial.seed,
            speech.stop_reason,
            speech.seconds,
        )


def play_back(recordings: Sequence[Recording]) -> Iterator[Take]:
    """Recordings as takes."""
    for clip in recordings:
        yield Take(clip.text, clip.read(), SAMPLE_RATE, clip.voice)
