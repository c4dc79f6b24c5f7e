"""A folder or hub repository -> a talker, its prompts and its codec."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
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
from .types import CheckpointError, InputError
from .weights import load_tensors, named_arrays, read_header, read_json, weight_files

if TYPE_CHECKING:
    from .codec import HiggsCodec
    from .delay import DelayPattern
    from .models.base import SpeechModel
    from .prompts.base import PromptBuilder

DEMO = Path(__file__).parent / "demo"
DEFAULT_MODEL = "demo"
CODEC_REPO = "bosonai/higgs-audio-v2-tokenizer"
# The hub's names are overwritten in place: these are the revisions the readers were written for.
PINNED = {CODEC_REPO: "9d4988fbd4ad07b4cac3a5fa462741a41810dbec"}
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CODEC_FOLDERS = ("codec", "audio_tokenizer")


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
        bits, least = doubts.spoken_bits(self.talker), self.talker.LEAST_BITS
        if self.recipe is not None:
            return doubts.of_recipe(self.recipe, family(self._config), bits, least)
        path = self.path / "config.json"
        return doubts.of_config(read_json(path, required=False), bits, least, path)


def prompt_class(config: dict) -> Any:
    """What builds the prompts (a PromptBuilder) of the talker a config describes."""
    return import_module(f".prompts.{family(config)}", __package__).PromptBuilder


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is; ``owner/name`` downloaded; ``demo`` is the bundled checkpoint.

    Raises:
        InputError: neither, the download failed, or a revision of something local.
    """
    path = DEMO if str(source) == DEFAULT_MODEL else Path(source).expanduser()
    if str(source) and path.is_dir():
        if revision:
            raise InputError(f"{source} is a local folder: a revision belongs to a hub name.")
        return path
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        raise InputError(f"There is no folder {source!s:.200}, nor is it a hub name (owner/name).")
    return _download(source, revision or PINNED.get(source))


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.pth", "LICENSE*", "NOTICE*"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # its errors share no base class short of this
        raise InputError(
            f"{repo} is not a local folder and could not be fetched from the hub "
            f"({first_line(error)}). "
            "Check the name and the connection, or give the path of a folder."
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, without the page that may follow; its type when it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def has_text_head(folder: Path) -> bool:
    """Speaking does not need it; a converted checkpoint keeps it, as nothing is to be lost."""
    names = (name for path in weight_files(folder) for name in read_header(path))
    return any("text_lm_head" in name.split(".") for name in names)


def why_no_chat(folder: Path) -> str | None:
    """Why a checkpoint does not converse, in a sentence for anybody; None: it does.

    Raises:
        CheckpointError: it is no talker's.
    """
    if why := prompt_class(read_json(folder / "config.json")).NO_CHAT:
        return why
    if has_text_head(folder) and Defaults.from_pretrained(folder).chats:
        return None
    return (
        "This checkpoint has no text head that was taught to write: it speaks, but does not chat. "
        "Load one that has it, such as bosonai/higgs-tts-2-3b-base."
    )


def check_model(folder: Path) -> None:
    """Raises CheckpointError for a folder that is no talker's, before its codec is looked for."""
    get_model_classes(read_json(folder / "config.json"))


def find_codec(folder: Path, source: str | Path | None = None) -> Path:
    """The codec's folder: the one named, the one beside the model, or Boson's on the hub."""
    if source is not None:
        folder = resolve(source)
        return codec_beside(folder) or folder
    if beside := codec_beside(folder):
        return beside
    try:
        return resolve(CODEC_REPO)
    except InputError as error:
        raise CheckpointError(
            f"{folder} has no codec beside it. {error} Name one with --codec or codec_path."
        ) from error


def codec_beside(folder: Path) -> Path | None:
    """The codec that came with a model: in a folder of its own, or among the talker's tensors."""
    from .codec.checkpoint import is_bundled

    beside = [folder / name for name in CODEC_FOLDERS if (folder / name).is_dir()]
    return beside[0] if beside else folder if is_bundled(folder) else None


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


def resolve_adapter(source: str | Path) -> Path:
    """An adapter's folder, from here or the hub, or one ``.safetensors`` in such a folder."""
    path = Path(source).expanduser()
    return path if path.is_file() else resolve(source)


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
    for module in sorted(leaves(model).values(), key=_nbytes, reverse=True):
        mx.eval(module.parameters())
        mx.clear_cache()  # Metal keeps freed buffers, here the sources', for reuse
    mx.eval(model.parameters())


def leaves(model: nn.Module) -> dict[str, Any]:
    """Path -> module of those that hold the weights."""
    return {path: module for path, module in model.named_modules() if not module.children()}


def _nbytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in named_arrays(module).values())
