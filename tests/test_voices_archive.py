"""Laws of archives: out and in again is the same voice; what is hostile adds nothing."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs.types import InputError
from mlx_higgs.voices.archive import MAX_DIRECTORY, export_voices, import_voices
from mlx_higgs.voices.folders import BUNDLED, PRESETS
from mlx_higgs.voices.library import VoiceExists, VoiceLibrary

DAMAGED = 300


def clip(seconds: float = 1.0) -> bytes:
    wave = 0.5 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * 8000)) / 8000)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 8000, format="WAV")
    return buffer.getvalue()


CLIP = clip()


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices", others=[])


@pytest.fixture
def target(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "target", others=[])


def zipped(path: Path, files: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_out_and_in_again_is_the_same_voice(
    tmp_path: Path, library: VoiceLibrary, target: VoiceLibrary
):
    library.add("a", CLIP, "Words of a.", about={"description": "calm", "consent": "hers"})
    library.add("b.c", (BUNDLED / "en_man.wav"), "Words of b.")
    path = export_voices(library.all(), tmp_path / "voices.zip")
    assert [voice.name for voice in import_voices(target, path)] == ["a", "b.c"]
    for old, new in zip(library.all(), target.all(), strict=True):
        assert (old.name, old.transcript, old.about) == (new.name, new.transcript, new.about)
        assert old.clip.read_bytes() == new.clip.read_bytes()
    with pytest.raises(VoiceExists):
        import_voices(target, path)
    import_voices(target, path, replace=True)
    assert not list(tmp_path.glob(".*"))


def test_an_archive_is_not_overwritten_unasked(tmp_path: Path, library: VoiceLibrary):
    library.add("a", CLIP, "Words.")
    path = tmp_path / "voices.zip"
    path.write_text("precious")
    with pytest.raises(InputError, match="--force"):
        export_voices(library.all(), path)
    assert path.read_text() == "precious"
    export_voices(library.all(), path, force=True)
    assert zipfile.is_zipfile(path)
    with pytest.raises(InputError, match="cannot be written"):
        export_voices(library.all(), tmp_path / "none" / "voices.zip")


def test_all_or_nothing(tmp_path: Path, target: VoiceLibrary):
    files = {"a.wav": CLIP, "a.txt": "Words.", "b.wav": b"no sound", "b.txt": "Words."}
    with pytest.raises(InputError, match="no WAV"):
        import_voices(target, zipped(tmp_path / "v.zip", files))
    assert target.names() == []
    target.add("b", CLIP, "Mine.")
    files["b.wav"] = CLIP
    with pytest.raises(VoiceExists):
        import_voices(target, zipped(tmp_path / "v.zip", files))
    assert [voice.transcript for voice in target.all()] == ["Mine."]


@pytest.mark.parametrize("packed", [True, False])
def test_folders_and_zips_of_others(tmp_path: Path, target: VoiceLibrary, packed: bool):
    """Boson's pairs, vLLM's presets, and what a file manager adds around them."""
    presets = {"anna": {"transcript": "Anna's.", "audio_file": "one.wav"}}
    files = {
        "en.wav": CLIP,
        "en.txt": "\ufeffEnglish words.\n",
        "alone.wav": CLIP,
        "one.wav": CLIP,
        PRESETS: json.dumps(presets),
        "README.md": "# Voices",
        ".DS_Store": b"\0",
        "bad name.wav": CLIP,
        "bad name.txt": "Words.",
    }
    folder = tmp_path / "voice_prompts"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    if packed:
        inside = {f"voice_prompts/{name}": data for name, data in files.items()}
        inside["__MACOSX/voice_prompts/._en.wav"] = b"\0"
        folder = zipped(tmp_path / "v.zip", {"voice_prompts/": "", **inside})
    found = {voice.name: voice.transcript for voice in import_voices(target, folder)}
    assert found == {"anna": "Anna's.", "en": "English words."}


@pytest.mark.parametrize(
    "name", ["../a.wav", "/a.wav", "x/../../a.wav", "..\\a.wav", "C:\\a.wav", "a\x1b[2J.wav"]
)
def test_names_that_lead_elsewhere(tmp_path: Path, target: VoiceLibrary, name: str):
    files = {"b.wav": CLIP, "b.txt": "Words.", name: CLIP, "a.txt": "Words."}
    with pytest.raises(InputError, match="holds the name"):
        import_voices(target, zipped(tmp_path / "v.zip", files))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.zip"]


def test_bombs_are_not_unpacked(tmp_path: Path, target: VoiceLibrary, monkeypatch):
    bomb = zipped(tmp_path / "v.zip", {"a.wav": bytes(70 << 20), "a.txt": "Words."})
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"a\.wav.*more than"):
        import_voices(target, bomb)
    with pytest.raises(InputError, match=r"a\.txt.*more than"):
        import_voices(target, zipped(bomb, {"a.wav": CLIP, "a.txt": "x" * (1 << 20)}))
    about = {"a.wav": CLIP, "a.txt": "Words.", "a.json": "[" * (10 << 10)}
    with pytest.raises(InputError, match="no JSON"):
        import_voices(target, zipped(bomb, about))
    monkeypatch.setattr("mlx_higgs.voices.archive.MAX_ARCHIVE", 3 * len(CLIP))
    many = {f"{i}{suffix}": data for i in range(9) for suffix, data in PAIR.items()}
    with pytest.raises(InputError, match="more than"):
        import_voices(target, zipped(bomb, many))
    assert target.names() == []


PAIR = {".wav": CLIP, ".txt": "Words."}


def test_a_list_of_files_too_long_to_read(tmp_path: Path, target: VoiceLibrary):
    path = zipped(tmp_path / "v.zip", {"a.wav": CLIP, "a.txt": "Words."})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\5\6") + 12, MAX_DIRECTORY + 1)
    path.write_bytes(data)
    with pytest.raises(InputError, match="too many files"):
        import_voices(target, path)


def test_what_else_is_no_archive_of_voices(tmp_path: Path, target: VoiceLibrary):
    path = tmp_path / "v.zip"
    for source in (path, tmp_path / "nul\0", Path("/dev/zero")):
        with pytest.raises(InputError):
            import_voices(target, source)
    path.write_bytes(CLIP)
    with pytest.raises(InputError, match="no zip"):
        import_voices(target, path)
    for files in ({}, {"a.wav": CLIP}, {"a.txt": "Words."}, {"a.m4a": CLIP, "a.txt": "x"}):
        with pytest.raises(InputError, match="holds no voices"):
            import_voices(target, zipped(path, files))
    with pytest.raises(InputError, match="holds no voices"):
        import_voices(target, tmp_path)
    with pytest.raises(InputError, match="rare way"):
        import_voices(target, zipped(path, {"a.wav": CLIP, "a.txt": "x"}, zipfile.ZIP_LZMA))
    with pytest.raises(InputError, match="twice"):
        import_voices(target, zipped(path, {"x/a.wav": CLIP, "a.wav": CLIP, "a.txt": "x"}))


def test_damaged_archives_add_what_is_whole_or_nothing(
    tmp_path: Path, target: VoiceLibrary, seed: int
):
    rng = random.Random(seed)
    presets = json.dumps({"p": {"transcript": "Words.", "audio_file": "a.wav"}})
    files = {"a.wav": CLIP, "a.txt": "Words.", "a.json": '{"created": "now"}', PRESETS: presets}
    whole = {
        method: zipped(tmp_path / "v.zip", files, method).read_bytes()
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    }
    refused = 0
    for _ in range(DAMAGED):
        data = bytearray(rng.choice(list(whole.values())))
        for _ in range(rng.choice([1, 2, 8])):
            place = rng.choice([rng.randrange(len(data)), len(data) - 1 - rng.randrange(300)])
            kind = rng.randrange(3)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                data[place : place + 4] = b"\xff" * 4
            else:
                del data[place : place + rng.randrange(1, 30)]
        (tmp_path / "v.zip").write_bytes(data)
        try:
            added = import_voices(target, tmp_path / "v.zip", replace=True)
        except InputError:
            refused += 1
            continue
        assert {voice.name for voice in added} <= set(target.names())
    assert refused > 0
    assert {path.name for path in tmp_path.iterdir()} <= {"v.zip", "target"}
