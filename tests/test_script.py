"""Dialogue scripts: who says what, which silences, and errors that name the line."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from mlx_higgs.narrate.script import BEAT, MAX_PAUSE, is_script, parse
from mlx_higgs.pieces import Piece
from mlx_higgs.text import is_blank
from mlx_higgs.types import InputError

ROOT = Path(__file__).parent.parent


def turns(text: str, names: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(piece.speaker, piece.text) for piece in parse(text, names).pieces]


def pauses(text: str) -> list[float]:
    script = parse(text)
    return [piece.pause for piece in script.pieces] + [script.tail]


# -- turns ----------------------------------------------------------------------------------------


def test_one_generation_a_turn_in_the_order_of_the_script():
    text = "[Alice] Hello there.\n[Bob] Hello.\n[Alice] Nice day.\n[Alice] Or not?"
    assert parse(text).pieces == [
        Piece("Hello there.", "Alice"),
        Piece("Hello.", "Bob"),
        Piece("Nice day.", "Alice"),
        Piece("Or not?", "Alice"),
    ]
    assert parse(text).names == ["Alice", "Bob"]


def test_a_turn_goes_on_until_the_next():
    text = "[Alice]\nOne,\n  two\t three.\n\n\nNew paragraph.\n# not said\nStill she.\n[Bob] Yes."
    assert turns(text) == [
        ("Alice", "One, two three.\n\nNew paragraph. Still she."),
        ("Bob", "Yes."),
    ]


def test_lines_are_joined_as_their_script_is_written():
    assert turns("[小明] 今天\n天气好。\n我们") == [("小明", "今天天气好。我们")]
    assert turns("[민수] 오늘\n날씨") == [("민수", "오늘 날씨")]


def test_what_comes_first_and_after_narrator_is_the_narrators():
    text = "It was dark.\n[Alice] Who is there?\n[Narrator] Nobody\nspoke.\n[NARRATOR]: At all."
    assert turns(text) == [
        ("", "It was dark."),
        ("Alice", "Who is there?"),
        ("", "Nobody spoke."),
        ("", "At all."),
    ]
    assert parse(text).names == ["Alice"]
    assert parse("Only this.").names == []


@pytest.mark.parametrize(
    "name",
    [
        *("Alice", "Élodie", "Иван", "小明", "अनुराधा", "سارة", "สมชาย", "Dr. Watson", "Jean-Luc"),
        *("O'Brien", "R2_D2", "1", "SPEAKER0", "Pauline", "Laughing Man", "music box", "x" * 64),
    ],
)
def test_names_are_any_letters(name: str):
    assert turns(f"[{name}] Hello.") == [(name, "Hello.")]
    assert turns(f"[ {name} ] : Hello.") == [(name, "Hello.")]
    assert parse(f"【{name}】Hello.").names == [name]


def test_two_spellings_of_a_name_are_one_speaker():
    text = "[Alice Ray] a\n[ALICE  ray] b\n[E\u0301lodie] c\n[\u00c9lodie] d"
    assert parse(text).names == ["Alice Ray", "\u00c9lodie"]
    assert parse("[alice] a", ["Alice"]).names == ["Alice"]


def test_in_the_middle_of_a_line_only_known_names_begin_turns():
    assert turns("[Bob] a [Alice] b\n[Alice] c [sic] d [bob] e") == [
        ("Bob", "a"),
        ("Alice", "b"),
        ("Alice", "c [sic] d"),
        ("Bob", "e"),
    ]
    assert turns("[Bob] a [Alice] b") == [("Bob", "a [Alice] b")]
    assert turns("[Bob] a [Alice] b", ("Alice",)) == [("Bob", "a"), ("Alice", "b")]
    assert turns("x [SPEAKER1] b") == [("", "x"), ("SPEAKER1", "b")]


@pytest.mark.parametrize("tag", ["laugh", "music start", "music end", "applause", "cough"])
def test_sounds_are_no_names(tag: str):
    assert turns(f"[{tag}] Well.\n[Bob] [{tag}]\n[{tag.upper()}] x") == [
        ("", f"[{tag}] Well."),
        ("Bob", f"[{tag}] [{tag}] x"),
    ]


def test_a_backslash_keeps_what_begins_a_line():
    assert turns("[Bob] a\n\\[sic] b\n\\# c\n\\d") == [("Bob", "a [sic] b # c \\d")]


# -- Alice: Hello ---------------------------------------------------------------------------------


def test_names_with_a_colon_where_every_line_has_one():
    text = "# a talk\nAlice: Hello: there.\n\nDr. Who： Yes\n[pause]\nAlice: Bye."
    assert turns(text) == [("Alice", "Hello: there."), ("Dr. Who", "Yes"), ("Alice", "Bye.")]


@pytest.mark.parametrize(
    "text",
    [
        "Note: the shop is closed.",
        "Alice: Hello.\nShe smiled.",
        "He came at 10:30\nand left at 11:15",
        "https://a.b\nhttps://c.d",
        "What he said was this, mostly: no.\nWhat she said was this, mostly: yes.",
    ],
)
def test_a_colon_in_other_texts_is_no_name(text: str):
    assert turns(text) == [("", " ".join(text.split()))]
    assert not is_script(text)


def test_a_colon_after_a_name_that_is_known():
    assert turns("Dark.\nalice: Hi.\nNote: x", ("Alice",)) == [
        ("", "Dark."),
        ("Alice", "Hi. Note: x"),
    ]
    assert turns("[Bob] Hi.\nBob: Ho.\nAlice: Hu.") == [("Bob", "Hi."), ("Bob", "Ho. Alice: Hu.")]


# -- pauses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        *(("pause", BEAT), ("Pause", BEAT), ("pause:1.5s", 1.5), ("pause:500ms", 0.5)),
        *(("PAUSE : 2 S", 2.0), ("pause:0s", 0.0), ("pause:60s", 60.0), ("pause:60000ms", 60.0)),
    ],
)
def test_pauses_come_before_the_next_words(tag: str, seconds: float):
    assert pauses(f"[Alice] One [{tag}] two.\n[{tag}] [Bob] Three.[{tag}]") == [
        0,
        seconds,
        seconds,
        seconds,
    ]
    assert pauses(f"[Alice][{tag}]One") == [seconds, 0]
    assert turns(f"[Alice] One [{tag}] two.\n[{tag}]\n[Bob] Three.") == [
        ("Alice", "One"),
        ("Alice", "two."),
        ("Bob", "Three."),
    ]


def test_pauses_in_a_row_add_up():
    assert pauses("a [pause:1s][pause:500ms]\n[pause:1s]\n[Bob] [pause:2s] b") == [0, 4.5, 0]


def test_punctuation_after_a_pause_ends_the_words_before():
    script = parse("[Alice] Wait [pause]. What [pause]?!\n[Bob] — [pause] no [pause] —")
    assert [piece.text for piece in script.pieces] == ["Wait.", "What?!", "— no—"]
    assert [piece.pause for piece in script.pieces] == [0, 1, 2]
    assert script.tail == 1


# -- what files are like --------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_marks(end: str):
    text = "\ufeff[Alice] One\n\n[Bob]\u00a0Two\x0c \u200bthree\n".replace("\n", end)
    assert turns(text) == [("Alice", "One"), ("Bob", "Two three")]
    with pytest.raises(InputError, match=r"^Line 3: "):
        parse(f"[Alice] One{end}{end}[Bob]{end}[Alice] x")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a\n\n[Alice]\n\n[Bob] b", 3, r"\[Alice\] has nothing to say"),
        ("[Alice] a\n[Bob] ...", 2, r"\[Bob\] has nothing to say"),
        ("[Alice] a\n[Bob] [pause:1s]", 2, r"\[Bob\] has nothing to say"),
        ("[Narrator]\n[Bob] b", 1, r"\[Narrator\] has nothing to say"),
        ("\n---\n[Bob] b", 2, "there is nothing to say"),
        ("\n[pause:1]", 2, r"\[pause:1\] is no pause: write \[pause:1.5s\]"),
        ("[Bob] b [pause 1s]", 1, "is no pause"),
        ("[pause:-1s] a", 1, "is no pause"),
        ("[pause:1e9s] a", 1, "is no pause"),
        ("[pause:٣s] a", 1, "is no pause"),
        ("[pause:nan s] a", 1, "is no pause"),
        ("[pause:60.1s] a", 1, "is too long: a pause lasts 0 to 60 s"),
        ("[pause:99999999ms] a", 1, "is too long"),
        ("[pause:40s]\n[pause:40s] a", 2, "pauses in a row last more than 60 s"),
        ("a\n[Alice & Bob] b", 2, "is neither a sound nor a name"),
        ("[] b", 1, "is neither a sound nor a name"),
        ("[...] b", 1, "is neither a sound nor a name"),
        (f"[{'x' * 65}] b", 1, "is neither a sound nor a name"),
        ("a\n[Alice b", 2, "is not closed"),
        ("a\nb\0", 2, r"the control character U\+0000"),
        ("a\n\nb\x1b[31m", 3, r"the control character U\+001B"),
        ("a\n\udc80", 2, r"the control character U\+DC80"),
    ],
)
def test_errors_name_the_line(text: str, line: int, message: str):
    with pytest.raises(InputError, match=f"^Line {line}: .*{message}") as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("text", ["", "\n \t\n", "# only\n#comments", "[pause]", "\ufeff"])
def test_a_script_without_words_is_refused(text: str):
    with pytest.raises(InputError, match="nothing to say"):
        parse(text)


def test_scripts_are_told_from_texts():
    assert is_script("Dark.\n[Alice] Hi.")
    assert is_script("A: x\nB: y")
    for text in (
        "",
        "Just [a] text.",
        "[laugh] Ha.",
        "[pause] x",
        "\\[Bob] x",
        "# [Bob] x",
        "[Bob",
    ):
        assert not is_script(text)


PARTS = [
    *(
        "[Alice]",
        "[Bob]",
        "[SPEAKER0]",
        "[laugh]",
        "[pause]",
        "[pause:1.5s]",
        "[pause:300ms]",
        "【",
    ),
    *(
        "】",
        "[",
        "]",
        "Alice:",
        "\\",
        "#",
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "...",
        ".",
        "Hello",
        "好",
        "：",
    ),
    *("\u200b", "\ufeff", "\x0c", "[Narrator]", "[x y]", "[pause:", "s]", "é", "\t"),
]


def test_whatever_is_written_is_read_or_refused(seed: int):
    rng = random.Random(seed)
    read = 0
    for _ in range(3000):
        text = "".join(rng.choices(PARTS, k=rng.randint(0, 12)))
        if rng.random() < 0.05:
            text += chr(rng.choice([0, 7, 0x1B, 0x85, 0xD800, 0xFFFF, 0x1F600]))
        try:
            script = parse(text)
        except InputError:
            continue
        read += 1
        assert script.pieces
        assert 0 <= script.tail <= MAX_PAUSE
        speakers = {piece.speaker for piece in script.pieces}
        assert speakers - {""} == set(script.names)
        for piece in script.pieces:
            assert not is_blank(piece.text), text
            assert 0 <= piece.pause <= MAX_PAUSE
    assert read > 500


def test_nothing_said_is_lost(seed: int):
    """Every word is said once, in its order, by whom the script says."""
    rng = random.Random(seed)
    expected, lines, word = [], [], 0
    for _ in range(40):
        name = rng.choice(["Alice", "Bob", "小明"])
        said = []
        for _ in range(rng.randint(1, 6)):
            word += 1
            said += [f"w{word}", rng.choice(["", "[pause]", "\n", "\n\n", "\n# no\n", "[laugh]"])]
        lines.append(f"[{name}] {' '.join(said)}\n")
        expected += [(name, one) for one in said if one.startswith("w")]
    heard = [
        (piece.speaker, word)
        for piece in parse("".join(lines)).pieces
        for word in re.findall(r"w\d+", piece.text)
    ]
    assert heard == expected


# -- what is shipped ------------------------------------------------------------------------------


def test_the_example_is_a_script():
    text = (ROOT / "examples" / "dialogue.txt").read_text(encoding="utf-8")
    script = parse(text)
    assert is_script(text)
    assert len(script.names) > 1
    assert {piece.speaker for piece in script.pieces} == {"", *script.names}


def test_the_page_says_what_the_code_does():
    page = (ROOT / "docs" / "dialogue.md").read_text(encoding="utf-8")
    scripts = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert scripts
    for text in scripts:
        assert is_script(text)
        parse(text)
    assert f"0 to {MAX_PAUSE:.0f} s" in page


def test_the_python_of_the_page_runs(monkeypatch):
    page = (ROOT / "docs" / "dialogue.md").read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(code, {})
