"""The bundled checkpoint speaks: a recogniser writes down what it says."""

from __future__ import annotations

import pytest

from mlx_higgs.evaluate.controls import deranged
from mlx_higgs.evaluate.recogniser import PocketSphinx
from mlx_higgs.evaluate.texts import draw_texts
from mlx_higgs.evaluate.words import DIGITS, word_errors
from mlx_higgs.server import SpeechRequest

STRINGS = 40


def test_a_recogniser_understands_the_demo(server, seed: int):
    """40 random strings of 3 to 6 digits: a word error rate of at most 6 % (README: measured)."""
    pytest.importorskip("pocketsphinx", reason="pocketsphinx has no wheel for this Python")
    pytest.importorskip("jiwer")
    ears, said = PocketSphinx("digits"), draw_texts(DIGITS, STRINGS, seed)
    asked = [
        SpeechRequest(text, scene="SPEAKER0: masculine", seed=seed % 10_000 + index)
        for index, text in enumerate(said)
    ]
    speeches = [speech for _, speech in sorted(server.generate_batch(asked, max_batch=8))]
    heard = [ears.transcribe(speech.pcm, speech.sampling_rate) for speech in speeches]
    error = word_errors(said, heard).rate
    print(f"word error rate {error:.1%}")
    assert {speech.stop_reason for speech in speeches} == {"eos"}
    assert error <= 0.06
    others = deranged(said, seed)
    assert others is not None
    assert word_errors(others, heard).rate > 0.6  # it hears words, not a grammar
