"""Laws of the library: a voice is there whole or not at all, whoever is killed or writes too."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mlx_higgs.audio import read_reference
from mlx_higgs.types import InputError
from mlx_higgs.voices import UnknownVoice, changes, find_voice
from mlx_higgs.voices import library as library_module
from mlx_higgs.voices.folders import BUNDLED, PRESETS, data_folder, own_folder
from mlx_higgs.voices.library import (
    MAX_ABOUT,
    LibraryFull,
    NewVoice,
    VoiceExists,
    VoiceLibrary,
)

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples" / "voice_prompts" / "en_woman.wav"
NAMES = ("", ".", "..", "../a", "a/b", "a\\b", ".hidden", "a\0", "a\n", "ä", "a b", "x" * 65, "a:b")


def clip(hz: float = 220.0, seconds: float = 1.0) -> bytes:
    """A WAV file; another pitch is another clip."""
    time = np.arange(round(seconds * 8000)) / 8000
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * hz * time), 8000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices", others=[])


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def is_whole(library: VoiceLibrary, name: str) -> bool:
    """Whether clip, words and description are of one and the same change."""
    voice = library.get(name)
    digest = hashlib.sha256(voice.clip.read_bytes()).hexdigest()
    return voice.about["sha256"] == digest and voice.about["words"] == voice.transcript


def put(library: VoiceLibrary, name: str, words: str, hz: float, **options: Any) -> None:
    library.add(name, clip(hz), words, about={"words": words}, **options)


# -- what is kept -------------------------------------------------------------------------------


def test_what_is_added_is_found(library: VoiceLibrary):
    voice = library.add("me", CLIP, "  Some\n words. ", about={"description": "calm"})
    assert library.names() == ["me"]
    assert library.get("me") == voice
    assert library.all() == [voice]
    assert visible(library.folder) == {"me.wav", "me.txt", "me.json"}
    assert voice.transcript == "Some words."
    assert voice.about["description"] == "calm"
    assert voice.about["sha256"] == hashlib.sha256(voice.clip.read_bytes()).hexdigest()
    assert voice.about["source_sha256"] == hashlib.sha256(CLIP.read_bytes()).hexdigest()
    assert voice.about["done"] == []
    reference = library.reference("me")
    assert (reference.path, reference.transcript) == (voice.clip, voice.transcript)
    assert find_voice("me", [library.folder]) == reference


@pytest.mark.parametrize("name", [*NAMES, "config", "CONFIG"])
def test_names_by_an_allow_list(library: VoiceLibrary, tmp_path: Path, name: str):
    with pytest.raises(InputError, match="voice name"):
        library.add(name, clip(), "Words.")
    with pytest.raises(UnknownVoice):
        library.get(name)
    with pytest.raises(UnknownVoice):
        library.remove(name)
    assert not list(tmp_path.iterdir())  # not even the folder


@pytest.mark.parametrize("words", ["", " \n", "...", "a\0b", "bad \ud800", "\x1b[2J", "x" * 2001])
def test_words_that_are_none(library: VoiceLibrary, words: str):
    with pytest.raises(InputError, match="transcript"):
        library.add("me", clip(), words)


@pytest.mark.parametrize("about", [{"a": "x" * MAX_ABOUT}, {"a": {1}}, {"a": float("nan")}])
def test_descriptions_that_are_none(library: VoiceLibrary, about: dict):
    with pytest.raises(InputError, match="description"):
        library.add("me", clip(), "Words.", about=about)
    assert library.names() == []


def test_a_name_is_taken_once(library: VoiceLibrary):
    put(library, "me", "First.", 220)
    for name in ("me", "ME"):
        with pytest.raises(VoiceExists):
            put(library, name, "Second.", 330)
    with pytest.raises(VoiceExists, match="capitals"):  # one file on a Mac
        put(library, "Me", "Second.", 330, replace=True)
    assert library.get("me").transcript == "First."
    put(library, "me", "Second.", 330, replace=True)
    assert is_whole(library, "me")
    assert library.get("me").transcript == "Second."


def test_words_are_those_of_the_clip_whoever_replaces_it(library: VoiceLibrary, monkeypatch):
    """Before its clip is read, after it, and again."""
    said, waves, coming = {"Low.": 220.0, "High.": 880.0}, {}, []
    for words, hz in said.items():
        put(library, "me", words, hz, replace=True)
        waves[words] = library.heard("me").wave

    def replaced_around(path: Path) -> np.ndarray:
        for read in (False, True):
            if coming and coming[-1][1] is read:
                words, _ = coming.pop()
                put(library, "me", words, said[words], replace=True)
            if not read:
                wave = read_reference(path)
        return wave

    monkeypatch.setattr(library_module, "read_reference", replaced_around)
    for plan in ([], [("Low.", False)], [("Low.", True)], [("High.", True), ("Low.", False)]):
        put(library, "me", "High.", 880, replace=True)
        coming[:] = plan
        voice = library.heard("me")
        assert not coming
        assert voice.wave is not None
        assert np.array_equal(voice.wave, waves[voice.transcript])
        before = voice.wave.copy()
        put(library, "me", "Other.", 440, replace=True)
        assert np.array_equal(voice.wave, before)


def test_a_clip_that_cannot_be_read_is_told(library: VoiceLibrary):
    library.folder.mkdir()
    (library.folder / "me.wav").write_bytes(b"not read")
    (library.folder / "me.txt").write_text("Words.")
    with pytest.raises(InputError, match="cannot be read as audio"):
        library.heard("me")


def test_replacing_leaves_no_other_clip_of_that_name(library: VoiceLibrary):
    library.folder.mkdir()
    for suffix in (".flac", ".mp3"):
        (library.folder / f"me{suffix}").write_bytes(b"not read")
    (library.folder / "me.txt").write_text("Old.")
    assert library.get("me").about == {}
    put(library, "me", "New.", 220, replace=True)
    assert visible(library.folder) == {"me.wav", "me.txt", "me.json"}


def test_no_more_voices_than_the_limit(tmp_path: Path):
    library = VoiceLibrary(tmp_path / "voices", others=[BUNDLED], limit=2)
    put(library, "a", "One.", 220)
    put(library, "b", "Two.", 220)
    with pytest.raises(LibraryFull, match="2 are the most"):
        put(library, "c", "Three.", 220)
    put(library, "b", "Other.", 330, replace=True)
    library.remove("a")
    put(library, "c", "Three.", 220)
    with pytest.raises(LibraryFull):
        library.add_all([NewVoice(n, clip(), "Words.") for n in "cd"], replace=True)
    assert set(library.names()) == {"b", "c", "en_man", "en_man_deep", "en_woman"}


def test_removed_is_gone_and_only_ours_can_be(library: VoiceLibrary, tmp_path: Path):
    put(library, "me", "Words.", 220)
    put(library, "you", "Words.", 220)
    library.remove("me")
    assert visible(library.folder) == {"you.wav", "you.txt", "you.json"}
    with pytest.raises(UnknownVoice, match="you"):
        library.remove("me")
    both = VoiceLibrary(library.folder, others=[BUNDLED])
    with pytest.raises(InputError, match="not in"):
        both.remove("en_man")
    assert "en_man" in both.names()


def test_the_own_folder_comes_before_the_others(tmp_path: Path):
    library = VoiceLibrary(tmp_path / "voices", others=[BUNDLED])
    with pytest.raises(VoiceExists):
        put(library, "en_man", "Mine.", 220)
    put(library, "en_man", "Mine.", 220, replace=True)
    assert library.get("en_man").transcript == "Mine."
    assert {v.name: v.transcript for v in library.all()}["en_man"] == "Mine."


def test_where_voices_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MLX_HIGGS_VOICES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert own_folder() == data_folder() == tmp_path / "mlx_higgs" / "voices"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_folder() == tmp_path / ".local" / "share" / "mlx_higgs" / "voices"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert own_folder() == tmp_path / "Library" / "Application Support" / "mlx_higgs" / "voices"
    monkeypatch.setenv("MLX_HIGGS_VOICES", os.pathsep.join(["", str(tmp_path / "a"), "b"]))
    library = VoiceLibrary()
    put(library, "me", "Words.", 220)
    assert library.folder == tmp_path / "a"
    assert find_voice("me").path == tmp_path / "a" / "me.wav"


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "nul\0"):
        with pytest.raises(InputError, match="cannot be written"):
            VoiceLibrary(folder, others=[]).add("me", clip(), "Words.")


# -- presets ------------------------------------------------------------------------------------


def test_presets_of_vllm_are_voices(library: VoiceLibrary):
    library.folder.mkdir()
    (library.folder / "sub").mkdir()
    outside = library.folder.parent / "outside.wav"
    for path in (library.folder / "a.wav", library.folder / "sub" / "b.wav", outside):
        path.write_bytes(clip())
    listed = {
        "anna": {"transcript": "Anna's words.", "audio_file": "a.wav"},
        "bob": {"transcript": "Bob's words.", "audio_file": "sub/b.wav"},
        "out": {"transcript": "Words.", "audio_file": "../outside.wav"},
        "absolute": {"transcript": "Words.", "audio_file": str(outside)},
        "../up": {"transcript": "Words.", "audio_file": "a.wav"},
        "none": {"transcript": "Words.", "audio_file": "none.wav"},
        "odd": {"transcript": 7, "audio_file": "a.wav"},
        "nul": {"transcript": "Words.", "audio_file": "a\0.wav"},
        "list": [],
    }
    (library.folder / PRESETS).write_text(json.dumps(listed))
    assert library.names() == ["anna", "bob"]
    assert library.get("bob").transcript == "Bob's words."
    assert [voice.transcript for voice in library.all()] == ["Anna's words.", "Bob's words."]
    with pytest.raises(InputError, match="delete it there"):
        library.remove("anna")
    with pytest.raises(VoiceExists, match="listed in"):
        put(library, "anna", "Words.", 220, replace=True)
    for broken in (b"", b"[1]", b"\xff", b"[" * 100_000):
        (library.folder / PRESETS).write_bytes(broken)
        assert library.names() == []


# -- kills and neighbours -----------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: from then on, nothing this process tries has an effect."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Every effect on the disk counts; the one of that number does not happen, nor any later.

    Returns: whether it came to that.
    """
    count = 0

    def counted(effect: Callable) -> Callable:
        def run(*args, **options):
            nonlocal count
            count += 1
            if count >= step:
                raise Killed
            return effect(*args, **options)

        return run

    for owner, name in [
        (os, "replace"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "mkdir"),
        (changes, "write_synced"),
        (shutil, "rmtree"),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: count >= step


def change_all(library: VoiceLibrary) -> None:
    """One voice new, one replaced: a single change."""
    news = [NewVoice("new", clip(330), "New.", {"words": "New."})]
    news.append(NewVoice("old", clip(440), "Replaced.", {"words": "Replaced."}))
    library.add_all(news, replace=True)


@pytest.mark.parametrize("act", [change_all, lambda library: library.remove("old")])
def test_killed_at_any_step_it_is_as_before_or_after(tmp_path: Path, act: Callable):
    start = tmp_path / "start"
    put(VoiceLibrary(start, others=[]), "old", "Old.", 220)
    put(VoiceLibrary(start, others=[]), "kept", "Kept.", 220)

    def state(library: VoiceLibrary) -> dict[str, str]:
        assert all(is_whole(library, name) for name in library.names())
        return {voice.name: voice.transcript for voice in library.all()}

    before = state(VoiceLibrary(start, others=[]))
    done = tmp_path / "done"
    shutil.copytree(start, done)
    act(VoiceLibrary(done, others=[]))
    after = state(VoiceLibrary(done, others=[]))
    seen = []
    for step in range(1, 100):
        folder = tmp_path / str(step)
        shutil.copytree(start, folder)
        with pytest.MonkeyPatch.context() as patch:
            reached = killed_at(step, patch)
            with suppress(Killed):
                act(VoiceLibrary(folder, others=[]))
            if not reached():
                break
        found = state(VoiceLibrary(folder, others=[]))
        assert found in (before, after), f"killed at step {step}"
        seen.append(found == after)
        put(VoiceLibrary(folder, others=[]), "next", "Next.", 220)  # the lock is free
        assert len(visible(folder)) == 3 * len(found) + 3
    assert not seen[0]
    assert seen[-1]
    assert seen == sorted(seen)


WRITER = """
import sys
from pathlib import Path
from mlx_higgs.voices.library import VoiceLibrary
library = VoiceLibrary(Path(sys.argv[1]), others=[])
data = Path(sys.argv[2]).read_bytes()
for number in range(10_000):
    library.add(f"v{number % 4}", data, f"Words {number}.", replace=True,
                about={"words": f"Words {number}."})
    print(number, flush=True)
"""


def test_kill_minus_nine_loses_nothing_finished(tmp_path: Path, library: VoiceLibrary):
    (tmp_path / "clip.wav").write_bytes(clip())
    command = [sys.executable, "-c", WRITER, str(library.folder), str(tmp_path / "clip.wav")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 9:
                break
        writer.send_signal(signal.SIGKILL)
        finished = [9, *(int(line) for line in writer.stdout)][-1]
    assert library.names() == ["v0", "v1", "v2", "v3"]
    for name in library.names():
        assert is_whole(library, name)
        number = int(library.get(name).transcript.split()[1].rstrip("."))
        assert number in range(finished - 3, finished + 2)


def test_many_writers_one_at_a_time(library: VoiceLibrary):
    """Each has its own lock file open, as processes do."""
    failures: list[Exception] = []

    def write(worker: int) -> None:
        mine = VoiceLibrary(library.folder, others=[], limit=9)
        for number in range(2):
            put(mine, f"w{worker}-{number}", "Words.", 220)
        try:
            put(mine, "same", f"Of {worker}.", 220 + worker)
        except InputError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(library.names()) == 9
    assert all(is_whole(library, name) for name in library.names())
    assert [type(error) for error in failures] == [VoiceExists] * 3


def test_what_was_given_up_goes_after_an_hour(library: VoiceLibrary):
    put(library, "me", "Words.", 220)
    waiting = library.folder / changes.CHANGES
    young, old, strange = (waiting / name for name in ("young", "old", "strange"))
    for path in (young, old, strange):
        path.mkdir()
        (path / "x.wav").write_bytes(b"half a clip")
    os.utime(old, (0, 0))
    (strange / changes.MANIFEST).write_text(json.dumps({"../../x": [".wav"]}))
    put(library, "you", "Words.", 220)
    assert [path.name for path in waiting.iterdir()] == ["young"]
    assert library.names() == ["me", "you"]
