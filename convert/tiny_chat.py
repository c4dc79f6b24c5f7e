"""Tiny random checkpoints that take turns: they open speech, end it, and stop, sooner or later.

python convert/tiny_chat.py FOLDER --seed 7
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from convert.layouts import AUDIO_EOS, AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS, EOS, EOT
from convert.tiny import write_checkpoint
from mlx_higgs.prompts.base import Marks

if TYPE_CHECKING:
    from convert.layouts import Widths

STOPS, BANNED = (EOS, EOT), (AUDIO_IN, AUDIO_OUT)  # as offsets from the first special id
OPENS_BY = 3.0  # times the other ids' logits: of a few hundred, it is written now and then
ENDS_BY = 12.0  # times the quiet ones of `tiny.random_talker`: a stretch lasts some twenty rows


def write_talkative(folder: Path, *, seed: int, opens: float = OPENS_BY, ends: float = ENDS_BY):
    """A checkpoint in Boson's layout, as `tiny.write_checkpoint` writes it, that takes turns."""
    import torch
    from safetensors.torch import load_file, save_file

    widths = write_checkpoint(folder, seed=seed, config_layout="boson", weight_layout="boson")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    first, head = widths.first_special, "audio_decoder_proj.{}_lm_head.weight"
    tensors[head.format("text")][first + AUDIO_OUT_BOS] *= opens
    rows = tensors[head.format("audio")].view(widths.codebooks, widths.codes + 2, -1)
    rows[:, widths.codes + 1] *= ends
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    assert torch.isfinite(rows).all()
    return widths


def marks_of(widths: Widths) -> Marks:
    """What the ids of such a checkpoint mean."""
    first = widths.first_special
    return Marks(
        opens=first + AUDIO_OUT_BOS,
        speech=first + AUDIO_OUT,
        closes=first + AUDIO_EOS,
        stops=frozenset(first + stop for stop in STOPS),
        barred=tuple(first + barred for barred in BANNED),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random checkpoint that takes turns.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opens", type=float, default=OPENS_BY, help="how readily speech begins")
    parser.add_argument("--ends", type=float, default=ENDS_BY, help="how readily it ends")
    args = parser.parse_args()
    write_talkative(args.folder, seed=args.seed, opens=args.opens, ends=args.ends)


if __name__ == "__main__":
    main()
