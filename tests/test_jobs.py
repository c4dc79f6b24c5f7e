"""``generate --batch``: a stop loses at most what is under way, and no file that is not ours.

Most laws are about files and need no model: a stand-in answers each request with a tone.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mlx_higgs import generate
from mlx_higgs import ledger as ledgers
from mlx_higgs.defaults import Defaults
from mlx_higgs.generate import build_parser, build_request, main
from mlx_higgs.joblines import FIELDS, NAME, JobFile
from mlx_higgs.ledger import RESULTS, UNFINISHED, Ledger
from mlx_higgs.server import SpeechRequest
from mlx_higgs.types import GenerationError, HiggsError, InputError, Speech

ROOT = Path(__file__).parent.parent
BATCH = ["--batch", "jobs.jsonl", "--output-dir", "D"]
WORDS = ("one", "two", "three four", "five", "six", "seven eight", "nine")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class StandIn:
    """Answers ``max_batch`` requests at a time, the last of them first, each with its own tone."""

    def __init__(self):
        self.higgs = SimpleNamespace(defaults=Defaults())
        self.requests: list[SpeechRequest] = []
        self.waiting = 0  # most requests taken and not answered

    def generate_batch(
        self, requests: Iterable[SpeechRequest], *, max_batch: int = 8
    ) -> Iterator[tuple[int, Speech | HiggsError]]:
        under_way: list[tuple[int, SpeechRequest]] = []
        for item in enumerate(requests):
            self.requests.append(item[1])
            under_way.append(item)
            self.waiting = max(self.waiting, len(under_way))
            if len(under_way) == max_batch:
                yield from self._answers(under_way)
        yield from self._answers(under_way)

    def _answers(self, under_way: list) -> Iterator[tuple[int, Speech | HiggsError]]:
        while under_way:
            place, request = under_way.pop()
            yield place, self.answer(request)

    def answer(self, request: SpeechRequest) -> Speech | HiggsError:
        assert request.seed is not None
        rng = np.random.default_rng([request.seed, *request.target_text.encode()])
        pcm = rng.uniform(-0.5, 0.5, 960 * len(request.target_text)).astype(np.float32)
        frames = len(request.target_text)
        return Speech(pcm, 24_000, frames + 8, frames, "eos", request.seed, 0.01)


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    server = StandIn()
    monkeypatch.setattr(generate, "load_server", lambda *_, **__: server)
    return server


def write(*records: object, path: str = "jobs.jsonl") -> list:
    """A line for each: JSON of an object, text as it is."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    Path(path).write_text("".join(f"{line}\n" for line in lines))
    return list(records)


def many(count: int = 7) -> list[dict]:
    return write(*({"id": f"job-{i}", "text": WORDS[i % len(WORDS)]} for i in range(count)))


def results(folder: str = "D") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / RESULTS).read_text().splitlines()]


def contents(folder: str = "D") -> dict[str, bytes]:
    """Every file but the results, which hold times."""
    found = {p.name: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    assert found.pop(RESULTS)
    return found


def clip(name: str, loudness: float = 0.3, words: str = "one") -> None:
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    soundfile.write(name, np.full(8000, loudness), 8000)
    Path(name).with_suffix(".txt").write_text(words)


# -- what comes out -----------------------------------------------------------------------------


def test_a_file_and_an_entry_for_each_line(stand_in: StandIn, capsys):
    write(
        {"text": "one", "seed": 3}, "", {"input": "two", "id": 17}, {"text": "x", "output": "e.ogg"}
    )
    assert main(BATCH) == 0
    out, err = capsys.readouterr()
    assert set(out.splitlines()) == {"D/00001.wav", "D/17.wav", "D/e.ogg"}
    assert "3 of 3" in err
    assert "s made, real-time factor" in err
    assert set(contents()) == {"00001.wav", "17.wav", "e.ogg"}
    assert soundfile.info("D/e.ogg").format == "OGG"
    by_line = {entry["line"]: entry for entry in results()}
    assert [by_line[n]["id"] for n in (1, 3, 4)] == ["00001", "17", "e"]
    assert by_line[1]["seed"] == 3
    assert all(e["stop_reason"] == "eos" and e["seconds"] == 0.01 for e in by_line.values())
    for entry in by_line.values():
        frames = soundfile.info(f"D/{entry['output']}").frames
        assert entry["duration"] == frames / 24_000 or entry["output"] == "e.ogg"


def test_each_line_is_what_one_run_with_its_seed_gives(server, monkeypatch):
    monkeypatch.setattr(generate, "load_server", lambda *_, **__: server)
    write({"text": "one"}, {"text": "two", "seed": 3, "max_frames": 30}, {"text": "six"})
    assert main([*BATCH, "--seed", "5"]) == 0
    for entry in results():
        options = {"max_new_frames": 30} if entry["line"] == 2 else {}
        text = {1: "one", 2: "two", 3: "six"}[entry["line"]]
        single = server.generate(text, seed=entry["seed"], **options)
        wave, _ = soundfile.read(f"D/{entry['output']}")
        assert wave.shape == single.pcm.shape
        assert np.abs(wave - np.clip(single.pcm, -1, 1)).max() < 1e-3  # 16 bits; whose rows differ
        assert (entry["duration"], entry["stop_reason"]) == (single.duration, single.stop_reason)


def test_json_prints_the_entries(stand_in: StandIn, capsys):
    many(3)
    assert main([*BATCH, "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results()


def test_standard_input(stand_in: StandIn, monkeypatch):
    data = io.BytesIO(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}')  # no newline at the end
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    assert main(["--batch", "-", "--output-dir", "D"]) == 0
    assert set(contents()) == {"00001.wav", "00002.wav"}


def test_requests_are_taken_when_there_is_room(stand_in: StandIn):
    many(40)
    assert main([*BATCH, "--max-batch", "4"]) == 0
    assert stand_in.waiting == 4
    assert len(contents()) == 40


def test_a_long_file_takes_little_memory_a_line():
    import tracemalloc

    lines = 5_000
    write(*({"text": f"sentence number {i}, of some length"} for i in range(lines)))
    arguments = build_parser().parse_args(BATCH)
    size = Path("jobs.jsonl").stat().st_size / lines
    next(iter(JobFile("jobs.jsonl", arguments, build_request).read(pytest.fail)))  # imports
    tracemalloc.start()
    file = JobFile("jobs.jsonl", arguments, build_request)
    kept = list(file.read(pytest.fail))
    spent = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    assert spent < 1200 + size  # measured 820 alone; less after tests that share its dicts' keys


# -- the command's options and the line's ----------------------------------------------------------


def test_every_option_of_a_request_is_a_field():
    class Asked:
        def __getattr__(self, name: str):
            seen.add(name)
            return getattr(arguments, name)

    seen, arguments = set(), build_parser().parse_args([])
    build_request(Asked(), "one")
    assert seen == {name for name, _ in FIELDS.values()} - {"id", "text", "output"}


def test_options_are_defaults_of_every_line(stand_in: StandIn):
    write(
        {"text": "one"},
        {"text": "two", "top_p": 0.5, "scene": "", "no_guards": True, "top-k": None},
    )
    assert main([*BATCH, "--top-p", "0.9", "--top-k", "7", "--scene", "A hall."]) == 0
    one, two = stand_in.requests
    assert (one.top_p, one.top_k, one.scene, one.guards) == (0.9, 7, "A hall.", True)
    assert (two.top_p, two.top_k, two.scene, two.guards) == (0.5, 7, "", False)


def test_a_line_with_a_voice_takes_none_of_the_commands(stand_in: StandIn):
    clip("here.wav")
    clip("sub/there.wav")
    write(
        {"text": "one"},
        {"text": "two", "ref_audio": "there.wav"},
        {"text": "three", "voice": "profile:calm"},
        {"text": "four", "ref_audio": ["there.wav", "there.wav"], "ref_text": ["x", "y"]},
        path="sub/jobs.jsonl",
    )
    command = ["--batch", "sub/jobs.jsonl", "--output-dir", "D", "--ref-audio", "here.wav"]
    assert main([*command, "--ref-text", "other words"]) == 0
    by_text = {request.target_text: request for request in stand_in.requests}
    voices = {t: (r.reference_audio_path, r.reference_text, r.voice) for t, r in by_text.items()}
    assert voices == {
        "one": (["here.wav"], ["other words"], None),
        "two": (["sub/there.wav"], None, None),
        "three": (None, None, "profile:calm"),
        "four": (["sub/there.wav"] * 2, ["x", "y"], None),
    }


def test_seeds_follow_the_line_not_its_place(stand_in: StandIn, seed: int):
    lines = [{"text": word} for word in WORDS] + [{"text": "one", "id": "again"}]
    write(*lines)
    assert main([*BATCH, "--seed", str(seed)]) == 0
    first = {(lines[e["line"] - 1]["text"], e["id"] == "again"): e["seed"] for e in results()}
    assert len(set(first.values())) == len(lines)
    random.Random(seed).shuffle(lines)
    write(*lines)
    assert main([*BATCH[:3], "E", "--seed", str(seed)]) == 0
    again = {(lines[e["line"] - 1]["text"], e["id"] == "again"): e["seed"] for e in results("E")}
    assert again == first
    assert main([*BATCH[:3], "F", "--seed", str(seed + 1)]) == 0
    assert not {e["seed"] for e in results("F")} & set(first.values())


def test_a_drawn_seed_is_recorded_and_does_not_change_a_line(stand_in: StandIn):
    many(4)
    assert main(BATCH) == 0
    assert len({entry["seed"] for entry in results()}) == 4
    before = contents()
    assert main(BATCH) == 0
    assert (contents(), len(results())) == (before, 4)


# -- bad lines ------------------------------------------------------------------------------------

BAD = {
    "no JSON": ("{text: one}", "not JSON"),
    "cut": ('{"text": "on', "not JSON"),
    "no object": ('["one"]', "not a JSON object but ['one']"),
    "too deep": ("[" * 100_000, "not JSON"),
    "no text": ({"id": "x"}, "There is no text"),
    "null text": ({"text": None}, "There is no text"),
    "blank text": ({"text": " ."}, "nothing to say"),
    "text is a number": ({"text": 5}, "text is 5: it must be a text"),
    "two texts": ({"text": "one", "input": "two"}, "gives text twice"),
    "a name twice": ('{"text": "one", "text": "two"}', "gives text twice"),
    "unknown": ({"text": "one", "temprature": 1}, "'temprature': did you mean temperature?"),
    "unlike any": ({"text": "one", "qqq": 1}, "'qqq': known are text, input, id"),
    "another option": ({"text": "one", "model": "x"}, "no field 'model'"),
    "surrogate": ('{"text": "one \\ud800"}', "surrogate"),
    "not a number": ('{"text": "one", "top_p": NaN}', "NaN is not a number"),
    "number as text": ({"text": "one", "top_p": "0.9"}, "top_p is '0.9': it must be a number"),
    "top_p": ({"text": "one", "top_p": 2}, "top_p is 2"),
    "half frames": ({"text": "one", "max_frames": 1.5}, "max_frames is 1.5"),
    "seed": ({"text": "one", "seed": -1}, "seed is -1"),
    "flag": ({"text": "one", "no_guards": 1}, "no_guards is 1: it must be true or false"),
    "fade": ({"text": "one", "fade_in_ms": -5}, "not -5 ms"),
    "machine": ({"text": "one", "machine": "x"}, "machine is 'x'"),
    "voice": ({"text": "one", "voice": "nobody"}, "There is no voice 'nobody'"),
    "no voices": ({"text": "one", "voice": []}, "voice is []"),
    "clip": ({"text": "one", "ref_audio": "no.wav", "ref_text": "x"}, "does not exist"),
    "clip name": ({"text": "one", "ref_audio": "x" * 5000, "ref_text": "x"}, "too long"),
    "clip NUL": ({"text": "one", "ref_audio": "a\0b", "ref_text": "x"}, "does not exist"),
    "words": ({"text": "one", "ref_text": "x"}, "1 reference texts for 0 clips"),
    "suffix": ({"text": "one", "output": "one"}, "no known suffix"),
    "suffix of text": ({"text": "one", "output": "one.txt"}, "no known suffix"),
}
OUTSIDE = (
    *(
        "../x.wav",
        "/x.wav",
        "a/x.wav",
        "a\\x.wav",
        "C:x.wav",
        "..wav",
        ".x.wav",
        "~x.wav",
        "x\0.wav",
    ),
    *("", " .wav", "x .wav", "-x.wav", "\u00e9.wav", "\uff0fx.wav", "x\n.wav", f"{'x' * 97}.wav"),
)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_told_twice_and_loses_no_other(name: str, stand_in: StandIn, capsys):
    line, message = BAD[name]
    write({"text": "one"}, line, {"text": "three"})
    assert main(BATCH) == 1
    err = capsys.readouterr().err.splitlines()
    told = [text for text in err if text.startswith("line 2: ")]
    assert len(told) == 2
    assert told[0] == told[1] == err[0]
    assert message in told[0]
    assert "1 of the lines failed" in err[-1]
    assert set(contents()) == {"00001.wav", "00003.wav"}


@pytest.mark.parametrize("field", ["output", "id"])
def test_no_name_leaves_the_folder(field: str, stand_in: StandIn, capsys):
    names = [name if field == "output" else name.removesuffix(".wav") for name in OUTSIDE]
    bad = [name for name in names if not NAME.fullmatch(name)]
    write({"text": "one"}, *({"text": "one", field: name} for name in bad))
    assert len(bad) > 12
    before = {*Path().iterdir(), Path("D")}
    assert main(BATCH) == 1
    err = capsys.readouterr().err
    assert err.count("it must be up to 96 letters") >= len(bad)
    assert set(Path().iterdir()) == before
    assert set(contents()) == {"00001.wav"}


def test_every_allowed_name_is_one_file_of_the_folder(seed: int):
    draw, letters = random.Random(seed), "aZ0_.-/\\:*\0 \n~é"
    for _ in range(5_000):
        name = "".join(draw.choices(letters, k=draw.randint(0, 8)))
        if NAME.fullmatch(name):
            assert Path(os.path.normpath(Path("D") / name)) == Path("D") / name
            assert not set(name) & set("/\\:*\0 \n~é")


@pytest.mark.parametrize(
    ("first", "second"), [("a.wav", "a.wav"), ("a.wav", "A.WAV"), ("00002.wav", None)]
)
def test_two_lines_with_one_output(first: str, second: str | None, stand_in: StandIn, capsys):
    write(
        {"text": "one", "output": first}, {"text": "two", **({"output": second} if second else {})}
    )
    assert main(BATCH) == 1
    assert "that of line 1 as well" in capsys.readouterr().err
    assert set(contents()) == {first}


def refused(capsys, *arguments: str) -> str:
    """The one line of a command that could not run anything."""
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_nothing_to_run_is_exit_code_2_and_no_folder(stand_in: StandIn, capsys):
    write()
    assert "are empty" in refused(capsys, *BATCH)
    write("", "  ")
    assert "are empty" in refused(capsys, *BATCH)
    write({"txt": "one"}, "x")
    assert "None of the lines in jobs.jsonl can be run (2 refused)" in refused(capsys, *BATCH)
    assert "cannot be read" in refused(capsys, "--batch", "no.jsonl", "--output-dir", "D")
    assert "cannot be read" in refused(capsys, "--batch", ".", "--output-dir", "D")
    write({"text": "one"})
    assert "top_p is 2.0" in refused(capsys, *BATCH, "--top-p", "2")
    assert "seed is -1" in refused(capsys, *BATCH, "--seed", "-1")
    assert "need each other" in refused(capsys, "--batch", "jobs.jsonl")
    assert "need each other" in refused(capsys, "--text", "one", "--output-dir", "D")
    assert "--play" in refused(capsys, *BATCH, "--play")
    assert "--max-batch is 0" in refused(capsys, *BATCH, "--max-batch", "0")
    assert "no folder ./none" in refused(capsys, *BATCH, "--model", "./none")
    assert "holds no config.json" in refused(capsys, *BATCH, "--model", ".")
    assert not Path("D").exists()
    assert not stand_in.requests


def test_a_folder_that_cannot_be_written(stand_in: StandIn, capsys):
    write({"text": "one"})
    Path("D").write_text("a file")
    assert "D cannot be written" in refused(capsys, *BATCH)
    assert "D/E cannot be written" in refused(capsys, *BATCH[:3], "D/E")
    assert not stand_in.requests
    assert Path("D").read_text() == "a file"


def test_a_model_that_cannot_be_loaded_leaves_no_folder(monkeypatch, capsys):
    def broken(*_, **__):
        raise InputError("broken")

    monkeypatch.setattr(generate, "load_server", broken)
    write({"text": "one"})
    assert "broken" in refused(capsys, *BATCH)
    assert not Path("D").exists()
    Path("D").mkdir()
    assert "broken" in refused(capsys, *BATCH)
    assert list(Path("D").iterdir()) == []


# -- resume ---------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(stand_in: StandIn, monkeypatch, capsys):
    many()
    assert main(BATCH) == 0
    before = {path: path.stat() for path in Path("D").iterdir()}
    monkeypatch.setattr(generate, "load_server", pytest.fail)  # not even loaded
    assert main(BATCH) == 0
    assert main([*BATCH, "--force"]) == 0
    assert capsys.readouterr().err.count("7 of 7 done already.") == 2
    assert {path: path.stat().st_mtime_ns for path in Path("D").iterdir()} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }


def test_a_deleted_file_is_made_again(stand_in: StandIn, capsys):
    many()
    assert main([*BATCH, "--seed", "1"]) == 0
    before = contents()
    Path("D/job-3.wav").unlink()
    assert main([*BATCH, "--seed", "1"]) == 0
    assert "6 of 7 done already." in capsys.readouterr().err
    assert contents() == before


CHANGES = {
    "text": lambda line: line | {"text": "nine nine"},
    "option": lambda line: line | {"top_p": 0.5},
    "seed": lambda line: line | {"seed": 2},
    "voice": lambda line: line | {"voice": "profile:calm"},
    "clip": lambda line: clip("c.wav", 0.4) or line,
    "transcript": lambda line: clip("c.wav", words="two") or line,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_line_is_made_again_only_with_force(name: str, stand_in: StandIn, capsys):
    clip("c.wav")
    line = {"text": "one", "id": "a", "seed": 1, "ref_audio": "c.wav"}
    write(line, {"text": "two", "id": "b"})
    assert main(BATCH) == 0
    before = contents()
    write(CHANGES[name](line), {"text": "two", "id": "b"})
    assert main(BATCH) == 1
    err = capsys.readouterr().err
    assert "line 1: D/a.wav exists and is made from something else. Add --force" in err
    assert contents() == before
    stand_in.requests.clear()
    assert main([*BATCH, "--force"]) == 0
    assert [request.target_text for request in stand_in.requests] == [CHANGES[name](line)["text"]]
    assert main(BATCH) == 0


def test_another_model_changes_every_line(stand_in: StandIn, monkeypatch, capsys):
    many(3)
    assert main(BATCH) == 0
    assert main([*BATCH, "--quantize", "8"]) == 2
    assert capsys.readouterr().err.count("made from something else") == 3


def test_files_that_are_not_ours_stay(stand_in: StandIn, capsys):
    many(3)
    Path("D").mkdir()
    Path("D/job-0.wav").write_bytes(b"mine")
    Path("D/job-1.wav").mkdir()
    Path("D/notes.txt").write_text("mine")
    assert main(BATCH) == 1
    err = capsys.readouterr().err
    assert "D/job-0.wav exists and is not ours" in err
    assert "D/job-1.wav is a folder" in err
    assert Path("D/job-0.wav").read_bytes() == b"mine"
    assert main([*BATCH, "--force"]) == 1
    assert Path("D/job-0.wav").read_bytes() != b"mine"
    assert Path("D/notes.txt").read_text() == "mine"


STRANGE = [
    b"my notes without newline",
    b"my notes\n",
    b'{"score": 1}\n{"sco',
    b'{"line": 1, "score": 2}\n',
    b'my notes\n{"line": 1',
]


@pytest.mark.parametrize("data", STRANGE)
def test_results_of_somebody_else_stay(data: bytes, stand_in: StandIn, capsys):
    many(2)
    Path("D").mkdir()
    Path("D", RESULTS).write_bytes(data)
    assert "is not from a batch" in refused(capsys, *BATCH)
    assert not stand_in.requests
    assert [(p.name, p.read_bytes()) for p in Path("D").iterdir()] == [(RESULTS, data)]


def test_what_others_left_in_the_folders_stays(stand_in: StandIn, monkeypatch):
    many(2)
    theirs = {"precious/a.txt": b"mine", "notes.txt": b"mine", "data.json": b'{"mine": 1}'}
    for name, data in theirs.items():
        path = Path("D", UNFINISHED, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert main(BATCH) == 0
    assert {name: Path("D", UNFINISHED, name).read_bytes() for name in theirs} == theirs
    assert len(list(Path("D", UNFINISHED).iterdir())) == len(theirs)
    assert [entry["line"] for entry in results()] == [2, 1]
    Path("E").mkdir()
    Path("E", RESULTS).touch()

    def broken(*_, **__):
        raise InputError("broken")

    monkeypatch.setattr(generate, "load_server", broken)
    assert main([*BATCH[:3], "E"]) == 2
    assert [path.name for path in Path("E").iterdir()] == [RESULTS]


@pytest.mark.parametrize("tail", [b'{"li', b'{"line": 1, "id": "a', b"\0\0\0"])
def test_a_first_entry_cut_off_is_mended(tail: bytes, stand_in: StandIn):
    many(2)
    Path("D").mkdir()
    Path("D", RESULTS).write_bytes(tail)
    assert main(BATCH) == 0
    assert len(results()) == 2


def test_a_line_added_by_hand_is_no_cut_off_entry():
    with Ledger(Path("D")) as ledger:
        kept(ledger, "a.wav", "first")
    with Path("D", RESULTS).open("ab") as file:
        file.write(b"my note")
    with Ledger(Path("D")) as ledger:
        kept(ledger, "b.wav", "first")
    assert Path("D", RESULTS).read_bytes().splitlines()[1] == b"my note"
    with Ledger(Path("D")) as ledger:
        assert ledger.made == {"a.wav": "first", "b.wav": "first"}


def test_an_empty_sound_is_not_done(stand_in: StandIn, capsys):
    many()
    assert main([*BATCH, "--seed", "1"]) == 0
    before = contents()
    Path("D/job-3.wav").write_bytes(b"")
    assert main([*BATCH, "--seed", "1"]) == 0
    assert "6 of 7 done already." in capsys.readouterr().err
    assert contents() == before


def test_everything_is_on_the_disk_before_the_next_step(monkeypatch):
    steps: list[tuple[str, int]] = []
    sync, replace = ledgers.sync, os.replace

    def recorded(path: Path) -> None:
        steps.append((path.name, 0 if path.is_dir() else path.stat().st_size))
        sync(path)

    def moved(source: Path, target: Path) -> None:
        steps.append(("move", 0))
        replace(source, target)

    with Ledger(Path("D")) as ledger:
        kept(ledger, "a.wav", "first")
        before = Path("D", RESULTS).stat().st_size
        monkeypatch.setattr(ledgers, "sync", recorded)
        monkeypatch.setattr(ledgers.os, "replace", lambda a, b: moved(Path(a), Path(b)))
        kept(ledger, "a.wav", "again")
    sound, entry = Path("D/a.wav").stat().st_size, Path("D", RESULTS).stat().st_size
    assert steps[-6:] == [
        ("a.wav", sound),
        ("a.wav.json", entry - before),
        (UNFINISHED, 0),
        ("move", 0),
        ("D", 0),
        (RESULTS, entry),
    ]


def test_one_failure_is_recorded_and_tried_again(stand_in: StandIn, monkeypatch, capsys):
    many(4)
    answer, fails = stand_in.answer, True

    def answers(request):
        broken = fails and request.target_text == WORDS[2]
        return GenerationError("made no sound") if broken else answer(request)

    monkeypatch.setattr(stand_in, "answer", answers)
    assert main([*BATCH, "--seed", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("line 3: made no sound") == 2
    (failed,) = [entry for entry in results() if "error" in entry]
    assert (failed["id"], failed["error"]) == ("job-2", "made no sound")
    assert len(contents()) == 3
    fails = False
    assert main([*BATCH, "--seed", "1"]) == 0
    assert len(contents()) == 4
    assert results()[-1]["seed"] == failed["seed"]


def test_a_replacement_that_failed_is_not_what_the_file_holds(stand_in: StandIn, monkeypatch):
    write({"text": "one", "id": "a"})
    assert main(BATCH) == 0
    before = contents()
    write({"text": "two", "id": "a"})
    with monkeypatch.context() as patch:
        patch.setattr(stand_in, "answer", lambda request: GenerationError("made no sound"))
        assert main([*BATCH, "--force"]) == 1
    assert contents() == before
    assert main(BATCH) == 2
    assert main([*BATCH, "--force"]) == 0
    assert contents() != before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_a_stop_says_how_to_go_on(error: BaseException, stand_in: StandIn, monkeypatch, capsys):
    many()
    answer = stand_in.answer

    def answers(request):
        if len(stand_in.requests) == 6:
            raise error
        return answer(request)

    monkeypatch.setattr(stand_in, "answer", answers)
    command = [*BATCH, "--max-batch", "2", "--seed", "1"]
    assert main(command) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "The same command goes on" in capsys.readouterr().err
    assert len(contents()) == len(results()) == 4
    monkeypatch.setattr(stand_in, "answer", answer)
    assert main(command) == 0
    assert main([*BATCH[:3], "whole", "--seed", "1"]) == 0
    assert contents() == contents("whole")


class Killed(BaseException):
    """Nothing is cleaned up after it."""


def loudness(key: str) -> float:
    return 0.05 * len(key)


def kept(ledger: Ledger, name: str, key: str) -> None:
    wave = np.full(960, loudness(key), np.float32)
    ledger.keep({"line": 1, "output": name, "hash": key}, wave, 24_000)


def drop(ledger: Ledger) -> None:
    """What the system does when a process ends: no more than closing its files."""
    ledger._file.close()


@pytest.mark.parametrize("name", ["b.wav", "c.wav"])
@pytest.mark.parametrize("moment", ["write", "note", "move", "append", "unlink"])
def test_a_kill_at_any_moment_leaves_sound_and_entry_or_neither(
    moment: str, name: str, monkeypatch
):
    replace = os.replace

    def killed(*_args, **_options):
        raise Killed

    def killed_at_the_last(source, target):
        return killed() if Path(target).parent == Path("D") else replace(source, target)

    ledger = Ledger(Path("D"))
    kept(ledger, "a.wav", "first")
    kept(ledger, "b.wav", "first")
    place = {
        "write": ("mlx_higgs.audio.os.chmod", killed),
        "note": ("mlx_higgs.ledger.Path.write_bytes", killed),
        "move": ("mlx_higgs.ledger.os.replace", killed_at_the_last),
        "append": ("mlx_higgs.ledger.Ledger.append", killed),
        "unlink": ("mlx_higgs.ledger.Path.unlink", killed),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*place[moment])
        with pytest.raises(Killed):
            kept(ledger, name, "second one")
    Path("D", UNFINISHED, ".half.wav").write_bytes(b"RIFF")
    drop(ledger)
    made = moment in ("append", "unlink")
    with Ledger(Path("D")) as ledger:
        assert ledger.has("a.wav", "first")
        assert ledger.has(name, "second one") == made
        assert ledger.has("b.wav", "first") == (name == "c.wav" or not made)
    for entry in results():
        latest = [e for e in results() if e["output"] == entry["output"]][-1]
        wave, _ = soundfile.read(f"D/{entry['output']}")
        assert np.abs(wave - loudness(latest["hash"])).max() < 1e-3
    assert len(results()) == 2 + made
    names = {RESULTS, "a.wav", "b.wav", *([name] if made else [])}
    assert {path.name for path in Path("D").iterdir()} == names


def test_a_last_line_cut_anywhere_is_mended():
    with Ledger(Path("D")) as ledger:
        kept(ledger, "a.wav", "first")
        kept(ledger, "b.wav", "first")
    whole = Path("D", RESULTS).read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) + 1):
        Path("D", RESULTS).write_bytes(whole[:end])
        with Ledger(Path("D")) as ledger:
            assert ledger.has("a.wav", "first")
            assert ledger.has("b.wav", "first") == (end >= len(whole) - 1)
        assert Path("D", RESULTS).read_bytes() in (whole[:first], whole)


def test_lines_that_are_no_entries_are_read_past():
    with Ledger(Path("D")) as ledger:
        kept(ledger, "a.wav", "first")
    noise = b'\0\0\xff\n\n[1]\n{"output": 5, "hash": []}\n' + b"[" * 100_000 + b"\n"
    Path("D", RESULTS).write_bytes(noise + Path("D", RESULTS).read_bytes() + noise)
    with Ledger(Path("D")) as ledger:
        assert ledger.made == {"a.wav": "first"}


def test_one_run_at_a_time():
    with Ledger(Path("D")), pytest.raises(InputError, match="Another run is writing to D"):
        Ledger(Path("D"))
    with Ledger(Path("D")):
        pass


def test_kill_9_then_the_same_command_gives_the_same_files(seed: int):
    """With the bundled demo, in processes of their own."""
    write(*({"id": f"n{i}", "text": WORDS[i]} for i in range(5)))
    options = ["--seed", str(seed), "--max-batch", "1", "--max-frames", "25"]
    command = [sys.executable, "-m", "mlx_higgs.generate", *BATCH, *options]
    for _ in range(10):  # on a busy machine it may be done before we are told
        shutil.rmtree("D", ignore_errors=True)
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert first.stdout is not None
        first.stdout.readline()
        time.sleep(random.Random(seed).random() * 0.3)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        made = [path for path in Path("D").iterdir() if path.suffix == ".wav"]
        if len(made) < 5:
            break
    assert 1 <= len(made) < 5
    assert all(soundfile.info(path).frames for path in made)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(made)} of 5 done already." in done.stderr
    assert not Path("D", UNFINISHED).exists()
    assert sorted(entry["id"] for entry in results()) == [f"n{i}" for i in range(5)]
    assert main([*BATCH[:3], "whole", *options]) == 0
    assert contents() == contents("whole")


# -- the page -------------------------------------------------------------------------------------


def test_the_lines_of_the_page_are_accepted(stand_in: StandIn, monkeypatch):
    page = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```jsonl\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    clip("anna.wav")
    Path("jobs.jsonl").write_text(block)
    assert main(BATCH) == 0
    described = {
        name
        for row in re.findall(r"^\| (`.*?) \|", page, re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert described >= FIELDS.keys()
