"""The bundled checkpoint speaks: a recogniser writes down what it says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mlx_higgs.resample import resample

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
STRINGS = 40


@pytest.fixture(scope="module")
def recognise():
    pocketsphinx = pytest.importorskip(
        "pocketsphinx", reason="pocketsphinx has no wheel for this Python"
    )
    grammar = f"#JSGF V1.0; grammar digits; public <said> = ({' | '.join(DIGITS)})+ ;"
    config = pocketsphinx.Config(loglevel="FATAL", cmn="batch", dither=True)
    decoder = pocketsphinx.Decoder(config)
    decoder.add_jsgf_string("digits", grammar)
    decoder.activate_search("digits")

    def hear(wave: np.ndarray) -> str:
        padded = np.pad(resample(wave, 24_000, 16_000), 4800)  # 0.3 s
        noise = np.random.default_rng(0).normal(0, 2, len(padded))
        loud = padded / np.abs(padded).max() * 0.6 * 32767 + noise
        decoder.start_utt()
        decoder.process_raw(loud.astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() else ""

    return hear


def test_a_recogniser_understands_the_demo(server, recognise, seed: int):
    """40 random strings of 3 to 6 digits: a word error rate of at most 6 % (README: measured)."""
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(seed)
    said = [" ".join(rng.choices(DIGITS, k=rng.randint(3, 6))) for _ in range(STRINGS)]
    speeches = [
        server.generate(text, scene="SPEAKER0: masculine", seed=seed % 10_000 + index)
        for index, text in enumerate(said)
    ]
    heard = [recognise(speech.pcm) for speech in speeches]
    error = jiwer.wer(said, [text or "-" for text in heard])
    print(f"word error rate {error:.1%}")
    assert {speech.stop_reason for speech in speeches} == {"eos"}
    assert error <= 0.06
    shuffled = jiwer.wer(said[1:] + said[:1], [text or "-" for text in heard])
    assert shuffled > 0.6  # the recogniser hears words, not a grammar
