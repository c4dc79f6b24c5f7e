"""The command: books in, sounds and exact times out; what was made stays made, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs.loudness import loudness_of
from mlx_higgs.narrate import __main__ as narrate
from mlx_higgs.narrate.binding import CHAPTER, Part, arrange, bind
from mlx_higgs.narrate.manuscript import BREAK, PARAGRAPH, TITLE, read
from mlx_higgs.narrate.shelf import Kept, Shelf
from mlx_higgs.pieces import Chunking, Piece
from mlx_higgs.takes import Take
from mlx_higgs.types import GenerationError, InputError

BOOK = "Chapter 1\n\none two. three four.\n\n* * *\n\nfive.\n\nChapter 2\n\nsix. seven.\n"
SCRIPT = "[Anna] one two.\n[Ben] three. [pause:1s] four.\n[Anna] five.\n"
QUICK = ["--max-frames", "16", "--chunk-size", "12", "--seed", "3"]
RATE = 24_000


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(*options: str) -> int:
    """The exit code; 0 and 3 both say that all is there."""
    code = narrate.main([*options, *QUICK])
    assert code in (0, 3)
    return code


def written(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


# -- what is read ---------------------------------------------------------------------------------


def test_a_text_has_chapters_titles_and_pauses():
    manuscript = read(Path(written("book.txt", BOOK)), Chunking(limit=12))
    assert manuscript.titles == ["Chapter 1", "Chapter 2"]
    assert manuscript.pieces == [
        Piece("Chapter 1", chapter=0),
        Piece("one two.", pause=TITLE, chapter=0),
        Piece("three four.", chapter=0),
        Piece("five.", pause=BREAK, chapter=0),
        Piece("Chapter 2", chapter=1),
        Piece("six. seven.", pause=TITLE, chapter=1),
    ]
    assert PARAGRAPH < TITLE < BREAK < CHAPTER


def test_markdown_is_read_without_its_marks():
    text = """
# *A* title

**Bold** and [a link](http://x) `code`.

```
no
```

### Not one

- item

## Two

End.
"""
    manuscript = read(Path(written("book.md", text)), Chunking())
    assert manuscript.titles == ["A title", "Two"]
    said = [piece.text for piece in manuscript.pieces]
    assert said == ["A title", "Bold and a link code.\nNot one\nitem", "Two", "End."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It was in\n1984. five six.", "It was in\n1984. five six."),
        ("1. one\n2. two", "1. one\n2. two"),
        ("Use my_var_name and 3*4*5.", "Use my_var_name and 3*4*5."),
        ("**a *b* c** _d_ ***e*** `f*g*h` 这*强*的", "a b c d e f*g*h 这强的"),
        (r"\*a\* 1\. b", "*a* 1. b"),
        ("<b>a</b> &amp; b < c and d > e &copyit", "a & b < c and d > e &copyit"),
        ("[x](http://a/b_(c)) [y](<z> 'w') [v](not an address)", "x y [v](not an address)"),
        ("[x][y]\n\n[y]: http://a.b", "x"),
        ("```\none\n\ntwo", "```\none\ntwo"),
        ("one\ntwo\n---\nthree", "one\ntwo three"),
    ],
)
def test_markdown_loses_no_words(text: str, said: str):
    found = read(Path(written("a.md", text)), Chunking())
    assert " ".join(piece.text for piece in found.pieces) == said


def test_underlined_headings_are_chapters_and_code_left_out_is_told(capsys):
    text = "One\n===\n\na\n\nTwo\n---\n\n~~~py\nx = 1\n~~~\n\nb"
    found = read(Path(written("a.md", text)), Chunking())
    assert found.titles == ["One", "Two"]
    assert [piece.text for piece in found.pieces] == ["One", "a", "Two", "b"]
    assert "a block of code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("a.\n\nPart of me wanted to go,\nb.", ["a"]),
        ("a.\n\nPart of me wanted to go.\n\nb.", ["a"]),
        ("a.\n\nPart two of it was bad.\n\nb.", ["a"]),
        ("a.\n\nAct now!\n\nb.", ["a"]),
        ("a.\n\nChapter four was long and\nb.", ["a"]),
        (f"a.\n\nChapter 4 {'x' * 60}\n\nb.", ["a"]),
        ("a.\n\nPart Two: Rain\n\nb.", ["a", "Part Two: Rain"]),
        ("BOOK IV\n\nb.", ["BOOK IV"]),
        ("Chapter twenty-one\n\nb.", ["Chapter twenty-one"]),
        ("CHAPTER I.\nDown the Hole\n\nb.", ["CHAPTER I."]),
        ("Chapter 1\nChapter 2\n\nb.", ["a"]),
    ],
)
def test_a_heading_of_plain_text_is_beyond_doubt(text: str, titles: list[str]):
    assert read(Path(written("a.txt", text)), Chunking()).titles == titles


@pytest.mark.parametrize(
    "text",
    [
        "[one two](http://x.y) three.\n\n[four](z) five.",
        "[Illustration]\n\nShe left.\n\n[Illustration]\n\nHe came.",
        "[Note] one turn makes no dialogue.",
    ],
)
@pytest.mark.parametrize("suffix", [".md", ".txt"])
def test_a_text_in_brackets_is_no_dialogue(text: str, suffix: str):
    assert not read(Path(written(f"a{suffix}", text)), Chunking()).names


CONTAINER = """
<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="b.opf" media-type="application/oebps-package+xml"/>
</rootfiles></container>
"""
OPF = """
<package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>
<item id="b" href="b.xhtml" media-type="application/xhtml+xml"/>
</manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>
"""


def test_an_e_book_says_each_heading_once():
    page = "<html><body><h1>{0}</h1><p>{1}</p></body></html>"
    with zipfile.ZipFile("book.epub", "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("b.opf", OPF)
        book.writestr("a.xhtml", page.format("First", "one two."))
        book.writestr("b.xhtml", page.format("Second", "three."))
    manuscript = read(Path("book.epub"), Chunking())
    assert manuscript.titles == ["First", "Second"]
    assert [piece.text for piece in manuscript.pieces] == ["First", "one two.", "Second", "three."]
    assert [piece.chapter for piece in manuscript.pieces] == [0, 0, 1, 1]


def test_a_script_is_known_by_its_first_line_or_its_cast():
    path = Path(written("a.txt", SCRIPT))
    pieces = read(path, Chunking(limit=8)).pieces
    assert [(piece.speaker, piece.text, piece.pause) for piece in pieces] == [
        ("Anna", "one two.", 0.0),
        ("Ben", "three.", 0.0),
        ("Ben", "four.", 1.0),
        ("Anna", "five.", 0.0),
    ]
    assert not read(path, Chunking(), script=False).names
    prose = Path(written("b.txt", "He came.\n\n[Illustration]\n\nShe left."))
    assert not read(prose, Chunking()).names


@pytest.mark.parametrize(("name", "text"), [("a.txt", " \n"), ("a.md", "---\n"), ("a.pdf", "one")])
def test_what_cannot_be_read(name: str, text: str):
    with pytest.raises(InputError):
        read(Path(written(name, text)), Chunking())


# -- the shelf ------------------------------------------------------------------------------------


def take(seed: int, seconds: float = 0.5, level: float = 0.2, **changes) -> Take:
    rng = np.random.default_rng(seed)
    pcm = (level * rng.standard_normal(round(seconds * RATE))).clip(-1, 1).astype(np.float32)
    codes = rng.integers(0, 1024, (12, 8)).astype(np.int32)
    return replace(Take(pcm, codes, RATE, "eos", seed, 1, 12), **changes)


def test_a_piece_comes_back_as_it_was_kept(seed: int):
    key, made = f"{seed:064x}", take(seed)
    with Shelf(Path("pieces")) as shelf:
        assert shelf.find(key) is None
        kept = shelf.keep(key, made)
        assert shelf.find(key) == kept
        assert np.abs(shelf.wave(key) - made.pcm).max() <= 0.5 / 32767 + 1e-7
        assert np.array_equal(shelf.codes(key), made.codes)
        with pytest.raises(InputError, match="Another run"):
            Shelf(Path("pieces"))


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_torn_piece_was_never_made(seed: int, cut: int):
    key = f"{seed:064x}"
    with Shelf(Path("pieces")) as shelf:
        shelf.keep(key, take(seed))
        path = Path("pieces") / f"{key}.npz"
        path.write_bytes(path.read_bytes()[:cut])
        assert shelf.find(key) is None
        (Path("pieces") / f".{key}.npz").write_bytes(b"half")
    with Shelf(Path("pieces")) as shelf:
        assert not list(Path("pieces").glob(".*"))
        shelf.remove_if_empty()
    Path("pieces").mkdir(exist_ok=True)
    (Path("pieces") / "thesis.doc").touch()
    with pytest.raises(InputError, match=r"thesis\.doc"):
        Shelf(Path("pieces"))


# -- one sound of many pieces ---------------------------------------------------------------------


def on_shelf(shelf: Shelf, *pieces: tuple[Piece, Take]) -> list[Part]:
    parts = []
    for index, (piece, made) in enumerate(pieces):
        key = f"{index:064x}"
        parts.append(Part(piece, key, shelf.keep(key, made)))
    return parts


def test_every_sample_is_where_the_layout_says(seed: int):
    pieces = [
        (Piece("one"), take(seed)),
        (Piece("two", pause=0.25), take(seed + 1, 0.3)),
        (Piece("mute"), take(seed, 0.0, stop_reason=None)),
        (Piece("three", chapter=1), take(seed + 2, 0.4)),
    ]
    with Shelf(Path("pieces")) as shelf:
        parts = on_shelf(shelf, *pieces)
        layout = arrange(parts, gap_ms=100, tail=0.5)
        bind(Path("a.wav"), layout, shelf, fade_ms=0, loudness=None)
        wave, rate = soundfile.read("a.wav", dtype="float32")
        heard = np.zeros(layout.samples, np.float32)
        for part, start, stop in layout.places:
            heard[start:stop] = shelf.wave(part.key)
    assert rate == RATE
    assert len(wave) == layout.samples
    assert np.abs(wave - heard).max() < 2 / 32767
    starts = [place.start / RATE for place in layout.places]
    assert starts == pytest.approx([0, 0.85, 1.25, 1.35 + CHAPTER])
    assert layout.chapters() == {0: (0, 30_000), 1: (layout.places[3].start, layout.places[3].stop)}
    assert [cue.text for cue in layout.cues] == ["one", "two", "three"]
    times = [(cue.start, cue.end) for cue in layout.cues]
    assert times == [(p.start / RATE, p.stop / RATE) for p in layout.places if p.stop > p.start]


def test_voices_are_brought_to_one_loudness(seed: int):
    quiet, loud = take(seed, 2.0, 0.01), take(seed + 1, 2.0, 0.1)
    whisper = take(seed + 2, 2.0, 0.005)
    pieces = [(Piece("a", "Anna"), quiet), (Piece("b", "Ben"), loud), (Piece("c", "Anna"), whisper)]
    with Shelf(Path("pieces")) as shelf:
        layout = arrange(on_shelf(shelf, *pieces), gap_ms=0)
        bind(Path("a.wav"), layout, shelf, fade_ms=0, loudness=-25.0)
    wave, _ = soundfile.read("a.wav", dtype="float32")
    anna, ben, whispered = (wave[start:stop] for _, start, stop in layout.places)
    assert loudness_of([anna, whispered], RATE) == pytest.approx(-25, abs=0.1)
    assert loudness_of([ben], RATE) == pytest.approx(-25, abs=0.1)
    assert loudness_of([whispered], RATE) < loudness_of([anna], RATE) - 3  # a whisper stays one


def test_a_peak_in_one_piece_holds_the_whole_voice_back(seed: int):
    soft, peak = take(seed, 1.0, 0.05), take(seed + 1, 1.0, 0.05)
    peak.pcm[9000] = 0.9
    pieces = [(Piece("a", "Anna"), soft), (Piece("b", "Anna"), peak), (Piece("c", "Ben"), soft)]
    with Shelf(Path("pieces")) as shelf:
        layout = arrange(on_shelf(shelf, *pieces), gap_ms=0)
        bind(Path("a.wav"), layout, shelf, fade_ms=0, loudness=-14.0)
    wave, _ = soundfile.read("a.wav", dtype="float32")
    one, two, other = (wave[start:stop] for _, start, stop in layout.places)
    assert one.std() / soft.pcm.std() == pytest.approx(two.std() / peak.pcm.std(), rel=1e-3)
    assert np.abs(two).max() < 0.9
    assert other.std() > 1.2 * one.std()


# -- the command ----------------------------------------------------------------------------------


def test_a_book_its_subtitles_and_its_chapters(capsys):
    code = told(written("book.txt", BOOK), "--subtitles", "srt,vtt,json", "--json")
    result = json.loads(capsys.readouterr().out)
    assert code == (3 if result["faults"] else 0)
    assert result["paths"] == ["book.wav"]
    wave, rate = soundfile.read("book.wav")
    assert len(wave) / rate == pytest.approx(result["duration"], abs=0)
    cues = json.loads(Path("book.json").read_text())["segments"]
    assert len(cues) == result["pieces"] == 6
    for cue in cues:
        begin, end = round(cue["start"] * rate), round(cue["end"] * rate)
        assert not np.any(wave[max(0, begin - 100) : begin])
        assert not np.any(wave[end : end + 100])
        assert np.any(wave[begin:end])
    chapters = json.loads(Path("book.chapters.json").read_text())["chapters"]
    assert chapters == result["chapters"]
    assert [chapter["title"] for chapter in chapters] == ["Chapter 1", "Chapter 2"]
    assert chapters[1]["start"] == next(c["start"] for c in cues if c["text"] == "Chapter 2")
    assert Path("book.srt").is_file()
    assert Path("book.vtt").read_text().startswith("WEBVTT")
    assert not Path(".book.pieces").exists()


def test_a_file_per_chapter():
    told(written("book.txt", BOOK), "--output-dir", "out", "--format", "flac")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "01-chapter-1.flac",
        "02-chapter-2.flac",
        "chapters.json",
    ]


def test_a_dialogue_has_a_voice_per_name(capsys, server, monkeypatch):
    asked: list = []

    class Recorder:
        higgs = server.higgs

        def start(self, request, delivery):
            asked.append((request.target_text, request.voice))
            return server.start(request, delivery)

    monkeypatch.setattr("mlx_higgs.server.opening.load_server", lambda *_, **__: Recorder())
    cast = ["--cast", "anna=profile:A girl.", "--voice", "profile:A boy."]
    told(written("talk.txt", SCRIPT), *cast, "-o", "talk.flac", "--loudness", "-23")
    girl, boy = ["profile:A girl."], ["profile:A boy."]
    assert asked[0] == ("one two.", girl)
    assert [voice for _, voice in asked] == [girl, boy, boy, girl]
    assert "Nobody is cast as Ben" in capsys.readouterr().err
    asked.clear()
    cast = ["--cast", "Narrator=profile:A girl.", "--voice", "profile:A boy."]
    told(
        written("two.txt", "one.\n[Anna] two.\n[Narrator] three."),
        *cast,
        "--cast",
        "Anna=profile:X.",
    )
    assert [voice for _, voice in asked] == [girl, ["profile:X."], girl]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cast", "Carl=profile:A man."], "Carl says nothing"),
        (["--cast", "Anna"], "NAME=VOICE"),
        (["--cast", "Anna=profile:A.", "--cast", "anna=profile:B."], "two voices"),
        (["--cast", "Anna=nobody_of_that_name"], "no voice"),
        (["--loudness", "loud"], "LUFS"),
        (["--subtitles", "ass"], "subtitles"),
        (["-o", "talk.aac"], "suffix"),
        (["-o", "there.wav"], "--force"),
        (["--context", "-1"], "context"),
        (["--output-dir", "no/where"], "cannot be made"),
        (["--output-dir", "new", "--format", "xyz"], "--format xyz"),
        (["-o", "no/where.wav"], "The folder no does not exist."),
    ],
)
def test_what_is_refused_is_refused_first(capsys, options: list[str], words: str):
    Path("there.wav").touch()
    assert narrate.main([written("talk.txt", SCRIPT), *options, *QUICK]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "or -" not in told
    assert {path.name for path in Path().iterdir()} == {"talk.txt", "there.wav"}


def test_faults_are_told_and_the_exit_code_says_so(capsys):
    assert narrate.main([written("a.txt", "one two three four five"), "--max-frames", "12"]) == 3
    out, err = capsys.readouterr()
    assert out == "a.wav\n"
    assert "was cut at its longest" in err
    assert Path("a.wav").is_file()


# -- stopped --------------------------------------------------------------------------------------


def stop_after(monkeypatch, pieces: int, error: BaseException) -> Callable[[], int]:
    """From the piece after so many on, none can be kept; tells how many were made."""
    keep, made = Shelf.keep, []

    def kept(self, key: str, take: Take) -> Kept:
        if len(made) == pieces:
            raise error
        made.append(key)
        return keep(self, key, take)

    monkeypatch.setattr(Shelf, "keep", kept)
    return lambda: len(made)


@pytest.mark.parametrize("context", ["0", "1"])
def test_stopped_anywhere_it_goes_on_as_if_nothing_had_been(monkeypatch, context: str):
    options = [written("book.txt", BOOK), "--context", context]
    told(*options, "-o", "whole.wav")
    with monkeypatch.context() as patch:
        stop_after(patch, 3, OSError("no space left"))
        assert narrate.main([*options, *QUICK, "-o", "book.wav"]) == 1
    assert not Path("book.wav").exists()
    made = stop_after(monkeypatch, 100, OSError())
    told(*options, "-o", "book.wav")
    assert made() == 6 - 3
    assert Path("book.wav").read_bytes() == Path("whole.wav").read_bytes()


def test_a_changed_text_is_said_anew_only_where_it_changed(monkeypatch):
    options = ["--context", "0", "--keep-pieces", "-o", "book.wav"]
    told(written("book.txt", BOOK), *options)
    made = stop_after(monkeypatch, 100, OSError())
    told(written("book.txt", BOOK.replace("five", "nine")), *options)
    assert made() == 1
    told(written("book.txt", BOOK.replace("five", "nine")), *options, "--gap-ms", "500")
    assert made() == 1


@pytest.mark.parametrize("place", [["-o", "book.wav"], ["--output-dir", "out"]])
def test_subtitles_asked_for_later_are_made(place: list[str]):
    options = [written("book.txt", BOOK), *place, "--keep-pieces"]
    told(*options)
    sounds = {path: path.stat().st_mtime_ns for path in Path().rglob("*.wav")}
    told(*options, "--subtitles", "srt")
    made = {path: path.read_bytes() for path in Path().rglob("*.srt")}
    assert len(made) == len(sounds)
    next(iter(made)).unlink()
    told(*options, "--subtitles", "srt")
    assert {path: path.read_bytes() for path in made} == made
    assert {path: path.stat().st_mtime_ns for path in sounds} == sounds


def test_only_what_was_made_of_this_text_is_replaced(capsys):
    options = ["--keep-pieces", "-o", "book.wav"]
    told(written("book.txt", BOOK), *options)
    made = Path("book.wav").read_bytes()
    assert narrate.main([written("other.txt", "nine."), *options, *QUICK]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("book.wav").read_bytes() == made
    Path("book.wav").write_bytes(b"mine")
    assert narrate.main(["book.txt", *options, *QUICK]) == 2
    told("book.txt", *options, "--force")
    assert Path("book.wav").read_bytes() == made


def test_killed_before_the_file_is_there_the_old_one_is_not_taken_for_it(monkeypatch):
    Path("book.wav").write_bytes(b"old")
    options = [written("book.txt", BOOK), "--force", "--keep-pieces"]
    replaced = os.replace

    def killed(source, target):
        if Path(target).name == "book.wav":
            raise OSError("killed")
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        assert narrate.main([*options, *QUICK]) == 1
    assert Path("book.wav").read_bytes() == b"old"
    told(*options)
    assert Path("book.wav").read_bytes() != b"old"


def test_a_first_piece_without_sound_is_an_error(monkeypatch, capsys):
    def mute(self):
        return Take(
            np.zeros(0, np.float32), np.zeros((0, 8), np.int32), RATE, None, 1, 3, 0, "mute"
        )

    monkeypatch.setattr("mlx_higgs.takes.Attempts.run", mute)
    assert narrate.main([written("a.txt", "one."), *QUICK]) == GenerationError.exit_code
    assert "mute" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"a.txt"}


def test_killed_in_the_middle_it_loses_nothing():
    """``kill -9``, twice, and then a run to the end: the very bytes of an uninterrupted run."""
    written("book.txt", BOOK)
    command = [sys.executable, "-m", "mlx_higgs.narrate", "book.txt", *QUICK, "--context", "1"]
    shelf, finished = Path(".book.pieces"), 0
    for kill_at in (1, 3):
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list(shelf.glob("[0-9a-f]*.npz"))) < kill_at and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        left = {path: path.stat().st_mtime_ns for path in shelf.glob("[0-9a-f]*.npz")}
        assert len(left) >= max(kill_at, finished)
        finished = len(left)
    done = subprocess.run([*command, "--keep-pieces"], capture_output=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in left.items())
    os.rename("book.wav", "resumed.wav")
    told("book.txt", "--context", "1", "-o", "other.wav")
    assert Path("other.wav").read_bytes() == Path("resumed.wav").read_bytes()
