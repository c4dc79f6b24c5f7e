"""The real 3B: the first rows that transformers' own integration test expects.

Set MLX_HIGGS_V2 to a folder with the weights (either layout) to run it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs import load
from mlx_higgs.frames import Rows
from mlx_higgs.sampling import SamplingParams

FOLDER = os.environ.get("MLX_HIGGS_V2", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="MLX_HIGGS_V2 names no folder with the real v2 weights"
)

# Greedy, bfloat16 on a GPU; the codebooks not named are still BOS.
FIRST_ROWS = [
    [],
    [267],
    [796, 765],
    [239, 960, 878],
    [307, 446, 313, 154],
    [811, 953, 116, 402, 806],
    [811, 446, 335, 756, 265, 623],
]


def test_the_first_rows_are_those_of_transformers():
    higgs = load(Path(FOLDER))
    prompt = higgs.prompts.build(
        "The sun rises in the east and sets in the west.",
        scene="Audio is recorded from a quiet room.",
    )
    params = SamplingParams(temperature=0, ras_window=0, max_frames=len(FIRST_ROWS), seed=0)
    rows = np.stack(list(Rows(higgs.model, prompt, params)))
    expected = [row + [1024] * (8 - len(row)) for row in FIRST_ROWS]
    assert rows.tolist() == expected
