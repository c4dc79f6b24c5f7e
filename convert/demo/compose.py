"""Stage 5: sentences put together from words that flite read one by one.

    python -m convert.demo.compose BUILD

A word's codes are those it has alone, so a word always sounds the same in a voice and every
sentence of known words can be said: a model this small, trained for hours and not for weeks, learns
that and not the way words run into each other. Writes BUILD/composed.jsonl, its WAV files, their
codes into the trainer's cache, and the conversations BUILD/words/{train,valid}.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer

from convert.reference import codec_class
from mlx_higgs.train.data.clips import read_clip
from mlx_higgs.train.data.codes import CodesCache, codec_fingerprint
from mlx_higgs.train.data.conversation import Clip
from mlx_higgs.types import HOP, SAMPLE_RATE

from . import texts
from .codec import DEVICE, to_codes, unneeded
from .speech import FLOOR, PEAK, SCENES, VOICES, Utterance, flite, read_manifest
from .talker import conversation

SILENCE = 4  # frames around a word when it is encoded
BEFORE, AFTER, PAUSE = 2, 3, 4  # frames of silence: at the beginning, at the end, at a comma
EDGE = 480  # samples from a frame's edge to a word
TEMPO = {"woman": 0.85, "man": 0.85, "deep": 0.9}
HELD_OUT = 40  # sentences of a voice that are not learnt
NATURAL = 0.6  # share of the references that are natural speech
LONGEST_CLIP = 8.0  # seconds of natural speech to clone from

Word = tuple[np.ndarray, np.ndarray]  # samples [T * HOP]; codes [SILENCE + T + SILENCE, K]


def read_word(voice: str, word: str) -> np.ndarray:
    """One word alone, from a frame's edge to a frame's edge."""
    options = [*VOICES[voice], "--setf", f"duration_stretch={TEMPO[voice]}"]
    wave = flite(options, texts.SAID.get(word, word))
    loud = np.flatnonzero(np.abs(wave) > FLOOR)
    speech = wave[max(0, loud[0] - EDGE) : loud[-1] + EDGE]
    speech = speech / np.abs(speech).max() * PEAK
    return np.pad(speech, (0, -len(speech) % HOP)).astype(np.float32)


def read_words(words: list[str], voice: str, codec) -> dict[str, Word]:
    """Every word once, with its codes."""
    found, silence = {}, np.zeros(SILENCE * HOP, np.float32)
    for word in words:
        wave = read_word(voice, word)
        codes = to_codes(codec, np.concatenate([silence, wave, silence])).T.cpu().numpy()
        found[word] = (wave, codes[: 2 * SILENCE + len(wave) // HOP])
    return found


def compose(said: list[str], read: dict[str, Word]) -> Word:
    """Words, with ``,`` for a pause, one after the other: samples, and codes ``[T, K]``."""
    _, last = read[said[0]]
    codes, waves = [last[SILENCE - BEFORE : SILENCE]], [np.zeros(BEFORE * HOP, np.float32)]
    for word in said:
        if word == ",":
            codes.append(last[-PAUSE:])
            waves.append(np.zeros(PAUSE * HOP, np.float32))
            continue
        wave, last = read[word]
        codes.append(last[SILENCE:-SILENCE])
        waves.append(wave)
    codes.append(last[len(last) - SILENCE : len(last) - SILENCE + AFTER])
    waves.append(np.zeros(AFTER * HOP, np.float32))
    return np.concatenate(waves), np.concatenate(codes)


def lessons(
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


def write_lessons(build: Path, composed: list[Utterance], seed: int) -> None:
    rng = random.Random(seed)
    natural = [u for u in read_manifest(build) if 1.5 < u.seconds < LONGEST_CLIP]
    held = {voice: [u for u in composed if u.voice == voice][-HELD_OUT:] for voice in VOICES}
    valid = [utterance for part in held.values() for utterance in part]
    train = [utterance for utterance in composed if utterance not in valid]
    (build / "words").mkdir(exist_ok=True)
    for name, part in (("train", train), ("valid", valid)):
        found = lessons(part, natural, rng)
        lines = "".join(json.dumps(line) + "\n" for line in found)
        (build / "words" / f"{name}.jsonl").write_text(lines)
        print(f"{name}: {len(found)} conversations of {len(part)} sentences")


def main() -> None:
    parser = argparse.ArgumentParser(description="Put sentences together from words.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--sentences", type=int, default=3500, help="of each voice")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build, started, rng = arguments.build, time.monotonic(), random.Random(arguments.seed)
    vocabulary = Tokenizer.from_file(str(build / "start" / "tokenizer.json")).get_vocab()
    more = texts.more_words(vocabulary)
    source = build / "start" / "codec"
    codec = codec_class().from_pretrained(source).to(DEVICE).eval()
    cache = CodesCache(build / "codes", unneeded, codec_fingerprint(source))
    composed = []
    for voice in VOICES:
        read = read_words([*texts.WORDS, *more], voice, codec)
        folder = build / "speech" / f"{voice}_composed"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(arguments.sentences):
            text, said = texts.sentence(rng, more)
            wave, codes = compose(said, read)
            path = folder / f"{index:05}.wav"
            soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
            cache.put(cache.key(read_clip(Clip(path))), codes)
            seconds = round(len(wave) / SAMPLE_RATE, 3)
            composed.append(Utterance(voice, text, str(path.relative_to(build)), seconds))
    cache.close()
    lines = "".join(json.dumps(asdict(utterance)) + "\n" for utterance in composed)
    (build / "composed.jsonl").write_text(lines)
    write_lessons(build, composed, arguments.seed)
    hours = sum(u.seconds for u in composed) / 3600
    print(
        f"{len(texts.WORDS)} and {len(more)} words, {hours:.2f} h of speech, in "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
