"""Stage 9: what the demo can, by `mlx_higgs.evaluate speech`, beside flite's own speech.

    python -m convert.demo.score BUILD [MODEL] [--only floor digits english cloning]

The texts are in no training conversation. Results: BUILD/score/*.json, and a line each here.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import soundfile

from mlx_higgs.types import SAMPLE_RATE

from . import texts
from .speech import SCENES, VOICES, flite, framed, read_manifest

SEED = 20_000  # no training text is drawn from it
COUNT = 34  # texts for each of the three voices
CLONED = 20
GRAMMARS = {"floor": "words", "digits": "digits", "english": "full"}


def unseen(build: Path, maker: Callable[[random.Random], str], count: int) -> list[str]:
    """``count`` texts that were never read in training."""
    known = {utterance.text.rstrip(".").replace(",", "") for utterance in read_manifest(build)}
    rng = random.Random(SEED)
    found: list[str] = []
    while len(found) < count:
        text = maker(rng).replace(",", "")
        if text not in known and text not in found:
            found.append(text)
    return found


def sets(build: Path) -> dict[str, list[str]]:
    english, count = texts.Trigrams(), COUNT * len(VOICES)
    return {
        "floor": unseen(build, lambda rng: texts.free_order(rng, 4, 8), count),
        "digits": unseen(build, texts.digits, count),
        "english": unseen(build, lambda rng: english.sentence(rng, 4, 8), count),
    }


def record(folder: Path, name: str, voice: str, text: str) -> None:
    """flite's reading, as the training speech was made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.wav"
    if not path.exists():
        wave = framed(flite(VOICES[voice], text), random.Random(SEED))
        soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
        path.with_suffix(".txt").write_text(text + "\n")


def evaluate(result: Path, *options: str) -> dict:
    command = [sys.executable, "-m", "mlx_higgs.evaluate", "speech", "--json", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result.write_text(done.stdout)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo.")
    parser.add_argument("build", type=Path)
    parser.add_argument("model", nargs="?", default="mlx_higgs/demo")
    parser.add_argument("--only", nargs="+", default=["floor", "digits", "english", "cloning"])
    arguments = parser.parse_args()
    folder: Path = arguments.build / "score"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(texts.WORDS) + "\n")
    chosen = sets(arguments.build)
    for name in GRAMMARS.keys() & set(arguments.only):
        for number, voice in enumerate(VOICES):
            compare(folder, arguments.model, name, voice, chosen[name][number :: len(VOICES)])
    if "cloning" in arguments.only:
        print("cloning", brief(cloning(folder, arguments.model, chosen["floor"])))


def compare(folder: Path, model: str, name: str, voice: str, lines: list[str]) -> None:
    """The demo and flite read the same lines to the same recogniser."""
    source, originals = folder / f"{name}-{voice}.txt", folder / "flite" / f"{name}-{voice}"
    source.write_text("\n".join(lines) + "\n")
    for index, line in enumerate(lines):
        record(originals, f"{index:03}", voice, line)
    ears = ["--grammar", GRAMMARS[name]]
    if name == "floor":
        ears += ["--vocabulary", str(folder / "words.txt")]
    spoken = ("--model", model, "--texts", str(source), "--scene", SCENES[voice])
    ours = evaluate(source.with_suffix(".json"), *spoken, *ears)
    played = ("--model", model, "--recordings", str(originals))
    theirs = evaluate(folder / f"{name}-{voice}-flite.json", *played, *ears)
    print(name, voice, "demo", brief(ours), "flite", brief(theirs), flush=True)


def cloning(folder: Path, model: str, lines: list[str]) -> dict:
    """The three voices from clips that no training conversation holds."""
    source, references = folder / "cloned.txt", folder / "references"
    source.write_text("\n".join(lines[:CLONED]) + "\n")
    for voice in VOICES:
        for number, text in enumerate(lines[-3:], 1):
            record(references, f"{voice}_{number}", voice, text)
    return evaluate(
        folder / "cloning.json",
        *("--model", model, "--references", str(references), "--grammar", "words"),
        *("--texts", str(source), "--vocabulary", str(folder / "words.txt")),
    )


def brief(report: dict) -> dict:
    return {key: value for key, value in report.items() if isinstance(value, (int, float, str))}


if __name__ == "__main__":
    main()
