"""``python sharded.py OUT FRAMES FOLDER[=BITS] ...``: what talkers say, whole or cut among ranks.

Writes ``OUT-RANK.npz``; run alone, it is the one process that the others are compared with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from checkpoints import all_logits, tensors

from mlx_higgs.batch import Batch
from mlx_higgs.frames import Rows
from mlx_higgs.loading import load
from mlx_higgs.quantization import Quantization
from mlx_higgs.ranks import processes
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.types import Audio, Text


def main(out: str, frames: str, *folders: str) -> None:
    ranks, found = processes(), {}
    for number, source in enumerate(folders):
        folder, _, bits = source.partition("=")
        how = Quantization.of(int(bits), 32) if bits else None
        model = load(Path(folder), quantize=how, shard=ranks.size > 1).model
        found |= {f"{number}.{name}": value for name, value in said(model, int(frames)).items()}
    np.savez(f"{out}-{ranks.rank}.npz", **found)
    ranks.wait()  # what is still under way needs all of them


def said(model: Any, frames: int) -> dict[str, np.ndarray]:
    codes = np.random.default_rng(0).integers(0, 16, (5, model.delay.num_codebooks))
    prompts = [[Text([1, 2, 3]), Audio(mx.array(codes)), Text([n, 5])] for n in (4, 6, 7)]
    greedy = SamplingParams(temperature=0, ras_window=0, max_frames=frames, seed=1)
    drawn = SamplingParams(temperature=1, ras_window=0, max_frames=frames, seed=2)
    batch = Batch(model)
    together = [batch.join(prompt, greedy, max_identical_rows=0) for prompt in prompts]
    caches = model.make_cache()
    model.hidden(model.embed_prompt(prompts[0])[0], caches)
    return {
        "logits": all_logits(model),
        "greedy": rows(Rows(model, prompts[0], greedy, max_identical_rows=0)),
        "drawn": rows(Rows(model, prompts[0], drawn, max_identical_rows=0, loop="eager")),
        "batch": np.concatenate([rows(one) for one in together]),
        "heads": np.array([caches[0].keys.shape[1]]),
        "bytes": np.array([sum(array.nbytes for array in matrices(model))]),
    }


def rows(source: Iterable[np.ndarray]) -> np.ndarray:
    return np.stack(list(source))


def matrices(model: Any) -> list[mx.array]:
    """The layers' matrices, which are what is cut."""
    return [
        array
        for name, array in tensors(model).items()
        if name.startswith("layers.") and "_proj." in name
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
