"""``generate --stream``: a speech is written, and played, while it is being made."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from . import audio
from .cli import note
from .playback import Player
from .progress import FrameBar
from .types import InputError, Speech

if TYPE_CHECKING:
    from .longform import LongJob
    from .server import SpeechJob


def check_options(arguments: argparse.Namespace) -> None:
    """Raises InputError for what streaming cannot do, and for what only streaming can."""
    if arguments.latency != "exact" and not arguments.stream:
        raise InputError(f"--latency {arguments.latency} is for --stream.")
    if arguments.stream and (arguments.fade_in_ms or arguments.fade_out_ms):
        raise InputError("Fades need the whole result: leave them out, or leave out --stream.")


def stream(
    arguments: argparse.Namespace,
    job: SpeechJob | LongJob,
    sample_rate: int,
    tell: Callable[[Speech], None],
) -> None:
    """Write and play a job's chunks as they come; ``tell`` of it before the playing ends.

    A file appears whole or not at all. A reader that leaves stops the work.
    """
    with ExitStack() as stack:
        player = stack.enter_context(Player(sample_rate)) if arguments.play else None
        heard: list[np.ndarray] = []
        with FrameBar(job.request.target_text, job.num_edge_rows) as progress:
            job.on_row(progress.show)
            waves = _taken(job, heard, player)
            if arguments.output != "-":
                audio.write_blocks(arguments.output, waves, sample_rate)
            elif not write_pipe(waves, sample_rate):
                job.close()
        if job.stop_reason is not None:
            return tell(job.speech(np.concatenate(heard)))
        seconds = sum(map(len, heard)) / sample_rate
        note(f"The reader left after {seconds:.2f} s of speech, seed {job.seed}.")


def _taken(
    job: SpeechJob | LongJob, heard: list[np.ndarray], player: Player | None
) -> Iterator[np.ndarray]:
    for chunk in job:
        heard.append(chunk.pcm)
        if player is not None:
            player.push(chunk.pcm)
        yield chunk.pcm


def write_pipe(waves: Iterable[np.ndarray], sample_rate: int) -> bool:
    """A WAV whose length nobody knows yet, on standard output; False if its reader left."""
    from .server.encoders import encoder

    wav, out = encoder("wav", sample_rate), sys.stdout.buffer
    try:
        for wave in waves:
            out.write(wav.push(wave))
            out.flush()
        out.write(wav.finish())
        out.flush()
    except BrokenPipeError:
        # the interpreter flushes what is left when it ends: into nothing, not into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(f"Standard output could not be written: {error.strerror}.") from error
    return True
