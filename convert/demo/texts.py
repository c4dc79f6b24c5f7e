"""What the demo's voices read: words in free order, numbers, and sentences of ordinary English.

The sentences are drawn from the trigrams of pocketsphinx's English model (BSD), which comes inside
its wheel: no text is downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

WORDS = list(dict.fromkeys((Path(__file__).parent / "words.txt").read_text().split()))
DIGITS = WORDS[:10]
PHRASE = 3  # words at most
STOPPED = 0.7  # share of texts with a full stop
END = "</s>"
LEFT_OUT = ("fuck", "shit", "sex", "bitch", "nigg", "rape", "porn", "cunt", "whore", "damn")


def free_order(rng: random.Random, low: int = 4, high: int = 9) -> str:
    """Words of the vocabulary in any order, sometimes with a comma."""
    words = rng.choices(WORDS, k=rng.randint(low, high))
    if len(words) > 5 and rng.random() < 0.25:
        words[len(words) // 2] += ","
    return " ".join(words)


def phrase(rng: random.Random) -> str:
    """Two or three words: what a talker learns its first words from."""
    return " ".join(rng.choices(WORDS, k=rng.randint(2, PHRASE)))


def stopped(text: str, rng: random.Random) -> str:
    """With a full stop, as `generate` ends a text, more often than not."""
    return text + ("." if rng.random() < STOPPED else "")


def digits(rng: random.Random) -> str:
    return " ".join(rng.choices(DIGITS, k=rng.randint(3, 8)))


def numerals(rng: random.Random) -> str:
    """A number in figures among words: read as one number, as flite does."""
    words = rng.choices(WORDS, k=rng.randint(2, 4))
    words.insert(rng.randint(0, len(words)), str(rng.randint(0, 99)))
    return " ".join(words)


def is_english(text: str) -> bool:
    """Whether it has words beside the vocabulary and numerals."""
    words = text.replace(",", "").replace(".", "").split()
    return any(word not in WORDS and not word.isdigit() for word in words)


def pronunciations() -> dict[str, list[str]]:
    """Words of pocketsphinx's dictionary (CMUdict) -> the phonemes of their first pronunciation."""
    return {word: phonemes for word, *phonemes in map(str.split, _dictionary())}


def _dictionary() -> list[str]:
    import pocketsphinx

    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    return path.read_text().splitlines()


LETTERS = {"a": "ay", "i": "eye"}  # what flite is told, where it would read a word
MARKS = (".", ".", ".", "?", "!")


def more_words(vocabulary: Iterable[str]) -> list[str]:
    """Common words beside WORDS that have a token of their own."""
    known = pronunciations()
    return sorted({word for word in vocabulary if len(word) > 1 and word in known} - set(WORDS))


def few_digits(rng: random.Random) -> str:
    """One to eight of ten words."""
    return stopped(" ".join(rng.choices(DIGITS, k=rng.randint(1, 8))), rng)


def few_words(rng: random.Random, size: int) -> str:
    """One to eight different words of some, the digits among them."""
    others = random.Random(7).sample(WORDS[len(DIGITS) :], size - len(DIGITS))
    return stopped(" ".join(rng.sample([*DIGITS, *others], rng.randint(1, 8))), rng)


def sentence(rng: random.Random, more: list[str]) -> str:
    """Words in any order, figures, and now and then a word that has to be spelled."""
    count = rng.randint(1, 3) if rng.random() < 0.2 else rng.randint(4, 10)
    if rng.random() < 0.12:
        words = rng.choices(DIGITS, k=min(count, 8))
    else:
        words = [rng.choice(WORDS if rng.random() < 0.8 else more) for _ in range(count)]
    if rng.random() < 0.12:
        words[rng.randrange(len(words))] = str(rng.randint(0, 9999))
    if rng.random() < 0.15:
        letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 5))
        words[rng.randrange(len(words))] = "".join(letters)
    if len(words) > 4 and rng.random() < 0.3:
        words[rng.randint(1, len(words) - 3)] += ","
    return " ".join(words) + (rng.choice(MARKS) if rng.random() < STOPPED else "")


class Trigrams:
    """Draws sentences from pocketsphinx's English model, over its most common words."""

    VOCABULARY = 8000  # words; the score of each is asked at every step

    def __init__(self) -> None:
        import pocketsphinx

        folder = Path(pocketsphinx.get_model_path()) / "en-us"
        source = str(folder / "en-us.lm.bin")
        self._logs = pocketsphinx.LogMath()
        config = pocketsphinx.Config(lm=source, loglevel="FATAL")
        self._model = pocketsphinx.NGramModel(config, self._logs, source)
        spoken = (line.split()[0] for line in _dictionary())
        common = sorted(filter(_readable, spoken), key=lambda w: self._model.prob([w]))
        self._words = [*common[-self.VOCABULARY :], END]

    def sentence(self, rng: random.Random, low: int = 4, high: int = 11) -> str:
        """``low`` to ``high`` words that follow each other in English."""
        while True:
            words = ["<s>"]
            while len(words) <= high + 1 and words[-1] != END:
                words.append(self._following(rng, words[:-3:-1]))
            if words[-1] == END and low <= len(words) - 2 <= high:
                return " ".join(words[1:-1])

    def _following(self, rng: random.Random, newest_first: list[str]) -> str:
        scores = np.array([self._model.prob([word, *newest_first]) for word in self._words])
        sums = np.cumsum(np.exp(scores * np.log(self._logs.exp(1))))
        return self._words[int(np.searchsorted(sums, rng.random() * sums[-1]))]


def _readable(word: str) -> bool:
    return word.replace("'", "").isalpha() and not any(bad in word for bad in LEFT_OUT)


Maker = Callable[[random.Random], str]


def makers() -> list[tuple[float, Maker]]:
    """How often each kind of text is read."""
    return [
        (0.42, free_order),
        (0.06, digits),
        (0.04, numerals),
        (0.48, Trigrams().sentence),
    ]


def draw(rng: random.Random, kinds: list[tuple[float, Maker]]) -> str:
    """One text, with or without a full stop."""
    weights = [weight for weight, _ in kinds]
    ((_, maker),) = rng.choices(kinds, weights)
    return stopped(maker(rng), rng)
