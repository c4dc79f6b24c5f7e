"""Control tags asked for by name, and presets: from the option to the prompt and the sampler.

The law of the tags: every sentence is told what was asked for, once, unless it says so itself.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import mlx.core as mx
import numpy as np
import pytest

from convert.tiny_v3 import byte_tokenizer, write_v3
from mlx_higgs import HiggsAudioServer
from mlx_higgs.defaults import Defaults
from mlx_higgs.generate import main as generate
from mlx_higgs.models import v2, v3
from mlx_higgs.narrate.__main__ import main as narrate
from mlx_higgs.pieces import Chunking
from mlx_higgs.prompts import tags
from mlx_higgs.prompts.tags import OPENING_TAGS, arrange
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.server import SpeechRequest
from mlx_higgs.server.http.fields import speech_schema
from mlx_higgs.server.http.settings import Settings
from mlx_higgs.server.opening import checker
from mlx_higgs.server.request import CONTROLS
from mlx_higgs.sources import DEMO
from mlx_higgs.text import is_blank
from mlx_higgs.types import InputError, Text

ANGER, AWE = "<|emotion:anger|>", "<|emotion:awe|>"
SLOW = "<|prosody:speed_slow|>"
ANGRY = {"emotion": "anger"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("v3") / "model"
    return write_v3(path, seed=1, codes=256, codec=DEMO / "codec")


@pytest.fixture(scope="module")
def speaker(folder: Path) -> HiggsAudioServer:
    return HiggsAudioServer.from_pretrained(folder, voice_cache=None)


@pytest.fixture
def asked(speaker: HiggsAudioServer, monkeypatch) -> list[str]:
    """The words of every prompt that is built, as a person reads them."""
    build, found, tokenizer = speaker.higgs.prompts.build, [], byte_tokenizer()

    def listen(*arguments, **options):
        prompt = build(*arguments, **options)
        ids = [i for part in prompt if isinstance(part, Text) for i in part.ids]
        found.append(tokenizer.decode(ids, skip_special_tokens=False))
        return prompt

    monkeypatch.setattr(speaker.higgs.prompts, "build", listen)
    return found


# -- where the tags go ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "controls", "arranged"),
    [
        ("Oh. No.", ANGRY, f"{ANGER}Oh. No."),
        ("Oh.", {"speed": "slow", **ANGRY}, f"{SLOW}{ANGER}Oh."),
        ("Oh.", {"speed": " Very-Slow"}, "<|prosody:speed_very_slow|>Oh."),
        (f"{AWE}Oh. No.", ANGRY, f"{AWE}Oh. {ANGER}No."),
        (f"Oh. {AWE}No. So. Then.", ANGRY, f"{ANGER}Oh. {AWE}No. {ANGER}So. Then."),
        (f"Oh.{AWE}No.", ANGRY, f"{ANGER}Oh.{AWE}No."),
        (f"Oh, {ANGER}no. So.", ANGRY, f"{ANGER}Oh, no. {ANGER}So."),
        (f"{SLOW}Oh. No.", ANGRY, f"{ANGER}{SLOW}Oh. No."),
        (f"{AWE}\nOh. No.", ANGRY, f"{AWE}\nOh. {ANGER}No."),
        ("\n Oh.", ANGRY, f"\n {ANGER}Oh."),
        ("<|prosody:pause|> Oh.", ANGRY, f"{ANGER}<|prosody:pause|> Oh."),
        ("Oh <|sfx:cough|> Ahem.", ANGRY, f"{ANGER}Oh <|sfx:cough|>Ahem."),
        ("一。二。", ANGRY, f"{ANGER}一。二。"),
    ],
)
def test_a_sentence_is_told_once_unless_it_says_so_itself(text, controls, arranged):
    assert arrange(text, controls) == arranged
    assert arrange(text, {}) == arrange(text)


def test_every_sentence_is_said_in_what_was_asked_or_written(seed: int):
    """Read as a model would: a tag holds until another one of its control."""
    rng = np.random.default_rng(seed)
    moods = [tag for tag in OPENING_TAGS if tag.startswith("<|emotion:") and tag != ANGER]
    for _ in range(200):
        own = [str(rng.choice(moods)) if rng.random() < 0.4 else "" for _ in range(6)]
        text = " ".join(f"{tag}Word{n}{rng.choice(list('.!?'))}" for n, tag in enumerate(own))
        held, heard = "", []
        for tag, _ in re.findall(r"(<\|.*?\|>)|(Word\d)", arrange(text, ANGRY)):
            held = tag or held
            heard += [] if tag else [held]
        assert heard == [tag or ANGER for tag in own]


def test_unknown_values_are_answered_with_what_there_is():
    with pytest.raises(InputError, match=r"no emotion 'anggry': use one of elation,.*ones: anger"):
        arrange("Oh.", {"emotion": "anggry"})
    with pytest.raises(InputError, match=r"no pitch 'middle': use one of low, high\.$"):
        arrange("Oh.", {"pitch": "middle"})


def test_the_fields_of_a_request_are_the_tags_controls():
    assert set(CONTROLS) == set(tags.CONTROLS)
    properties = speech_schema(Settings())["properties"].keys()
    assert {"pace", "preset", *CONTROLS} <= properties


def test_a_text_of_tags_alone_has_nothing_to_say():
    for text in (ANGER, "<|prosody:pause|> [SPEAKER0] <|emotion:awe|>..."):
        with pytest.raises(InputError, match="nothing to say"):
            SpeechRequest(text)
    for text in (f"One two three.\n\n{ANGER}", "One two three. <|prosody:pause|>"):
        for limit in (5, 10, 20, 40):
            pieces = Chunking("sentence", limit).cut(text)
            assert not any(map(is_blank, pieces))
            assert re.findall("[A-Za-z]+", re.sub(r"<\|.*?\|>", "", " ".join(pieces)))[0] == "One"


# -- through the model ----------------------------------------------------------------------------


def test_an_option_is_the_tag_in_the_text(speaker, asked, seed: int):
    given = {"seed": seed, "max_new_frames": 20}
    by_name = speaker.generate("Oh no.", **ANGRY, speed="slow", **given)
    written = speaker.generate(f"{ANGER}{SLOW}Oh no.", **given)
    assert asked == [f"<|tts|><|text|>{ANGER}{SLOW}Oh no.<|audio|>"] * 2
    assert np.array_equal(by_name.pcm, written.pcm)
    speaker.generate("Oh no.", emotion="", **given)
    assert asked[-1] == "<|tts|><|text|>Oh no.<|audio|>"


def test_every_piece_of_a_long_text_is_told_and_so_is_what_was_said_before(speaker, asked):
    request = SpeechRequest("One two. Three four.", **ANGRY, seed=1, max_new_frames=20)
    speaker.start_long(request, chunking=Chunking("sentence", 12)).run()
    one, two = (f"<|tts|><|text|>{ANGER}{said}<|audio|>" for said in ("One two.", "Three four."))
    assert asked == [one, two]
    said = [("One two.", mx.zeros((3, 8), mx.int32))]
    speaker.start(replace(request, target_text="Three four.", history=said)).close()
    assert asked[-1] == one + two.removeprefix("<|tts|>")


def test_streamed_is_whole_with_controls_and_preset(speaker, seed: int):
    options = {**ANGRY, "pitch": "low", "preset": "reference", "seed": seed, "max_new_frames": 20}
    chunks = [chunk.pcm for chunk in speaker.generate_stream("Oh no.", **options)]
    assert np.array_equal(np.concatenate(chunks), speaker.generate("Oh no.", **options).pcm)


def test_a_model_without_control_tags_says_so(server: HiggsAudioServer):
    with pytest.raises(InputError, match="This model has no control tags: leave emotion, speed"):
        server.generate("one", emotion="anger", speed="slow")
    assert server.higgs.prompts.build("one", controls={}) == server.higgs.prompts.build("one")


# -- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [v2.Model, v3.Model])
def test_a_preset_holds_whatever_the_checkpoint_says_and_options_win(tmp_path: Path, model):
    config = {"temperature": 0.3, "top_k": 7, "do_sample": False}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    defaults = Defaults.from_pretrained(tmp_path, model)
    assert defaults.preset(None) == defaults.sampling != model.SAMPLING
    assert defaults.preset("reference") == model.PRESETS["reference"]
    request = SpeechRequest("one", preset="reference", top_k=5, seed=2)
    drawn = request.sampling(defaults.preset(request.preset))
    assert (drawn.temperature, drawn.top_k, drawn.seed) == (1.0, 5, 2)
    with pytest.raises(InputError, match="no preset 'refernce': use reference"):
        defaults.preset("refernce")
    with pytest.raises(InputError, match="this model has none"):
        Defaults().preset("reference")


def test_the_references_figures():
    assert v2.Model.PRESETS["reference"] == SamplingParams(1.0, 0.95, 50, 7, 2)
    assert v3.Model.PRESETS["reference"] == SamplingParams(1.0, 1.0, 0, 0)


def test_a_preset_reaches_the_sampler(speaker: HiggsAudioServer):
    job = speaker.start(SpeechRequest("Oh.", preset="reference", top_p=0.5, seed=1))
    assert (job.params.temperature, job.params.top_p, job.params.top_k) == (1.0, 0.5, 0)
    job.close()


# -- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--emotion", "anggry"], "Near ones: anger"),
        (["--preset", "best"], "There is no preset 'best': use reference."),
    ],
)
@pytest.mark.parametrize("command", ["generate", "narrate", "batch"])
def test_commands_refuse_before_they_load(
    command, options, complaint, folder: Path, tmp_path: Path, monkeypatch, capsys
):
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["mlx_higgs.generate"], "load_server", load)
    monkeypatch.setattr("mlx_higgs.server.opening.load_server", load)
    Path("book.txt").write_text("One.")
    Path("jobs.jsonl").write_text(json.dumps({"text": "One."}))
    words = {
        "generate": (generate, ["--text", "One."]),
        "narrate": (narrate, ["book.txt"]),
        "batch": (generate, ["--batch", "jobs.jsonl", "--output-dir", "D"]),
    }
    main, arguments = words[command]
    assert main([*arguments, "--model", str(folder), *options]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt", "jobs.jsonl"]


def test_a_bad_line_is_told_and_the_good_ones_are_said(folder: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [
        {"text": "One.", "emotion": "joyful", "output": "bad.wav"},
        {"text": "One.", "speed": "fast", "preset": "reference", "output": "good.wav"},
    ]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--batch", "jobs.jsonl", "--output-dir", "D", "--max-frames", "20", "--seed", "1"]
    assert generate([*arguments, "--model", str(folder)]) == 1
    assert "There is no emotion 'joyful'" in capsys.readouterr().err
    assert Path("D/good.wav").is_file()
    assert not Path("D/bad.wav").exists()


def test_commands_speak_with_controls(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("One.\n\nTwo.")
    options = ["--model", str(folder), "--emotion", "awe", "--preset", "reference"]
    options += ["--max-frames", "20", "--seed", "1"]
    assert generate(["--text", "One.", *options, "-o", "one.wav"]) == 0
    assert narrate(["book.txt", *options, "-o", "book.wav"]) in (0, 3)
    assert Path("one.wav").stat().st_size > 44 < Path("book.wav").stat().st_size


def test_v2_refuses_controls_before_it_is_loaded():
    check = checker(DEMO)
    check(SpeechRequest("one", preset="reference"))
    with pytest.raises(InputError, match="no control tags"):
        check(SpeechRequest("one", pitch="low"))


# -- the server -----------------------------------------------------------------------------------


def test_the_servers_fields(speaker: HiggsAudioServer, tmp_path: Path, asked: list[str]):
    pytest.importorskip("starlette")
    from http_client import error_of, serving

    from mlx_higgs.server.worker import Worker
    from mlx_higgs.voices.library import VoiceLibrary

    worker = Worker(lambda: speaker)
    with serving(worker, VoiceLibrary(tmp_path, others=[])) as client:
        worker.wait()

        def post(**more) -> httpx.Response:
            body = {"input": "Oh.", "seed": 1, "max_new_tokens": 20, "response_format": "wav"}
            return client.post("/v1/audio/speech", json=body | more)

        assert post(emotion="anger", pace="slow", preset="reference").status_code == 200
        assert f"<|text|>{ANGER}{SLOW}Oh.<|audio|>" in asked[-1]
        for wrong, word in (
            ({"emotion": "anggry"}, "Near ones: anger"),
            ({"preset": "best"}, "no preset 'best'"),
            ({"pace": 2}, "pace"),
            ({"speed": 2}, "see pace"),
        ):
            answer = post(**wrong)
            assert answer.status_code == 400
            assert word in error_of(answer)["message"]
