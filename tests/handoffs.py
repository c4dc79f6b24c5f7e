"""What our two stages hand each other, noted while a stream runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.vllm_repo import Handoff, Settings
from mlx_higgs import streaming
from mlx_higgs.code2wave import stage_for
from mlx_higgs.delay import DelayPattern
from mlx_higgs.delivery import Delivery

V3 = DelayPattern(8, 1024, 1025, machine="strict")
CONTEXT = 10  # frames that a sample depends on, to either side


def delivery_of(settings: Settings) -> Delivery:
    """A connector's settings as ours; a first chunk that is none or no smaller does not count."""
    counts = 0 < settings.initial < settings.chunk
    return Delivery(
        settings.initial if counts else settings.chunk,
        settings.chunk,
        settings.chunk,
        left=settings.left,
        right=settings.right,
    )


class FrameCodec:
    """A frame is one sample: its first code. ``CONTEXT`` frames are held back to the end."""

    hop, sample_rate = 1, 25

    def decoder(self):
        return self._Decoder()

    def decode_window(self, codes: np.ndarray, start: int, stop: int, *, context: int):
        assert context >= max(start, len(codes) - stop)
        return codes[start:stop, 0].astype(np.float32)

    class _Decoder:
        lookahead_samples = CONTEXT

        def __init__(self):
            self._held = np.zeros(0, np.float32)

        def push(self, codes: np.ndarray) -> np.ndarray:
            samples = np.concatenate([self._held, codes[:, 0].astype(np.float32)])
            self._held = samples[-CONTEXT:]
            return samples[:-CONTEXT]

        def finish(self) -> np.ndarray:
            return self._held


class Rows:
    """Rows that are there already."""

    def __init__(self, rows: np.ndarray):
        self._rows, self.stop_reason = rows, None

    def __iter__(self):
        yield from self._rows
        self.stop_reason = "eos"

    def close(self) -> None:
        pass


class Noted:
    """A second stage that notes what it is handed, and after which row."""

    def __init__(self, stage: Any):
        self._stage, self.handed = stage, []
        self.stream: Any = None

    def decode(self, payload, columns):
        codes = np.array(columns[payload.frames]).reshape(-1, 8)
        handoff = Handoff(
            self.stream.num_rows, codes, payload.left, payload.right, payload.finished
        )
        self.handed.append((payload, handoff))
        yield from self._stage.decode(payload, columns)


def speak(
    monkeypatch: Any, rows: np.ndarray, delivery: Delivery, codec: Any = None
) -> tuple[list, np.ndarray]:
    """A whole stream: its payloads with what the second stage got, and its samples."""
    noted: list[Noted] = []

    def stage(codec: Any, delivery: Delivery):
        first, context = stage_for(codec, delivery)
        noted.append(Noted(first))
        return noted[0], context

    monkeypatch.setattr(streaming, "stage_for", stage)
    stream = streaming.SpeechStream(Rows(rows), codec or FrameCodec(), V3, delivery, max_silence=0)
    noted[0].stream = stream
    waves = list(stream)
    return noted[0].handed, np.concatenate([np.zeros(0, np.float32), *waves])
