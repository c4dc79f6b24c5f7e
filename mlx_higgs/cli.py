"""What all commands share: spelling of options, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import ranks
from .types import HiggsError, InputError


class Parser(argparse.ArgumentParser):
    """Bad usage is one line, like every other error.

    Attributes:
        spreads: the command can be started as several processes that work together.
    """

    spreads = False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


Command = Callable[[argparse.Namespace], None]


def run(
    parser: argparse.ArgumentParser, command: Command, argv: Sequence[str] | None = None
) -> int:
    """Parse and run; 0, or 2 for bad input, 1 for a failure, 130 when interrupted."""
    ranks.hush()
    arguments = parser.parse_args(dashed(sys.argv[1:] if argv is None else argv))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that half files go
    try:
        _join(parser)
        command(arguments)
    except HiggsError as error:
        return _fail(parser.prog, str(error), error.exit_code)
    except OSError as error:
        ranks.speak_up()
        return _fail(parser.prog, str(error), 1)
    except RuntimeError as error:
        if not ranks.was_lost(error):
            raise
        return _fail(parser.prog, f"Another rank was lost ({error}): see what it said.", 1)
    except KeyboardInterrupt:
        return _fail(parser.prog, "interrupted", 130)
    return 0


def _join(parser: argparse.ArgumentParser) -> None:
    """Meet the processes started with this one, before anything can go wrong in one of them."""
    if ranks.launched_rank() is None:
        return
    if not getattr(parser, "spreads", False):
        raise InputError(f"{parser.prog} works in one process: start it without mlx.launch.")
    ranks.processes()


def add_model_options(group: Any, model: str | None) -> None:
    """What `server.opening.load_server` reads.

    Args:
        model: the default; None: the demo, or one chosen later.
    """
    group.add_argument(
        "--model", default=model, help="folder or hub name (default: the bundled demo)"
    )
    group.add_argument("--adapter", help="folder or hub name: what was trained on top of the model")
    group.add_argument("--codec", help="folder or hub name, when not beside the model")
    group.add_argument("--tokenizer", help="folder or hub name, when not beside the model")
    group.add_argument("--revision", help="commit or branch of a hub model")
    group.add_argument(
        "--quantize",
        nargs="?",
        const="8",
        metavar="BITS",
        help="quantise while loading: 8, or 8/4 for speech and for the prompt's text, a recipe of "
        "mlx_higgs.convert --list-recipes, or auto: the most that fits (default: auto where the "
        "original does not fit; without BITS: 8)",
    )
    group.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="what it may take, as 8GB or 7.5GiB (default: what the machine has)",
    )
    group.add_argument(
        "--no-voice-cache",
        action="store_true",
        help="keep no voices on disk, where the next run finds them (large models do)",
    )


def dashed(argv: Sequence[str]) -> list[str]:
    """``--ref_audio`` -> ``--ref-audio``: both spellings are common in this field."""
    out = list(argv)
    for index, word in enumerate(out):
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            out[index] = name.replace("_", "-") + equals + value
    return out


def note(message: str) -> None:
    """A line for the person, not for the pipe."""
    print(message, file=sys.stderr, flush=True)


def _fail(prog: str, message: str, code: int) -> int:
    if message:
        note(f"{prog}: error: {' '.join(message.split())}")
    return code
