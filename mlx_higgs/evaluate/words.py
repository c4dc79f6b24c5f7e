"""Words said against words heard: one normalisation for both sides, and the word error rate."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..types import InputError
from ..vocabulary import DIGITS

if TYPE_CHECKING:
    from types import ModuleType

_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen")
_SMALL = (*DIGITS, *_TEENS, "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGEST = 999_999  # longer numbers are read digit by digit

_TAG = re.compile(r"\[[^\]\n]*\]|<[^>\n]*>")  # [SPEAKER0], [laugh], <SE>...</SE>
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # an apostrophe only between letters
_SYMBOLS = str.maketrans({"’": "'", "‘": "'", "%": " percent ", "&": " and "})

RESAMPLES = 2000
CONFIDENCE = 0.95


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are counted: ``"It's 42%."`` -> it's forty two percent.

    Lower case, NFKC; tags in brackets and punctuation dropped, hyphens split; whole numbers up to
    999,999 spelled as cardinals, longer ones and decimals digit by digit; ``%`` and ``&`` read.
    (A year is read as a cardinal too: write it out in words.)
    """
    text = unicodedata.normalize("NFKC", _TAG.sub(" ", text)).lower().translate(_SYMBOLS)
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<=\d)\.(\d+)", lambda found: f" point {' '.join(found[1])} ", text)
    text = re.sub(r"[0-9]+", lambda found: f" {spell(found[0])} ", text)
    return _WORD.findall(text)


def spell(number: str) -> str:
    """``"142"`` -> one hundred forty two; leading zeros or too long: digit by digit."""
    if int(number) > LARGEST or (len(number) > 1 and number[0] == "0"):
        return " ".join(DIGITS[int(digit)] for digit in number)
    return " ".join(_cardinal(int(number)))


def _cardinal(number: int) -> list[str]:
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            rest = _cardinal(number % unit) if number % unit else []
            return [*_cardinal(number // unit), name, *rest]
    if number < len(_SMALL):
        return [_SMALL[number]]
    return [_TENS[number // 10 - 2], *([_SMALL[number % 10]] if number % 10 else [])]


@dataclass(frozen=True)
class WordErrors:
    """Substitutions, deletions and insertions over all words: the micro-averaged error rate.

    Attributes:
        rate: errors / words; insertions can lift it above 1.
        low, high: 95 % bootstrap interval, drawn over texts (a text's runs stay together).
        per_text: (errors, words) of each pair.
    """

    words: int
    errors: int
    rate: float
    low: float
    high: float
    per_text: tuple[tuple[int, int], ...]


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Compare what was to be said with what was heard, both normalised by ``spoken_words``.

    Raises:
        InputError: unequal counts, no pair at all, or a reference without a word.
    """
    if len(references) != len(hypotheses) or not references:
        raise InputError(f"{len(references)} references for {len(hypotheses)} hypotheses.")
    pairs = tuple(map(_compare, references, hypotheses))
    errors, words = map(sum, zip(*pairs, strict=True))
    low, high = _bootstrap([" ".join(spoken_words(text)) for text in references], pairs)
    return WordErrors(words, errors, errors / words, low, high, pairs)


def _compare(reference: str, hypothesis: str) -> tuple[int, int]:
    said, heard = spoken_words(reference), spoken_words(hypothesis)
    if not said:
        raise InputError(f"The text {reference[:60]!r} has no word that could be counted.")
    if not heard:
        return len(said), len(said)
    found = installed_jiwer().process_words(" ".join(said), " ".join(heard))
    return found.substitutions + found.deletions + found.insertions, len(said)


def _bootstrap(texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    groups: dict[str, np.ndarray] = {}
    for text, pair in zip(texts, pairs, strict=True):
        groups[text] = groups.get(text, np.zeros(2)) + pair
    counts = np.stack(list(groups.values()))  # [texts, (errors, words)]
    drawn = np.random.default_rng(0).integers(0, len(counts), (RESAMPLES, len(counts)))
    sums = counts[drawn].sum(axis=1)
    tails = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], tails)
    return float(low), float(high)


def installed_jiwer() -> ModuleType:
    """The alignment library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise InputError("Word errors need jiwer: pip install 'mlx_higgs[eval]' first.") from error
    return jiwer
