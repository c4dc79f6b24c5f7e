"""``HiggsAudioServer``: one loaded checkpoint that turns requests into speech."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from .. import audio
from ..frames import MAX_IDENTICAL_ROWS, Rows
from ..loading import DEFAULT_MODEL, Higgs, load
from ..quantization import Quantization
from ..sampling import SamplingParams
from ..streaming import MAX_SILENCE, SpeechStream
from ..text import normalize
from ..types import (
    FRAME_RATE,
    GenerationError,
    InputError,
    Profile,
    Prompt,
    Speech,
    SpeechChunk,
    Voice,
)
from ..voices import Reference, reference
from .request import SpeechRequest, check_clips, fit, references, spelled_out

ADVICE = {"length": "Allow it more frames."}


class HiggsAudioServer:
    """Speech from one checkpoint. Not safe to call from several threads at once."""

    def __init__(self, higgs: Higgs):
        self.higgs = higgs
        self._codes: dict[str, mx.array] = {}  # by content of the clip
        self._prepared: list[Voice] = []

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path = DEFAULT_MODEL,
        codec_path: str | Path | None = None,
        tokenizer_path: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        quantize: Quantization | None = None,
        revision: str | None = None,
    ) -> HiggsAudioServer:
        """Load a folder, a hub repository, or the bundled ``demo``, with what was trained on top.

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
            )
        )

    @property
    def sampling_rate(self) -> int:
        return self.higgs.codec.sample_rate

    def prepare_reference(self, path: str | os.PathLike, text: str | None = None) -> Voice:
        """Encode a clip once; it is the voice of every later request that names none.

        Args:
            text: the clip's exact words; None reads ``CLIP.txt`` beside it.

        Raises:
            InputError: the clip or its transcript cannot be used.
        """
        voice = self._encode(reference(path, text))
        self._prepared = [voice]
        return voice

    def clear_reference(self) -> None:
        """Forget the prepared voice and all encoded clips."""
        self._prepared = []
        self._codes.clear()

    @spelled_out
    def generate(self, target_text: str, **options) -> Speech:
        """Say ``target_text``.

        Args:
            options: the other fields of ``SpeechRequest``.

        Returns:
            ``.pcm`` float32 ``[N]``, ``.sampling_rate``, ``.num_frames_raw``,
            ``.num_frames_aligned``, ``.stop_reason``, ``.duration``, ``.real_time_factor``.

        Raises:
            InputError: a request that cannot be met. GenerationError: no usable speech came.
        """
        return self.start(SpeechRequest(target_text, **options)).run()

    @spelled_out
    def generate_stream(
        self, target_text: str, *, chunk_ms: float = 1000.0, **options
    ) -> Iterator[SpeechChunk]:
        """Say ``target_text`` chunk by chunk while it is made.

        The chunks put together are exactly the ``pcm`` of ``generate`` with the same seed.

        Args:
            chunk_ms: least length of a chunk, rounded to whole frames of 40 ms; the last brings
                what is left.
            options: the other fields of ``SpeechRequest`` (fades need the whole: not here).

        Raises:
            InputError, GenerationError: as ``generate``; the first before any chunk.
        """
        request = SpeechRequest(target_text, **options)
        if request.fade_in_ms or request.fade_out_ms:
            raise InputError("Fades need the whole result: use generate, not generate_stream.")
        return iter(self.start(request, chunk_frames=_frames_in(chunk_ms)))

    def start(self, request: SpeechRequest, chunk_frames: int = 25) -> SpeechJob:
        """Check a request and build its prompt; the work begins when the job is iterated."""
        started = time.perf_counter()
        params = request.sampling(self.higgs.defaults.sampling)
        prompt, text = self._prompt(request)
        params = fit(params, request, text, prompt, self.higgs.model.delay)
        return SpeechJob(self.higgs, request, prompt, params, chunk_frames, started)

    def _prompt(self, request: SpeechRequest) -> tuple[Prompt, str]:
        defaults = self.higgs.defaults
        wanted = defaults.normalize if request.normalize is None else request.normalize
        text = request.target_text.strip()
        text = normalize(text) if wanted else text
        voices, scene = self._voices(request), request.scene
        if scene is None and not request.system and not voices:
            scene = defaults.scene
        prompt = self.higgs.prompts.build(
            text,
            voices=voices,
            scene=scene or None,
            system=request.system,
            references_in_system=request.references_in_system,
        )
        return prompt, text

    def _voices(self, request: SpeechRequest) -> list[Voice | Profile]:
        asked = references(request) or list(self._prepared)
        if asked and not self.higgs.defaults.clones:
            check_clips(asked)
            warnings.warn("This checkpoint cannot clone: the voice is left out.", stacklevel=4)
            return []
        return [self._encode(v) if isinstance(v, Reference) else v for v in asked]

    def _encode(self, clip: Reference) -> Voice:
        wave = audio.read_reference(clip.path, self.sampling_rate)
        key = hashlib.sha256(wave.tobytes()).hexdigest()
        if key not in self._codes:
            self._codes[key] = self.higgs.codec.encode(wave)
        return Voice(self._codes[key], clip.transcript, clip.name)


class SpeechJob:
    """One request under way: iterate it for its chunks, or run it to the end.

    Args:
        started: ``time.perf_counter()`` when the work on it began.
    """

    def __init__(
        self,
        higgs: Higgs,
        request: SpeechRequest,
        prompt: Prompt,
        params: SamplingParams,
        chunk_frames: int,
        started: float,
    ):
        self.request, self.prompt, self.params = request, prompt, params
        self._higgs, self._sound, self._started = higgs, 0.0, started
        rows = Rows(
            higgs.model,
            prompt,
            params,
            max_identical_rows=MAX_IDENTICAL_ROWS if request.guards else 0,
        )
        self.stream = SpeechStream(
            rows,
            higgs.codec,
            higgs.model.delay,
            chunk_frames=chunk_frames,
            max_silence=MAX_SILENCE if request.guards else 0,
        )

    @property
    def num_edge_rows(self) -> int:
        """Rows beyond one per frame: the delay pattern's ramps."""
        return self._higgs.model.delay.num_rows(0)

    def __iter__(self) -> Iterator[SpeechChunk]:
        """Chunks as they become final.

        Raises:
            GenerationError: samples that are not numbers; at the end, if all was silence.
        """
        for wave in self.stream:
            peak = float(np.max(np.abs(wave)))
            if not np.isfinite(peak):
                raise GenerationError("The decoded waveform is not a number.")
            self._sound = max(self._sound, peak)
            yield SpeechChunk(wave, self._higgs.codec.sample_rate, self.stream.num_rows)
        if self._sound < audio.SILENCE:
            raise GenerationError(
                f"The model made no sound (seed {self.params.seed}, stopped by "
                f"{self.stream.stop_reason} after {self.stream.num_rows} frames). "
                f"{ADVICE.get(self.stream.stop_reason or '', 'Try another seed.')}"
            )

    def run(self) -> Speech:
        """All chunks as one speech, faded as the request wants it.

        Raises:
            GenerationError: as the iteration.
        """
        pcm = np.concatenate([np.zeros(0, np.float32), *(chunk.pcm for chunk in self)])
        rate, request, codes = self._higgs.codec.sample_rate, self.request, self.stream.codes
        assert self.stream.stop_reason is not None
        assert self.params.seed is not None
        return Speech(
            pcm=audio.fade(pcm, rate, request.fade_in_ms, request.fade_out_ms),
            sampling_rate=rate,
            num_frames_raw=self.stream.num_rows,
            num_frames_aligned=len(codes),
            stop_reason=self.stream.stop_reason,
            seed=self.params.seed,
            seconds=time.perf_counter() - self._started,
            codes=codes,
        )


def _frames_in(chunk_ms: float) -> int:
    if not 0 < chunk_ms < math.inf:
        raise InputError(f"chunk_ms is {chunk_ms}: it must be above 0 and finite.")
    return max(1, round(chunk_ms / 1000 * FRAME_RATE))
