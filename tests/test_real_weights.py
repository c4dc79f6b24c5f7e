"""Real weights, where there are any: each test says what it wants and skips without.

MLX_HIGGS_V2: a folder with the v2 3B, in either layout.
MLX_HIGGS_V3: a folder with the v3 4B as published, its tokenizer and codec included.
MLX_HIGGS_V3_TEXT_GOLDEN, MLX_HIGGS_V3_AUDIO_GOLDEN: what ``convert/dump_gate.py`` wrote for it.
QWEN3_4B, QWEN3_4B_GOLDEN: a folder with plain Qwen3-4B, and openinfer's golden file for it.

Goldens of Higgs weights are under their licence and therefore not in this repository.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs import load
from mlx_higgs.evaluate import audio_gate, text_gate
from mlx_higgs.frames import Rows
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.types import Text
from mlx_higgs.weights import read_header, weight_files

WANTED = {
    "MLX_HIGGS_V2": "folder with the real v2 weights",
    "MLX_HIGGS_V3": "folder with the real v3 weights",
    "MLX_HIGGS_V3_TEXT_GOLDEN": "golden of the text gate for the real v3",
    "MLX_HIGGS_V3_AUDIO_GOLDEN": "golden of the audio gate for the real v3",
    "QWEN3_4B": "folder with the real Qwen3-4B",
    "QWEN3_4B_GOLDEN": "qwen3-4b-hf-golden.safetensors of openinfer",
}


def wanted(*names: str) -> list[Path]:
    """The paths that variables name; the test is skipped where one names none."""
    for name in names:
        if not os.environ.get(name):
            pytest.skip(f"{name} names no {WANTED[name]}")
    return [Path(os.environ[name]) for name in names]


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
    """What transformers' own integration test expects."""
    (folder,) = wanted("MLX_HIGGS_V2")
    higgs = load(folder)
    prompt = higgs.prompts.build(
        "The sun rises in the east and sets in the west.",
        scene="Audio is recorded from a quiet room.",
    )
    params = SamplingParams(temperature=0, ras_window=0, max_frames=len(FIRST_ROWS), seed=0)
    rows = np.stack(list(Rows(higgs.model, prompt, params)))
    expected = [row + [1024] * (8 - len(row)) for row in FIRST_ROWS]
    assert rows.tolist() == expected


def test_the_v3_file_has_the_names_and_shapes_that_are_known():
    (folder,) = wanted("MLX_HIGGS_V3")
    known = Path(__file__).parent / "golden" / "v3_4b_names.json"
    expected = json.loads(known.read_text())["published"]
    found = {k: i for path in weight_files(folder) for k, i in read_header(path).items()}
    # loose: quantiser counters are stored as a number or as a list of one
    assert {k: i.shape for k, i in found.items() if i.shape and not k.endswith("inited")} == {
        k: tuple(v) for k, v in expected.items() if v and not k.endswith("inited")
    }
    print({k: i.dtype for k, i in found.items() if "modality_embeddings.0.model." in k})


# Token counts that a public bring-up of v3 measured with the published tokenizer.
PROMPTS = {
    "Hello from PegaInfer.": 10,
    "Welcome to SpeakSwiftly. This is the first official Higgs Audio v3 parity fixture.": 22,
}


def test_v3_speaks():
    """Prompts of the known length, and speech that ends by itself without a marker in it."""
    (folder,) = wanted("MLX_HIGGS_V3")
    higgs = load(folder)
    for text, length in PROMPTS.items():
        prompt = higgs.prompts.build(text)
        assert sum(len(part.ids) for part in prompt if isinstance(part, Text)) == length
        params = SamplingParams(
            temperature=0.8, top_p=1.0, top_k=50, ras_window=0, max_frames=400, seed=0
        )
        rows = Rows(higgs.model, prompt, params)
        assert len(list(rows)) > 15
        assert rows.stop_reason == "eos"


@pytest.mark.parametrize("checkpoint", ["MLX_HIGGS_V3_TEXT", "QWEN3_4B"])
def test_the_text_gate(checkpoint: str):
    model = checkpoint.removesuffix("_TEXT")
    verdict = text_gate.judge(*wanted(model, f"{checkpoint}_GOLDEN"))
    print(verdict.to_dict())
    assert verdict.passed, verdict.failures


def test_the_audio_gate():
    verdict = audio_gate.judge(*wanted("MLX_HIGGS_V3", "MLX_HIGGS_V3_AUDIO_GOLDEN"))
    print(verdict.to_dict())
    assert verdict.passed, verdict.failures
