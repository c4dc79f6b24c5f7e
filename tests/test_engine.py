"""Laws of HiggsAudioServer, on the bundled checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from mlx_higgs import HiggsAudioServer, Voice, frames
from mlx_higgs.batch import Batch
from mlx_higgs.server import SpeechRequest
from mlx_higgs.text import frame_cap
from mlx_higgs.types import Audio, GenerationError, InputError

VOICES = Path(__file__).parent.parent / "examples" / "voice_prompts"
SHORT = {"max_new_frames": 30, "seed": 1}


@pytest.fixture(autouse=True)
def forget(server: HiggsAudioServer):
    yield
    server.clear_reference()


@pytest.fixture
def cloner(server: HiggsAudioServer, monkeypatch) -> HiggsAudioServer:
    """The demo as one that clones: its prompts hold the references."""
    return changed(server, monkeypatch, clones=True)


@pytest.fixture
def one_voice(server: HiggsAudioServer, monkeypatch) -> HiggsAudioServer:
    """The demo as one that cannot."""
    return changed(server, monkeypatch, clones=False)


def changed(server: HiggsAudioServer, monkeypatch, **fields) -> HiggsAudioServer:
    defaults = dataclasses.replace(server.higgs.defaults, **fields)
    monkeypatch.setitem(server.higgs.__dict__, "defaults", defaults)
    return server


def clip(folder: Path, name: str = "me", seconds: float = 0.5, words: str | None = "one") -> Path:
    path = folder / f"{name}.wav"
    tone = 0.3 * np.sin(np.arange(round(seconds * 24_000)) / 10)
    soundfile.write(path, tone, 24_000)
    if words:
        path.with_suffix(".txt").write_text(words)
    return path


def clips_of(prompt) -> list[Audio]:
    return [part for part in prompt if isinstance(part, Audio)]


def test_a_result_says_what_happened(server: HiggsAudioServer):
    speech = server.generate("one two", seed=3)
    assert speech.pcm.dtype == np.float32
    assert speech.pcm.ndim == 1
    assert speech.sampling_rate == server.sampling_rate == 24_000
    assert speech.stop_reason == "eos"
    assert len(speech.pcm) == speech.num_frames_aligned * 960
    assert speech.num_frames_raw > speech.num_frames_aligned
    assert speech.codes is not None
    assert speech.codes.shape == (speech.num_frames_aligned, 8)
    assert speech.duration == len(speech.pcm) / 24_000
    assert speech.real_time_factor == speech.seconds / speech.duration
    assert speech.seed == 3


def test_a_seed_repeats_and_none_draws_one(server: HiggsAudioServer):
    first = server.generate("six", seed=5)
    assert np.array_equal(server.generate("six", seed=5).pcm, first.pcm)
    drawn = server.generate("six", max_new_frames=30)
    again = server.generate("six", seed=drawn.seed, max_new_frames=30)
    assert np.array_equal(again.pcm, drawn.pcm)


def test_the_stream_is_the_whole_in_pieces(server: HiggsAudioServer):
    whole = server.generate("four five", seed=2)
    chunks = list(server.generate_stream("four five", seed=2, chunk_ms=200))
    assert len(chunks) > 2
    assert np.array_equal(np.concatenate([c.pcm for c in chunks]), whole.pcm)
    assert server.higgs.codec.decode(mx.array(whole.codes)).tolist() == whole.pcm.tolist()


def test_a_cut_by_the_cap_says_length_and_loses_no_frame(server: HiggsAudioServer):
    speech = server.generate("one two three four", **SHORT)
    assert (speech.stop_reason, speech.num_frames_raw) == ("length", 30)
    assert speech.num_frames_aligned == 30 - 1 - 7
    whole = server.generate("one two three four", seed=1)
    assert speech.codes is not None
    assert whole.codes is not None
    assert np.array_equal(speech.codes, whole.codes[: len(speech.codes)])


def test_fades_are_applied_to_the_result_and_refused_for_streams(server: HiggsAudioServer):
    plain = server.generate("nine", **SHORT).pcm
    faded = server.generate("nine", fade_in_ms=50, fade_out_ms=50, **SHORT).pcm
    assert faded[0] == 0
    assert faded[-1] == 0
    assert np.array_equal(plain[1200:-1200], faded[1200:-1200])
    with pytest.raises(InputError, match="generate_stream"):
        server.generate_stream("nine", fade_in_ms=5)


def prompt_of(server: HiggsAudioServer, **options):
    return server.start(SpeechRequest("one", **options)).prompt


def test_references_come_as_clips_voices_or_names(cloner: HiggsAudioServer, tmp_path: Path):
    path = clip(tmp_path)
    codes = cloner.higgs.codec.encode(soundfile.read(path, dtype="float32")[0])
    voice = Voice(codes, "one")
    ways = (
        {"reference_audio_path": path},
        {"reference_audio_path": str(path), "reference_text": "one"},
        {"reference_audio_path": [path], "reference_text": ["one"]},
        {"voice": voice},
    )
    prompts = [prompt_of(cloner, **way) for way in ways]
    cloner.prepare_reference(path)
    prompts.append(prompt_of(cloner))
    for prompt in prompts:
        assert [c.codes.tolist() for c in clips_of(prompt)] == [codes.tolist()]
        assert [getattr(p, "ids", None) for p in prompt] == [
            getattr(p, "ids", None) for p in prompts[0]
        ]
    cloner.clear_reference()
    assert clips_of(prompt_of(cloner)) == []
    assert len(clips_of(prompt_of(cloner, voice=[voice, voice]))) == 2
    assert not clips_of(prompt_of(cloner, voice=voice, references_in_system=True))[0].spoken


def test_a_clip_is_encoded_once(cloner: HiggsAudioServer, tmp_path: Path, monkeypatch):
    path, calls = clip(tmp_path), []
    encode = cloner.higgs.codec.encode
    monkeypatch.setattr(cloner.higgs.codec, "encode", lambda w: calls.append(1) or encode(w))
    for _ in range(3):
        prompt_of(cloner, reference_audio_path=path)
    clip(tmp_path, seconds=0.6)  # the same name, another sound
    prompt_of(cloner, reference_audio_path=path)
    assert len(calls) == 2


def test_the_scene_is_the_checkpoints_unless_said_otherwise(server: HiggsAudioServer):
    default = prompt_of(server)[0].ids
    assert prompt_of(server, scene=server.higgs.defaults.scene)[0].ids == default
    assert len(prompt_of(server, scene="")[0].ids) < len(default)
    assert prompt_of(server, system="Be brief.")[0].ids != default


def test_the_cap_follows_the_text_when_guarded(server: HiggsAudioServer):
    def cap(**options):
        return server.start(SpeechRequest("one two", **options)).params.max_frames

    assert cap(normalize=False) == frame_cap("one two")
    assert cap(normalize=True) == frame_cap("one two.")
    assert cap(guards=False) == 2048
    assert cap(max_new_frames=77) == 77


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_text": " \n"}, "nothing to say"),
        ({"target_text": "[SPEAKER0]"}, "nothing to say"),
        ({"temperature": -1.0}, "temperature"),
        ({"voice": "nobody"}, "en_man"),
        ({"reference_audio_path": "none.wav", "reference_text": "x"}, "does not exist"),
        ({"reference_text": "x"}, "1 reference texts for 0 clips"),
        ({"max_new_frames": 0}, "max_frames"),
    ],
)
def test_bad_requests_raise_before_any_work(
    server: HiggsAudioServer, options, message, monkeypatch
):
    monkeypatch.setattr(frames.Rows, "__iter__", None)
    with pytest.raises(InputError, match=message):
        server.generate(**{"target_text": "one", **options})


def test_one_generation_of_a_text_that_cannot_fit_is_refused(server: HiggsAudioServer):
    """``generate`` cuts it into pieces instead."""
    with pytest.raises(InputError, match="cannot fit"):
        server.start(SpeechRequest("word " * 20_000))


def test_a_reference_without_transcript_raises(server: HiggsAudioServer, tmp_path: Path):
    with pytest.raises(InputError, match="no transcript"):
        server.generate("one", reference_audio_path=clip(tmp_path, words=None))


def test_a_checkpoint_that_cannot_clone_leaves_the_voice_out(
    one_voice: HiggsAudioServer, tmp_path: Path
):
    plain = one_voice.generate("seven", seed=4)
    with pytest.warns(UserWarning, match="cannot clone"):
        cloned = one_voice.generate("seven", seed=4, reference_audio_path=clip(tmp_path))
    assert np.array_equal(cloned.pcm, plain.pcm)
    with pytest.raises(InputError, match="lasts"):
        one_voice.generate("seven", reference_audio_path=clip(tmp_path, "short", 0.1))


def test_the_signature_names_every_option():
    for method in (HiggsAudioServer.generate, HiggsAudioServer.generate_stream):
        names = inspect.signature(method).parameters
        for name in ("reference_audio_path", "reference_text", "ras_win_len", "fade_in_ms", "seed"):
            assert names[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert list(names)[:2] == ["self", "target_text"]


def test_a_misspelt_option_raises(server: HiggsAudioServer):
    with pytest.raises(TypeError, match="temprature"):
        server.generate("one", temprature=1.0)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_silence_and_nan_are_errors(server: HiggsAudioServer, monkeypatch, value: float):
    class Broken:
        lookahead_samples = 0

        def push(self, codes):
            return mx.full((len(codes) * 960,), value)

        def finish(self):
            return mx.zeros(0)

    monkeypatch.setattr(server.higgs.codec, "decoder", Broken)
    with pytest.raises(GenerationError, match=r"no sound|not a number"):
        server.generate("one", **SHORT)


def test_nothing_but_specials_is_an_error(server: HiggsAudioServer):
    with pytest.raises(GenerationError, match="no sound"):
        server.generate("one", max_new_frames=5, seed=1)


def test_the_shipped_voices_encode(cloner: HiggsAudioServer):
    prompt = prompt_of(cloner, voice="en_woman")
    seconds = soundfile.info(VOICES / "en_woman.wav").duration
    assert abs(clips_of(prompt)[0].codes.shape[0] - seconds * 25) < 2


def test_a_batch_says_what_each_says_alone(server: HiggsAudioServer):
    """More requests than places, one of them impossible."""
    texts = ["one two", "three", "four", "seven", "nine " * 2000, "eight"]
    asked = [SpeechRequest(text, seed=seed) for seed, text in enumerate(texts)]
    made = dict(server.generate_batch(iter(asked), max_batch=2))
    assert sorted(made) == list(range(6))
    assert isinstance(made.pop(4), InputError)
    for place, speech in made.items():
        assert np.array_equal(speech.pcm, server.generate(texts[place], seed=place).pcm)


def test_a_job_can_be_given_up_before_its_turn(server: HiggsAudioServer):
    batch = Batch(server.higgs.model, max_rows=1)
    first, second = (server.start(SpeechRequest(t, seed=1), batch=batch) for t in ("one", "two"))
    second.close()
    assert first.run().stop_reason == "eos"
    assert list(second.stream) == []


def test_a_batch_takes_requests_as_there_is_room(server: HiggsAudioServer):
    taken: list[int] = []

    def endless():
        for seed in range(10_000):
            taken.append(seed)
            yield SpeechRequest("one", seed=seed, max_new_frames=30)

    speeches = server.generate_batch(endless(), max_batch=2)
    for _ in range(3):
        next(speeches)
    speeches.close()
    assert len(taken) <= 3 + 2 + 2
    with pytest.raises(InputError, match="batch of 0"):
        server.generate_batch([], max_batch=0)
