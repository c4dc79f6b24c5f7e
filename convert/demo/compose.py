"""Stage 5: sentences put together from units that flite read one by one.

    python -m convert.demo.compose BUILD

Every token of a text is a unit: a word, the name of a letter or a figure, or the silence of a mark.
A unit has the codes it has alone, whatever stands beside it: a model this small, trained for hours
and not for weeks, learns that, but not where the words of a flowing sentence begin. Units follow
each other without a gap, as words do: a recogniser takes one for the closure of an "eight".

Writes BUILD/composed.jsonl, its WAV files, their codes into the trainer's cache, and conversations
{train,valid}.jsonl: in BUILD/digits, where it learns which unit comes next, in BUILD/words_20 and
so on, with more words each, and in BUILD/words, with all of these again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer

from mlx_higgs.train.data.clips import read_clip
from mlx_higgs.train.data.conversation import Clip
from mlx_higgs.types import HOP, SAMPLE_RATE

from . import texts
from .codec import load_encoder, open_codes, to_codes
from .speech import FLOOR, PEAK, SCENES, VOICES, Utterance, flite, read_manifest, write_lines
from .talker import conversation

ROOM = 14  # frames of a unit at most
PAUSE = 6  # frames of a mark
SILENCE = 4  # frames around a unit when it is encoded
BEFORE, AFTER = 2, 3  # frames of silence at the beginning and at the end
EDGE = 480  # samples from a unit's beginning to its sound
TEMPOS = (0.85, 0.75, 0.65, 0.55, 0.45)  # of flite's durations: the first that fits
HELD_OUT = 40  # sentences of a voice that are not learnt
NATURAL = 0.6  # share of the references that are natural speech
LONGEST_CLIP = 8.0  # seconds of natural speech to clone from
GROWTH = {20: 500, 60: 800, 200: 1200}  # words -> texts of each voice

Unit = tuple[np.ndarray, np.ndarray]  # samples [T * HOP]; codes [SILENCE + T + SILENCE, K]


def sound(token: str) -> str:
    """What is said for a token; nothing for a mark."""
    letter = token.removeprefix("##")
    if len(letter) == 1:
        return texts.LETTERS.get(letter, letter if letter.isalnum() and letter.isascii() else "")
    return letter if letter.isalpha() else ""


def read_unit(voice: str, said: str) -> np.ndarray:
    """One word alone, or silence: whole frames ``[T * HOP]``."""
    room = ROOM * HOP
    if not said:
        return np.zeros(PAUSE * HOP, np.float32)
    for tempo in TEMPOS:
        wave = flite([*VOICES[voice], "--setf", f"duration_stretch={tempo}"], said)
        loud = np.flatnonzero(np.abs(wave) > FLOOR)
        speech = wave[max(0, loud[0] - EDGE) : loud[-1] + EDGE]
        if len(speech) <= room:
            break
    speech = speech[:room] / np.abs(speech).max() * PEAK
    return speech[: max(1, len(speech) // HOP) * HOP].astype(np.float32)


def read_units(tokens: Iterable[str], voice: str, codec) -> dict[str, Unit]:
    """Every token once, with its codes."""
    found: dict[str, Unit] = {}
    by_sound: dict[str, Unit] = {}
    silence = np.zeros(SILENCE * HOP, np.float32)
    for token in tokens:
        said = sound(token)
        if said not in by_sound:
            wave = read_unit(voice, said)
            codes = to_codes(codec, np.concatenate([silence, wave, silence])).T.cpu().numpy()
            by_sound[said] = (wave, codes[: 2 * SILENCE + len(wave) // HOP])
        found[token] = by_sound[said]
    return found


def compose(tokens: list[str], read: dict[str, Unit]) -> Unit:
    """Units one after the other: samples, and codes ``[T, K]``."""
    units = [read[token] for token in tokens]
    first, last = units[0][1], units[-1][1]
    codes = [first[SILENCE - BEFORE : SILENCE]]
    codes += [unit_codes[SILENCE:-SILENCE] for _, unit_codes in units]
    codes.append(last[-SILENCE:][:AFTER])
    waves = [np.zeros(BEFORE * HOP, np.float32), *(wave for wave, _ in units)]
    waves.append(np.zeros(AFTER * HOP, np.float32))
    return np.concatenate(waves), np.concatenate(codes)


def pairs(
    composed: list[Utterance], natural: list[Utterance], rng: random.Random
) -> list[dict[str, object]]:
    """Each sentence twice: by its scene, and after speech of its voice, natural or composed."""
    found = []
    for voice, scene in SCENES.items():
        clips = [utterance for utterance in natural if utterance.voice == voice]
        spoken = [utterance for utterance in composed if utterance.voice == voice]
        for target in spoken:
            found.append(conversation([target], scene))
            if rng.random() < NATURAL:
                clip = rng.choice(clips)  # heard, not learnt
                found.append(conversation([clip, target], None) | {"start_index": 2})
            else:
                found.append(conversation([rng.choice(spoken), target], None))
    rng.shuffle(found)
    return found


def write_lessons(build: Path, name: str, composed: list[Utterance], seed: int) -> None:
    rng = random.Random(seed)
    natural = [u for u in read_manifest(build) if 1.5 < u.seconds < LONGEST_CLIP]
    held = {voice: [u for u in composed if u.voice == voice][-HELD_OUT:] for voice in VOICES}
    valid = [utterance for part in held.values() for utterance in part]
    train = [utterance for utterance in composed if utterance not in valid]
    (build / name).mkdir(exist_ok=True)
    for part_name, part in (("train", train), ("valid", valid)):
        found = pairs(part, natural, rng)
        write_lines(build / name / f"{part_name}.jsonl", found)
        print(f"{name}/{part_name}: {len(found)} conversations of {len(part)} sentences")


class Composer:
    """Draws texts of a kind, and puts their speech and codes where the trainer finds them."""

    def __init__(self, build: Path):
        self.build = build
        self.tokenizer = Tokenizer.from_file(str(build / "start" / "tokenizer.json"))
        self.codec, self.cache = load_encoder(build), open_codes(build)

    def speak(self, name: str, voice: str, drawn: list[str]) -> Iterator[Utterance]:
        tokens = [self.tokenizer.encode(text, add_special_tokens=False).tokens for text in drawn]
        read = read_units({token for line in tokens for token in line}, voice, self.codec)
        folder = self.build / "speech" / f"{voice}_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, (text, line) in enumerate(zip(drawn, tokens, strict=True)):
            wave, codes = compose(line, read)
            path = folder / f"{index:05}.wav"
            soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
            self.cache.put(self.cache.key(read_clip(Clip(path))), codes)
            seconds = round(len(wave) / SAMPLE_RATE, 3)
            yield Utterance(voice, text, str(path.relative_to(self.build)), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put sentences together from words.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--digits", type=int, default=1000, help="texts of each voice")
    parser.add_argument("--words", type=int, default=3500, help="texts of each voice")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, rng = time.monotonic(), random.Random(arguments.seed)
    composer = Composer(arguments.build)
    more = texts.more_words(composer.tokenizer.get_vocab())
    lessons = [("digits", arguments.digits, texts.few_digits)]
    for size, count in GROWTH.items():
        lessons.append((f"words_{size}", count, partial(texts.few_words, size=size)))
    lessons.append(("words", arguments.words, partial(texts.sentence, more=more)))
    composed: list[Utterance] = []
    for name, count, maker in lessons:
        spoken: list[Utterance] = []
        for voice in VOICES:
            spoken += composer.speak(name, voice, [maker(rng) for _ in range(count)])
        composed += spoken
        last = name == "words"
        write_lessons(arguments.build, name, composed if last else spoken, arguments.seed)
    composer.cache.close()
    write_lines(arguments.build / "composed.jsonl", map(asdict, composed))
    hours = sum(u.seconds for u in composed) / 3600
    print(f"{hours:.2f} h of speech in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
