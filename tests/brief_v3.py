"""A tiny random v3 that soon comes to its end: for commands that set no limit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from convert.tiny_v3 import write_v3
from mlx_higgs.sources import DEMO
from mlx_higgs.weights import load_tensors

CODES = 256  # of the demo's codec
TABLE = "tied.embedding.modality_embeddings.0.embedding.weight"


def write_brief_v3(folder: Path, seed: int) -> Path:
    """A checkpoint whose score for the end varies so much that every few rows it is the highest."""
    write_v3(folder, seed=seed, codes=CODES, codec=DEMO / "codec", intermediate_size=128)
    path = folder / "model.safetensors"
    tensors = load_tensors([path])
    end = mx.arange(tensors[TABLE].shape[0])[:, None] == CODES + 1
    tensors[TABLE] = mx.where(end, 10 * tensors[TABLE], tensors[TABLE])
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors, {"format": "pt"})
    return folder
