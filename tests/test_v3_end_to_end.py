"""Higgs v3 through every command and the server, on a tiny checkpoint as v3 is published.

The laws of its parts are in test_models_v3.py, test_prompts_v3.py, test_controls.py and
test_v3_peers_defects.py; here they are asked of the whole.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from brief_v3 import write_brief_v3
from tiny_training import Codec

from convert.tiny_v3 import byte_tokenizer, config, write_v3
from mlx_higgs import HiggsAudioServer, audio
from mlx_higgs.codec.checkpoint import BUNDLED
from mlx_higgs.convert import main as convert
from mlx_higgs.delay import DelayPattern, codes_from_rows
from mlx_higgs.evaluate.__main__ import main as evaluate
from mlx_higgs.fuse import main as fuse
from mlx_higgs.generate import main as generate
from mlx_higgs.loading import build_model, load_model
from mlx_higgs.models import v2, v3
from mlx_higgs.narrate.__main__ import main as narrate
from mlx_higgs.pieces import Chunking
from mlx_higgs.prompts.tags import TAGS
from mlx_higgs.quantization import Plan, quantizable, quantize_module
from mlx_higgs.saving import save_weights
from mlx_higgs.server import SpeechRequest
from mlx_higgs.sources import DEMO
from mlx_higgs.train.__main__ import main as train
from mlx_higgs.train.data.codes import CodesCache, codec_fingerprint
from mlx_higgs.train.data.conversation import Clip
from mlx_higgs.types import Audio, InputError, Text
from mlx_higgs.weights import read_header

ROOT = Path(__file__).parent.parent
CODES = 256  # the demo codec's
NAMES = json.loads((Path(__file__).parent / "golden" / "v3_4b_names.json").read_text())["published"]
SHORT = ["--max-frames", "12", "--seed", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All widths divide by 64, the usual group of quantised weights."""
    path = tmp_path_factory.mktemp("v3") / "model"
    widths = {"hidden_size": 64, "intermediate_size": 128}
    return write_v3(path, seed=1, codes=CODES, codec=DEMO / "codec", **widths)


@pytest.fixture(scope="module")
def higgs(folder: Path) -> HiggsAudioServer:
    return HiggsAudioServer.from_pretrained(folder, voice_cache=None)


@pytest.fixture
def work(tmp_path: Path, monkeypatch) -> Path:
    """An empty current folder, with a clip that nobody wrote down."""
    monkeypatch.chdir(tmp_path)
    for home in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(home, str(tmp_path / home.lower()))
    monkeypatch.delenv("MLX_HIGGS_VOICES", raising=False)
    clip(tmp_path / "clip.wav")
    return tmp_path


def clip(path: Path, seed: int = 0, seconds: float = 1.2) -> Path:
    noise = np.random.default_rng(seed).normal(size=round(24_000 * seconds))
    audio.write(path, (0.1 * noise).astype(np.float32), 24_000)
    return path


def spelled(prompt) -> str:
    """A prompt as a person reads it, without its clips."""
    ids = [i for part in prompt if isinstance(part, Text) for i in part.ids]
    return byte_tokenizer().decode(ids, skip_special_tokens=False)


def clips(prompt) -> list:
    return [part.codes.tolist() for part in prompt if isinstance(part, Audio)]


# -- how speech ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["strict", "sglang"])
def test_every_eoc_from_8_to_200_gives_7_rows_more_and_as_many_frames(seed: int, machine: str):
    """A stream for each row at which it may come; with sampled markers before it."""
    ends = np.arange(8, 201)
    pattern = DelayPattern(8, 1024, 1025, machine=machine)
    rng, state = np.random.default_rng(seed), pattern.start(len(ends))
    made, lengths = [], np.zeros(len(ends), int)
    while not lengths.all():
        fresh = rng.integers(0, 1024, (len(ends), 8))
        fresh[ends == len(made), 0] = 1025
        if machine == "sglang" and len(made) < 8:  # these do not count there
            fresh[rng.random(fresh.shape) < 0.2] = 1025
        rows, state = pattern.advance(mx.array(fresh), state)
        made.append(np.array(rows))
        lengths[np.array(state.done) & (lengths == 0)] = len(made)
        assert len(made) < 300
    assert np.array_equal(lengths, ends + 7)
    for stream, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        codes = codes_from_rows(np.stack(made)[:length, stream], pattern)
        assert len(codes) == end
        assert 0 <= codes.min() <= codes.max() < 1024


@pytest.fixture
def brief(higgs: HiggsAudioServer, monkeypatch) -> None:
    """An EOC as soon as it may come, at row 8."""
    model = higgs.higgs.model
    score, likely = type(model).audio_logits, mx.where(mx.arange(CODES + 2) == CODES + 1, 1e4, 0.0)
    monkeypatch.setattr(model, "audio_logits", lambda h: score(model, h) + likely, raising=False)


@pytest.mark.usefixtures("brief")
def test_an_eoc_at_row_8_is_heard_as_8_frames(higgs, seed: int):
    """Through request, loop and codec: no marker among the codes, 960 samples a frame."""
    speech = higgs.generate("Hello", seed=seed, max_new_frames=60)
    assert speech.stop_reason == "eos"
    assert (speech.num_frames_raw, speech.num_frames_aligned) == (15, 8)
    assert len(speech.pcm) == 960 * 8
    assert speech.codes.max() < CODES


# -- voices ---------------------------------------------------------------------------------------


def test_a_request_s_clips_come_with_their_words_or_without(higgs, work: Path):
    """In their order, each with the codes of its own clip."""
    other = clip(work / "other.wav", seed=1)

    def prompt(**voice) -> list:
        job = higgs.start(SpeechRequest("Hi", **voice))
        job.close()
        return job.prompt

    text = "<|text|>Hi<|audio|>"
    without = prompt(reference_audio_path="clip.wav", reference_text="")
    with_words = prompt(reference_audio_path="clip.wav", reference_text="Me.")
    both = prompt(reference_audio_path=["clip.wav", other], reference_text=["Me.", ""])
    assert spelled(without) == f"<|tts|><|ref_audio|>{text}"
    assert spelled(with_words) == f"<|tts|><|ref_text|>Me.<|ref_audio|>{text}"
    assert spelled(both) == f"<|tts|><|ref_text|>Me.<|ref_audio|><|ref_audio|>{text}"
    assert clips(without) == clips(with_words) == clips(both)[:1]
    assert len(clips(both)) == 2
    assert clips(both)[0] != clips(both)[1]


def test_a_prepared_clip_may_have_no_words(higgs, work: Path):
    try:
        assert higgs.prepare_reference("clip.wav", "").transcript == ""
    finally:
        higgs.clear_reference()
    with pytest.raises(InputError, match=r"no transcript.*--ref-text \"\""):
        higgs.prepare_reference("clip.wav")


def test_a_model_that_needs_the_words_says_so(server, work: Path, monkeypatch):
    """Before the clip is encoded."""
    demo = server.higgs
    monkeypatch.setitem(vars(demo), "defaults", replace(demo.defaults, clones=True))
    for ask in (
        lambda: server.start(SpeechRequest("one", None, reference_text=None)).close(),
        lambda: server.start(SpeechRequest("one", "clip.wav", "words")).close(),
    ):
        ask()
    with pytest.raises(InputError, match="no transcript"):
        server.start(SpeechRequest("one", "clip.wav", ""))
    with pytest.raises(InputError, match="no transcript"):
        server.prepare_reference("clip.wav", "")


def test_the_command_clones_with_and_without_words(folder: Path, work: Path, capsys):
    said = ["--model", str(folder), "--text", "Hello.", "--ref-audio", "clip.wav", *SHORT]
    assert generate([*said, "-o", "none.wav"]) == 2
    assert '--ref-text ""' in capsys.readouterr().err
    for words, name in (("", "without.wav"), ("Me.", "with.wav")):
        assert generate([*said, "--ref-text", words, "-o", name]) == 0
    assert Path("without.wav").read_bytes() != Path("with.wav").read_bytes()
    assert not Path("none.wav").exists()


# -- long texts, streams, batches -----------------------------------------------------------------


@pytest.mark.usefixtures("brief")
def test_a_piece_is_told_what_was_said_before(higgs, seed: int, monkeypatch):
    """Its words and exactly its codes, after the reference."""
    prompts, build = [], higgs.higgs.prompts.build
    monkeypatch.setattr(
        higgs.higgs.prompts, "build", lambda *a, **k: prompts.append(build(*a, **k)) or prompts[-1]
    )
    request = SpeechRequest("One two. Three four.", seed=seed, max_new_frames=20)
    waves = {}
    for context in (0, 1):
        job = higgs.start_long(request, chunking=Chunking("sentence", 12, context, retries=0))
        waves[context] = [chunk.pcm for chunk in job]
        assert [piece.text for piece in job.said] == ["One two.", "Three four."]
    told = prompts[-1]
    assert spelled(told) == "<|tts|><|text|>One two.<|audio|><|text|>Three four.<|audio|>"
    assert spelled(prompts[1]) == "<|tts|><|text|>Three four.<|audio|>"
    alone = higgs.generate("One two.", seed=seed, max_new_frames=20)
    assert clips(told) == [alone.codes.tolist()]
    first = len(alone.pcm)
    zero, one = (np.concatenate(waves[context]) for context in (0, 1))
    assert np.array_equal(zero[: first - 960], one[: first - 960])  # up to the fade of the joint
    assert not np.array_equal(zero[first:], one[first:])
    again = higgs.start_long(request, chunking=Chunking("sentence", 12, 1, retries=0)).run()
    assert np.array_equal(again.pcm, one)


def test_what_is_streamed_to_standard_output_is_the_whole(folder: Path, work: Path, capfdbinary):
    said = ["--model", str(folder), "--text", "Good day.", "--no-guards", "-o", "-"]
    written = []
    for more in ([], ["--stream"]):
        assert generate([*said, *more, "--max-frames", "24", "--seed", "5"]) == 0
        written.append(capfdbinary.readouterr().out)
    whole, stream = (np.frombuffer(data[44:], "<i2") for data in written)
    assert len(whole) > 960 * 7
    assert np.array_equal(whole, stream)


def test_jobs_sound_the_same_in_any_company(folder: Path, work: Path):
    clip(work / "other.wav", seed=2)
    lines = [
        {"text": "One."},
        {"text": "<|emotion:awe|>Two.", "ref_audio": "clip.wav", "ref_text": ""},
        {"text": "Three.", "ref_audio": "other.wav", "ref_text": "Me."},
    ]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for width in ("1", "3"):
        options = ["--model", str(folder), "--output-dir", width, "--max-batch", width, *SHORT]
        assert generate(["--batch", "jobs.jsonl", *options]) == 0
    sounds = [[(Path(w) / f"{n:05}.wav").read_bytes() for n in (1, 2, 3)] for w in ("1", "3")]
    assert sounds[0] == sounds[1]
    assert len(set(sounds[0])) == 3


def test_a_dialogue_and_its_subtitles(folder: Path, work: Path):
    """Tags are heard, not read."""
    Path("talk.txt").write_text("Anna: Good day. <|style:whispering|>Is he here?\n\nBen: He is.\n")
    for name in ("anna", "ben"):
        clip(work / f"{name}.wav", seed=len(name)).with_suffix(".txt").write_text("Me.")
    cast = ["--cast", "Anna=anna.wav", "--cast", "Ben=ben.wav", "--subtitles", "srt"]
    assert narrate(["talk.txt", "--model", str(folder), *cast, "-o", "talk.wav", *SHORT]) in (0, 3)
    shown = Path("talk.srt").read_text()
    assert "Anna: Good day. Is he here?" in " ".join(shown.split())
    assert "<|" not in shown


# -- the server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(higgs: HiggsAudioServer, tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("starlette")
    from http_client import serving

    from mlx_higgs.server.worker import Worker
    from mlx_higgs.voices.library import VoiceLibrary

    worker = Worker(lambda: higgs)
    library = VoiceLibrary(tmp_path_factory.mktemp("voices"))
    with serving(worker, library, model_id=v3.Model.ORIGIN.repos[0]) as client:
        worker.wait()
        yield client


def say(client, **more):
    body = {"input": "Hello.", "seed": 1, "max_new_tokens": 12, "response_format": "wav"}
    return client.post("/v1/audio/speech", json=body | more, timeout=60)


def test_the_server_clones_without_words(served, work: Path):
    """Given, left out or empty; and what the model does not have is refused."""
    data = base64.b64encode(Path("clip.wav").read_bytes()).decode()
    answers = [
        say(served, ref_audio=data, **words) for words in ({}, {"ref_text": ""}, {"ref_text": "A."})
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    sounds = [answer.content for answer in answers]
    assert sounds[0] == sounds[1] != sounds[2]
    for wrong in ({"instructions": "A room."}, {"voice": "profile:male"}):
        answer = say(served, **wrong)
        assert answer.status_code == 400
        assert "Higgs v3" in answer.json()["error"]["message"]


def test_the_server_knows_its_name_and_streams_what_it_says(served):
    listed = served.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [v3.Model.ORIGIN.repos[0]]
    pcm = {"response_format": "pcm", "max_new_tokens": 24}
    whole = say(served, **pcm, stream=False).content
    with served.stream(
        "POST", "/v1/audio/speech", json={"input": "Hello.", "seed": 1, **pcm}, timeout=60
    ) as answer:
        streamed = b"".join(answer.iter_bytes())
    assert whole == streamed
    assert len(whole) > 2 * 960 * 7


# -- stored in other widths -----------------------------------------------------------------------


def test_a_full_size_q8_checkpoint_has_1433_tensors(tmp_path: Path, monkeypatch):
    """Two more for each of 253 modules, by the names it would be written with; nothing is read."""
    published = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    published |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    model = build_model(config(codes=1024, vocab_size=151_936, **published))
    leaves = dict(model.named_modules())
    for path, how in quantizable(model, Plan.parse("8")).items():
        parent, _, name = path.rpartition(".")
        leaves[parent][name] = quantize_module(leaves[path], how)
    written: list[str] = []
    monkeypatch.setattr(mx, "save_safetensors", lambda file, tensors, _: written.extend(tensors))
    bundled = {n: mx.zeros(s) for n, s in NAMES.items() if n.startswith(BUNDLED)}
    save_weights(model, tmp_path, beside=bundled)
    assert len(written) == len(set(written)) == 905 + 528 == 1433
    assert "audio_codebook_embeddings.scales" not in written
    assert mx.get_active_memory() < 1e9


@pytest.mark.parametrize(("bits", "doubted"), [("8", False), ("4", True), ("8/4", False)])
def test_converted_by_the_command_and_spoken(folder, work: Path, capsys, bits: str, doubted: bool):
    assert convert(["--hf-path", str(folder), "--mlx-path", "out", "--q-bits", bits]) == 0
    assert ("is known to be weak" in capsys.readouterr().err) == doubted
    modules = len(quantizable(load_model(folder), Plan.parse("8")))
    before, after = (read_header(f / "model.safetensors") for f in (folder, Path("out")))
    assert len(after) == len(before) + 2 * modules
    card = Path("out/README.md").read_text()
    assert "Higgs Audio v3 Research and Non-Commercial License" in card
    assert "among the weights" in card
    assert generate(["--model", "out", "--text", "Hello.", "-o", "speech.wav", *SHORT]) == 0
    wave, _ = audio.read_reference("speech.wav"), capsys.readouterr()
    assert np.abs(wave).max() > 0
    assert evaluate(["speed", "--model", "out", "--frames", "2", "--rounds", "1"]) == 0


def test_quantised_while_loading_is_doubted_alike(folder: Path, work: Path, capsys):
    said = ["--model", str(folder), "--text", "Hello.", "--force", "-o", "a.wav", *SHORT]
    for bits, doubted in (("4", True), ("8", False)):
        assert generate([*said, "--quantize", bits]) == 0
        assert ("is known to be weak" in capsys.readouterr().err) == doubted


# -- training -------------------------------------------------------------------------------------


@pytest.fixture
def data(folder: Path, work: Path, seed: int) -> Path:
    """Two readings, whose clips are encoded already."""
    (work / "data").mkdir()
    cache = CodesCache(
        work / "data" / ".codes", lambda: Codec(seed, 8, CODES), codec_fingerprint(folder)
    )
    for name in ("one", "two"):
        path = clip(work / "data" / f"{name}.wav", len(name), 0.6)
        path.with_suffix(".txt").write_text("One two three.")
        cache.codes(Clip(path))
    cache.close()
    return work / "data"


def test_trained_spoken_and_fused(folder: Path, data: Path):
    """LoRA and whole weights; what was fused says what its base and the adapter say."""
    model, said = ["--model", str(folder)], ["--text", "Hello.", *SHORT]
    options = ["--data", str(data), "--iters", "2", "--batch-size", "1"]
    for method in ("full", "lora"):
        chosen = ["--fine-tune-type", method, "--adapter-path", method]
        assert train([*model, *options, *chosen]) == 0
        assert generate([*model, "--adapter", method, *said, "-o", f"{method}.wav"]) == 0
    assert fuse([*model, "--adapter", "lora", "--output", "fused"]) == 0
    assert generate(["--model", "fused", *said, "-o", "fused.wav"]) == 0
    assert Path("fused.wav").read_bytes() == Path("lora.wav").read_bytes()
    headers = [read_header(path / "model.safetensors") for path in (folder, Path("fused"))]
    assert headers[0].keys() == headers[1].keys()  # the published names, its codec's among them
    assert "Higgs Audio v3" in Path("fused/README.md").read_text()


# -- where versions are told apart ----------------------------------------------------------------


def test_nothing_but_models_and_prompts_asks_which_version_it_is():
    """A question of the Qwen3 backbone's own gate is none: that is another kind of checkpoint."""
    asks = re.compile(r"\bv[23]\b|\bmodel_type\b|\bMODEL_TYPES\b|\bfamily\(", re.IGNORECASE)
    package = ROOT / "mlx_higgs"
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in ("models", "prompts") or path.stem == "qwen3":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
                question = node.test
            elif isinstance(node, ast.Match):
                question = node.subject
            elif isinstance(node, ast.Compare):
                question = node
            else:
                continue
            assert not asks.search(ast.unparse(question)), f"{path}: {ast.unparse(question)}"


def test_both_hub_names_are_known_and_no_page_has_another():
    assert set(v3.Model.ORIGIN.repos) == {"bosonai/higgs-tts-3-4b", "bosonai/higgs-audio-v3-tts-4b"}
    known = {*v2.Model.ORIGIN.repos, *v3.Model.ORIGIN.repos}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"bosonai/[\w.-]*\w", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


# -- docs/v3.md, whose commands test_readme.py runs -----------------------------------------------

PAGE = (ROOT / "docs" / "v3.md").read_text(encoding="utf-8")


def test_the_page_lists_every_tag_and_no_other():
    table = PAGE.split("There are 43")[1].split("Every other control token")[0]
    found = {
        tag.replace("NAME", name)
        for tag, names in re.findall(r"`(<\\\|\w+:NAME\\\|>)` with (.*) \|", table)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert {tag.replace("\\|", "|") for tag in found} == set(TAGS)


def test_the_pages_python_runs(tmp_path: Path):
    folder = write_brief_v3(tmp_path / "v3", seed=1)
    (snippet,) = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    ours = snippet.replace(v3.Model.ORIGIN.repos[0], str(folder))
    assert ours != snippet
    shown = subprocess.run(
        [sys.executable, "-c", ours], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert shown[-1] == str(["It rained.", "We stayed at home."])
    assert len(shown) > 2
