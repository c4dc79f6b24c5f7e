"""Laws of the recognisers: repeatable, held to their grammar, honest about words they lack."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs.audio import read_reference
from mlx_higgs.evaluate.recogniser import (
    PocketSphinx,
    Whisper,
    choose_grammar,
    read_pronunciations,
    unigram_arpa,
)
from mlx_higgs.evaluate.words import DIGITS, spoken_words, word_errors
from mlx_higgs.types import InputError

VOICES = Path(__file__).parent.parent / "examples" / "voice_prompts"
RATE = 24_000


@pytest.fixture(scope="module")
def said() -> dict[str, np.ndarray]:
    clips = sorted(VOICES.glob("*.wav"))
    return {clip.with_suffix(".txt").read_text().strip(): read_reference(clip) for clip in clips}


@pytest.fixture(scope="module")
def words(said: dict) -> PocketSphinx:
    pytest.importorskip("pocketsphinx", reason="pocketsphinx has no wheel for this Python")
    return PocketSphinx("words", [word for text in said for word in spoken_words(text)])


def test_a_word_loop_understands_clear_speech(said: dict, words: PocketSphinx):
    """Measured: 14 % of 66 words; chance would be 98 %."""
    pytest.importorskip("jiwer")
    heard = [words.transcribe(wave, RATE) for wave in said.values()]
    assert word_errors(list(said), heard).rate < 0.25
    assert {word for text in heard for word in text.split()} <= set(words.words)
    assert f"{len(words.words)} words" in words.name


def test_what_was_heard_before_changes_nothing(said: dict, words: PocketSphinx):
    waves = list(said.values())
    first = [words.transcribe(wave, RATE) for wave in waves]
    last = [words.transcribe(wave, RATE) for wave in reversed(waves)]
    assert first == last[::-1]


def test_nothing_said_is_nothing_heard_or_at_least_no_failure(words: PocketSphinx):
    for wave in (np.zeros(0, np.float32), np.zeros(RATE, np.float32)):
        assert isinstance(words.transcribe(wave, RATE), str)


def test_unknown_words_are_named_and_can_be_taught(tmp_path: Path, words: PocketSphinx):
    assert words.unknown(["two", "blorptastic", "aaargh"]) == ["aaargh", "blorptastic"]
    loop = PocketSphinx("words", ["two", "blorptastic"])
    assert (loop.words, loop.left_out) == (["two"], ["blorptastic"])
    taught = tmp_path / "words.dict"
    taught.write_text("# ours\n\nblorptastic B L AO R P T AE S T IH K  # yes\n")
    loop = PocketSphinx("words", ["two", "blorptastic"], taught)
    assert loop.words == ["blorptastic", "two"]
    assert loop.left_out == []


@pytest.mark.parametrize(
    "line", ["higgs", "higgs XX", "Higgs HH IH G Z", "two words HH", "higgs hh"]
)
def test_a_pronunciation_that_is_none_is_named_by_its_line(tmp_path: Path, line: str):
    path = tmp_path / "words.dict"
    path.write_text(f"fine F AY N\n{line}\n")
    with pytest.raises(InputError, match=r"words\.dict:2"):
        read_pronunciations(path)


def test_a_loop_needs_words():
    pytest.importorskip("pocketsphinx", reason="pocketsphinx has no wheel for this Python")
    with pytest.raises(InputError, match="0 words"):
        PocketSphinx("words", ["blorptastic"])


def test_the_narrowest_grammar_that_fits_is_chosen():
    assert choose_grammar(["one", "nine"], []) == "digits"
    assert choose_grammar(["one", "cat"], ["cat", "one", "dog"]) == "words"
    assert choose_grammar(["one", "cat"], ["cat"]) == "full"
    assert choose_grammar(["cat"], []) == "full"


def test_words_of_the_loop_are_equally_likely():
    lines = unigram_arpa(DIGITS)
    chances = {line.split()[1]: 10 ** float(line.split()[0]) for line in lines[4:-2]}
    assert chances.pop("<s>") == 10**-99
    assert lines[1] == f"ngram 1={len(chances) + 1}"
    assert sum(chances.values()) == pytest.approx(1, abs=1e-3)
    assert len(set(chances.values())) == 1


def test_without_pocketsphinx_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(InputError, match=r"mlx_higgs\[eval\]"):
        PocketSphinx("digits")


def test_whisper_fetches_nothing(tmp_path: Path, monkeypatch):
    with pytest.raises(InputError, match="no whisper"):
        Whisper(tmp_path / "base.en")
    model = tmp_path / "ggml-tiny.bin"
    model.touch()
    monkeypatch.setitem(sys.modules, "pywhispercpp", None)
    monkeypatch.setitem(sys.modules, "pywhispercpp.model", None)
    with pytest.raises(InputError, match="pip install pywhispercpp"):
        Whisper(model)


def test_whisper_gets_16_khz_and_a_second_at_least(tmp_path: Path, monkeypatch):
    heard = []

    class Model:
        def __init__(self, path: str, **options):
            assert options["language"] == "en"

        def transcribe(self, wave: np.ndarray):
            heard.append(wave)
            return [types.SimpleNamespace(text=text) for text in (" Hello ", " there.")]

    monkeypatch.setitem(sys.modules, "pywhispercpp", types.ModuleType("pywhispercpp"))
    module = types.ModuleType("pywhispercpp.model")
    module.Model = Model
    monkeypatch.setitem(sys.modules, "pywhispercpp.model", module)
    path = tmp_path / "ggml-tiny.bin"
    path.touch()
    whisper = Whisper(path)
    assert whisper.transcribe(np.ones(2400, np.float32), RATE) == "Hello there."
    assert whisper.transcribe(np.ones(48_000, np.float32), RATE) == "Hello there."
    assert [len(wave) for wave in heard] == [19_200, 32_000]
    assert all(wave.dtype == np.float32 for wave in heard)
    assert whisper.name == "whisper.cpp, ggml-tiny.bin"


def test_whisper_understands_clear_speech(said: dict):
    pytest.importorskip("pywhispercpp", reason="pywhispercpp is not installed")
    path = os.environ.get("MLX_HIGGS_WHISPER")
    if not path:
        pytest.skip("$MLX_HIGGS_WHISPER names no ggml model; not run by us yet")
    whisper = Whisper(Path(path))
    heard = [whisper.transcribe(wave, RATE) for wave in said.values()]
    assert word_errors(list(said), heard).rate < 0.15
