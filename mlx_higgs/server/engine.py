"""``HiggsAudioServer``: one loaded checkpoint that turns requests into speech."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import audio
from ..batch import MAX_ROWS, Batch
from ..delivery import STEADY, Delivery, Latency, choose
from ..frames import MAX_IDENTICAL_ROWS, Rows
from ..loading import DEFAULT_MODEL, Higgs, load
from ..longform import LongJob, speak
from ..pieces import PREFERRED, Chunking
from ..prefix import (
    AUTO,
    ClipCodes,
    PrefixCache,
    fingerprint,
    stored_as,
    voice_folder,
)
from ..quantization import Plan, Quantization
from ..text import normalize
from ..types import (
    HiggsError,
    InputError,
    Profile,
    Prompt,
    Speech,
    SpeechChunk,
    Voice,
)
from ..voices import Reference, no_transcript, reference
from .batching import run_together
from .job import SpeechJob
from .request import SpeechRequest, check_clips, fit, references, spelled_out
from .warm import warm_up


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
        quantize: Quantization | Plan | None = None,
        revision: str | None = None,
        voice_cache: str | Path | None = AUTO,
        shard: bool = False,
    ) -> HiggsAudioServer:
        """Load a folder, a hub repository, or the bundled ``demo``, with what was trained on top.

        Args:
            voice_cache: a folder that keeps voices for the next process; None keeps them in memory
                alone. ``auto``: the user's folder for caches, for models of at least 256 MB.
            shard: hold a part of the talker. The processes that ``mlx.launch`` started with this
                one hold the others, must make the same calls, and get the same speech. Voices are
                kept in memory alone.

        Raises:
            InputError: nothing there. CheckpointError: it cannot be used.
        """
        return cls(
            load(
                model_path,
                codec=codec_path,
                tokenizer=tokenizer_path,
                adapter=adapter,
                quantize=quantize,
                revision=revision,
                shard=shard,
            ),
            voice_cache=voice_cache,
        )

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
        """Say many texts side by side; each sounds as it would alone with its seed.

        Args:
            requests: taken as there is room for them.
            max_batch: texts at once.

        Returns:
            The place of each in the order given, and its speech or why there is none, as they end.

        Raises:
            InputError: max_batch below 1.
        """
        return run_together(self.start, Batch(self.higgs.model, max_batch), requests)

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
        params = fit(params, request, text, prompt, self.higgs.talker.delay)
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
        is ``WHOLE``. With a delivery of chunks, the iteration hands them on as they come.
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
        )

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

    def _voices(self, request: SpeechRequest) -> list[Voice | Profile]:
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
        return Voice(codes, clip.transcript, clip.name)

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
