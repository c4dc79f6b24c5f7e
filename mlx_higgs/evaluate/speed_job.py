"""What ``evaluate speed`` is asked for, checked before anything slow begins."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codec.checkpoint import TensorSource
from ..codec.codec import HiggsCodec
from ..loading import build_model, fuse_layers, load_model
from ..memory import on_cpu
from ..models.base import SpeechModel
from ..quantization import stored_quantization
from ..sources import resolve
from ..types import InputError
from ..weights import read_json
from .codec_speed import open_codec
from .peer import peer_version
from .shapes import Width, random_talker, shape_config

SWEEP = (1, 2, 4, 8, 16)  # streams at once
DEFAULT_SHAPE = "small"


@dataclass(frozen=True)
class Job:
    """What is to be measured, checked before anything slow begins."""

    folder: Path | None
    config: dict
    widths: list[Width]
    stored: bool  # a checkpoint that is quantised already
    batches: list[int]
    peer: str | None
    codec: HiggsCodec | None
    codec_weights: TensorSource | None  # random ones
    arguments: argparse.Namespace

    def build(self, width: Width) -> SpeechModel:
        """A talker as files store it."""
        if self.folder is None:
            return random_talker(self.config, width, self.arguments.seed)
        if self.stored:
            return load_model(self.folder)
        return load_model(self.folder, quantize=width.quantization, dtype=width.dtype)

    def build_fused(self, width: Width) -> SpeechModel:
        """A talker as generation uses it."""
        model = self.build(width)
        fuse_layers(model)
        return model

    @property
    def talker(self) -> str:
        name = self.arguments.model or self.arguments.shape or DEFAULT_SHAPE
        text = self.config.get("text_config", self.config)
        return (
            f"{name}: {text['num_hidden_layers']} layers of {text['hidden_size']}, "
            f"FFN {text['intermediate_size']}"
        )


def prepare(arguments: argparse.Namespace) -> Job:
    """Read the options.

    Raises:
        InputError: they do not fit together, or something is missing.
    """
    _check_numbers(arguments)
    if arguments.model and arguments.shape:
        raise InputError("Name one of --model and --shape: whose speed is it?")
    folder = resolve(arguments.model) if arguments.model else None
    config = read_json(folder / "config.json") if folder else None
    config = config or shape_config(arguments.shape or DEFAULT_SHAPE)
    batches = sorted({*arguments.batch, *(SWEEP if arguments.sweep else ())})
    codec, source = open_codec(arguments.codec, arguments.seed) if arguments.codec else (None, None)
    if codec:
        _check_pair(codec, build_model(config))
    return Job(
        folder=folder,
        config=config,
        widths=_widths(arguments, config),
        stored=stored_quantization(config) is not None,
        batches=batches if batches != [1] else [],
        peer=f"{arguments.peer} {peer_version()}" if arguments.peer else None,
        codec=codec,
        codec_weights=source,
        arguments=arguments,
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
    for name in ("frames", "rounds", "prompt"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}: it must be at least 1.")
    if min(arguments.batch) < 1:
        raise InputError(f"--batch is {min(arguments.batch)}: a batch has one stream at least.")
    if not 0 < arguments.voice_seconds <= 60:
        raise InputError(
            f"--voice-seconds is {arguments.voice_seconds}: use more than 0, up to 60."
        )
    if not 0 <= arguments.seed < 2**63:
        raise InputError(f"--seed is {arguments.seed}: it must be from 0 to 2**63 - 1.")


def _widths(arguments: argparse.Namespace, config: dict) -> list[Width]:
    dtype = arguments.dtype or ("float32" if on_cpu() else "bfloat16")
    if stored := stored_quantization(config):
        if arguments.q_bits or arguments.dtype:
            raise InputError("The checkpoint is quantised already: leave --q-bits and --dtype out.")
        return [Width.of(stored.get("bits", 0), dtype)]
    if not arguments.q_bits:
        return [Width(16 if dtype != "float32" else 32, dtype)]
    return [Width.of(bits, dtype) for bits in dict.fromkeys(arguments.q_bits)]


def _check_pair(codec: HiggsCodec, model: Any) -> None:
    """A random talker may speak fewer codes than the codec knows, never others."""
    books, size = model.delay.num_codebooks, model.delay.codebook_size
    if codec.num_codebooks != books or codec.codebook_size < size:
        raise InputError(
            f"The codec has {codec.num_codebooks} codebooks of {codec.codebook_size}, the talker "
            f"speaks {books} of {size}: name another --codec."
        )
