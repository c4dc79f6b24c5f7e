"""How fast this machine moves memory, and what the times of several widths say about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

BUFFER = 256 << 20  # bytes: far beyond any cache
TRIES = 5


@dataclass(frozen=True)
class CopyBandwidth:
    """Bytes read and written per second while copying, in GB/s (1e9)."""

    mlx: float
    numpy: float

    @property
    def best(self) -> float:
        """MLX's own copy runs element by element on a CPU; NumPy's stays in the host's memory."""
        return max(self.mlx, self.numpy)


def copy_bandwidth(nbytes: int = BUFFER) -> CopyBandwidth:
    """Copy a buffer of ``nbytes`` and take the quickest of a few times."""
    source = np.ones(nbytes // 4, np.float32)
    target = np.empty_like(source)
    halves = [mx.array(half) for half in np.split(source, 2)]
    mx.eval(halves)

    def join() -> None:
        mx.eval(mx.concatenate(halves))

    return CopyBandwidth(
        mlx=2 * nbytes / _quickest(join) / 1e9,
        numpy=2 * nbytes / _quickest(lambda: np.copyto(target, source)) / 1e9,
    )


def _quickest(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@dataclass(frozen=True)
class Fit:
    """Milliseconds per frame = ``fixed_ms`` + bytes / ``gb_per_s``.

    Attributes:
        gb_per_s: None when fewer bytes do not take less time: arithmetic is the limit then.
        residuals_ms: measured minus fitted, in the order of the points.
    """

    fixed_ms: float
    gb_per_s: float | None
    residuals_ms: list[float]

    def ms(self, nbytes: float) -> float:
        return self.fixed_ms + (nbytes / self.gb_per_s / 1e6 if self.gb_per_s else 0.0)


def fit_line(nbytes: Sequence[float], ms: Sequence[float]) -> Fit | None:
    """Least squares over widths; None for fewer than two different sizes."""
    if len(set(nbytes)) < 2:
        return None
    gigabytes = np.asarray(nbytes) / 1e9
    slope, fixed = np.polyfit(gigabytes, np.asarray(ms), 1)  # ms per GB, ms
    if slope <= 0:
        slope, fixed = 0.0, float(np.mean(ms))
    residuals = np.asarray(ms) - (fixed + slope * gigabytes)
    return Fit(float(fixed), float(1000 / slope) if slope else None, residuals.tolist())
