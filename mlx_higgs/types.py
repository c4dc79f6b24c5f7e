"""The nouns every part shares: prompts, voices, results and errors. Imports nothing heavy.

Letters used for shapes everywhere: B batch, S prompt positions, T frames, L delayed rows,
K codebooks, V codebook_vocab (codes + BOS + EOS), D width, N samples. Codes are ``[T, K]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

SAMPLE_RATE = 24_000  # Hz
HOP = 960  # samples in one frame
FRAME_RATE = SAMPLE_RATE / HOP  # 25.0 frames per second
HEARING_RATE = 16_000  # Hz, of what a checkpoint with an audio tower listens to
STRETCH = 30 * HEARING_RATE  # samples it listens to at once

StopReason = Literal["eos", "length", "silence", "repetition"]


class HiggsError(Exception):
    """Something the caller can act on. The message says the value and the way out."""

    exit_code = 1


class InputError(HiggsError, ValueError):
    """An argument, text or reference clip that cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint, config or weight file that cannot be used."""


class GenerationError(HiggsError, RuntimeError):
    """The model made nothing worth keeping (no frames, silence, NaN)."""


@dataclass(frozen=True)
class Text:
    """A run of token ids."""

    ids: list[int]


@dataclass(frozen=True)
class Audio:
    """A clip inside a prompt: aligned ``codes`` ``[T, K]``.

    ``spoken`` is True for clips in an assistant turn. Only those count for repetition-aware
    sampling (the reference's ``audio_out_ids``); clips in the system turn do not.
    """

    codes: mx.array
    spoken: bool = True


@dataclass(frozen=True)
class Heard:
    """A stretch of a recording inside a prompt: mono float32 ``[N]`` at 16 kHz, at most 30 s.

    It stands for the features an audio tower makes of it. The codes of the same stretch, where a
    checkpoint reads both, come next.
    """

    wave: np.ndarray


Prompt = list[Text | Audio | Heard]


@dataclass(frozen=True)
class Hearing:
    """How a checkpoint takes in a recording of a user or of the system turn.

    What an assistant said is always codes.

    Args:
        features: of its audio tower.
        codes: those of the codec.
    """

    features: bool = False
    codes: bool = True


@dataclass(frozen=True)
class Recording:
    """A clip that a user or the system turn brings, by what its checkpoint needs of it.

    Args:
        codes: aligned ``[T, K]``.
        wave: mono float32 ``[N]`` at 16 kHz, of any length.
    """

    codes: mx.array | None = None
    wave: np.ndarray | None = None


@dataclass(frozen=True)
class Voice:
    """A reference clip encoded once: aligned codes ``[T, K]`` and what it says.

    ``wave``: the clip itself, mono float32 ``[N]`` at 16 kHz, for checkpoints that listen to it
    where it stands in the system turn.
    """

    codes: mx.array
    transcript: str
    name: str = ""
    wave: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Profile:
    """A voice described in words: ``Profile("Male, British accent, calm and slow.")``."""

    description: str


@dataclass(frozen=True)
class SpeechChunk:
    """Samples that are final: mono float32 ``[N]`` at ``sampling_rate``."""

    pcm: np.ndarray
    sampling_rate: int = SAMPLE_RATE
    frames: int = 0  # delayed rows generated so far


@dataclass(frozen=True)
class AnswerChunk(SpeechChunk):
    """What an answer goes on with: words, samples, or neither.

    Attributes:
        text: words, as far as they are certain.
        codes: ``[T, K]`` of the stretch of speech that ends with this chunk.
        tokens: ids written so far. prompt_tokens: positions that the prompt takes.
    """

    text: str = ""
    codes: np.ndarray | None = field(default=None, repr=False)
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Spoken:
    """A stretch of speech in an answer: samples float32 ``[N]`` and codes ``[T, K]``."""

    pcm: np.ndarray = field(repr=False)
    codes: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What a model said in a conversation.

    Attributes:
        parts: words and stretches of speech, in their order.
        stop_reason: why it ended (``eos`` is the good one).
        recipient: whom it addressed, where it said so.
        tokens: ids written. frames: delayed rows of speech. prompt_tokens: positions before them.
    """

    parts: tuple[str | Spoken, ...]
    sampling_rate: int
    stop_reason: StopReason
    seed: int
    seconds: float
    recipient: str | None = None
    tokens: int = 0
    frames: int = 0
    prompt_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def spoken(self) -> list[Spoken]:
        return [part for part in self.parts if isinstance(part, Spoken)]

    @property
    def segments(self) -> list[np.ndarray]:
        """The samples of each stretch of speech, mono float32 ``[N]``."""
        return [part.pcm for part in self.spoken]

    @property
    def codes(self) -> list[np.ndarray]:
        """The codes ``[T, K]`` of each."""
        return [part.codes for part in self.spoken]

    @property
    def pcm(self) -> np.ndarray:
        """All of its speech, one stretch after the other: mono float32 ``[N]``."""
        import numpy as np

        return np.concatenate([np.zeros(0, np.float32), *self.segments])

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.pcm) / self.sampling_rate

    def message(self) -> dict[str, Any]:
        """Itself as a message, so that the conversation goes on: speech stays codes."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "audio", "codes": part.codes}
            for part in self.parts
            if isinstance(part, str) or len(part.codes)
        ]
        recipient = {"recipient": self.recipient} if self.recipient else {}
        return {"role": "assistant", "content": content, **recipient}


@dataclass(frozen=True)
class Speech:
    """One finished generation.

    Attributes:
        pcm: mono float32 ``[N]``, unclipped.
        num_frames_raw: delayed rows, the all-BOS row included.
        num_frames_aligned: frames the codec decoded.
        stop_reason: why it ended (``eos`` is the good one).
        seconds: wall time spent.
    """

    pcm: np.ndarray
    sampling_rate: int
    num_frames_raw: int
    num_frames_aligned: int
    stop_reason: StopReason
    seed: int
    seconds: float
    codes: np.ndarray | None = field(default=None, repr=False)  # [T, K]

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.pcm) / self.sampling_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds spent per second of audio: below 1 is faster than real time."""
        return self.seconds / self.duration if len(self.pcm) else float("inf")
