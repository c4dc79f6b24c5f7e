"""What went wrong in other ports of Higgs v3, mlx-audio 0.6.2 first: laws that would have shown it.

One section a defect. Where v2 has the same law already, its test is named.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_higgs.step
from convert.tiny_v3 import config, write_v3
from mlx_higgs import HiggsAudioServer
from mlx_higgs.audio import write
from mlx_higgs.batch import Batch
from mlx_higgs.codec.checkpoint import BUNDLED
from mlx_higgs.codec.config import CodecConfig
from mlx_higgs.codec.layers import ConvTranspose1d
from mlx_higgs.convert import convert
from mlx_higgs.delay import DelayPattern, codes_from_rows
from mlx_higgs.frames import Rows
from mlx_higgs.loading import load, load_codec, load_model
from mlx_higgs.models.v3 import ModelArgs
from mlx_higgs.quantization import Quantization
from mlx_higgs.sampling import Sampler, SamplingParams, nucleus, sample_codes
from mlx_higgs.server import SpeechRequest
from mlx_higgs.sources import DEMO
from mlx_higgs.streaming import SpeechStream
from mlx_higgs.types import Audio, GenerationError, InputError, Text, Voice
from mlx_higgs.weights import load_tensors, named_arrays, weight_files

CODES = 256  # the demo codec's
PATTERN = DelayPattern(8, CODES, CODES + 1, machine="strict")
PROMPT = [Text([1, 2, 3])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random talker with a codec among its tensors, as v3 is published."""
    path = tmp_path_factory.mktemp("v3") / "model"
    return write_v3(path, seed=1, codes=CODES, codec=DEMO / "codec")


@pytest.fixture(scope="module")
def higgs(folder: Path) -> HiggsAudioServer:
    return HiggsAudioServer.from_pretrained(folder, voice_cache=None)


def params(seed: int, **changes) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 0.8, "top_p": 1.0, "ras_window": 0, "seed": seed, "max_frames": 40}
        | changes
    )


def voice(seed: int, frames: int = 6) -> Voice:
    codes = np.random.default_rng(seed).integers(0, CODES, (frames, 8)).astype(np.int32)
    return Voice(mx.array(codes), "said before")


# -- 1: the waveform is late, because odd strides are padded as even ones ------------------------
# Also test_codec_layers.py::test_transposed_convolution_is_mlxs, and against transformers, sample
# for sample, test_codec_reference.py::test_decode_agrees_sample_for_sample.


@pytest.mark.parametrize("stride", CodecConfig().strides)
def test_no_stride_of_the_codec_is_a_sample_late(stride: int):
    """One input of 1 under a weight of 1, 2, 3, ...: torch leaves ceil(stride / 2) samples out."""
    layer = ConvTranspose1d(1, 1, stride)
    layer.weight = mx.arange(1, 2 * stride + 1, dtype=mx.float32).reshape(1, -1, 1)
    made = layer(mx.array([0.0, 1.0, 0.0]).reshape(1, 3, 1)).flatten().tolist()
    full = [0.0] * stride + [float(k) for k in range(1, 2 * stride + 1)] + [0.0] * stride
    late = -(-stride // 2)
    assert made == full[late : late + 3 * stride]


# -- 2: 1024 and 1025 reach the codec, which reads past its tables -------------------------------


class ListeningCodec:
    """Notes the codes it is asked for; a frame sounds as 960 samples."""

    hop, sample_rate = 960, 24_000

    def __init__(self):
        self.heard: list[np.ndarray] = []

    def decoder(self):
        return self

    lookahead_samples = 0

    def push(self, codes: mx.array) -> mx.array:
        self.heard.append(np.array(codes))
        return mx.ones((len(codes) * self.hop,))

    def finish(self) -> mx.array:
        return mx.zeros((0,))


class GivenRows:
    stop_reason = "length"

    def __init__(self, rows: np.ndarray):
        self._rows = rows

    def __iter__(self):
        return iter(self._rows)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("rows", [8, 9, 20, 60])
def test_no_marker_reaches_the_codec_wherever_it_is_sampled(seed: int, rows: int):
    """Markers in every tenth cell, in the first eight rows, too, and a cut at any row."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, CODES, (rows, 8))
    marked = rng.random(made.shape) < 0.1
    made = np.where(marked, rng.integers(CODES, CODES + 2, made.shape), made)
    made[:7] = np.where(np.arange(8) > np.arange(7)[:, None], CODES, made[:7])  # the ramp-in
    codec = ListeningCodec()
    list(SpeechStream(GivenRows(made), codec, PATTERN, max_silence=0))
    heard = np.concatenate([np.zeros((0, 8), np.int32), *codec.heard])
    assert heard.size == 0 or (heard.min() >= 0 and heard.max() < CODES)
    aligned = np.array(PATTERN.revert(mx.array(made)))[: len(heard)]
    assert np.array_equal(heard, np.where(aligned < CODES, aligned, heard))  # real codes stay
    assert len(heard) == 1 + max(np.flatnonzero(whole_columns(made)), default=-1)


def whole_columns(rows: np.ndarray) -> np.ndarray:
    """Of the frames in these rows, which have a code in every cell."""
    return np.array([(frame < CODES).all() for frame in np.array(PATTERN.revert(mx.array(rows)))])


@pytest.mark.parametrize("machine", ["strict", "sglang"])
@pytest.mark.parametrize("rows", [8, 21, 40])
def test_a_model_that_loves_markers_still_says_codes(folder: Path, seed: int, machine, rows: int):
    """A head that scores markers above all codes, and a stream that the cap cuts."""
    model = load_model(folder)
    score = type(model).audio_logits
    likely = mx.where(mx.arange(CODES + 2) >= CODES, 12.0, 0.0)
    model.audio_logits = lambda h: score(model, h) + likely
    asked = params(seed, machine=machine, max_frames=rows)
    stream = SpeechStream(
        Rows(model, PROMPT, asked), codec := ListeningCodec(), model.delay, max_silence=0
    )
    list(stream)
    assert all(codes.min() >= 0 and codes.max() < CODES for codes in codec.heard)


# -- 3: bfloat16 logits are sampled --------------------------------------------------------------


def test_sampling_is_float32_whatever_the_weights_are(tmp_path: Path, seed: int, monkeypatch):
    """Logits near 100, as v3's are, lie 0.5 apart in bfloat16: top-k would be full of ties."""
    seen: list[mx.array] = []

    def listening(logits, *rest):
        seen.append(logits)
        return sample_codes(logits, *rest)

    monkeypatch.setattr(mlx_higgs.step, "sample_codes", listening)
    model = load_model(write_v3(tmp_path / "half", seed=seed, codes=CODES, dtype="bfloat16"))
    model.norm.weight = model.norm.weight * 30
    list(Rows(model, PROMPT, params(seed, max_frames=3)))
    for logits in seen:
        assert logits.dtype == mx.float32
        codes = np.array(logits)[..., :CODES]
        assert np.abs(codes).max() > 64
        rounded = np.array(logits.astype(mx.bfloat16).astype(mx.float32))[..., :CODES]
        distinct = [len(np.unique(values)) for values in (codes, rounded)]
        assert distinct[0] > 1.5 * distinct[1]


def test_top_k_keeps_ties(seed: int):
    """Where the reference keeps every code as likely as the k-th. See also test_sampling.py."""
    logits = mx.array(np.random.default_rng(seed).integers(0, 9, (1, 8, 60)).astype(np.float32))
    kept = nucleus(logits, Sampler.of([params(seed, top_k=10)], 60))
    for before, after in zip(np.array(logits)[0], np.array(kept)[0], strict=True):
        assert np.array_equal(np.isfinite(after), before >= np.sort(before)[-10])


# -- 4: a converted checkpoint has no codec ------------------------------------------------------


@pytest.mark.parametrize("bits", [8, None])
def test_converted_reloaded_and_heard(folder: Path, tmp_path: Path, seed: int, bits: int | None):
    plan = Quantization.of(bits, group_size=32) if bits else None
    target = convert(str(folder), tmp_path / "converted", quantize=plan)
    again = HiggsAudioServer.from_pretrained(target, voice_cache=None)
    assert again.higgs.codec_folder == target
    speech = again.generate("Hello", seed=seed, max_new_frames=16)
    expected = load_codec(DEMO / "codec").decode(mx.array(speech.codes))
    assert np.array_equal(speech.pcm, np.array(expected))
    assert np.abs(speech.pcm).max() > 0


# -- 5: everybody in a batch gets the first reference --------------------------------------------


def test_everybody_in_a_batch_has_a_voice_of_their_own(higgs: HiggsAudioServer, seed: int):
    """Different clips at once, with one text and one seed: who speaks is all that differs."""
    requests = [
        SpeechRequest("Hello", voice=voice(seed + n, 4 + n), seed=seed, max_new_frames=13)
        for n in range(3)
    ]
    for number, request in enumerate(requests):
        (clip,) = [p for p in higgs.start(request).prompt if isinstance(p, Audio)]
        assert np.array_equal(
            np.array(clip.codes), np.array(voice(seed + number, 4 + number).codes)
        )
    together = spoken(higgs.generate_batch(requests))
    assert together == [
        spoken(higgs.generate_batch([request], max_batch=1))[0] for request in requests
    ]
    assert together[0] != together[1] != together[2]


def spoken(results) -> list:
    """The codes of each request, in the order they were asked for."""
    said = dict(results)
    return [said[number].codes.tolist() for number in range(len(said))]


def test_a_clip_is_encoded_once_for_all_texts(folder: Path, tmp_path: Path, monkeypatch):
    server, encoded = HiggsAudioServer.from_pretrained(folder, voice_cache=None), []

    def encode(wave, *rest):
        encoded.append(len(wave))
        return mx.zeros((25, 8), dtype=mx.int32)

    monkeypatch.setattr(server.higgs.codec, "encode", encode)
    clip = tmp_path / "clip.wav"
    write(clip, 0.1 * np.sin(np.arange(24_000) / 9).astype(np.float32))
    requests = [
        SpeechRequest(text, reference_audio_path=clip, reference_text="me", max_new_frames=12)
        for text in ("Hello", "Goodbye", "Again")
    ]
    list(server.generate_batch(requests))
    assert len(encoded) == 1


# -- 6: a stream is one final chunk; seeds are global; a voice is ignored ------------------------


def test_a_stream_is_a_stream(higgs: HiggsAudioServer, seed: int):
    """Chunks come while rows are still to be made, and join to the whole, bit by bit."""
    for number in range(seed, seed + 50):  # a random talker may end early
        options = {"seed": number, "max_new_frames": 32, "guards": False}
        whole = higgs.generate("Hello", **options)
        if whole.num_frames_raw > 24:
            break
    chunks = list(higgs.generate_stream("Hello", chunk_ms=80, **options))
    assert len(chunks) > 2
    assert chunks[0].frames <= 7 + 10 + 2 < chunks[-1].frames == whole.num_frames_raw
    assert np.array_equal(np.concatenate([chunk.pcm for chunk in chunks]), whole.pcm)


def test_a_seed_is_the_requests_and_nobody_elses(folder: Path, seed: int):
    """In a batch with others, drawn in other ways; and the program's own random numbers go on."""
    model = load_model(folder)
    choices = [{}, {"temperature": 1.1, "top_k": 50}, {"top_k": 0}, {"temperature": 0.0}]
    requests = [params(seed + n, max_frames=20, **choice) for n, choice in enumerate(choices)]
    mx.random.seed(seed)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(seed)
    batch = Batch(model)
    joined = [batch.join(PROMPT, request) for request in requests]
    together = [np.stack(list(rows)) for rows in joined]
    assert mx.random.uniform(shape=(4,)).tolist() == expected
    for rows, request in zip(together, requests, strict=True):
        assert np.array_equal(rows, np.stack(list(Rows(model, PROMPT, request))))


def test_a_voice_that_there_is_not_is_no_other_voice(higgs: HiggsAudioServer):
    with pytest.raises(InputError, match="nobody-of-that-name"):
        higgs.generate("Hello", voice="nobody-of-that-name")


# -- 7: whoever ends holds up the others; one sampling for all -----------------------------------
# Who comes and goes changes nobody's rows:
# test_batch.py::test_requests_join_and_leave_at_any_frame; a sampling for each: the seeds' above.


def test_others_go_on_while_one_that_ended_is_not_listened_to(folder: Path, seed: int):
    """Rows are made without anybody decoding those of a request that has ended."""
    model = load_model(folder)
    batch = Batch(model)
    short = batch.join(PROMPT, params(seed, max_frames=9))
    long = batch.join(PROMPT, params(seed + 1, max_frames=30))
    made = list(long)
    assert short.ended
    assert np.array_equal(made, list(Rows(model, PROMPT, params(seed + 1, max_frames=30))))
    assert len(list(short)) == 9


# -- 8: reference codes must be delayed already, which nobody checks; rope_theta null ------------


def test_reference_codes_are_aligned_and_checked(folder: Path, higgs: HiggsAudioServer, seed: int):
    model, clip = load_model(folder), voice(seed).codes
    prompt = higgs.higgs.prompts.build("Hello", voices=[Voice(clip, "")])
    x, is_audio = model.embed_prompt(prompt)
    rows = model.delay.apply(clip)
    assert is_audio.sum() == len(rows) == len(clip) + 7
    start = int(np.flatnonzero(is_audio)[0])
    assert mx.array_equal(x[0, start : start + len(rows)], model.embed_rows(rows))
    for wrong, message in [
        (rows, f"Code {CODES} is outside"),  # delayed already
        (clip - CODES, "outside 0.."),
        (clip[:, :7], "8"),
        (clip[:0], "8"),
    ]:
        with pytest.raises(InputError, match=message):
            model.embed_prompt([Text([1]), Audio(wrong), Text([2])])


@pytest.mark.parametrize("flat", [{"rope_theta": None}, {"rope_theta": 1_000_000}, {}])
def test_a_flat_base_of_positions_may_be_null(flat: dict):
    assert ModelArgs.from_dict(config(**flat)).rope.theta == 1_000_000


# -- 9: the codec's width is an accident ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_bundled_codec_is_float32(folder: Path, tmp_path: Path, dtype: mx.Dtype):
    tensors = load_tensors(weight_files(folder))
    halved = {n: a.astype(dtype) if n.startswith(BUNDLED) else a for n, a in tensors.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), halved)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    codec = load(tmp_path).codec
    assert {array.dtype for array in named_arrays(codec._decoder).values()} == {mx.float32}
    assert codec.decode(mx.zeros((3, 8), dtype=mx.int32)).dtype == mx.float32


# -- 10: nothing stops a runaway, and every row waits for the host -------------------------------


def test_the_rows_fit_the_text(higgs: HiggsAudioServer):
    """A short text has a small cap, unless the guards are off or the caller says otherwise."""
    limits = [
        higgs.start(SpeechRequest("Hello", **options)).params.max_frames
        for options in ({}, {"guards": False}, {"max_new_frames": 300})
    ]
    assert limits[0] < 300 < limits[1] == 2048
    assert limits[2] == 300


def test_one_row_again_and_again_is_stopped(folder: Path, seed: int):
    model = load_model(folder)
    model.norm.weight = mx.zeros_like(model.norm.weight)  # every code as likely as every other
    rows = Rows(model, PROMPT, params(seed, temperature=0.0, max_frames=400))
    made = list(rows)
    assert rows.stop_reason == "repetition"
    assert len(made) < 60


def test_what_is_no_number_is_an_error(folder: Path, seed: int):
    model = load_model(folder)
    model.norm.weight = model.norm.weight * float("nan")
    with pytest.raises(GenerationError, match="not a number"):
        list(Rows(model, PROMPT, params(seed)))


def test_silence_is_an_error(higgs: HiggsAudioServer, seed: int, monkeypatch):
    decoder = type(higgs.higgs.codec.decoder())
    monkeypatch.setattr(decoder, "push", lambda self, codes: mx.zeros((960 * len(codes),)))
    monkeypatch.setattr(decoder, "finish", lambda self: mx.zeros((960,)))
    with pytest.raises(GenerationError, match="no sound"):
        higgs.generate("Hello", seed=seed, max_new_frames=20)


def test_the_next_row_is_under_way_before_one_is_read(folder: Path, seed: int):
    model = load_model(folder)
    steps, hidden = [], model.hidden
    model.hidden = lambda *rest: (steps.append(1), hidden(*rest))[1]
    for number, _ in enumerate(Rows(model, PROMPT, params(seed, max_frames=12), loop="async")):
        assert len(steps) >= number + 2  # the prompt, and as many rows as follow
    assert number >= 8


def test_codes_cut_by_the_cap_lose_no_frame(folder: Path, seed: int):
    """``L`` rows of a stream that goes on hold ``L - 7`` whole frames, and no more."""
    model = load_model(folder)
    for rows in (7, 8, 20):
        made = np.stack(list(Rows(model, PROMPT, params(seed, max_frames=rows))))
        if len(made) == rows and made[:, 0].max() < CODES:  # it did not end by itself
            assert len(codes_from_rows(made, model.delay)) == max(0, rows - 7)
