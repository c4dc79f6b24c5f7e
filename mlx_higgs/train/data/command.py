"""``mlx_higgs.train data``: what is wrong with training data, and from one form to another."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cli import note
from ...types import InputError
from .formats import FORMS, SPLITS

if TYPE_CHECKING:
    from .check import Report
    from .conversation import Conversation

DRAW = "draw"


def add_data_parser(subparsers: Any) -> None:
    """Add ``data`` with its ``check`` and ``convert`` to the trainer's commands."""
    data = subparsers.add_parser("data", help="check and convert training data")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="check|convert")
    _add_check(commands.add_parser("check", help="say what is wrong with it, line by line"))
    _add_convert(commands.add_parser("convert", help="write it in another form"))


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a file or folder in any accepted form")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--quick", action="store_true", help="read the headers of clips alone")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a file or folder in any accepted form")
    parser.add_argument("target", type=Path, help="file (JSON lines) or folder to write")
    parser.add_argument("--to", choices=FORMS, default="chatml", help="the form to write")
    parser.add_argument(
        "--split", default="", metavar="PART=SHARE", help="such as valid=0.05,test=0.05"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides about everything drawn")
    parser.add_argument(
        "--reference",
        metavar=f"CLIP|{DRAW}",
        help=f"put a reference before single readings; {DRAW}: another clip of the same speaker",
    )
    parser.add_argument(
        "--reference-share", type=float, default=1.0, help="share of them that gets one"
    )
    parser.add_argument("--scene", help="where it is spoken, for entries that do not say")
    parser.add_argument("--speaker", help="who speaks, for entries that do not say")
    parser.add_argument(
        "--normalize", action="store_true", help="write texts of users as generation does"
    )
    parser.add_argument("--force", action="store_true", help="replace the target")


def run_data(arguments: argparse.Namespace) -> None:
    """Run what ``add_data_parser`` parsed.

    Raises:
        InputError: data that cannot be used.
    """
    run = run_check if arguments.data_command == "check" else run_convert
    run(arguments)


def run_check(arguments: argparse.Namespace) -> None:
    """Print every problem and a summary.

    Raises:
        InputError: one of the problems is an error.
    """
    from .check import check

    report = check(arguments.path, audio=not arguments.quick, progress=_progress)
    if arguments.json:
        print(json.dumps(_as_dict(report), ensure_ascii=False, indent=2))
    else:
        print(*report.problems, *summary(report), sep="\n")
    if not report.entries:
        raise InputError(f"{arguments.path} holds no entries.")
    if errors := report.count("error"):
        bad = report.entries - report.usable
        raise InputError(f"{errors} errors: {bad} of {report.entries} entries cannot be used.")


def _progress(lines: Iterable) -> Iterable:
    from tqdm import tqdm

    return tqdm(lines, desc="checking", unit=" entries", disable=None, leave=False)


def _as_dict(report: Report) -> dict:
    counts = {"errors": report.count("error"), "warnings": report.count("warning")}
    return counts | asdict(report)


def summary(report: Report) -> list[str]:
    """What there is, for a person."""
    speakers = ", ".join(f"{name} ({n})" for name, n in report.speakers.most_common(8))
    more = len(report.speakers) - 8
    lines = [
        f"{report.entries} entries, {report.usable} usable: {report.count('error')} errors, "
        f"{report.count('warning')} warnings",
        f"{report.trained_clips} clips to train, {report.trained_seconds / 3600:.2f} h, and "
        f"{report.reference_seconds / 3600:.2f} h of references; {report.turns} turns",
        f"speakers: {speakers or 'not named'}{f', and {more} more' if more > 0 else ''}",
    ]
    if report.longest:
        lines.append(f"longest: {report.longest_seconds:.1f} s in {report.longest}")
    if report.not_normalized:
        lines.append(
            f"{report.not_normalized} texts are not as generation writes them: "
            "data convert --normalize"
        )
    return lines


def run_convert(arguments: argparse.Namespace) -> None:
    """Write the data in another form; what that form could not hold is said on standard error.

    Raises:
        InputError: data that cannot be read, or that the form cannot hold at all.
    """
    from .formats import read_lines
    from .writing import convert

    conversations = []
    for line, conversation in read_lines(arguments.source):
        if line.problems:
            raise InputError(f"{line.source}: {line.problems[0]}. Try data check.")
        for warning in line.warnings:
            note(f"warning: {line.source}: {warning}")
        conversations.append(conversation)
    lost = convert(
        _changed(conversations, arguments),
        arguments.source,
        arguments.target,
        arguments.to,
        shares=shares(arguments.split),
        seed=arguments.seed,
        force=arguments.force,
    )
    for line in lost:
        note(f"warning: {line}")
    note(f"{len(conversations)} conversations -> {arguments.target}")


def _changed(
    conversations: list[Conversation], arguments: argparse.Namespace
) -> list[Conversation]:
    from .folders import rebuilt
    from .references import with_clip, with_drawn

    if arguments.scene:
        conversations = [
            each if each.scene else rebuilt(each, scene=arguments.scene) for each in conversations
        ]
    if arguments.speaker:
        conversations = [
            each if each.speaker else replace(each, speaker=arguments.speaker)
            for each in conversations
        ]
    if arguments.normalize:
        conversations = [normalized(each) for each in conversations]
    share, seed = arguments.reference_share, arguments.seed
    if not 0 <= share <= 1:
        raise InputError(f"--reference-share is {share}: it is a share from 0 to 1.")
    if arguments.reference == DRAW:
        return list(with_drawn(conversations, share, seed))
    if arguments.reference:
        return list(with_clip(conversations, Path(arguments.reference), share, seed))
    return conversations


def normalized(conversation: Conversation) -> Conversation:
    """The users' texts as generation writes them; a turn of several parts stays as it is."""
    from ...text import is_blank, normalize

    messages = [
        replace(message, parts=(normalize(message.text),))
        if message.role == "user" and len(message.parts) == 1 and not is_blank(message.text)
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=tuple(messages))


def shares(text: str) -> dict[str, float]:
    """``valid=0.05,test=0.1`` -> the share of each part.

    Raises:
        InputError: no such part, or shares that leave nothing to train.
    """
    found = {}
    for entry in filter(None, text.split(",")):
        name, _, share = entry.partition("=")
        try:
            found[name] = float(share)
        except ValueError:
            found[name] = math.nan
        if name not in SPLITS[1:] or not 0 < found[name] < 1:
            raise InputError(f"--split is {entry!r}: write valid=0.05, or valid=0.05,test=0.05.")
    if sum(found.values()) >= 1:
        raise InputError(f"--split {text} leaves nothing to train.")
    return found
