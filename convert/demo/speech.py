"""Stage 1: flite reads the texts with the demo's three voices; 24 kHz WAV files and a manifest.

    python -m convert.demo.speech BUILD [--sentences 6000] [--phrases 1300]

Needs Debian's flite 2.2. A line of BUILD/speech.jsonl is {"voice", "text", "path", "seconds"}.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mlx_higgs.resample import resample
from mlx_higgs.types import SAMPLE_RATE

from . import texts

Job = tuple[int, str, str]  # its number, voice and text

# As in convert/make_voices.sh: the three voice prompts.
VOICES: dict[str, list[str]] = {
    "woman": ["-voice", "slt"],
    "man": ["-voice", "rms"],
    "deep": [
        *("-voice", "awb"),
        *("--setf", "int_f0_target_mean=90"),
        *("--setf", "duration_stretch=1.05"),
    ],
}
GUEST = ("kal16", ["-voice", "kal16"])  # the decoder learns to sound like it, the talker never does
GUESTS, GUEST_READINGS = "guests.jsonl", 200
SCENES = {
    "woman": "SPEAKER0: feminine",
    "man": "SPEAKER0: masculine",
    "deep": "SPEAKER0: masculine, deep",
}
FLOOR = 0.01  # of full scale: softer is silence
PEAK = 0.7


@dataclass(frozen=True)
class Utterance:
    voice: str
    text: str
    path: str  # relative to the manifest
    seconds: float


def flite(options: Sequence[str], text: str) -> np.ndarray:
    """What flite says: float32 ``[N]`` at 24 kHz, with the silence it makes around speech."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", *options, "-t", text, "-o", file.name], check=True)
        wave, rate = soundfile.read(file.name, dtype="float32")
    return resample(wave, rate, SAMPLE_RATE)


def framed(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    """Speech at one loudness between short silences of varying length."""
    loud = np.flatnonzero(np.abs(wave) > FLOOR)
    if not len(loud):
        raise ValueError("flite said nothing")
    speech = wave[max(0, loud[0] - 480) : loud[-1] + 960]
    before, after = rng.uniform(0.02, 0.1), rng.uniform(0.08, 0.16)
    silences = [np.zeros(int(seconds * SAMPLE_RATE), np.float32) for seconds in (before, after)]
    return np.concatenate([silences[0], speech / np.abs(speech).max() * PEAK, silences[1]])


def sentences(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Texts in order, each for two of the voices."""
    rng = random.Random(seed)
    kinds = texts.makers()
    for _ in range(count):
        text = texts.draw(rng, kinds)
        for voice in rng.sample(list(VOICES), 2):
            yield voice, text


def phrases(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Every word of the vocabulary, and phrases, each for all three voices."""
    rng = random.Random(seed)
    for text in [*texts.WORDS, *(texts.phrase(rng) for _ in range(count))]:
        for voice in VOICES:
            yield voice, text


def plan(sentence_count: int, phrase_count: int, seed: int, done: int) -> Iterator[Job]:
    """What is left to read: sentences first, then phrases."""
    first = 2 * sentence_count
    if done < first:
        rest = itertools.islice(sentences(sentence_count, seed), done, None)
        yield from ((done + i, *job) for i, job in enumerate(rest))
    start = max(done, first)
    rest = itertools.islice(phrases(phrase_count, seed), start - first, None)
    yield from ((start + i, *job) for i, job in enumerate(rest))


def record(
    build: Path, index: int, voice: str, text: str, options: Sequence[str] = ()
) -> Utterance:
    path = build / "speech" / voice / f"{index:06}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = framed(flite(options or VOICES[voice], text), random.Random(index))
    soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
    seconds = round(len(wave) / SAMPLE_RATE, 3)
    return Utterance(voice, text, str(path.relative_to(build)), seconds)


def record_guest(build: Path) -> None:
    name, options = GUEST
    if len(read_manifest(build, GUESTS)) == GUEST_READINGS:
        return
    rng = random.Random(name)
    made = [
        record(build, index, name, texts.free_order(rng), options)
        for index in range(GUEST_READINGS)
    ]
    write_lines(build / GUESTS, map(asdict, made))


def write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """A JSON object a line."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def read_manifest(build: Path, name: str = "speech.jsonl") -> list[Utterance]:
    path = build / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [Utterance(**json.loads(line)) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description="Let flite read the texts.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--sentences", type=int, default=6000)
    parser.add_argument("--phrases", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.build.mkdir(parents=True, exist_ok=True)
    started, done = time.monotonic(), len(read_manifest(arguments.build))
    with (
        (arguments.build / "speech.jsonl").open("a", buffering=1) as manifest,
        ThreadPoolExecutor(2) as pool,
    ):
        jobs = plan(arguments.sentences, arguments.phrases, arguments.seed, done)
        for group in batched(jobs, 32):
            for made in pool.map(lambda job: record(arguments.build, *job), group):
                manifest.write(json.dumps(asdict(made)) + "\n")
    record_guest(arguments.build)
    made = read_manifest(arguments.build)
    hours = sum(utterance.seconds for utterance in made) / 3600
    print(f"{len(made)} utterances, {hours:.2f} h, in {time.monotonic() - started:.0f} s")


def batched(items: Iterator[Job], size: int) -> Iterator[list]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    yield group


if __name__ == "__main__":
    main()
