"""Before the first request: what a GPU compiles when it is first asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..frames import Rows
from ..loading import Higgs
from ..memory import on_cpu
from ..types import Text


def warm_up(higgs: Higgs) -> None:
    """Nothing on a CPU, which has its kernels."""
    if not on_cpu():
        compile_kernels(higgs)


def compile_kernels(higgs: Higgs) -> None:
    """One frame of speech and one window of the codec, thrown away."""
    params = replace(higgs.defaults.sampling, seed=0, max_frames=2)
    rows = list(Rows(higgs.model, [Text([0])], params))
    higgs.codec.decode(np.zeros_like(np.stack(rows)))
