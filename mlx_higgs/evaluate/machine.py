"""What a figure was measured with: a number without it means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from .. import __version__


@dataclass(frozen=True)
class Machine:
    """Attributes:
    device: what MLX computes on, and its name.
    preloaded: libraries of ``LD_PRELOAD``; on Linux a real BLAS comes in this way.
    load: runnable processes per minute when the measurement began; None where unknown.
    """

    device: str
    processor: str
    cores: int
    system: str
    mlx: str
    mlx_higgs: str
    python: str
    preloaded: str
    threads: str
    date: str
    load: float | None


def this_machine() -> Machine:
    kind = mx.default_device().type
    info = mx.device_info()
    preloaded = [Path(name).name for name in os.environ.get("LD_PRELOAD", "").split() if name]
    return Machine(
        device=f"{'cpu' if kind == mx.cpu else 'gpu'}: {info.get('device_name', 'unknown')}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        mlx=version("mlx"),
        mlx_higgs=__version__,
        python=platform.python_version(),
        preloaded=" ".join(preloaded),
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        date=date.today().isoformat(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _cores() -> int:
    return os.cpu_count() or 1


def _processor() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
