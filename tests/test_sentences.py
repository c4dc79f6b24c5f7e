"""Laws of splitting: nothing said is lost or moved, nothing is too long, sentences stay whole."""

from __future__ import annotations

import random
import unicodedata

import pytest

from mlx_higgs.sentences import LETTERS, letters, paragraphs, split
from mlx_higgs.text import is_blank, speaker_tags
from mlx_higgs.types import InputError

SENTENCES = {
    "en": ["Dr. Smith paid $3.14.", 'He said "Stop. Now." and left!', "Is it e.g. this one?"],
    "de": ["Am 3. Mai kam z. B. Frau Dr. Meier.", "„Halt!“", "Sie ging."],
    "es": ["¿Qué tal?", "¡Hola!", "El Sr. García vino."],
    "zh": ["他说：“你好。今天很好。”", "然后走了。", "这是第二句！", "真的吗？"],
    "ja": ["「こんにちは。元気ですか？」と彼は言った。", "今日は良い天気です。", "行こう！"],
    "ar": ["مرحبا.", "كيف حالك؟", "أنا بخير، شكرا."],
    "hi": ["नमस्ते।", "आप कैसे हैं?", "मैं ठीक हूँ।"],
    "ko": ["안녕하세요.", "오늘 날씨가 좋네요!", "그렇죠?"],
}
SPACED = {"zh": "", "ja": ""}
ALPHABET = [
    *"abc한국中文日本かな。！？「」、.,!? \n",
    "हिं",
    "กำ",
    "é",
    "👩‍🚀",
    "1",
    "[SPEAKER1]",
    "؟ ",
]


def spoken(text: str) -> str:
    """What is heard of a text, however it is cut."""
    for tag in speaker_tags(text):
        text = text.replace(f"[{tag}]", "")
    return "".join(char for char in text if char.isalnum())


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_stay_whole_in_every_script(language: str):
    sentences = SENTENCES[language]
    text = SPACED.get(language, " ").join(sentences)
    longest = max(map(letters, sentences))
    pieces = split(text, limit=longest, language=language)
    joined = ["".join(piece.split()) for piece in pieces]
    ends = {"".join("".join(sentences[: n + 1]).split()) for n in range(len(sentences))}
    assert {"".join(joined[: n + 1]) for n in range(len(joined))} <= ends
    assert "".join(joined) == "".join("".join(sentences).split())
    assert all(letters(piece) <= longest for piece in pieces)


@pytest.mark.parametrize("mode", ["sentence", "word", "speaker"])
def test_nothing_said_is_lost_or_moved(seed: int, mode: str):
    rng = random.Random(seed)
    for _ in range(200):
        text = "".join(rng.choices(ALPHABET, k=rng.randrange(120)))
        limit = rng.randrange(1, 40)
        pieces = split(text, mode=mode, limit=limit)
        assert "".join(map(spoken, pieces)) == spoken(text), text
        assert not any(map(is_blank, pieces))


def test_no_piece_is_longer_than_the_limit(seed: int):
    rng = random.Random(seed)
    plain = [part for part in ALPHABET if not part.startswith("[")]
    for _ in range(200):
        text = "".join(rng.choices(plain, k=200))
        limit = rng.randrange(12, 60)
        longest = max(map(letters, split(text, limit=limit)), default=0)
        assert longest <= limit + 3, text  # a mark stays with the character it changes


def test_no_cut_before_a_mark_of_the_character(seed: int):
    rng = random.Random(seed)
    for syllable in ("हिं", "กำ", "e\u0301", "ไม"):
        for limit in range(1, 12):
            for piece in split(syllable * rng.randrange(5, 30), limit=limit):
                assert not unicodedata.category(piece[0]).startswith("M")
                assert not piece.endswith("ไ")


def test_words_are_counted_as_in_the_reference():
    text = " ".join(f"w{n}" for n in range(23)) + "\n\nnew paragraph"
    assert [len(piece.split()) for piece in split(text, mode="word", limit=10)] == [10, 10, 3, 2]
    assert [len(piece) for piece in split("中文" * 10, mode="word", limit=8)] == [8, 8, 4]


def test_turns_are_pieces_and_keep_their_speaker():
    text = "Before. [SPEAKER0] One two.\nThree. [SPEAKER1] Four. Five."
    assert split(text, mode="speaker") == [
        "Before.",
        "[SPEAKER0] One two.\nThree.",
        "[SPEAKER1] Four. Five.",
    ]
    assert split(text, mode="speaker", limit=8)[-2:] == ["[SPEAKER1] Four.", "[SPEAKER1] Five."]
    assert split(text, limit=8)[1] == "[SPEAKER0] One two."


def test_lines_that_a_program_broke_are_joined():
    line = "This line is of the length at which programs break lines, so"
    pieces = split(f"{line}\nit goes on here. And ends.")
    assert pieces == [f"{line} it goes on here. And ends."]
    assert split("Roses are red\nViolets are blue") == ["Roses are red\nViolets are blue"]
    wide = "中" * 60
    assert split(f"{wide}\n{wide}", limit=1000) == [wide * 2]


def test_short_paragraphs_share_a_piece_and_long_ones_do_not():
    text = "\n\n".join(["No.", "Yes.", "x " * 200 + "end.", "Why?"])
    assert [len(part) > 100 for part in paragraphs(text, 300)] == [False, True, False]


def test_pieces_are_about_as_long_as_each_other():
    sizes = [letters(piece) for piece in split("Ten letter. " * 40, limit=300)]
    assert max(sizes) < 1.5 * min(sizes)
    assert len(sizes) == -(-480 // 300)


@pytest.mark.parametrize("hostile", ["「" * 99_999, "a" * 99_999, "-" * 99_999, "a. " * 33_333])
def test_hostile_texts_end(hostile: str):
    assert all(letters(piece) <= LETTERS for piece in split(hostile))


@pytest.mark.parametrize("options", [{"mode": "verse"}, {"limit": 0}])
def test_what_is_refused(options: dict):
    with pytest.raises(InputError):
        split("one", **options)
