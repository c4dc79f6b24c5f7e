"""``HiggsAudioServer``: one loaded checkpoint that turns requests into speech."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import audio
from ..batch import MAX_ROWS, Batch
from ..delivery import STEADY, Delivery, Latency, choose
from ..doubts import CAP_SHARE
from ..frames import MAX_IDENTICAL_ROWS, Rows
from ..hearing import Clip, recording
from ..loading import DEFAULT_MODEL, Higgs, load
from ..longform import LongJob, speak
from ..pieces import PREFERRED, RETRIES, Chunking
from ..prefix import (
    AUTO,
    ClipCodes,
    PrefixCache,
    fingerprint,
    stored_as,
    voice_folder,
)
from ..quantization import Plan, Quantization
from ..recipes import Recipe
from ..text import normalize
from ..types import (
    HEARING_RATE,
    Answer,
    AnswerChunk,
    HiggsError,
    InputError,
    Profile,
    Prompt,
    Recording,
    Speech,
    SpeechChunk,
    Voice,
)
from ..voices import Reference, no_transcript, reference
from .batching import run_together
from .chat import ChatJob, ChatRequest
from .job import SpeechJob
from .messages import Message, read_messages
from .request import SpeechRequest, check_clips, fit, references, spelled_out
from .warm import warm_up

LOG = logging.getLogger("mlx_higgs")
WHOLE_TEXT = Chunking("none")


class HiggsAudioServer:
    """Speech from one checkpoint. Not safe to call from several threads at once.

    A voice is encoded and prefilled once, whatever is said in it then. What was computed is kept in
    memory, and in a folder for the next process if there is one.

    Args:
        voice_cache: that folder, ``auto`` or None (see ``prefix.voice_folder``). Its files hold the
            voices themselves: it is made for its owner alone.
        keep_encoder: hold on to the codec's encoder (646 MB in float32) once a clip was encoded,
            where there are always new ones.
    """

    def __init__(
        self,
        higgs: Higgs,
        *,
        voice_cache: str | Path | None = None,
        keep_encoder: bool = False,
    ):
        self.higgs = higgs
        self._keep_encoder = keep_encoder
        self._prepared: list[Voice] = []
        # what one rank finds in its folder and another does not would keep the other waiting
        self._folder = voice_folder(None if higgs.ranks.size > 1 else voice_cache, higgs.path)
        self._clips: ClipCodes | None = None
        self._prefixes: PrefixCache | None = None

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path = DEFAULT_MODEL,
        codec_path: str | Path | None = None,
        tokenizer_path: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        quantize: str | Recipe | Plan | Quantization | None = None,
        revision: str | None = None,
        voice_cache: str | Path | None = AUTO,
        text_head: bool = False,
        shard: bool = False,
    ) -> HiggsAudioServer:
        """Load a folder, a hub repository, or the bundled ``demo``, with what was trained on top.

        What is known against how it is stored is logged, once.

        Args:
            quantize: while loading: a recipe's name (``q8``), bits as ``8/4``, or a plan.
            voice_cache: a folder that keeps voices for the next process; None keeps them in memory
                alone. ``auto``: the user's folder for caches, for models of at least 256 MB.
            text_head: with what writes words, which ``chat`` needs.
            shard: hold a part of the talker. The processes that ``mlx.launch`` started with this
                one hold the others, must make the same calls, and get the same speech. Voices are
                kept in memory alone.

        Raises:
            InputError: nothing there. CheckpointError: it cannot be used.
        """
        higgs = load(
            model_path,
            codec=codec_path,
            tokenizer=tokenizer_path,
            adapter=adapter,
            quantize=quantize,
            revision=revision,
            text_head=text_head,
            shard=shard,
        )
        if higgs.doubt:
            LOG.warning(higgs.doubt)
        return cls(higgs, voice_cache=voice_cache)

    @property
    def sampling_rate(self) -> int:
        return self.higgs.codec.sample_rate

    def warm_up(self) -> None:
        """On a GPU, make the kernels now that the first request would wait for."""
        warm_up(self.higgs)

    def prepare_reference(self, path: str | os.PathLike, text: str | None = None) -> Voice:
        """Encode a clip once; it is the voice of every later request that names none.

        Args:
            text: the clip's exact words; None reads ``CLIP.txt`` beside it; "" is none.

        Raises:
            InputError: the clip or its transcript cannot be used.
        """
        clip = reference(path, text, wordless=True)
        self._check_words([clip])
        voice = self._encode(clip)
        self._release_encoder()
        self._prepared = [voice]
        return voice

    def hear(self, clip: Clip) -> Recording:
        """A clip for a turn of a user (``prompts.turn``), by what this checkpoint needs of it.

        Args:
            clip: a file, the bytes of one, or mono samples ``[N]`` and their rate.

        Raises:
            InputError: a clip that cannot be used, or a checkpoint that hears none.
        """
        heard = self._heard(clip)
        self._release_encoder()
        return heard

    def clear_reference(self) -> None:
        """Forget the prepared voice and all that is in memory of others; files stay."""
        self._prepared = []
        for kept in (self._clips, self._prefixes):
            if kept is not None:
                kept.clear()

    @spelled_out
    def generate(self, target_text: str, **options) -> Speech:
        """Say ``target_text``, in pieces if it is long (see ``start_long``).

        Args:
            options: the other fields of ``SpeechRequest``.

        Returns:
            ``.pcm`` float32 ``[N]``, ``.sampling_rate``, ``.num_frames_raw``,
            ``.num_frames_aligned``, ``.stop_reason``, ``.duration``, ``.real_time_factor``.

        Raises:
            InputError: a request that cannot be met. GenerationError: no usable speech came.
        """
        return self.start_long(SpeechRequest(target_text, **options)).run()

    @spelled_out
    def generate_stream(
        self,
        target_text: str,
        *,
        latency: Latency = "exact",
        chunk_ms: float | None = None,
        delivery: Delivery | None = None,
        **options,
    ) -> Iterator[SpeechChunk]:
        """Say ``target_text`` chunk by chunk while it is made.

        The chunks put together are exactly the ``pcm`` of ``generate`` with the same seed, unless
        something approximate is asked for. Closing the iterator stops the work within a frame.

        Args:
            latency: ``exact``, or ``low``: the first chunk comes seven frames earlier and is
                approximate; all that follows is exact.
            chunk_ms: in its place, chunks of one least length, rounded to whole frames of 40 ms;
                the last brings what is left.
            delivery: in its place, any other.
            options: the other fields of ``SpeechRequest`` (fades need the whole: not here).

        Raises:
            InputError, GenerationError: as ``generate``; the first before any chunk.
        """
        request = SpeechRequest(target_text, **options)
        if request.fade_in_ms or request.fade_out_ms:
            raise InputError("Fades need the whole result: use generate, not generate_stream.")
        return iter(self.start_long(request, choose(latency, chunk_ms, delivery)))

    def generate_batch(
        self, requests: Iterable[SpeechRequest], *, max_batch: int = MAX_ROWS
    ) -> Iterator[tuple[int, Speech | HiggsError]]:
        """Say many texts side by side, none of them cut; each sounds as alone with its seed.

        Args:
            requests: taken as there is room for them.
            max_batch: texts at once.

        Returns:
            The place of each in the order given, and its speech or why there is none, as they end.

        Raises:
            InputError: max_batch below 1.
        """
        start = partial(self.start_long, chunking=WHOLE_TEXT)
        return run_together(start, Batch(self.higgs.model, max_batch), requests)

    def chat(self, messages: Sequence[Any], **options) -> Answer:
        """Answer a conversation in words and speech, as the model likes to take turns.

        Args:
            messages: ``[{"role": "user", "content": "..."}]``, with clips as OpenAI's chat API has
                them, or as paths and arrays (see ``messages.read_messages``).
            options: the other fields of ``ChatRequest``.

        Returns:
            ``.text``, ``.segments`` (float32 ``[N]`` each), ``.pcm``, ``.codes``,
            ``.stop_reason``; ``.message()`` is what the next call's ``messages`` go on with.

        Raises:
            InputError: a conversation that cannot be had, or a checkpoint without a text head.
            GenerationError: the model made no numbers.
        """
        return self.start_chat(ChatRequest(messages, **options)).run()

    def chat_stream(
        self,
        messages: Sequence[Any],
        *,
        latency: Latency = "exact",
        chunk_ms: float | None = None,
        delivery: Delivery | None = None,
        **options,
    ) -> Iterator[AnswerChunk]:
        """As ``chat``, while it is made: chunks with ``.text`` or ``.pcm``, or neither.

        Args:
            latency, chunk_ms, delivery: as in ``generate_stream``.
        """
        request = ChatRequest(messages, **options)
        return iter(self.start_chat(request, choose(latency, chunk_ms, delivery)))

    def start_chat(self, request: ChatRequest, delivery: Delivery = STEADY) -> ChatJob:
        """Check a conversation, encode its clips and compute its voice.

        The work on the rest begins when the job is iterated.
        """
        started, higgs = time.perf_counter(), self.higgs
        if higgs.no_chat:
            raise InputError(higgs.no_chat)
        if higgs.ranks.size > 1:
            raise InputError("A conversation runs in one process: load without shard.")
        params = request.sampling(higgs.defaults.preset(request.preset))
        said = read_messages(request.messages, self.sampling_rate)
        turns = [higgs.prompts.turn(m.role, self._parts(m), m.recipient) for m in said]
        opening = higgs.prompts.converse(
            turns,
            voices=[] if request.speech is False else self._voices(request),
            speech=request.speech,
            goes_on=request.continue_final_message,
        )
        self._release_encoder()
        return ChatJob(higgs, request, opening, params, self._prefix_cache(), delivery, started)

    def _parts(self, message: Message) -> list[str | mx.array | Recording]:
        """What was said as prompts take it: the model's own clips as codes, others are heard."""
        return [self._said(part, own=message.role == "assistant") for part in message.parts]

    def _said(self, part: str | np.ndarray, own: bool) -> str | mx.array | Recording:
        if isinstance(part, str):
            return part
        if part.ndim == 2:
            return mx.array(part)
        return self._clip_codes().get(part) if own else self._heard((part, self.sampling_rate))

    def start(
        self, request: SpeechRequest, delivery: Delivery = STEADY, batch: Batch | None = None
    ) -> SpeechJob:
        """Check a request, build its prompt and compute its voice, unless that is known.

        The work on the text begins when the job is iterated, or when its turn comes in ``batch``.
        """
        started = time.perf_counter()
        params = request.sampling(self.higgs.defaults.preset(request.preset))
        params = replace(params, seed=self.higgs.ranks.told(params.seed))
        prompt, text = self._prompt(request)
        share = CAP_SHARE if self.higgs.doubt else 1.0
        params = fit(params, request, text, prompt, self.higgs.talker.delay, share=share)
        join = partial(Rows, self.higgs.model) if batch is None else batch.join
        rows = join(
            prompt,
            params,
            prefix=self._prefix_cache().get(prompt, len(request.history)),
            max_identical_rows=MAX_IDENTICAL_ROWS if request.guards else 0,
        )
        return SpeechJob(self.higgs, request, prompt, params, rows, delivery, started)

    def start_long(
        self,
        request: SpeechRequest,
        delivery: Delivery = STEADY,
        batch: Batch | None = None,
        *,
        chunking: Chunking = PREFERRED,
    ) -> SpeechJob | LongJob:
        """As ``start``, for a text of any length: it is cut into pieces, said one by one.

        A piece that failed is drawn again if nothing of it went out: in ``run``, or if the delivery
        is ``WHOLE``. With a delivery of chunks, the iteration hands them on as they come. A text of
        one piece is drawn again, too, if the chunking names ``retries``, or if something is known
        against how the model is stored (``Higgs.doubt``).
        """
        defaults = self.higgs.defaults
        clips = [v for v in references(request) or self._prepared if not isinstance(v, Profile)]
        return speak(
            partial(self.start, delivery=delivery, batch=batch),
            request,
            chunking.settled(defaults.letters, defaults.context),
            sampling_rate=self.sampling_rate,
            live=not delivery.whole,
            anchor=not clips,
            alone=self._retries(request, chunking),
        )

    def _retries(self, request: SpeechRequest, chunking: Chunking) -> int:
        """Other seeds for a text of one piece."""
        if chunking.retries is not None:
            return chunking.retries
        return RETRIES if request.guards and self.higgs.doubt else 0

    def _prompt(self, request: SpeechRequest) -> tuple[Prompt, str]:
        wanted = request.normalize
        wanted = self.higgs.defaults.normalize if wanted is None else wanted

        def read(text: str) -> str:
            return normalize(text.strip()) if wanted else text.strip()

        text = read(request.target_text)
        voices, scene = self._voices(request), request.scene
        if scene is None and not request.system and not voices:
            scene = self.higgs.defaults.scene
        prompt = self.higgs.prompts.build(
            text,
            voices=voices,
            scene=scene or None,
            system=request.system,
            references_in_system=request.references_in_system,
            history=[(read(said), codes) for said, codes in request.history],
            speakers=request.speakers,
            controls=request.controls,
        )
        return prompt, text

    def _voices(self, request: SpeechRequest | ChatRequest) -> list[Voice | Profile]:
        asked = references(request) or list(self._prepared)
        if asked and not self.higgs.defaults.clones:
            check_clips(asked)
            warnings.warn("This checkpoint cannot clone: the voice is left out.", stacklevel=4)
            return []
        if not request.references_in_system:
            self._check_words(asked)
        voices = [self._encode(v) if isinstance(v, Reference) else v for v in asked]
        self._release_encoder()
        return voices

    def _heard(self, clip: Clip) -> Recording:
        hearing, rate = self.higgs.talker.hearing, self.sampling_rate
        return recording(clip, hearing, rate, lambda wave: self._clip_codes().get(wave))

    def _check_words(self, asked: Iterable[Reference | Voice | Profile]) -> None:
        """Raises InputError for a clip without its transcript, if this model needs it."""
        wordless = [v for v in asked if isinstance(v, Reference) and not v.transcript]
        if wordless and self.higgs.prompts.NEEDS_WORDS:
            raise no_transcript(wordless[0].path)

    def _encode(self, clip: Reference) -> Voice:
        wave = clip.wave
        if wave is None:
            wave = audio.read_reference(clip.path, self.sampling_rate)
        codes = self.higgs.ranks.same(self._clip_codes().get(wave))
        heard = None
        if self.higgs.talker.hearing.features:
            heard = audio.to_rate(wave, self.sampling_rate, HEARING_RATE)
        return Voice(codes, clip.transcript, clip.name, heard)

    def _release_encoder(self) -> None:
        """Before the talker's weights are read, where they still are on disk."""
        if self._clips is not None and not self._keep_encoder:
            self.higgs.codec.release_encoder()

    def _clip_codes(self) -> ClipCodes:
        if self._clips is None:
            higgs = self.higgs
            weights, folder = self._known(lambda: fingerprint(higgs.codec_folder))
            self._clips = ClipCodes(higgs.codec, weights, folder=folder)
        return self._clips

    def _prefix_cache(self) -> PrefixCache:
        if self._prefixes is None:
            higgs, model = self.higgs, self.higgs.model
            weights, folder = self._known(
                lambda: fingerprint(higgs.path, stored_as(model), higgs.adapter, higgs.codec_folder)
            )
            self._prefixes = PrefixCache(model, weights, folder=folder, original=higgs.original)
        return self._prefixes

    def _known(self, weights: Callable[[], str]) -> tuple[str, Path | None]:
        """A fingerprint and the folder that needs it; neither if the weights' files are gone."""
        if self._folder is not None:
            with suppress(OSError):
                return weights(), self._folder
        return "", None
