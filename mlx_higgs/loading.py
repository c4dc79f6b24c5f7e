"""A folder or hub repository -> a talker, its prompts and its codec."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from . import doubts
from .defaults import Defaults
from .models import family, get_model_classes
from .models.snapshot import Snapshot
from .quantization import (
    Plan,
    Quantization,
    prepare_quantized,
    quantizable,
    quantize_module,
    stored_quantization,
)
from .ranks import ALONE, Ranks
from .recipes import Recipe, at_once, of
from .shard import shard as cut
from .shard import sharing
from .sources import (
    DEFAULT_MODEL,
    find_codec,
    prompt_class,
    resolve,
    resolve_adapter,
    why_no_chat,
)
from .types import CheckpointError, InputError
from .weights import load_tensors, named_arrays, nbytes, read_json, weight_files

if TYPE_CHECKING:
    from .codec import HiggsCodec
    from .delay import DelayPattern
    from .models.base import SpeechModel
    from .prompts.base import PromptBuilder


@dataclass
class Higgs:
    """Everything one checkpoint offers. What is not in memory yet is read when first needed.

    Args:
        talker: the model, whose weights may still be on disk: for its shape alone.
        adapter: what was put on it.
        unread: the weights are still on disk.
        recipe: what was quantised while loading; None: nothing was.
        ranks: that the talker is cut among.
    """

    path: Path
    talker: SpeechModel
    codec_source: str | Path | None = None
    tokenizer_source: str | Path | None = None
    adapter: Path | None = None
    unread: bool = False
    recipe: Recipe | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.original = Snapshot(self.talker)  # before anybody changes a weight

    @property
    def model(self) -> SpeechModel:
        """The talker with its weights in memory."""
        if self.unread:
            read_weights(self.talker)
            self.unread = False
        return self.talker

    @cached_property
    def _config(self) -> dict:
        return read_json(self.path / "config.json")

    @cached_property
    def prompts(self) -> PromptBuilder:
        source = resolve(self.tokenizer_source or self.path)
        prompts = prompt_class(self._config).from_pretrained(source)
        prompts.hearing = self.talker.hearing
        return prompts

    @cached_property
    def codec_folder(self) -> Path:
        return find_codec(self.path, self.codec_source)

    @cached_property
    def codec(self) -> HiggsCodec:
        codec = load_codec(self.codec_folder)
        check_codec(codec, self.talker.delay)
        return codec

    @cached_property
    def no_chat(self) -> str | None:
        """Why it does not converse, in a sentence for anybody; None: it does."""
        if self.talker.args.text_head:
            return None
        return why_no_chat(self.path) or (
            "The text head was not loaded, which writes words: load with text_head=True, or start "
            "the server with --chat."
        )

    @cached_property
    def defaults(self) -> Defaults:
        found = Defaults.from_pretrained(self.path, type(self.talker))
        return found if self.recipe is None else found.under(self.recipe.sampling)

    @cached_property
    def doubt(self) -> str:
        """What is known against how it is stored; "" if nothing is."""
        if self.recipe is not None:
            return doubts.of_recipe(self.recipe, family(self._config), self.talker)
        path = self.path / "config.json"
        return doubts.of_config(read_json(path, required=False), self.talker, path)


def load_codec(folder: Path) -> HiggsCodec:
    from .codec import HiggsCodec

    return HiggsCodec.from_pretrained(folder)


def check_codec(codec: HiggsCodec, delay: DelayPattern) -> None:
    """Raises CheckpointError when the codec's codes are not those the model speaks."""
    size, books = delay.codebook_size, delay.num_codebooks
    if (codec.codebook_size, codec.num_codebooks) != (size, books):
        raise CheckpointError(
            f"The codec has {codec.num_codebooks} codebooks of {codec.codebook_size}, the "
            f"model speaks {books} of {size}: they do not belong together."
        )


def load(
    path_or_repo: str | Path = DEFAULT_MODEL,
    *,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    adapter: str | Path | None = None,
    quantize: str | Recipe | Plan | Quantization | None = None,
    revision: str | None = None,
    read_now: bool = True,
    text_head: bool = False,
    shard: bool = False,
) -> Higgs:
    """Load a checkpoint for generation.

    Args:
        path_or_repo: a folder, a hub repository, or ``demo``.
        codec, tokenizer: where these are when not beside the model.
        adapter: what was trained on top: a folder or hub repository, mlx-lm's or PEFT's.
        quantize: quantise while loading; the source's full size is never held. A recipe's name
            (``q8``), bits as ``8/4``, a recipe or a plan.
        read_now: False leaves the talker's weights on disk until they are needed, so that a clip
            can be encoded before they take their room.
        text_head: with what writes words, for conversations (788 MB of the 3B model in bfloat16).
        shard: hold a part of the talker: the processes that ``mlx.launch`` started with this one
            hold the others, and must make the same calls.

    Raises:
        InputError: nothing there, or parts that cannot be made. CheckpointError: it cannot be used.
    """
    recipe = at_once(of(quantize), str(path_or_repo))
    path = resolve(path_or_repo, revision)
    trained = None if adapter is None else resolve_adapter(adapter)
    if text_head and (why := why_no_chat(path)):
        raise InputError(why)
    fuse = trained is None
    ranks = sharing(trained) if shard else ALONE
    model = open_model(path, quantize=recipe.plan, text_head=text_head, fuse=fuse, ranks=ranks)
    if read_now or trained is not None:
        read_weights(model)
    if trained is not None:
        from .adapters import apply_adapter

        apply_adapter(model, trained)
        fuse_layers(model)
    unread = not (read_now or trained)
    asked = None if recipe.plan == Plan() else recipe
    return Higgs(path, model, codec, tokenizer, trained, unread=unread, recipe=asked, ranks=ranks)


def fuse_layers(model: Any) -> None:
    """Join what can be joined of weights in memory: one layer at a time is there twice."""
    for layer in model.layers:
        layer.fuse()
        mx.eval(layer.parameters())
        mx.clear_cache()
    model.fuse()  # what is no layer's


def load_model(
    folder: Path,
    *,
    quantize: Quantization | Plan | None = None,
    dtype: str | None = None,
    text_head: bool = False,
) -> SpeechModel:
    """The talker alone. Its weights are read layer by layer.

    Raises:
        CheckpointError: unknown, missing or misshapen tensors (named), or another model.
    """
    model = open_model(folder, quantize=quantize, dtype=dtype, text_head=text_head)
    read_weights(model)
    return model


def open_model(
    folder: Path,
    *,
    quantize: Quantization | Plan | None = None,
    dtype: str | None = None,
    text_head: bool = False,
    fuse: bool = False,
    ranks: Ranks = ALONE,
) -> SpeechModel:
    """The talker as it will be, its weights still on disk.

    Args:
        fuse: join matrices for generation.
        ranks: take this one's part.

    Raises:
        CheckpointError: unknown, missing or misshapen tensors (named), or another model.
        InputError: widths that the weights cannot take, weights that are quantised already, or
            more ranks than there can be.
    """
    config = read_json(folder / "config.json")
    model = build_model(config, text_head=text_head)
    tensors = model.sanitize(load_tensors(weight_files(folder)))
    stored, plan = stored_quantization(config), Plan.of(quantize)
    if stored and (plan != Plan() or dtype):
        raise InputError(f"{folder} is quantised already: start from the original weights.")
    if stored:
        prepare_quantized(model, stored, set(tensors))
    _assign(model, tensors, folder)
    del tensors  # otherwise every source array stays alive until the end
    if dtype is not None:
        model.set_dtype(getattr(mx, dtype))
    chosen = quantizable(model, plan)
    _quantize(model, chosen)
    if ranks.size > 1:
        cut(model, ranks, chosen)
    if fuse:
        model.fuse()
    return model


def build_model(config: dict, *, text_head: bool = False) -> Any:
    """The talker a config describes (a SpeechModel), without weights: nothing is allocated."""
    model_class, args_class = get_model_classes(config)
    return model_class(args_class.from_dict(config, text_head=text_head))


def _assign(model: nn.Module, tensors: dict[str, mx.array], folder: Path) -> None:
    expected = named_arrays(model)
    problems = [
        ("does not know", sorted(tensors.keys() - expected.keys())),
        ("misses", sorted(expected.keys() - tensors.keys())),
    ]
    for what, names in problems:
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(
                f"{folder} does not fit its config: the model {what} {', '.join(names[:5])}{more}."
            )
    for name, wanted in expected.items():
        found = tensors[name]
        if found.shape != wanted.shape or _is_float(found) != _is_float(wanted):
            raise CheckpointError(
                f"{folder}: {name} is {found.dtype} {found.shape}, its config wants "
                f"{wanted.dtype} {wanted.shape}."
            )
    model.load_weights(list(tensors.items()))


def _is_float(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _quantize(model: nn.Module, chosen: dict[str, Quantization]) -> None:
    modules = leaves(model)
    for path, how in chosen.items():
        module = quantize_module(modules.pop(path), how)
        model.update_modules(tree_unflatten([(path, module)]))


def read_weights(model: Any) -> None:
    """Read, cast, quantise and join one module at a time: the peak is the result and one source.

    The largest come first, while their sources add to almost nothing.
    """
    for module in sorted(leaves(model).values(), key=nbytes, reverse=True):
        mx.eval(module.parameters())
        mx.clear_cache()  # Metal keeps freed buffers, here the sources', for reuse
    mx.eval(model.parameters())


def leaves(model: nn.Module) -> dict[str, Any]:
    """Path -> module of those that hold the weights."""
    return {path: module for path, module in model.named_modules() if not module.children()}
