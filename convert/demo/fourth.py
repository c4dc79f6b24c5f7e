"""Stage 10: a voice the demo has never heard, by LoRA in minutes: flite's kal16.

    python -m convert.demo.fourth BUILD [MODEL]

The commands are those of docs/training.md. Prints how long it took, how often the result is nearest
to its own voice among the four, and its word errors beside those of the demo's own voice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import soundfile
from tokenizers import Tokenizer

from mlx_higgs.types import SAMPLE_RATE

from . import texts
from .codec import load_encoder
from .compose import compose, read_units
from .score import SEED, brief, evaluate, record, unseen
from .speech import SCENES, VOICES

NAME, SCENE = "kal16", "SPEAKER0: masculine, machine"
READINGS, TRIALS = 240, 60


def command(*words: str) -> None:
    print("$ python -m", *words, flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True)


def make_readings(folder: Path, build: Path) -> None:
    """Sentences put together from words, as the demo's own voices are (compose.py)."""
    tokenizer = Tokenizer.from_file(str(build / "start" / "tokenizer.json"))
    rng, codec = random.Random(SEED), load_encoder(build)
    drawn = [texts.free_order(rng, 4, 9) for _ in range(READINGS)]
    lines = [tokenizer.encode(text, add_special_tokens=False).tokens for text in drawn]
    read = read_units({token for line in lines for token in line}, NAME, codec)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (text, line) in enumerate(zip(drawn, lines, strict=True)):
        wave, _ = compose(line, read)
        path = folder / f"{index:03}.wav"
        soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
        path.with_suffix(".txt").write_text(text + "\n")


def teach(folder: Path, model: str) -> float:
    """Seconds from recordings to an adapter, the clips' encoding included."""
    started = time.monotonic()
    data, adapter = str(folder / "data"), str(folder / "adapter")
    prepare = (
        "convert",
        str(folder / "readings"),
        data,
        "--split",
        "valid=0.05",
        "--normalize",
        "--force",
    )
    command("mlx_higgs.train", "data", *prepare, "--scene", SCENE)
    run = ("--model", model, "--data", data, "--adapter-path", adapter, "--force")
    command("mlx_higgs.train", "-c", str(Path(__file__).with_name("fourth.yaml")), *run)
    return time.monotonic() - started


def score(folder: Path, model: str, lines: list[str]) -> None:
    source, words = folder / "texts.txt", folder / "words.txt"
    source.write_text("\n".join(lines) + "\n")
    words.write_text("\n".join(texts.WORDS) + "\n")
    ears = ("--model", model, "--vocabulary", str(words), "--grammar", "words")
    said = ("--texts", str(source))
    spoken, references = folder / "spoken", folder / "references"
    adapted = ("--adapter", str(folder / "adapter"), "--scene", SCENE)
    ours = evaluate(folder / "adapted.json", *ears, *said, *adapted, "--save-wavs", str(spoken))
    before = evaluate(folder / "before.json", *ears, *said, "--scene", SCENES["man"])
    for path in sorted(spoken.iterdir()):
        path.rename(path.with_name(path.name.replace("speech", NAME)))
    for voice in VOICES:
        for number, line in enumerate(lines[:3], 1):
            record(references, f"{voice}_{number}", voice, line)
    compared = ("--recordings", str(spoken), "--references", str(references))
    nearest = evaluate(folder / "nearest.json", *ears, *compared)
    print("adapted", brief(ours), "before", brief(before))
    print("nearest", json.dumps(nearest["cloning"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the demo a fourth voice.")
    parser.add_argument("build", type=Path)
    parser.add_argument("model", nargs="?", default="demo")
    arguments = parser.parse_args()
    folder = arguments.build / "fourth"
    VOICES[NAME] = ["-voice", NAME]
    make_readings(folder / "readings", arguments.build)
    seconds = teach(folder, arguments.model)
    print(f"{READINGS} readings to an adapter in {seconds:.0f} s on {os.cpu_count()} cores")
    floor = unseen(arguments.build, lambda rng: texts.free_order(rng, 4, 8), TRIALS)
    score(folder, arguments.model, floor)


if __name__ == "__main__":
    main()
