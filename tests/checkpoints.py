"""Random checkpoints and a fixed prompt for the tests of loading and converting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_higgs.loading import build_model
from mlx_higgs.sources import DEMO
from mlx_higgs.types import Audio, Text

GOLDEN = Path(__file__).parent / "golden"
TINY = {"transformers": GOLDEN / "tiny_transformers", "boson": GOLDEN / "tiny_boson"}


def random_checkpoint(folder: Path, seed: int, *, dtype: str = "bfloat16", **fields: Any) -> Path:
    """A talker with its text head and no codec: the demo's config with ``fields`` changed."""
    mx.random.seed(seed)
    config = json.loads((DEMO / "config.json").read_text()) | fields
    model = build_model(config, text_head=True)
    model.set_dtype(getattr(mx, dtype))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors(model))
    return folder


def tensors(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def nbytes(model: Any) -> int:
    return sum(array.nbytes for array in tensors(model).values())


def all_logits(model: Any) -> np.ndarray:
    """A SpeechModel's ``[S, K, V]`` after a prompt of words and codes and one more row."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, model.delay.codebook_size, (9, model.delay.num_codebooks))
    prompt = [Text(list(range(12))), Audio(mx.array(codes[:8]))]
    x, is_audio = model.embed_prompt(prompt)
    cache = model.make_cache()
    first = model.audio_logits(model.hidden(x, cache, is_audio))
    row = model.embed_rows(mx.array(codes[None, 8:]))
    return np.array(mx.concatenate([first, model.audio_logits(model.hidden(row, cache))], axis=1))[
        0
    ]


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference, as a share of the spread of ``exact``."""
    return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
