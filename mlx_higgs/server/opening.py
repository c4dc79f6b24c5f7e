"""A server from a command's options: how the model is stored, and loading it."""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import note
from ..ranks import ALONE
from ..types import InputError

if TYPE_CHECKING:
    from ..footprint import Choice
    from ..ranks import Ranks
    from .engine import HiggsAudioServer
    from .request import SpeechRequest


def choose_plan(
    arguments: argparse.Namespace, *, streams: int = 1, many_clips: bool = False
) -> Choice:
    """How the model is to be stored in this memory; said where that is no matter of course.

    Args:
        arguments: the options of ``cli.add_model_options``.
        streams, many_clips: as ``load_server`` takes them.

    Raises:
        InputError: what would fit, if that does not. CheckpointError: it cannot be used.
    """
    from ..footprint import choose
    from ..shard import sharing
    from ..sources import check_model, find_codec, resolve, why_no_chat

    path = resolve(arguments.model, arguments.revision)
    check_model(path)
    if wants_words(arguments) and (why := why_no_chat(path)):
        raise InputError(why)
    choice = choose(
        path,
        find_codec(path, arguments.codec),
        arguments.quantize,
        arguments.memory_limit,
        source=arguments.model,
        streams=streams,
        late_clips=many_clips or arguments.adapter is not None,  # which has the talker read at once
        text_head=wants_words(arguments),
        ranks=sharing(arguments.adapter) if _shards(arguments) else ALONE,
    )
    if choice.line:
        note(choice.line)
    return choice


def wants_words(arguments: argparse.Namespace) -> bool:
    """Whether a command wants the model to write, too (``--chat``)."""
    return getattr(arguments, "chat", False)


def load_server(
    arguments: argparse.Namespace,
    choice: Choice | None = None,
    *,
    streams: int = 1,
    many_clips: bool = False,
) -> HiggsAudioServer:
    """The server, whose talker stays on disk until it is needed: clips are encoded before.

    Args:
        choice: None chooses.
        streams: texts spoken at once.
        many_clips: more will come: keep the codec's encoder where there is room for it.
    """
    from ..loading import load
    from ..prefix import AUTO
    from .engine import HiggsAudioServer

    choice = choice or choose_plan(arguments, streams=streams, many_clips=many_clips)
    higgs = load(
        choice.folder,
        codec=arguments.codec,
        tokenizer=arguments.tokenizer,
        adapter=arguments.adapter,
        quantize=choice.recipe,
        read_now=False,
        text_head=wants_words(arguments),
        shard=_shards(arguments),
    )
    if higgs.doubt:
        note(f"warning: {higgs.doubt}")
    return HiggsAudioServer(
        higgs,
        voice_cache=None if arguments.no_voice_cache else AUTO,
        keep_encoder=many_clips and choice.roomy,
    )


def _shards(arguments: argparse.Namespace) -> bool:
    return getattr(arguments, "shard", False)  # only some commands have it


def agree(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Have all ranks take the same seed, and no more memory than the smallest of them has.

    Raises:
        InputError: a limit that cannot be read.
    """
    from ..memory import machine_limit, parse_size

    given = arguments.memory_limit
    limit = machine_limit() if given is None else parse_size(given)
    least = ranks.gathered([math.inf if limit is None else limit]).min()
    if not math.isinf(least):
        arguments.memory_limit = f"{int(least) // 10**6}MB"
    if arguments.seed is None:
        arguments.seed = secrets.randbelow(2**32)
    arguments.seed = ranks.told(arguments.seed)


def checker(folder: Path) -> Callable[[SpeechRequest], None]:
    """Refuses, without loading it, requests for what this kind of model does not have.

    What it returns raises InputError for a control or a preset.

    Raises:
        CheckpointError: the folder is no talker's.
    """
    from ..defaults import Defaults
    from ..models import get_model_classes
    from ..sources import prompt_class
    from ..weights import read_json

    config = read_json(folder / "config.json")
    prompts = prompt_class(config)
    defaults = Defaults.from_pretrained(folder, get_model_classes(config)[0])

    def check(request: SpeechRequest) -> None:
        prompts.check_controls(request.controls)
        request.sampling(defaults.preset(request.preset))

    return check
