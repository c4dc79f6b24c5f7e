"""Stage 4: the codes of all utterances, by the codec's own encoder, into the trainer's cache.

    python -m convert.demo.encode BUILD [--part 1/2]

The trainer would do it itself; PyTorch is several times faster here. `--part` shares the work.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from mlx_higgs.train.data.clips import read_clip
from mlx_higgs.train.data.conversation import Clip

from .codec import load_encoder, open_codes, to_codes
from .speech import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode all utterances.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--part", default="1/1", metavar="I/N")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    build: Path = arguments.build
    torch.set_num_threads(1)
    model, cache = load_encoder(build), open_codes(build)
    started, frames = time.process_time(), 0
    for utterance in read_manifest(build)[part - 1 :: parts]:
        wave = read_clip(Clip(build / utterance.path))
        key = cache.key(wave)
        if cache.get(key) is None:
            codes = to_codes(model, wave).T.cpu().numpy()
            cache.put(key, codes)
            frames += len(codes)
    print(f"{frames / 25 / 3600:.2f} h of speech in {time.process_time() - started:.0f} s")


if __name__ == "__main__":
    main()
