"""The bundled checkpoint speaks: a recogniser writes down what it says, and hears who says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_higgs.audio import read_reference
from mlx_higgs.evaluate.controls import deranged
from mlx_higgs.evaluate.recogniser import PocketSphinx
from mlx_higgs.evaluate.similarity import embed, nearest
from mlx_higgs.evaluate.words import DIGITS, word_errors
from mlx_higgs.server import HiggsAudioServer, SpeechRequest
from mlx_higgs.types import Speech
from mlx_higgs.vocabulary import draw_texts

VOICES = Path(__file__).parent.parent / "examples" / "voice_prompts"
SCENES = ("SPEAKER0: feminine", "SPEAKER0: masculine", "SPEAKER0: masculine, deep")


def say(server: HiggsAudioServer, requests: list[SpeechRequest]) -> list[Speech]:
    said = dict(server.generate_batch(requests, max_batch=8))
    speeches = [said[number] for number in range(len(requests))]
    return [speech for speech in speeches if isinstance(speech, Speech)]


def misheard(server: HiggsAudioServer, words: list[str], count: int, seed: int) -> list[float]:
    """Word error rate against what was asked for, and against somebody else's text."""
    pytest.importorskip("pocketsphinx", reason="pocketsphinx has no wheel for this Python")
    pytest.importorskip("jiwer")
    ears = PocketSphinx("digits") if words is DIGITS else PocketSphinx("words", words)
    said = draw_texts(words, count, seed)
    requests = [
        SpeechRequest(text, scene=SCENES[index % 3], seed=seed % 10_000 + index)
        for index, text in enumerate(said)
    ]
    speeches = say(server, requests)
    assert {speech.stop_reason for speech in speeches} == {"eos"}
    heard = [ears.transcribe(speech.pcm, speech.sampling_rate) for speech in speeches]
    others = deranged(said, seed)
    assert others is not None
    rates = [word_errors(texts, heard).rate for texts in (said, others)]
    print("word error rates {:.1%} and {:.1%}".format(*rates))
    return rates


def test_a_recogniser_understands_the_demos_digits(server, seed: int):
    """36 random strings of 3 to 6 digits in three voices (convert/demo/README.md: measured)."""
    rate, control = misheard(server, DIGITS, 36, seed)
    assert rate <= 0.15
    assert control > 0.6  # it hears words, not a grammar


def test_it_hears_other_words_too(server, seed: int):
    """Words of the demo in any order, where guessing gets one in hundreds."""
    rate, control = misheard(server, list(server.higgs.defaults.words), 18, seed)
    assert rate <= 0.75
    assert control > 0.85


def test_the_demo_clones_each_of_its_voices(server, seed: int):
    """From a clip, without a scene that names the voice: nearest to its own among the three."""
    clips = {path.stem: path for path in sorted(VOICES.glob("*.wav"))}
    known = {name: embed(read_reference(path), 24_000) for name, path in clips.items()}
    asked = [(name, text) for name in clips for text in ("three one four one five", "seven nine")]
    requests = [
        SpeechRequest(text, voice=name, scene="", seed=seed % 10_000 + index)
        for index, (name, text) in enumerate(asked)
    ]
    speeches = say(server, requests)
    found = [nearest(embed(speech.pcm, speech.sampling_rate), known) for speech in speeches]
    right = [name == voice for (name, _), voice in zip(asked, found, strict=True)]
    assert sum(right) >= len(asked) - 1
