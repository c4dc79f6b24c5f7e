"""``python -m mlx_higgs.voices``: what is printed, what is returned, and docs/voices.md."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs import HiggsAudioServer, audio, prefix
from mlx_higgs.voices.__main__ import main
from mlx_higgs.voices.folders import BUNDLED
from mlx_higgs.voices.library import VoiceLibrary

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "voices.md").read_text(encoding="utf-8")
WORDS = (BUNDLED / "en_man.txt").read_text("utf-8").strip()
SPOKEN = audio.read_reference(BUNDLED / "en_man.wav")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VoiceLibrary:
    """The user's own folder, in a temporary place, seen from a folder without voices."""
    for home in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(home, str(tmp_path / "home"))
    monkeypatch.setenv("MLX_HIGGS_VOICES", str(tmp_path / "own"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    audio.write("clip.wav", SPOKEN[:-12_000])
    Path("clip.txt").write_text(WORDS)
    return VoiceLibrary()


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_voice_from_the_first_command_to_the_last(library: VoiceLibrary, capsys):
    code, out, err = run(capsys, "add", "me", "clip.wav", "--description", "calm")
    assert (code, out) == (0, f"{library.folder / 'me.wav'}\n")
    assert "faded out" in err
    assert library.get("me").transcript == WORDS
    assert library.get("me").about["description"] == "calm"

    code, out, _ = run(capsys, "list")
    assert [line.split()[0] for line in out.splitlines()] == [
        "en_man",
        "en_man_deep",
        "en_woman",
        "me",
    ]
    listed = json.loads(run(capsys, "list", "--json")[1])
    assert [voice["name"] for voice in listed] == library.names()
    shown = json.loads(run(capsys, "show", "me", "--json")[1])
    assert shown == listed[-1]
    assert "calm" in run(capsys, "show", "me")[1]

    code, out, _ = run(capsys, "check", "me")
    assert code == 0
    assert len(re.findall(r"^me: good ", out, re.MULTILINE)) == 6

    assert run(capsys, "export", "me", "en_man")[1] == "voices.zip\n"
    assert run(capsys, "export", "me")[0] == 2
    assert run(capsys, "remove", "me")[0] == 0
    assert "me" not in library.names()
    assert run(capsys, "import", "voices.zip")[0] == 2  # en_man is there
    assert run(capsys, "import", "voices.zip", "--replace")[0] == 0
    assert library.get("me").about["description"] == "calm"


def test_a_bad_clip_is_told_by_the_exit_code(library: VoiceLibrary, capsys):
    code, out, err = run(capsys, "check", "clip.wav")
    assert code == 1
    assert re.search(r"^clip.wav: bad +ending: ", out, re.MULTILINE)
    assert "clip.wav" in err
    code, out, _ = run(capsys, "check", "en_man", "clip.wav", "--json")
    assert code == 1
    assert [report["verdict"] for report in json.loads(out)] == ["good", "bad"]
    code, out, _ = run(capsys, "check", "en_man", "--text", "Too few words.")
    assert code == 1
    assert "words are missing" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "me", "none.wav"), "none.wav does not exist"),
        (("add", "../me", "clip.wav"), "voice name"),
        (("add", "me", "mute.wav"), "give --text"),
        (("add", "me", "phone.m4a", "--text", "Hi."), "afconvert"),
        (("show", "eve"), "mlx_higgs.voices list"),
        (("check", "eve"), "Known voices: en_man"),
        (("check", "en_man", "en_woman", "--text", "x"), "one at a time"),
        (("remove", "en_man"), "not in"),
        (("export", "eve"), "no voice 'eve'"),
        (("import", "none.zip"), "no archive or folder"),
        (("add", "me", "clip.wav", "--model", "none"), "none"),
    ],
)
def test_what_cannot_be_done_is_one_line(library: VoiceLibrary, capsys, words, message: str):
    audio.write("mute.wav", SPOKEN)
    Path("phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0")
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("mlx_higgs.voices: error: ")


def test_codes_that_are_kept_are_those_the_server_looks_for(
    library: VoiceLibrary, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``add --model`` encodes; no process that speaks in that voice does so again."""
    monkeypatch.setenv("MLX_HIGGS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prefix, "WORTH_A_FILE", 0)
    audio.write("short.wav", SPOKEN[:24_000])
    code, _, err = run(capsys, "add", "me", "short.wav", "--text", WORDS, "--model", "demo")
    assert code == 0
    assert f"kept in {tmp_path / 'cache' / 'voices'}" in err
    server = HiggsAudioServer.from_pretrained("demo")
    expected = server.higgs.codec.encode(audio.read_reference(library.get("me").clip))
    monkeypatch.setattr(type(server.higgs.codec), "encode", lambda *_: pytest.fail("encoded again"))
    voice = server.prepare_reference(library.get("me").clip)
    assert np.array_equal(np.array(voice.codes), np.array(expected))
    assert voice.transcript == WORDS


def test_the_commands_of_the_page_run_in_their_order(library: VoiceLibrary, capsys):
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    audio.write("anna.flac", np.pad(SPOKEN, (24_000, 24_000)))
    Path("prompts").mkdir()
    for suffix in (".wav", ".txt"):
        (Path("prompts") / f"bob{suffix}").write_bytes((BUNDLED / f"en_man{suffix}").read_bytes())
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        python, dash_m, module, *words = shlex.split(line)
        assert (python, dash_m) == ("python", "-m"), f"no test knows how to run: {line}"
        words = [WORDS if word == "Exactly what the clip says." else word for word in words]
        name = module if hasattr(importlib.import_module(module), "main") else f"{module}.__main__"
        assert importlib.import_module(name).main(words) == 0, line
    assert Path("hello.wav").is_file()
    assert {"anna", "bob"} <= set(library.names())
