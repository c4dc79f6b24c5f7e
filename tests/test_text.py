"""Normalisation, speaker tags and the cap on frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs.text import frame_cap, is_blank, normalize, speaker_tags

GOLDEN = json.loads((Path(__file__).parent / "golden/prompts_v2.json").read_text("utf-8"))
TEXTS = {case["text"]: case for case in GOLDEN["cases"]}


@pytest.mark.parametrize("text", TEXTS, ids=[case["name"] for case in TEXTS.values()])
def test_normalize_and_speaker_tags_equal_the_reference(text: str) -> None:
    assert normalize(text) == TEXTS[text]["normalized"]
    assert speaker_tags(text) == TEXTS[text]["speakers"]


def test_the_golden_texts_cover_every_rule() -> None:
    given = "".join(TEXTS)
    for mark in "，。：；？！（）()【】《》“”‘’、—…·「」『』":
        assert mark in given
    for tag in ("laugh", "humming start", "humming end", "music start", "music end", "music"):
        assert f"[{tag}]" in given
    for tag in ("sing start", "sing end", "applause", "cheering", "cough"):
        assert f"[{tag}]" in given


def test_normalize_twice_is_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = [*TEXTS, "\n", " ", "，", "…", "°C", "[laugh]", "(", "\u2028", "x", "7"]
    for _ in range(50):
        text = "".join(rng.choice(pieces, size=rng.integers(1, 8)))
        once = normalize(text)
        assert normalize(once) == once, repr(text)


def test_speakers_are_sorted_as_strings() -> None:
    text = "[SPEAKER2] b [SPEAKER10] c [SPEAKER0] a [SPEAKER2] d [speaker1] e [SPEAKER] f"
    assert speaker_tags(text) == ["SPEAKER0", "SPEAKER10", "SPEAKER2"]


@pytest.mark.parametrize("text", ["", " \n\t", "...", "—!?", "[SPEAKER0] ", "👍", "[SPEAKER1]\n…"])
def test_nothing_to_say_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "7", "你", "[laugh]", "[SPEAKER0] ok", "ก", "é"])
def test_anything_to_say_is_not_blank(text: str) -> None:
    assert not is_blank(text)
    assert not is_blank(normalize(text))


@pytest.mark.parametrize(
    ("text", "slow_seconds"),
    [
        ("Speech that is read aloud to a small child, very slowly indeed.", 8.0),
        ("你好，世界。今天天气很好，我们去公园散步吧。", 9.0),
        ("こんにちは、きょうはいいてんきですね。", 8.0),
        ("안녕하세요. 오늘은 날씨가 참 좋네요.", 7.0),
        ("Call 0171 555 8291 77 now", 10.0),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 20.0),
        ("$5,000,000 at 98%", 7.0),
        ("ok", 1.5),
        ("[laugh]", 5.0),
    ],
)
def test_the_cap_leaves_slow_speech_room(text: str, slow_seconds: float) -> None:
    for form in (text, normalize(text)):
        assert 1.2 * slow_seconds * 25 < frame_cap(form)


def test_the_cap_stops_runaway_and_grows_with_the_text(seed: int) -> None:
    assert frame_cap("A short sentence, five words.") < 15 * 25
    assert frame_cap("") == 100
    rng = np.random.default_rng(seed)
    first, second = rng.choice([text for text in TEXTS if text], size=2)
    assert frame_cap(first + " " + second) > max(frame_cap(first), frame_cap(second))
    assert frame_cap("hello [laugh]") - frame_cap("hello laugh") >= 100
    assert frame_cap("[SPEAKER0] hello") == frame_cap(" hello")
