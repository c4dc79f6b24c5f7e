"""A random talker with a data set whose clips are encoded already: training without a codec."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from checkpoints import random_checkpoint

from mlx_higgs.sources import DEMO, find_codec
from mlx_higgs.train.data.codes import CodesCache, codec_fingerprint
from mlx_higgs.train.data.conversation import Clip

RATE = 8000  # Hz; nobody listens
WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TEXTS = ("one two three", "four", "five six", "seven eight nine one", "two two", "three nine")


class Codec:
    """Codes drawn at random in place of encoded ones."""

    def __init__(self, seed: int, books: int, size: int):
        self._random, self._books, self._size = np.random.default_rng(seed), books, size

    def encode(self, samples: np.ndarray) -> np.ndarray:
        frames = len(samples) // 960
        return self._random.integers(0, self._size, (frames, self._books))


@dataclass(frozen=True)
class Setting:
    """Where everything of a run is."""

    model: Path
    data: Path
    out: Path

    def arguments(self, *more: Any, out: str | None = None) -> list[str]:
        folder = self.out if out is None else self.out.with_name(out)
        given = ["--model", self.model, "--data", self.data, "--adapter-path", folder, *more]
        return [str(word) for word in given]


def setting(folder: Path, seed: int, **fields: Any) -> Setting:
    """A checkpoint, six samples to train, two to validate, two to test."""
    fields = {"dtype": "float32", **WIDTHS, **fields}
    model = random_checkpoint(folder / "model", seed, **fields)
    shutil.copyfile(DEMO / "tokenizer.json", model / "tokenizer.json")
    shutil.copytree(find_codec(DEMO), model / "codec")
    config = json.loads((model / "config.json").read_text())
    data = folder / "data"
    data.mkdir()
    codec = Codec(seed, config["num_codebooks"], config["codebook_size"] - 2)
    cache = CodesCache(data / ".codes", lambda: codec, codec_fingerprint(model / "codec"))
    random = np.random.default_rng(seed)
    for part, texts in (("train", TEXTS), ("valid", TEXTS[:2]), ("test", TEXTS[2:4])):
        lines = [_sample(data, f"{part}{i}", text, random) for i, text in enumerate(texts)]
        (data / f"{part}.jsonl").write_text("\n".join(lines))
        for i in range(len(texts)):
            cache.codes(Clip(data / f"{part}{i}.wav"))
    cache.close()
    return Setting(model, data, folder / "out")


def _sample(data: Path, name: str, text: str, random: np.random.Generator) -> str:
    wave = 0.1 * random.normal(size=int(RATE * random.uniform(0.3, 0.6)))
    soundfile.write(data / f"{name}.wav", wave, RATE)
    answer = {"type": "audio", "audio_url": f"{name}.wav"}
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})
