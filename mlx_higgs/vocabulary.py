"""What a model is asked to say where nobody chose: texts of the words it knows, plain sentences."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_PER_TEXT = (3, 6)
WORDS_PER_TEXT = (4, 8)
TRIES = 100  # per text: a vocabulary of two has not many

# one of each makes a sentence: 12^4 of them, with all the sounds of English
WHO = (
    "The young doctor",
    "My oldest friend",
    "A quiet neighbour",
    "Their new teacher",
    "The woman from the shop",
    "Our youngest cousin",
    "Someone I used to know",
    "The captain of the ship",
    "George and his brother",
    "A thoughtful stranger",
    "The judge",
    "Both of the children",
)
DID = (
    "had to choose",
    "finally found",
    "wanted to sell",
    "could not forget",
    "carefully measured",
    "thought about",
    "never mentioned",
    "would rather keep",
    "usually carried",
    "laughed about",
    "asked us to bring",
    "heard of",
)
WHAT = (
    "the yellow umbrella",
    "a box of fresh oranges",
    "twenty four chairs",
    "this unusual picture",
    "the broken clock",
    "an old leather bag",
    "the shortest way home",
    "a very good reason",
    "the sound of rain",
    "another cup of coffee",
    "all five letters",
    "the garden with the high wall",
)
WHERE = (
    "before the evening.",
    "on the other side of the river.",
    "while it was still dark.",
    "at half past three.",
    "in the middle of July.",
    "without saying a word.",
    "near the railway bridge.",
    "as soon as the bus had left.",
    "for nothing at all.",
    "during the long voyage.",
    "because of the weather.",
    "a hundred years ago.",
)


def draw_texts(
    words: Sequence[str], count: int, seed: int, *, exclude: Collection[str] = ()
) -> list[str]:
    """``count`` different texts of words in random order: 3 to 6 digits, or 4 to 8 words.

    Fewer where the words do not make so many; none of ``exclude``.
    """
    low, high = DIGITS_PER_TEXT if set(words) <= set(DIGITS) else WORDS_PER_TEXT
    return _draw(
        lambda rng: " ".join(rng.choices(words, k=rng.randint(low, high))), count, seed, exclude
    )


def draw_sentences(count: int, seed: int, *, exclude: Collection[str] = ()) -> list[str]:
    """``count`` different English sentences, none of ``exclude``."""
    parts = (WHO, DID, WHAT, WHERE)
    return _draw(lambda rng: " ".join(map(rng.choice, parts)), count, seed, exclude)


def _draw(
    make: Callable[[random.Random], str], count: int, seed: int, exclude: Collection[str]
) -> list[str]:
    rng, excluded = random.Random(seed), set(exclude)
    texts: dict[str, None] = {}
    for _ in range(TRIES * count):
        text = make(rng)
        if text not in excluded:
            texts[text] = None
        if len(texts) == count:
            break
    return list(texts)
