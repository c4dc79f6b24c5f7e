"""Hearing: laws of the spectrogram, the tower and the prompts that are listened to.

tests/golden/tower.safetensors was made by ``python convert/dump_tower.py CHECKOUT GOLDEN``;
test_tower_reference.py asks the references themselves.
"""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from toy_tokenizer import toy_tokenizer

from convert.dump_tower import HIDDEN, SEED, waves
from convert.tower import SIZES, add_tower, random_tower, write_listener
from mlx_higgs import generate
from mlx_higgs.convert import convert
from mlx_higgs.footprint import footprint
from mlx_higgs.frames import prefill
from mlx_higgs.hearing import recording
from mlx_higgs.loading import load, load_model, open_model
from mlx_higgs.mel import MEL_FRAMES, log_mel, mel_frames
from mlx_higgs.models.tower import (
    AudioTower,
    EncoderLayer,
    FeatureProjector,
    TowerArgs,
    feature_positions,
    read_hearing,
)
from mlx_higgs.models.v2 import ModelArgs
from mlx_higgs.prefix import PrefixCache, positions, split
from mlx_higgs.prompts.chatml import Turn
from mlx_higgs.prompts.heard import STRETCH_FRAMES
from mlx_higgs.prompts.v2 import PromptBuilder
from mlx_higgs.quantization import Plan, Quantization
from mlx_higgs.server import HiggsAudioServer, prompting
from mlx_higgs.sources import DEMO
from mlx_higgs.train.data.conversation import Clip, Conversation, Message
from mlx_higgs.train.methods import prepare
from mlx_higgs.train.options import Options
from mlx_higgs.train.samples import make_sample
from mlx_higgs.types import (
    HEARING_RATE,
    STRETCH,
    Audio,
    CheckpointError,
    Heard,
    Hearing,
    InputError,
    Profile,
    Recording,
    Text,
    Voice,
)
from mlx_higgs.weights import named_arrays

GOLDEN = Path(__file__).parent / "golden" / "tower.safetensors"
ARGS = TowerArgs(**SIZES)
BOTH, FEATURES, CODES, DEAF = (
    Hearing(features, codes) for features, codes in [(1, 1), (1, 0), (0, 1), (0, 0)]
)


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return (0.1 * rng.normal(size=samples)).astype(np.float32)


def random_ears(seed: int, hidden: int = HIDDEN) -> tuple[AudioTower, FeatureProjector]:
    tower, projector = AudioTower(ARGS), FeatureProjector(ARGS.d_model, hidden)
    tensors = random_tower(ARGS, hidden, seed).items()
    for name, module in (("audio_tower.", tower), ("audio_encoder_proj.", projector)):
        mine = [(k.removeprefix(name), v) for k, v in tensors if k.startswith(name)]
        module.load_weights(mine)
    return tower, projector


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a random tower."""
    return write_listener(tmp_path_factory.mktemp("listener") / "checkpoint", seed=1)


@pytest.fixture(scope="module")
def listening(listener: Path) -> HiggsAudioServer:
    return HiggsAudioServer.from_pretrained(listener, voice_cache=None)


# -- the golden -----------------------------------------------------------------------------------


def test_spectrograms_and_features_of_the_golden():
    golden: Any = mx.load(str(GOLDEN))
    tower, projector = random_ears(SEED)
    for index, wave in enumerate(waves()):
        mel, features = golden[f"{index}.mel"], golden[f"{index}.features"]
        ours = log_mel(wave, ARGS.num_mel_bins, len(mel))
        assert np.abs(ours - np.array(mel)).max() <= 1e-4
        assert len(features) == feature_positions(len(wave))
        heard = projector(tower.stretch(wave))
        assert heard.shape == features.shape
        assert mx.abs(heard - features).max().item() <= 1e-4  # 4e-6 were seen


# -- spectrograms ---------------------------------------------------------------------------------


def test_the_first_frames_alone_are_the_first_of_all(seed: int):
    """And so are those that silence follows: a spectrogram's range is that of the whole."""
    rng = np.random.default_rng(seed)
    wave = noise(rng, int(rng.integers(1, STRETCH)))
    whole = log_mel(wave, 80)
    assert whole.shape == (MEL_FRAMES, 80)
    some = int(rng.integers(1, MEL_FRAMES))
    assert np.array_equal(log_mel(wave, 80, some), whole[:some])
    silent = np.pad(wave, (0, STRETCH - len(wave)))
    assert np.abs(log_mel(silent, 80) - whole).max() < 1e-6


def test_a_spectrogram_forgets_how_loud_it_was(seed: int):
    """Only its level moves: by half a unit for each factor of 10 in amplitude."""
    wave = noise(np.random.default_rng(seed), 16_000)
    quiet, loud = log_mel(wave, 80, 90), log_mel(10 * wave, 80, 90)
    assert np.abs(loud - quiet - 0.5).max() < 1e-5


@pytest.mark.parametrize("samples", [0, STRETCH + 1])
def test_no_more_than_a_stretch_and_no_less_than_a_sample(samples: int):
    with pytest.raises(InputError, match="samples"):
        log_mel(np.zeros(samples, np.float32), 80)


# -- the tower ------------------------------------------------------------------------------------


def test_a_stretch_alone_is_that_stretch_in_a_batch(seed: int):
    """What is left out when one is listened to alone is what nobody hears."""
    rng = np.random.default_rng(seed)
    tower, _ = random_ears(seed)
    sounds = [noise(rng, int(n)) for n in (*rng.integers(481, STRETCH, 2), 481, STRETCH)]
    mel = mx.array(np.stack([log_mel(wave, ARGS.num_mel_bins) for wave in sounds]))
    batch = tower(mel, np.array([mel_frames(len(wave)) for wave in sounds]))
    for wave, whole in zip(sounds, batch, strict=True):
        alone = tower.stretch(wave)
        assert alone.shape == (feature_positions(len(wave)), ARGS.d_model)
        assert mx.abs(alone - whole[: len(alone)]).max().item() <= 1e-5


def test_what_follows_the_sound_is_not_heard(seed: int):
    """The last feature sees a few frames of what comes next, those before it nothing at all."""
    rng = np.random.default_rng(seed)
    tower, _ = random_ears(seed)
    mel = rng.normal(size=(1, MEL_FRAMES, ARGS.num_mel_bins)).astype(np.float32)
    frames = int(rng.integers(8, MEL_FRAMES // 8)) * 4
    other = mel.copy()
    other[:, frames + 1 :] = rng.normal(size=other[:, frames + 1 :].shape)
    ours, theirs = (tower(mx.array(m), np.array([frames])) for m in (mel, other))
    assert mx.array_equal(ours[:, : frames // 4], theirs[:, : frames // 4])
    assert not mx.array_equal(tower(mx.array(mel)), tower(mx.array(other)))


def test_nothing_is_heard_of_nothing():
    tower, projector = random_ears(0)
    none = tower(mx.zeros((0, MEL_FRAMES, ARGS.num_mel_bins)), np.zeros(0, int))
    assert projector(none).shape == (0, 750, HIDDEN)
    assert tower.stretch(np.ones(480, np.float32)).shape == (1, ARGS.d_model)
    for samples in (1, 160, 320):  # one or two frames: less than a pair of positions
        assert feature_positions(samples) == 0
        assert tower.stretch(np.ones(samples, np.float32)).shape == (0, ARGS.d_model)


def test_half_precision_stays_finite():
    layer = EncoderLayer(ARGS)
    layer.set_dtype(mx.float16)
    layer.fc2.bias = mx.full(layer.fc2.bias.shape, 65_000, mx.float16)
    assert mx.isfinite(layer(mx.full((1, 2, ARGS.d_model), 1000, mx.float16), None)).all()


# -- configs --------------------------------------------------------------------------------------


def test_how_a_config_hears():
    assert read_hearing({"skip_audio_tower": True}) == (DEAF, None)
    codes = {"encode_audio_in_tokens": True}
    assert read_hearing({"skip_audio_tower": True, **codes}) == (CODES, None)
    assert read_hearing({}) == (FEATURES, TowerArgs())  # the reference's defaults
    assert read_hearing({"audio_encoder_config": SIZES, **codes}) == (BOTH, ARGS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encode_whisper_embed": False}, "encode_whisper_embed"),
        ({"audio_encoder_config": {"max_source_positions": 750}}, "max_source_positions"),
        ({"audio_encoder_config": {"activation_function": "relu"}}, "activation"),
        ({"audio_encoder_config": {"model_type": "wav2vec2"}}, "another kind"),
        ({"audio_encoder_config": {"d_model": 0}}, "d_model"),
        ({"audio_encoder_config": {"encoder_attention_heads": 7}}, "7 heads"),
    ],
)
def test_a_tower_that_is_not_built_is_told(listener: Path, changes: dict, told: str):
    config = json.loads((listener / "config.json").read_text()) | changes
    with pytest.raises(CheckpointError, match=told):
        ModelArgs.from_dict(config)


def test_a_tower_is_there_exactly_where_the_config_says_so(listener: Path, tmp_path: Path):
    names = named_arrays(open_model(listener))
    assert sum(name.startswith("audio_tower.") for name in names) == 7 + 15 * ARGS.encoder_layers
    assert not any(name.startswith("audio_tower") for name in named_arrays(open_model(DEMO)))
    for skipped, from_folder, told in ((True, listener, "know"), (False, DEMO, "misses")):
        folder = tmp_path / told
        folder.mkdir()
        config = json.loads((listener / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"skip_audio_tower": skipped}))
        (folder / "model.safetensors").symlink_to(from_folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=told):
            open_model(folder)


# -- prompts --------------------------------------------------------------------------------------


def builder(hearing: Hearing) -> PromptBuilder:
    prompts = PromptBuilder(toy_tokenizer())
    prompts.hearing = hearing
    return prompts


def clip(rng: np.random.Generator, seconds: float) -> Recording:
    codes = mx.array(rng.integers(0, 20, (round(seconds * 25), 8)))
    return Recording(codes, noise(rng, round(seconds * HEARING_RATE)))


@pytest.mark.parametrize("hearing", [BOTH, FEATURES, CODES], ids=str)
def test_features_come_first_then_codes(seed: int, hearing: Hearing):
    heard = clip(np.random.default_rng(seed), 3)
    assert heard.wave is not None
    prompt = builder(hearing).render([Turn("user", ["Who is this?", heard])])
    kinds = [type(part) for part in prompt]
    middle = [Heard] * hearing.features + [Audio] * hearing.codes
    assert kinds == [Text, *middle, Text]
    for part in prompt[1:-1]:
        if isinstance(part, Heard):
            assert np.array_equal(part.wave, heard.wave)
        if isinstance(part, Audio):
            assert not part.spoken
            assert part.codes is heard.codes or mx.array_equal(part.codes, heard.codes)


@pytest.mark.parametrize("hearing", [BOTH, FEATURES], ids=str)
def test_a_long_recording_is_heard_in_stretches(seed: int, hearing: Hearing):
    """Each between tokens of its own; together they are the whole."""
    rng = np.random.default_rng(seed)
    long = clip(rng, float(rng.uniform(61, 89)))
    assert long.wave is not None
    assert long.codes is not None
    prompts = builder(hearing)
    prompt = prompts.render([Turn("user", [long])])
    sounds = [part.wave for part in prompt if isinstance(part, Heard)]
    codes = [part.codes for part in prompt if isinstance(part, Audio)]
    assert [len(sound) for sound in sounds[:-1]] == [STRETCH] * 2
    assert np.array_equal(np.concatenate(sounds), long.wave)
    assert len(codes) == (3 if hearing.codes else 0)
    if codes:
        assert [len(some) for some in codes[:2]] == [STRETCH_FRAMES] * 2
        assert mx.array_equal(mx.concatenate(codes), long.codes)
    short = prompts.render([Turn("user", [clip(rng, 1)])])
    between = [part for part in prompt if isinstance(part, Text)][1:-1]
    start, end = (short[i] for i in (0, -1))
    assert isinstance(start, Text)
    assert isinstance(end, Text)
    assert [part.ids for part in between] == [[end.ids[0], start.ids[-1]]] * 2


def test_without_a_tower_a_long_recording_is_one(seed: int):
    long = clip(np.random.default_rng(seed), 70)
    prompt = builder(CODES).render([Turn("user", [long])])
    assert [type(part) for part in prompt] == [Text, Audio, Text]


def test_a_tail_without_codes_is_heard_all_the_same():
    """A few samples beyond 30 s have no frame of their own."""
    heard = Recording(mx.zeros((STRETCH_FRAMES, 8), mx.int32), np.ones(STRETCH + 9, np.float32))
    kinds = [type(part) for part in builder(BOTH).render([Turn("user", [heard])])]
    assert kinds == [Text, Heard, Audio, Text, Heard, Text]


def test_what_an_assistant_said_is_never_listened_to(seed: int):
    """So the voice that is cloned from a turn of its own is codes, tower or not."""
    said = clip(np.random.default_rng(seed), 2)
    voice = Voice(said.codes, "What it says.", wave=said.wave)  # type: ignore[arg-type]
    prompts = [builder(hearing).build("One.", voices=[voice]) for hearing in (BOTH, CODES, DEAF)]
    for prompt in prompts:
        assert not any(isinstance(part, Heard) for part in prompt)
        assert [part.spoken for part in prompt if isinstance(part, Audio)] == [True]
    assert prompts[0][0] == prompts[1][0] == prompts[2][0]


def test_a_voice_in_the_system_turn_is_heard(seed: int):
    rng = np.random.default_rng(seed)
    said = clip(rng, 2)
    voice = Voice(said.codes, "", wave=said.wave)  # type: ignore[arg-type]
    for voices in ([voice, Profile("calm")], [Profile("calm"), voice]):
        prompt = builder(BOTH).build("One.", voices=voices)
        assert [type(part) for part in prompt] == [Text, Heard, Audio, Text]


@pytest.mark.parametrize(
    ("hearing", "heard", "told"),
    [
        (BOTH, Recording(mx.zeros((9, 8))), "clip itself"),
        (FEATURES, Recording(mx.zeros((9, 8))), "clip itself"),
        (BOTH, Recording(wave=np.ones(999)), "encode it first"),
        (CODES, Recording(wave=np.ones(999)), "encode it first"),
        (BOTH, Recording(mx.zeros((9, 8)), np.ones(0)), "clip itself"),
        (DEAF, Recording(mx.zeros((9, 8)), np.ones(999)), "hears no recordings"),
        (CODES, mx.zeros((0, 8)), "encode it first"),
        (BOTH, mx.zeros((9, 8)), "clip itself"),
    ],
)
def test_what_a_checkpoint_needs_of_a_recording_is_told(hearing, heard, told: str):
    with pytest.raises(InputError, match=told):
        builder(hearing).render([Turn("user", [heard])])
    with pytest.raises(InputError, match="encode it first"):
        builder(hearing).render([Turn("assistant", [Recording(wave=np.ones(999))])])


def test_positions_and_masks_are_those_of_the_prompt(listening: HiggsAudioServer, seed: int):
    rng, model = np.random.default_rng(seed), listening.higgs.model
    heard = clip(rng, float(rng.uniform(1, 5)))
    prompt = listening.higgs.prompts.build(
        "One.", voices=[_voice(heard)], references_in_system=True
    )
    x, is_audio = model.embed_prompt(prompt)
    assert x.shape[1] == positions(prompt, model.delay)
    assert x.dtype == mx.float16
    before, sound, codes, _ = prompt
    assert isinstance(before, Text)
    assert isinstance(sound, Heard)
    assert isinstance(codes, Audio)
    first = len(before.ids) + feature_positions(len(sound.wave))
    assert not is_audio[0, :first].any()
    assert is_audio[0, first : first + model.delay.num_rows(len(codes.codes))].all()


def _voice(heard: Recording) -> Voice:
    assert heard.codes is not None
    return Voice(heard.codes, "words", wave=heard.wave)


def test_a_model_without_a_tower_says_so(server: HiggsAudioServer):
    with pytest.raises(InputError, match="no audio tower"):
        server.higgs.model.embed_prompt([Text([1]), Heard(np.ones(999, np.float32))])


# -- kept voices ----------------------------------------------------------------------------------


def test_a_kept_voice_is_told_by_what_is_heard(listening: HiggsAudioServer, seed: int):
    rng, model = np.random.default_rng(seed), listening.higgs.model
    heard = clip(rng, 2)
    assert heard.wave is not None
    build = listening.higgs.prompts.build
    prompt = build("One.", voices=[_voice(heard)], references_in_system=True)
    kept = PrefixCache(model, "")
    prefix = kept.get(prompt)
    assert prefix is not None
    assert split(prompt) == prefix.parts == 3
    assert prefix.positions == positions(prompt[:3], model.delay)
    for ours, fresh in zip(prefill(model, prompt, prefix), prefill(model, prompt), strict=True):
        assert ours.keys is not None
        assert fresh.keys is not None
        whole = fresh.keys[..., : fresh.offset, :]
        assert mx.abs(ours.keys[..., : ours.offset, :] - whole).max().item() < 0.02
    other = Recording(heard.codes, heard.wave * np.float32(0.999))
    changed = build("One.", voices=[_voice(other)], references_in_system=True)
    assert kept.key(prompt[:3]) != kept.key(changed[:3])


def test_features_alone_are_a_voice(seed: int):
    heard = clip(np.random.default_rng(seed), 1)
    prompt = builder(FEATURES).build("One.", voices=[_voice(heard)], references_in_system=True)
    assert split(prompt) == 2


# -- storing --------------------------------------------------------------------------------------


def tower_of(folder: Path) -> dict[str, mx.array]:
    arrays = named_arrays(load_model(folder))
    return {k: v for k, v in arrays.items() if k.startswith(("audio_tower", "audio_encoder"))}


@pytest.mark.parametrize("bits", ["8", "8/4", "none"])
def test_a_tower_stays_as_it_is_stored(listener: Path, tmp_path: Path, bits: str):
    before = tower_of(listener)
    converted = convert(str(listener), tmp_path / "out", quantize=Plan.parse(bits, 32))
    after = tower_of(converted)
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    card = (converted / "README.md").read_text()
    assert "audio_tower.layers.0" not in card  # one line for all layers


def test_a_tower_counts_in_what_is_expected(listener: Path):
    plan = Plan.of(Quantization(4, 32))
    heard, deaf = (footprint(open_model(folder), plan) for folder in (listener, DEMO))
    tower = sum(array.nbytes for array in tower_of(listener).values())
    assert heard.weights - deaf.weights == tower
    assert heard.kept - deaf.kept + heard.text - deaf.text == tower
    assert heard.prefill >= open_model(listener).listening_bytes > 0
    assert open_model(DEMO).listening_bytes == 0


def test_training_leaves_the_tower_alone(listener: Path):
    model: Any = load_model(listener, dtype="float32")
    options = Options(fine_tune_type="full", model=str(listener))
    prepare(model, options)
    names = {name.split(".")[0] for name in named_trainable(model)}
    assert "layers" in names
    assert not names & {"audio_tower", "audio_encoder_proj"}


def named_trainable(model: Any) -> list[str]:
    from mlx.utils import tree_flatten

    return [name for name, _ in tree_flatten(model.trainable_parameters())]


def test_training_on_what_is_heard_is_refused(listening: HiggsAudioServer, seed: int):
    """Rather than taught with half of what the model will be given."""
    codes = np.random.default_rng(seed).integers(0, 256, (9, 8))

    def sample(role: Any) -> Any:
        heard = Message(role, ("One.", Clip(Path("a.wav"))))
        answer = Message("assistant", (Clip(Path("b.wav")),))
        higgs = listening.higgs
        conversation = Conversation((heard, Message("user", ("Two.",)), answer))
        return make_sample(conversation, higgs.prompts, higgs.talker.delay, lambda _: codes)

    assert len(sample("assistant").rows)
    with pytest.raises(InputError, match="listens to"):
        sample("user")


# -- from a file to speech ------------------------------------------------------------------------


def test_a_recording_brings_what_is_asked_for(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    wave = noise(rng, 48_000)
    soundfile.write(tmp_path / "a.wav", wave, 24_000, subtype="FLOAT")
    held = io.BytesIO()
    soundfile.write(held, wave, 24_000, subtype="FLOAT", format="WAV")

    def encode(samples: np.ndarray) -> mx.array:
        assert np.abs(samples - wave).max() < 1e-6
        return mx.zeros((50, 8), mx.int32)

    sources = (tmp_path / "a.wav", str(tmp_path / "a.wav"), held.getvalue(), (wave, 24_000))
    for source in sources:
        both = recording(source, BOTH, 24_000, encode)
        assert both.codes is not None
        assert both.wave is not None
        assert len(both.wave) == 32_000
        assert recording(source, FEATURES, 24_000, encode).codes is None
        assert recording(source, CODES, 24_000, encode).wave is None
        with pytest.raises(InputError, match="hears no recordings"):
            recording(source, DEAF, 24_000, encode)


@pytest.mark.parametrize(
    ("wave", "told"),
    [
        (np.ones((2, 99)), "mono"),
        (np.ones(0), "at most"),
        (np.full(9, np.nan), "not numbers"),
        (np.ones(61 * 8000), "60 s"),
    ],
)
def test_samples_that_cannot_be_heard(wave: np.ndarray, told: str):
    with pytest.raises(InputError, match=told):
        recording((wave, 8000), BOTH, 24_000, lambda _: mx.zeros((1, 8)))


def test_features_alone_may_be_minutes_long():
    """Of codes the codec makes all at once, of features 30 s at a time."""
    wave = np.ones(61 * HEARING_RATE, np.float32)
    heard = recording((wave, HEARING_RATE), FEATURES, 24_000, lambda _: mx.zeros((1, 8)))
    assert heard.wave is not None
    assert len(heard.wave) == len(wave)


def test_the_server_hears(listening: HiggsAudioServer, seed: int):
    wave = noise(np.random.default_rng(seed), 24_000)
    heard = listening.hear((wave, 24_000))
    assert heard.codes is not None
    assert heard.wave is not None
    assert (len(heard.codes), len(heard.wave)) == (25, 16_000)
    prompt = listening.higgs.prompts.render([listening.higgs.prompts.turn("user", [heard])])  # type: ignore[attr-defined]
    assert [type(part) for part in prompt] == [Text, Heard, Audio, Text]


def test_a_model_that_only_reads_does_not_listen(monkeypatch):
    """Said before anything is encoded."""
    server = HiggsAudioServer(load(GOLDEN.parent / "tiny_v3", codec=DEMO / "codec"))
    monkeypatch.setattr(server.known, "codes", lambda wave: pytest.fail("it was encoded"))
    with pytest.raises(InputError, match=r"^This model does not listen\. Higgs v3") as refused:
        server.hear((np.ones(24_000, np.float32), 24_000))
    assert "\n" not in str(refused.value)


def test_a_chat_hears_minutes_where_no_codes_are_needed(tmp_path: Path, monkeypatch):
    """Its samples are brought to 16 kHz once, from their own rate."""
    speaker = HiggsAudioServer(load(write_listener(tmp_path / "features", seed=2, codes=False)))
    wave = noise(np.random.default_rng(3), 61 * 8000)
    monkeypatch.setattr(prompting, "to_rate", lambda *_: pytest.fail("it was resampled"))
    told = [{"role": "user", "content": [{"type": "audio", "wave": wave, "sampling_rate": 8000}]}]
    (turn,) = prompting.turns(told, speaker.higgs, speaker.known)
    (heard,) = turn.parts
    assert heard.codes is None
    assert np.array_equal(heard.wave, speaker.hear((wave, 8000)).wave)
    with pytest.raises(InputError, match="to 60 s"):
        prompting.turns([told[0] | {"role": "assistant"}], speaker.higgs, speaker.known)


def test_the_demo_hears_codes(server: HiggsAudioServer, seed: int):
    heard = server.hear((noise(np.random.default_rng(seed), 24_000), 24_000))
    assert heard.wave is None
    assert heard.codes is not None


def test_a_voice_in_the_system_turn_changes_the_speech(listener, listening, server, tmp_path):
    """By its features as well: with another tower, or with none, the talker says something else."""
    other = write_listener(tmp_path / "other", seed=2)
    options = {"voice": "en_woman", "seed": 1, "temperature": 0.0, "max_new_frames": 14}
    options |= {"references_in_system": True, "guards": False}
    said = [
        speaker.generate("one two three.", **options).codes
        for speaker in (listening, HiggsAudioServer(load(other)), server, listening)
    ]
    assert all(not np.array_equal(one, other) for one, other in pairwise(said))
    assert np.array_equal(said[0], said[3])


def test_a_clone_sounds_as_it_does_without_a_tower(listening, server):
    options = {"voice": "en_woman", "seed": 3, "max_new_frames": 14}
    with_tower = listening.generate("four five six.", **options)
    assert np.array_equal(with_tower.pcm, server.generate("four five six.", **options).pcm)


def test_generate_listens(listener: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--model",
        str(listener),
        "--voice",
        "en_woman",
        "--text",
        "one two.",
        "--seed",
        "1",
    ]
    for extra in (["--max-frames", "20"], ["--ref-in-system", "--max-frames", "14"]):
        out = tmp_path / f"out{len(extra)}.wav"
        assert generate.main([*arguments, *extra, "--output", str(out)]) == 0
        assert soundfile.info(out).frames > 0


def test_a_checkpoint_of_features_alone_speaks(tmp_path: Path):
    folder = write_listener(tmp_path / "features", seed=2, codes=False)
    speaker = HiggsAudioServer(load(folder))
    options = {"voice": "en_woman", "seed": 1, "max_new_frames": 12}
    assert len(speaker.generate("one.", references_in_system=True, **options).pcm)


def test_a_tower_may_be_added_once(tmp_path: Path):
    folder = write_listener(tmp_path / "a", seed=1)
    before = tower_of(folder)
    add_tower(folder, seed=1)
    assert all(mx.array_equal(before[name], array) for name, array in tower_of(folder).items())
