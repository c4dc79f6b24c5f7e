"""What the machine has: how much memory MLX may use, and how much it keeps while generating."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .types import InputError

BUFFER_CACHE = 256 << 20  # bytes of freed buffers kept: a step's and a codec window's
POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", re.IGNORECASE)
METAL_LIMIT = "max_recommended_working_set_size"
ROOM = (METAL_LIMIT, "free_memory", "total_memory", "memory_size")  # of device_info, best first


def on_cpu() -> bool:
    """Whether MLX computes on the CPU at the moment."""
    return mx.default_device().type == mx.cpu


def parse_size(text: str) -> int:
    """``8GB``, ``8GiB``, ``8000MB`` -> bytes.

    Raises:
        InputError: anything else, and nothing at all.
    """
    found = SIZE.fullmatch(text.strip())
    base = 1024 if found and found[3] else 1000
    size = round(float(found[1]) * base ** POWERS[found[2].upper()]) if found else 0
    if not size:
        raise InputError(f"{text!r} is no amount of memory: write 8GB, 7.5GiB or 8000MB.")
    return size


def machine_limit() -> int | None:
    """Bytes that MLX's default device may use; None where nothing tells.

    Metal's recommended working set, what is free on a CUDA device, or what Linux calls available,
    within the process's cgroup.
    """
    if on_cpu():
        return _available()
    info = mx.device_info()
    return next((int(info[key]) for key in ROOM if int(info.get(key, 0)) > 0), None)


def _available(root: Path = Path("/")) -> int | None:
    """The least of what the system has to spare and the cgroup still allows."""
    found = [_meminfo(root / "proc/meminfo"), *_cgroup(root)]
    return min((size for size in found if size is not None), default=None)


def _meminfo(path: Path) -> int | None:
    text = path.read_text() if path.is_file() else ""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _cgroup(root: Path) -> Iterator[int]:
    """Limit less use, in both versions of the interface; a limit that is none is no number."""
    for folder, limit, used, files in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        paths = root / folder / limit, root / folder / used
        if all(path.is_file() for path in paths):
            allowed, taken = (path.read_text().strip() for path in paths)
            if allowed.isdigit():
                kept = _stat(root / folder / "memory.stat", files)
                yield max(0, int(allowed) - max(0, int(taken) - kept))


def _stat(path: Path, name: str) -> int:
    """Bytes of a cgroup's use by kind: files that were read once go when memory is needed."""
    text = path.read_text() if path.is_file() else ""
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def gigabytes(size: int, *, up: bool = False) -> str:
    """``4.5 GB``, ``360 MB`` below one: rounded down, as room is, or ``up``, as needs are."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    step = unit // 10 if size >= 10**9 or size < 10**7 else unit
    rounded = (-(-size // step) if up else size // step) * step
    return f"{rounded / unit:.1f} {name}".replace(".0 ", " ")


@dataclass
class _Bounds:
    """The limits from before the first of those who set others, until the last of them ends."""

    users: int = 0
    cache: int = 0
    wired: int = 0

    def enter(self) -> None:
        if not self.users:
            self.cache = mx.set_cache_limit(BUFFER_CACHE)
            if mx.metal.is_available():  # memory is wired there alone
                self.wired = mx.set_wired_limit(int(mx.device_info()[METAL_LIMIT]))
        self.users += 1

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            mx.set_cache_limit(self.cache)
            if mx.metal.is_available():
                mx.synchronize()  # what is still under way uses wired buffers
                mx.set_wired_limit(self.wired)


_BOUNDS = _Bounds()


@contextmanager
def bounded() -> Iterator[None]:
    """While generating: weights stay resident (Metal), and few freed buffers are kept.

    Blocks may overlap in any order, as jobs do that are iterated in turns: the limits from before
    come back when the last has ended.
    """
    _BOUNDS.enter()
    try:
        yield
    finally:
        _BOUNDS.leave()
