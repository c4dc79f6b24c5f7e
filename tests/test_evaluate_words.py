"""Laws of counting words: both sides are normalised alike; controls keep no text's own words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mlx_higgs.evaluate.controls import deranged, envelope_noise
from mlx_higgs.evaluate.words import LARGEST, spell, spoken_words, word_errors
from mlx_higgs.types import InputError


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Hello, World!", "hello world"),
        ("It's the dog’s — 'quoted' — bone.", "it's the dog's quoted bone"),
        ("well-known", "well known"),
        ("42 and 007", "forty two and zero zero seven"),
        ("1,234", "one thousand two hundred thirty four"),
        ("3.14 or 50%", "three point one four or fifty percent"),
        ("[SPEAKER0] Hi [laugh] you <SE>[Cough]</SE> there", "hi you there"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("Tom & Jerry", "tom and jerry"),
        ("... !?", ""),
    ],
)
def test_words_as_they_are_counted(written: str, spoken: str):
    assert " ".join(spoken_words(written)) == spoken
    assert spoken_words(spoken) == spoken.split()  # once is enough


def test_no_two_numbers_are_spelled_alike():
    numbers = [*range(2000), 10_000, 100_000, 110_000, LARGEST, LARGEST + 1]
    assert len({spell(str(number)) for number in numbers}) == len(numbers)
    assert spell(str(LARGEST + 1)) == "one zero zero zero zero zero zero"


def test_the_error_rate_counts_words_not_texts():
    pytest.importorskip("jiwer")
    found = word_errors(["one two three four", "five"], ["One, 2 three four.", "nine"])
    assert found.per_text == ((0, 4), (1, 1))
    assert (found.errors, found.words, found.rate) == (1, 5, 0.2)
    assert found.low <= found.rate <= found.high
    kinds = word_errors(["a b c", "a b c", "a b c"], ["a x c", "a c", "a b b c"])
    assert [errors for errors, _ in kinds.per_text] == [1, 1, 1]


def test_silence_is_all_words_wrong_and_too_many_words_are_more():
    pytest.importorskip("jiwer")
    assert word_errors(["one two"], [""]).rate == 1.0
    assert word_errors(["one two"], ["three four five six seven"]).rate == 2.5


def test_runs_of_one_text_are_drawn_together():
    """Ten runs of one text are no ten texts: the interval of one text has no width."""
    pytest.importorskip("jiwer")
    heard = ["one two"] * 5 + ["nine nine"] * 5
    together = word_errors(["one two"] * 10, heard)
    assert together.low == together.rate == together.high == 0.5
    texts = [f"one two {'zero ' * index}" for index in range(10)]
    apart = word_errors(texts, [t if i % 2 else "" for i, t in enumerate(texts)])
    assert apart.low < apart.rate < apart.high


def test_what_cannot_be_counted_is_refused():
    for references, hypotheses in ([], []), (["one"], []), (["..."], ["one"]):
        with pytest.raises(InputError):
            word_errors(references, hypotheses)


def test_a_derangement_leaves_no_text_its_own_words(seed: int):
    rng = random.Random(seed)
    texts = [str(rng.randrange(12)) for _ in range(30)]
    others = deranged(texts, seed)
    assert others is not None
    assert all(one != other for one, other in zip(texts, others, strict=True))
    assert set(others) == set(texts)
    assert deranged(["One.", "one", "1"]) is None  # all say the same


def test_envelope_noise_is_as_loud_moment_by_moment(seed: int):
    rate, rng = 16_000, np.random.default_rng(seed)
    wave = rng.standard_normal(2 * rate).astype(np.float32)
    wave[:rate] *= 0.01
    noise = envelope_noise(wave, rate, seed + 1)
    assert noise.shape == wave.shape
    for part in (slice(0, rate - 400), slice(rate + 400, None)):
        assert np.std(noise[part]) == pytest.approx(np.std(wave[part]), rel=0.1)
    assert abs(np.corrcoef(noise, wave)[0, 1]) < 0.05
