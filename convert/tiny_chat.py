"""Tiny random checkpoints that take turns: they open speech, end it, and stop, sooner or later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlx_higgs.prompts.base import Marks

from .layouts import AUDIO_EOS, AUDIO_IN, AUDIO_OUT, AUDIO_OUT_BOS, EOS, EOT
from .tiny import write_checkpoint

if TYPE_CHECKING:
    from .layouts import Widths

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
