"""Hear speech while it is being made, or see when each piece of it comes.

    python examples/stream_demo.py --text "the train is late again today" --play
    python examples/stream_demo.py --latency low --output streamed.mp3

``--play`` needs ``pip install 'mlx_higgs[play]'``; without it the file alone is written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mlx_higgs import HiggsAudioServer
from mlx_higgs.audio import check_output, write_blocks
from mlx_higgs.playback import Player
from mlx_higgs.types import HiggsError, SpeechChunk


def main() -> None:
    parser = argparse.ArgumentParser(description="Hear speech while it is being made.")
    parser.add_argument("--model", default="demo", help="folder or hub name")
    parser.add_argument("--text", default="the train is late again today")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--latency", choices=("exact", "low"), default="exact")
    parser.add_argument("--play", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("streamed.wav"))
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    try:
        stream(arguments)
    except HiggsError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def stream(arguments: argparse.Namespace) -> None:
    output = check_output(arguments.output, force=arguments.force)
    server = HiggsAudioServer.from_pretrained(arguments.model)
    with ExitStack() as stack:
        rate = server.sampling_rate
        player = stack.enter_context(Player(rate)) if arguments.play else None
        chunks = server.generate_stream(
            arguments.text, latency=arguments.latency, seed=arguments.seed
        )
        write_blocks(output, watched(chunks, player), rate)
        print(output)


def watched(chunks: Iterator[SpeechChunk], player: Player | None) -> Iterator[np.ndarray]:
    """The samples of each chunk, said and played as they come."""
    started, seconds = time.perf_counter(), 0.0
    for chunk in chunks:
        if player is not None:
            player.push(chunk.pcm)
        seconds += len(chunk.pcm) / chunk.sampling_rate
        spent = time.perf_counter() - started
        print(f"after {spent:.2f} s: {seconds:.2f} s of speech, {chunk.frames} frames generated")
        yield chunk.pcm


if __name__ == "__main__":
    main()
