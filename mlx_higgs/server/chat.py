"""One answer in a conversation, under way: words and speech as they become final."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..answer import Answering, Segment, unfinished
from ..delivery import Delivery
from ..frames import MAX_IDENTICAL_ROWS
from ..loading import Higgs
from ..memory import bounded
from ..prefix import PrefixCache, positions
from ..sampling import SamplingParams, check
from ..streaming import MAX_SILENCE, SpeechStream
from ..types import Answer, AnswerChunk, Audio, GenerationError, InputError, Spoken, StopReason
from ..voices import Reference
from .request import MAX_POSITIONS, Clips, settled

if TYPE_CHECKING:
    from ..prompts.base import Opening
    from ..types import Voice

MODALITIES = ("text", "audio")
OWN_NAMES = {  # field of a request -> of SamplingParams
    "max_new_tokens": "max_frames",
    "ras_win_len": "ras_window",
    "ras_max_repeat": "ras_max_repeats",
}


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer. None leaves a choice to the checkpoint.

    Args:
        messages: as ``messages.read_messages`` takes them.
        modalities: what the answer is made of: ``text``, ``audio`` or both. With both, the model
            decides; ``audio`` alone opens with speech.
        force_audio_gen: open with speech whatever may follow (the reference's name).
        voice, reference_audio_path, reference_text: whose voice the answers have, as in a
            ``SpeechRequest``; a voice is described in words in the system's message.
        continue_final_message: the last message, an assistant's, is the beginning of the answer.
        max_new_tokens: ids and rows of speech (25 a second) at most, together.
        temperature, top_p, top_k: of ids and of rows alike.
        preset, ras_win_len, ras_max_repeat, seed: as in a ``SpeechRequest``.
        guards: end an answer whose speech is silent or repeats itself.
    """

    references_in_system: ClassVar[bool] = False

    messages: Sequence[Any]
    modalities: Sequence[str] = MODALITIES
    force_audio_gen: bool = False
    voice: str | Voice | Reference | Sequence[str | Voice | Reference] | None = None
    reference_audio_path: Clips | None = None
    reference_text: str | Sequence[str] | None = None
    continue_final_message: bool = False
    preset: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    ras_win_len: int | None = None
    ras_max_repeat: int | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    guards: bool = True

    def __post_init__(self):
        listed = [self.modalities] if isinstance(self.modalities, str) else list(self.modalities)
        if not listed or any(one not in MODALITIES for one in listed):
            raise InputError(f"modalities is {listed!r:.60}: it must list text, audio or both.")
        object.__setattr__(self, "modalities", tuple(listed))
        if self.force_audio_gen and self.speech is False:
            raise InputError("force_audio_gen needs audio among the modalities.")

    @property
    def speech(self) -> bool | None:
        """Whether the answer opens with speech (True), has none (False), or as the model likes."""
        if "audio" not in self.modalities:
            return False
        return True if self.force_audio_gen or "text" not in self.modalities else None

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The checkpoint's defaults, with this request's choices and a seed."""
        for field, name in OWN_NAMES.items():
            if (value := getattr(self, field)) is not None:
                check(name, value, field)
        return settled(defaults, self, max_frames=self.max_new_tokens)


class ChatJob:
    """An answer under way: iterate it, once, for its chunks, or run it to the end.

    Args:
        started: ``time.perf_counter()`` when the work on it began.
    """

    def __init__(
        self,
        higgs: Higgs,
        request: ChatRequest,
        opening: Opening,
        params: SamplingParams,
        prefixes: PrefixCache,
        delivery: Delivery,
        started: float,
    ):
        self.request, self.stop_reason = request, None
        self._higgs, self._delivery, self._started = higgs, delivery, started
        self._wording, self._prompt = opening.wording, opening.prompt
        begun = None if opening.begun is None else unfinished(opening.begun, higgs.talker.delay)
        self._prompt_tokens = positions(self._prompt, higgs.talker.delay)
        self._prompt_tokens += 0 if begun is None else len(begun)
        self.params = fit(params, self._prompt_tokens)
        self._answering = Answering(
            higgs.model,
            self._prompt,
            self.params,
            opening.marks,
            begun=begun,
            prefix=prefixes.get(self._prompt, said=self._clips_said(opening)),
            max_identical_rows=MAX_IDENTICAL_ROWS if request.guards else 0,
        )
        self._stream: SpeechStream | None = None
        self._rows, self._closed = 0, False
        self.stop_reason: StopReason | None

    @staticmethod
    def _clips_said(opening: Opening) -> int:
        """Clips of the conversation, which are no voice to be kept."""
        clips = sum(isinstance(part, Audio) for part in opening.prompt)
        return clips - opening.voices

    @property
    def seed(self) -> int:
        """What draws this answer again."""
        assert self.params.seed is not None
        return self.params.seed

    @property
    def recipient(self) -> str | None:
        """Whom the answer is for, where it says so."""
        return self._wording.recipient

    def close(self) -> None:
        """Give it up, from any thread: it ends within an id or a row, without a chunk more."""
        self._closed = True
        self._answering.close()
        if self._stream is not None:
            self._stream.close()

    def __iter__(self) -> Iterator[AnswerChunk]:
        """Chunks as they become final; the last brings the counts of all.

        Raises:
            GenerationError: logits or samples that are not numbers.
        """
        chunks = self.turns()
        try:
            for chunk in chunks:
                if chunk is not None:
                    yield chunk
        finally:
            self.close()

    def turns(self) -> Iterator[AnswerChunk | None]:
        """The same, with None for an id or a row that completes no chunk."""
        with bounded():
            for event in self._answering:
                if isinstance(event, Segment):
                    if said := self._wording.flush():
                        yield self._chunk(text=said)
                    yield from self._speak(event)
                    if self.stop_reason is not None:
                        break
                else:
                    said = self._wording.push(event)
                    yield self._chunk(text=said) if said else None
                if self._closed:
                    return
        if self._closed:
            return
        self.stop_reason = self.stop_reason or self._answering.stop_reason
        yield self._chunk(text=self._wording.flush())

    def _speak(self, segment: Segment) -> Iterator[AnswerChunk | None]:
        codec = self._higgs.codec
        stream = self._stream = SpeechStream(
            segment,
            codec,
            self._higgs.talker.delay,
            self._delivery,
            max_silence=MAX_SILENCE if self.request.guards else 0,
        )
        before = self._rows
        for wave in stream.steps():
            self._rows = before + segment.made
            if wave is not None and not np.all(np.isfinite(wave)):
                raise GenerationError("The decoded waveform is not a number.")
            yield None if wave is None else self._chunk(pcm=wave)
        self._stream = None
        if not self._closed:
            self._rows = before + segment.made
            yield self._chunk(codes=stream.codes)
        if stream.stop_reason == "silence":
            self.stop_reason = "silence"

    def _chunk(
        self, *, text: str = "", pcm: np.ndarray | None = None, codes: np.ndarray | None = None
    ) -> AnswerChunk:
        return AnswerChunk(
            np.zeros(0, np.float32) if pcm is None else pcm,
            self._higgs.codec.sample_rate,
            self._rows,
            text,
            codes,
            len(self._answering.ids),
            self._prompt_tokens,
        )

    def run(self) -> Answer:
        """The whole answer.

        Raises:
            GenerationError: as the iteration; it was closed meanwhile.
        """
        gathered = Gathered()
        for chunk in self:
            gathered.add(chunk)
        if self.stop_reason is None:
            raise GenerationError(f"The answer was given up (seed {self.seed}).")
        return gathered.answer(self, time.perf_counter() - self._started)


class Gathered:
    """The chunks of an answer, put together."""

    def __init__(self):
        self.parts: list[str | Spoken] = []
        self.last: AnswerChunk | None = None
        self._waves: list[np.ndarray] = []

    def add(self, chunk: AnswerChunk) -> None:
        self.last = chunk
        if chunk.text:
            last = self.parts[-1] if self.parts else None
            if isinstance(last, str):
                self.parts[-1] = last + chunk.text
            else:
                self.parts.append(chunk.text)
        if len(chunk.pcm):
            self._waves.append(chunk.pcm)
        if chunk.codes is not None:
            wave = np.concatenate([np.zeros(0, np.float32), *self._waves])
            self.parts.append(Spoken(wave, chunk.codes))
            self._waves.clear()

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def spoken(self) -> bool:
        """Whether there is any sound."""
        return any(isinstance(part, Spoken) and len(part.pcm) for part in self.parts)

    @property
    def pcm(self) -> np.ndarray:
        """All of it, float32 ``[N]``."""
        waves = [part.pcm for part in self.parts if isinstance(part, Spoken)]
        return np.concatenate([np.zeros(0, np.float32), *waves])

    def answer(self, job: ChatJob, seconds: float) -> Answer:
        assert self.last is not None
        assert job.stop_reason is not None
        return Answer(
            tuple(self.parts),
            self.last.sampling_rate,
            job.stop_reason,
            job.seed,
            seconds,
            job.recipient,
            self.last.tokens,
            self.last.frames,
            self.last.prompt_tokens,
        )


def fit(params: SamplingParams, prompt_tokens: int) -> SamplingParams:
    """Bound the answer by the room there is.

    Raises:
        InputError: a conversation that leaves none.
    """
    room = MAX_POSITIONS - prompt_tokens
    if room < 1:
        raise InputError(
            f"The conversation takes {prompt_tokens} positions of the {MAX_POSITIONS} that it "
            "shares with the answer: leave out its oldest messages."
        )
    return replace(params, max_frames=min(params.max_frames, room))
