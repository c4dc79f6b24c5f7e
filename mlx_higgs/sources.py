"""Where a checkpoint and its parts are, and what they offer by their headers: nothing is loaded."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from .defaults import Defaults
from .models import family, get_model_classes
from .types import CheckpointError, InputError
from .weights import read_header, read_json, weight_files

DEMO = Path(__file__).parent / "demo"
DEFAULT_MODEL = "demo"
CODEC_REPO = "bosonai/higgs-audio-v2-tokenizer"
# The hub's names are overwritten in place: these are the revisions the readers were written for.
PINNED = {CODEC_REPO: "9d4988fbd4ad07b4cac3a5fa462741a41810dbec"}
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CODEC_FOLDERS = ("codec", "audio_tokenizer")


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


def resolve_adapter(source: str | Path) -> Path:
    """An adapter's folder, from here or the hub, or one ``.safetensors`` in such a folder."""
    path = Path(source).expanduser()
    return path if path.is_file() else resolve(source)


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


def prompt_class(config: dict) -> Any:
    """What builds the prompts (a PromptBuilder) of the talker a config describes."""
    return import_module(f".prompts.{family(config)}", __package__).PromptBuilder


def check_model(folder: Path) -> None:
    """Raises CheckpointError for a folder that is no talker's, before its codec is looked for."""
    get_model_classes(read_json(folder / "config.json"))


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
