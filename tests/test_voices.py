"""Laws of the voice folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_higgs.types import InputError
from mlx_higgs.voices import UnknownVoice, find_voice, list_voices, reference
from mlx_higgs.voices.folders import BUNDLED


def make(folder: Path, name: str, words: str | None = "Some words.") -> Path:
    folder.mkdir(exist_ok=True)
    clip = folder / f"{name}.wav"
    clip.write_bytes(b"")
    if words is not None:
        clip.with_suffix(".txt").write_text(words, encoding="utf-8")
    return clip


def test_the_shipped_voices_are_found_from_anywhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"en_woman", "en_man", "en_man_deep"} <= list_voices().keys()
    assert find_voice("en_woman").transcript.startswith("The morning sun")


def test_the_package_holds_the_voices_of_the_examples():
    """A link in a checkout; copies in a wheel."""
    examples = Path(__file__).parent.parent / "examples" / "voice_prompts"
    for path in filter(Path.is_file, examples.iterdir()):
        assert (BUNDLED / path.name).read_bytes() == path.read_bytes()


def test_a_voice_is_a_clip_with_a_transcript(tmp_path: Path):
    clip = make(tmp_path / "a", "me", " Hello there.\n")
    make(tmp_path / "a", "mute", None)
    make(tmp_path / "b", "me")
    assert list_voices([tmp_path / "a", tmp_path / "b", tmp_path / "none"]) == {"me": clip}
    found = find_voice("me", [tmp_path / "a"])
    assert (found.path, found.transcript, found.name) == (clip, "Hello there.", "me")


def test_an_unknown_voice_lists_the_known_ones(tmp_path: Path):
    make(tmp_path, "alice")
    make(tmp_path, "bob")
    for name in ("eve", "../alice", "", "alice/../bob", "/etc/passwd"):
        with pytest.raises(InputError, match="alice, bob"):
            find_voice(name, [tmp_path])
    with pytest.raises(UnknownVoice, match=r"none found.*mlx_higgs\.voices"):
        find_voice("eve", [])


def test_folders_of_the_environment_come_first(tmp_path: Path, monkeypatch):
    clip = make(tmp_path, "en_woman")
    monkeypatch.setenv("MLX_HIGGS_VOICES", str(tmp_path))
    assert list_voices()["en_woman"] == clip


def test_a_transcript_is_given_or_beside_the_clip(tmp_path: Path):
    clip = make(tmp_path, "me", "Beside.")
    assert reference(clip).transcript == "Beside."
    assert reference(clip, " Given. ").transcript == "Given."
    with pytest.raises(InputError, match="no transcript"):
        reference(clip, " ")
    with pytest.raises(InputError, match=r"mute\.txt"):
        reference(make(tmp_path, "mute", None))
    for missing in ("none.wav", "", tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            reference(missing)
    clip.with_suffix(".txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        reference(clip)
