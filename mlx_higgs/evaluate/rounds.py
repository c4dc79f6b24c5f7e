"""Contenders measured in turn within one process, so that a busy machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """Something that makes frames.

    Attributes:
        work: makes so many frames and returns when all of it is computed.
        streams: frames of different streams that it makes at once.
    """

    name: str
    work: Callable[[int], None]
    streams: int = 1


@dataclass
class Timing:
    """Seconds per step of each round: by the clock, and of all threads of the process."""

    streams: int = 1
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Milliseconds of a step, the median of the rounds."""
        return 1000 * statistics.median(self.wall)

    @property
    def cpu_ms(self) -> float:
        return 1000 * statistics.median(self.cpu)

    @property
    def spread_ms(self) -> tuple[float, float]:
        """The quickest and the slowest round."""
        return 1000 * min(self.wall), 1000 * max(self.wall)

    @property
    def frames_per_second(self) -> float:
        return self.streams * 1000 / self.ms


def ratio(slow: Sequence[float], quick: Sequence[float]) -> float:
    """How many times as long: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow, quick, strict=True))


def take_turns(contenders: Sequence[Contender], frames: int, rounds: int) -> dict[str, Timing]:
    """Let each make ``frames`` steps per round; every other round runs in reverse order."""
    timings = {one.name: Timing(one.streams) for one in contenders}
    for one in contenders:
        one.work(2)  # the prompt, and what is built at the first step
    for number in range(rounds):
        for one in contenders if number % 2 == 0 else reversed(contenders):
            started, cpu = time.perf_counter(), time.process_time()
            one.work(frames)
            timings[one.name].cpu.append((time.process_time() - cpu) / frames)
            timings[one.name].wall.append((time.perf_counter() - started) / frames)
    return timings
