"""Subtitles: times that are exact, texts that come back, files that are whole."""

from __future__ import annotations

import json
import math
import os
import random
import re
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from mlx_higgs.narrate import subtitles
from mlx_higgs.narrate.subtitles import (
    LINE_COLUMNS,
    Cue,
    columns,
    dumps,
    milliseconds,
    screens,
    write,
)
from mlx_higgs.types import InputError

RATE = 24_000
TIME = r"(\d{2,}):(\d\d):(\d\d)[.,](\d{3})"
LONG = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness. Short one. It was the epoch of belief, it was the epoch of incredulity."
)
JAPANESE = "日本語の文章はとても長いので、二行に分けて表示しなければなりません。" * 3


def parsed(content: str) -> list[tuple[int, int, str]]:
    """(start, end, text) in milliseconds of what was written as .srt or .vtt."""
    cues = []
    for block in content.removeprefix("WEBVTT\n\n").rstrip("\n").split("\n\n"):
        found = re.fullmatch(rf"(?:\d+\n)?{TIME} --> {TIME}\n(.+)", block, re.DOTALL)
        assert found, block
        h, m, s, ms, h2, m2, s2, ms2, text = found.groups()
        start = ((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms)
        end = ((int(h2) * 60 + int(m2)) * 60 + int(s2)) * 1000 + int(ms2)
        cues.append((start, end, text))
    return cues


# -- the formats ----------------------------------------------------------------------------------


def test_srt():
    cues = [Cue(0, 1.5, "Hello."), Cue(3661.25, 3662, "<b>a --> {\\an8}b</b> 1 < 2", "Alice")]
    assert dumps(cues, ".srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n"
        "2\n01:01:01,250 --> 01:01:02,000\nAlice: ‹b>a → { \\an8}b‹/b> 1 < 2\n\n"
    )


def test_vtt():
    cues = [Cue(0, 1.5, "Hello."), Cue(3661.25, 360_000, "a --> b & <c>", "A & <B>")]
    assert dumps(cues, ".vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n"
        "01:01:01.250 --> 100:00:00.000\n<v A &amp; &lt;B&gt;>a --&gt; b &amp; &lt;c&gt;\n\n"
    )


def test_json_keeps_everything(seed: int):
    rng = random.Random(seed)
    starts = sorted(rng.randrange(10**9) for _ in range(50))
    cues = [
        Cue(a / RATE, (a + rng.randrange(RATE)) / RATE, f'"{a}"\n\\ é 漢 -->', "B") for a in starts
    ]
    segments = json.loads(dumps(cues, ".JSON"))["segments"]
    assert [one.pop("id") for one in segments] == list(range(50))
    assert [Cue(**one) for one in segments] == cues
    assert [round(one["start"] * RATE) for one in segments] == starts  # the very sample


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_no_cues_is_a_file_too(suffix: str):
    assert dumps([], suffix) == ("" if suffix == ".srt" else "WEBVTT\n\n")
    assert json.loads(dumps([], ".json")) == {"segments": []}


# -- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0, 0), (0.0005, 1), (0.00049, 0), (1.0015, 1002), (2.5, 2500), (59.9999, 60_000)],
)
def test_milliseconds_are_the_nearest(seconds: float, ms: int):
    assert milliseconds(seconds) == ms


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_cues_that_meet_still_do_and_none_is_off_by_more_than_half(seed: int, suffix: str):
    rng = random.Random(seed)
    edges = [0]
    for _ in range(200):
        edges.append(edges[-1] + rng.randrange(240, 10 * RATE))
    cues = [Cue(a / RATE, b / RATE, "Hi.") for a, b in pairwise(edges)]
    written = parsed(dumps(cues, suffix))
    assert [cue[0] for cue in written[1:]] == [cue[1] for cue in written[:-1]]
    for (start, end, _), cue in zip(written, cues, strict=True):
        assert abs(start - cue.start * 1000) <= 0.5 + 1e-6
        assert abs(end - cue.end * 1000) <= 0.5 + 1e-6


def test_a_cue_lasts_a_millisecond_at_least():
    ((start, end, _),) = parsed(dumps([Cue(1, 1, "x")], ".vtt"))
    assert (start, end) == (1000, 1001)


@pytest.mark.parametrize(
    ("cues", "message"),
    [
        ([Cue(0, 1, "a"), Cue(2, 1, "b")], "Subtitle 2 lasts from 2 to 1 s"),
        ([Cue(-1, 1, "a")], "Subtitle 1 lasts from -1"),
        ([Cue(math.nan, 1, "a")], "Subtitle 1 lasts from nan"),
        ([Cue(0, math.inf, "a")], "no time span"),
        ([Cue(5, 6, "a"), Cue(4, 7, "b")], "Subtitle 2 begins at 4 s, before"),
    ],
)
@pytest.mark.parametrize("suffix", list(subtitles.FORMATS))
def test_times_that_cannot_be_are_refused(cues, message: str, suffix: str):
    with pytest.raises(InputError, match=message):
        dumps(cues, suffix)


# -- long texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [LONG, JAPANESE, "x" * 500, "é̂" * 300, "한국어 문장은 " * 30, "no"]
)
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_long_texts_are_split_and_keep_their_ends(text: str, suffix: str):
    written = parsed(dumps([Cue(1, 11, text)], suffix))
    assert (written[0][0], written[-1][1]) == (1000, 11_000)
    assert [cue[0] for cue in written[1:]] == [cue[1] for cue in written[:-1]]
    said = "".join(cue[2] for cue in written)
    assert "".join(said.split()) == "".join(text.split())
    for start, end, shown in written:
        lines = shown.split("\n")
        assert len(lines) <= 2
        assert all(0 < columns(line) <= LINE_COLUMNS for line in lines)
        assert all(line == line.strip() for line in lines)
        share = columns("".join(shown.split())) / columns("".join(text.split()))
        assert abs((end - start) - share * 10_000) <= 1


def test_screens_break_where_sentences_end():
    assert screens(LONG)[-1].replace("\n", " ").startswith("It was the epoch of belief")
    assert screens("One. Two. Three.") == ["One. Two. Three."]
    assert screens("A b c. " * 20)[0].endswith(".")


def test_lines_of_a_screen_are_about_equally_long():
    first, second = screens("one two three four five six seven eight nine ten")[0].split("\n")
    assert abs(len(first) - len(second)) < 8


def test_no_line_begins_with_a_closing_mark():
    for text in (JAPANESE, "漢" * 20 + "。" + "漢" * 41 + "」、" + "漢" * 30):
        for screen in screens(text):
            assert not any(line[0] in "。、」）" for line in screen.split("\n"))


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(subtitles.FORMATS))
def test_files_are_utf_8_and_whole(tmp_path: Path, suffix: str, monkeypatch):
    path = write(tmp_path / f"a{suffix.upper()}", [Cue(0, 1, "Grüße 漢字")])
    assert "Grüße 漢字" in path.read_bytes().decode("utf-8")
    assert not path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(subtitles, "sync", fail)
    with pytest.raises(OSError, match="full"):
        write(path, [Cue(0, 1, "other")])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["a.txt", "a", "a.srt.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=r"Subtitles have the suffix \.srt, \.vtt, \.json, not"):
        write(tmp_path / name, [])
    assert not list(tmp_path.iterdir())


PARTS = ["-->", "\n", "\n\n", "\r", "<b>", "</v>", "&amp;", "&", "{\\an8}", "\0", "\x1b", "\ud800"]
PARTS += ["a", "word", " ", "漢", "é", "\u0301", "1", "\u2028", "WEBVTT", "NOTE x", "00:00:01.000"]


def test_no_text_breaks_a_file(seed: int, tmp_path: Path):
    """Whatever is said, as many cues come back and none holds what begins another."""
    rng = random.Random(seed)
    for _ in range(100):
        text, speaker = ("".join(rng.choices(PARTS, k=rng.randint(0, n))) for n in (40, 4))
        cues = [Cue(0, 1, text, speaker), Cue(1, 2, "end")]
        for suffix in subtitles.FORMATS:
            dumps(cues, suffix).encode("utf-8")
        for suffix in (".srt", ".vtt"):
            written = parsed(dumps(cues, suffix))
            assert written[-1] == (1000, 2000, "end")
            assert all("-->" not in shown for *_, shown in written)
            assert written[0][0] == 0 or not re.sub(r"[\s\x00-\x1f]", "", text)
        said = "".join(cue[2] for cue in parsed(dumps([Cue(0, 1, f"x{text}")], ".vtt")))
        expected = text.replace("\ud800", "?")
        visible = re.sub(r"[\s\x00-\x1f]", "", expected)
        assert re.sub(r"\s", "", unescape(said)) == "x" + visible
