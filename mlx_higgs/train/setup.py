"""From options to what a run works with: the model, the samples, and where it starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..adapters import WEIGHTS, load_adapter
from ..cli import note
from ..loading import Higgs, load_model
from ..quantization import Quantization
from ..sources import find_codec, has_text_head, resolve
from ..types import InputError
from .data.codes import CodesCache, codec_fingerprint
from .datasets import find_part, read_samples
from .loss import Weights
from .methods import lora_parameters
from .options import Options
from .samples import Sample
from .state import has_state

CACHE = ".codes"


def output_folder(options: Options) -> Path:
    """Where the run is written to: empty, one to go on with, or one to replace."""
    folder = Path(options.adapter_path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder with --adapter-path.")
    if options.train and has_state(folder) and not (options.resume or options.force):
        raise InputError(
            f"{folder} holds a run: --resume goes on with it, --force starts anew, or name another "
            "--adapter-path."
        )
    if not options.train:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}.") from error
    return folder


def load_higgs(options: Options) -> Higgs:
    """The base, with its text head where the checkpoint has one and its loss counts."""
    path = resolve(options.model, options.revision)
    head = options.text_loss_weight > 0 and has_text_head(path)
    quantize = Quantization.of(options.quantize) if options.quantize else None
    model = load_model(path, quantize=quantize, dtype=options.dtype, text_head=head)
    if options.train and options.fine_tune_type == "full":
        _widen(model, options)
    return Higgs(path, model, options.codec, options.tokenizer)


def _widen(model: Any, options: Options) -> None:
    """Train float16 weights as float32: what the optimizers divide by rounds to 0 in 16 bits.

    Raises:
        InputError: float16 was asked for.
    """
    if all(array.dtype != mx.float16 for array in dict(tree_flatten(model.parameters())).values()):
        return
    if options.dtype == "float16":
        raise InputError("dtype float16 is too narrow to train in full: use float32 or bfloat16.")
    note("The weights are float16, too narrow to train in full: float32 is trained.")
    model.set_dtype(mx.float32)


def read_data(options: Options, higgs: Higgs) -> dict[str, list[Sample]]:
    """The samples of each part that there is and that is asked for.

    Raises:
        InputError: a part that is missing or cannot be used.
    """
    data = Path(options.data).expanduser()
    wanted = (["train", "valid"] if options.train else []) + (["test"] if options.test else [])
    paths = {part: path for part in wanted if (path := find_part(data, part))}
    for part in ("train", "test"):
        if part in wanted and part not in paths:
            raise InputError(f"{data} has no {part} data: write {data / part}.jsonl.")
    source = find_codec(higgs.path, options.codec)
    home = data if data.is_dir() else data.parent
    folder = Path(options.codes_cache).expanduser() if options.codes_cache else home / CACHE
    cache = CodesCache(folder, lambda: higgs.codec, codec_fingerprint(source))
    try:
        return {
            part: read_samples(
                path,
                higgs.prompts,
                higgs.model.delay,
                cache.codes,
                longest=options.max_seq_length,
                train_reference=options.train_reference,
            )
            for part, path in paths.items()
        }
    finally:
        cache.close()


def first_weights(options: Options, folder: Path) -> Path | None:
    """The adapter to begin with: the one named; what was trained, when it is only tested."""
    if options.resume_adapter_file:
        return Path(options.resume_adapter_file).expanduser()
    trained = folder / WEIGHTS
    return trained if not options.train and trained.is_file() else None


def loss_weights(options: Options, model: Any) -> Weights:
    """The options' weights for this model.

    Raises:
        InputError: not one weight for each codebook.
    """
    K = model.delay.num_codebooks
    books = options.codebook_weights or [1.0] * K
    if len(books) != K:
        raise InputError(f"codebook_weights are {len(books)}: the model has {K} codebooks.")
    text = options.text_loss_weight if model.args.text_head else 0.0
    return Weights(tuple(books), text, 1.0, options.audio_loss)


def adapter_config(options: Options, model: Any) -> dict:
    """``adapter_config.json``: every option, by mlx-lm's names."""
    config = asdict(options)
    if options.fine_tune_type != "full":
        config["lora_parameters"] = lora_parameters(model, options.lora_parameters)
    return config


def load_trainable(model: Any, path: Path) -> None:
    """Start from an adapter's weights.

    Raises:
        InputError: no such file. CheckpointError: another base, strength or choice of layers.
    """
    if not path.is_file():
        raise InputError(f"There is no adapter file {path}.")
    load_adapter(model, path)
