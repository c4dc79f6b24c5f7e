"""``HiggsAudioServer``: one loaded checkpoint that turns requests into speech."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..batch import MAX_ROWS, Batch
from ..delivery import STEADY, Delivery, Latency, choose
from ..doubts import CAP_SHARE
from ..frames import MAX_IDENTICAL_ROWS, Rows
from ..hearing import Clip
from ..loading import Higgs, load
from ..longform import LongJob, speak
from ..pieces import PREFERRED, RETRIES, Chunking
from ..prefix import AUTO
from ..quantization import Plan, Quantization
from ..recipes import Recipe
from ..sources import DEFAULT_MODEL
from ..types import (
    Answer,
    AnswerChunk,
    HiggsError,
    InputError,
    Profile,
    Recording,
    Speech,
    SpeechChunk,
    Voice,
)
from . import prompting
from .batching import run_together
from .chat import ChatJob, ChatRequest
from .job import SpeechJob
from .known import KnownVoices
from .request import SpeechRequest, fit, references, spelled_out
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
        self.known = KnownVoices(higgs, voice_cache=voice_cache, keep_encoder=keep_encoder)

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
        return self.known.prepare(path, text)

    def hear(self, clip: Clip) -> Recording:
        """A clip for a message of a user (``chat``), by what this checkpoint needs of it.

        Args:
            clip: a file, the bytes of one, or mono samples ``[N]`` and their rate.

        Raises:
            InputError: a clip that cannot be used, or a checkpoint that hears none.
        """
        heard = self.known.hear(clip)
        self.known.release_encoder()
        return heard

    def clear_reference(self) -> None:
        """Forget the prepared voice and all that is in memory of others; files stay."""
        self.known.clear()

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
        opening = higgs.prompts.converse(
            prompting.turns(request.messages, higgs, self.known),
            voices=[] if request.speech is False else self.known.asked(request),
            speech=request.speech,
            goes_on=request.continue_final_message,
        )
        self.known.release_encoder()
        return ChatJob(higgs, request, opening, params, self.known.prefixes(), delivery, started)

    def start(
        self, request: SpeechRequest, delivery: Delivery = STEADY, batch: Batch | None = None
    ) -> SpeechJob:
        """Check a request, build its prompt and compute its voice, unless that is known.

        The work on the text begins when the job is iterated, or when its turn comes in ``batch``.
        """
        started = time.perf_counter()
        params = request.sampling(self.higgs.defaults.preset(request.preset))
        params = replace(params, seed=self.higgs.ranks.told(params.seed))
        prompt, text = prompting.prompt(request, self.higgs, self.known)
        share = CAP_SHARE if self.higgs.doubt else 1.0
        params = fit(params, request, text, prompt, self.higgs.talker.delay, share=share)
        join = partial(Rows, self.higgs.model) if batch is None else batch.join
        rows = join(
            prompt,
            params,
            prefix=self.known.prefixes().get(prompt, len(request.history)),
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
        voices = references(request) or self.known.prepared
        clips = [voice for voice in voices if not isinstance(voice, Profile)]
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
