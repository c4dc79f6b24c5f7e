"""Hearing against the references: transformers' spectrograms, Boson's tower, collator and merge.

Boson's code comes from the checkout that ``$HIGGS_AUDIO`` names: see CONTRIBUTING.md.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from toy_tokenizer import token_id, toy_tokenizer

from convert.boson_repo import BosonTalker, import_boson, import_data
from convert.tiny import write_checkpoint
from convert.tower import SIZES, add_tower
from mlx_higgs.loading import load_model
from mlx_higgs.mel import MEL_FRAMES, log_mel, mel_filters, mel_frames
from mlx_higgs.models.tower import conv_positions, feature_positions
from mlx_higgs.prompts.chatml import Turn, with_markers
from mlx_higgs.prompts.v2 import PromptBuilder
from mlx_higgs.types import HEARING_RATE, STRETCH, InputError, Prompt, Recording

torch = pytest.importorskip("torch", reason="the reference gates need torch")
transformers = pytest.importorskip("transformers", reason="the reference gates need transformers")

REPO = os.environ.get("HIGGS_AUDIO", "")
boson = pytest.mark.skipif(
    not (Path(REPO) / "boson_multimodal").is_dir(),
    reason="$HIGGS_AUDIO names no checkout of boson-ai/higgs-audio",
)
BINS = SIZES["num_mel_bins"]
SYSTEM = "Generate audio following instruction.\n\n<|scene_desc_start|>\nSPEAKER0: "
ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Loud and quiet, so that the range of a spectrogram is cut somewhere."""
    loudness = np.exp(-8 * np.linspace(0, 1, samples) ** 2)
    return (0.1 * rng.normal(size=samples) * loudness).astype(np.float32)


def lengths(rng: np.random.Generator) -> list[int]:
    """Of stretches: the shortest, some around the ends of a frame and of 30 s, and any."""
    edges = [1, 159, 160, 161, 399, 480, 481, STRETCH - 201, STRETCH - 1, STRETCH]
    return [*edges, *rng.integers(2, STRETCH, size=2).tolist()]


# -- spectrograms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [80, 128])
def test_spectrograms_are_those_of_transformers(seed: int, bins: int):
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    assert np.abs(mel_filters(bins) - extractor.mel_filters).max() < 1e-12
    rng = np.random.default_rng(seed)
    waves = [noise(rng, n) for n in lengths(rng)]
    found = extractor(
        waves, sampling_rate=HEARING_RATE, return_attention_mask=True, padding="max_length"
    )
    assert found["attention_mask"].sum(-1).tolist() == [mel_frames(len(wave)) for wave in waves]
    for wave, theirs in zip(waves, found["input_features"], strict=True):
        # theirs are computed in float32, and a logarithm enlarges the rounding of quiet places:
        # up to 3e-5 were seen
        assert np.abs(log_mel(wave, bins) - theirs.T).max() <= 1e-4


# -- the tower ------------------------------------------------------------------------------------


class Both:
    """One random checkpoint, in Boson's code and in ours."""

    def __init__(self, folder: Path, seed: int, **choices: Any):
        self.tokenizer = toy_tokenizer()
        first = token_id(self.tokenizer, "<|begin_of_text|>")
        write_checkpoint(
            folder,
            seed=seed,
            config_layout="boson",
            weight_layout="boson",
            first_special=first,
            vocab_size=self.tokenizer.get_vocab_size(),
        )
        if choices.pop("tower", True):
            add_tower(folder, seed=seed + 1, **choices)
        self.boson = BosonTalker(folder, Path(REPO))
        self.config = self.boson.model.config
        self.ours: Any = load_model(folder)
        self.prompts = PromptBuilder(toy_tokenizer())
        self.prompts.hearing = self.ours.hearing

    def codes(self, rng: np.random.Generator, frames: int) -> np.ndarray:
        delay = self.ours.delay
        return rng.integers(0, delay.codebook_size, (frames, delay.num_codebooks))


@pytest.fixture
def both(tmp_path: Path, seed: int) -> Both:
    return Both(tmp_path / "checkpoint", seed)


@boson
def test_features_are_those_of_bosons_encoder(both: Both, seed: int):
    rng = np.random.default_rng(seed)
    mel = rng.normal(size=(3, MEL_FRAMES, BINS)).astype(np.float32)
    frames = np.array([MEL_FRAMES, rng.integers(3, MEL_FRAMES), rng.integers(3, 99)])
    mask = np.arange(MEL_FRAMES) < frames[:, None]
    with torch.no_grad():
        theirs, kept = both.boson.model._apply_audio_tower(
            torch.tensor(mel).transpose(1, 2), torch.tensor(mask)
        )
    ours = np.array(both.ours.audio_encoder_proj(both.ours.audio_tower(mx.array(mel), frames)))
    assert kept.tolist() == [feature_positions(160 * n) for n in frames.tolist()]
    assert theirs.shape == ours.shape
    assert np.abs(theirs.numpy() - ours).max() <= 1e-4  # at a spread near 1: 4e-6 were seen


@boson
def test_a_batch_of_nothing_has_their_shape(both: Both):
    """Boson's detour for training; without gradients it has None instead."""
    nothing = torch.zeros(0, BINS, MEL_FRAMES)
    theirs, _ = both.boson.model._apply_audio_tower(nothing, None)
    ours = both.ours.audio_tower(mx.zeros((0, MEL_FRAMES, BINS)), np.zeros(0, int))
    assert both.ours.audio_encoder_proj(ours).shape == tuple(theirs.shape)
    with torch.no_grad():
        assert both.boson.model._apply_audio_tower(nothing, None) == (None, None)


@boson
def test_lengths_are_those_of_bosons_arithmetic(both: Both):
    frames = torch.arange(1, MEL_FRAMES + 1)
    convolved, pooled = both.boson.model.audio_tower._get_feat_extract_output_lengths(frames)
    assert convolved.tolist() == [conv_positions(n) for n in frames.tolist()]
    assert pooled.tolist() == [feature_positions(160 * n) for n in frames.tolist()]


# -- prompts --------------------------------------------------------------------------------------


def token_ids(both: Both, turns: list[Turn]) -> list[int]:
    """A conversation by Boson's data set, with the opening of an answer after it."""
    data, _ = import_data(Path(REPO))
    from boson_multimodal.data_types import (  # pyright: ignore[reportMissingImports]
        AudioContent,
        ChatMLSample,
        Message,
        TextContent,
    )

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=both.tokenizer)
    both.tokenizer.encode_special_tokens = False
    messages = [
        Message(
            role=turn.role,
            content=[
                AudioContent(audio_url="")
                if isinstance(part, Recording)
                else TextContent(text=part if isinstance(part, str) else part.token)
                for part in turn.parts
            ],
        )
        for turn in turns
    ]
    ids, _, contents, _ = data.prepare_chatml_sample(ChatMLSample(messages=messages), tokenizer)
    assert len(contents) == sum(isinstance(p, Recording) for turn in turns for p in turn.parts)
    return ids + tokenizer.encode(ANSWER, add_special_tokens=False)


def collated(both: Both, turns: list[Turn], clips: list[Recording]) -> Any:
    """A conversation by Boson's collator; ``clips``: all, in the order heard or said.

    An assistant's clip has a wave, too, as every audio of theirs, though nobody listens to it.
    """
    data, collator = import_data(Path(REPO))
    codes = [torch.tensor(np.array(clip.codes).T) for clip in clips]
    waves = [torch.tensor(clip.wave) for clip in clips]

    def starts(parts: list[Any]) -> Any:
        return torch.tensor([0, *(part.shape[-1] for part in parts[:-1])]).cumsum(0)

    sample = data.ChatMLDatasetSample(
        input_ids=torch.tensor(token_ids(both, turns)),
        label_ids=None,
        audio_ids_concat=torch.cat(codes, dim=1),
        audio_ids_start=starts(codes),
        audio_waveforms_concat=torch.cat(waves),
        audio_waveforms_start=starts(waves),
        audio_sample_rate=torch.tensor([HEARING_RATE] * len(waves)),
        audio_speaker_indices=torch.tensor([]),
    )
    processor = type("Processor", (), {})()
    processor.feature_extractor = transformers.WhisperFeatureExtractor(feature_size=BINS)
    config = both.config
    collate = collator.HiggsAudioSampleCollator(
        whisper_processor=processor,
        audio_in_token_id=config.audio_in_token_idx,
        audio_out_token_id=config.audio_out_token_idx,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
        encode_whisper_embed=config.encode_whisper_embed,
        pad_token_id=config.pad_token_id,
        return_audio_in_tokens=config.encode_audio_in_tokens,
        use_delay_pattern=config.use_delay_pattern,
        round_to=1,
        audio_num_codebooks=config.audio_num_codebooks,
    )
    batch = asdict(collate([sample]))
    for name in ("audio_out_ids_start_group_loc", "label_ids", "label_audio_ids", "reward"):
        del batch[name]
    return batch


def check_merge(both: Both, batch: Any, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, masks, embeddings and the last hidden states of a prompt are Boson's."""
    modeling, merges = import_boson(Path(REPO)), []
    merge = modeling.merge_input_ids_with_audio_features

    def spy(*args: Any, **kwargs: Any) -> Any:
        merges.append(merge(*args, **kwargs))
        return merges[-1]

    with monkeypatch.context() as patch:
        patch.setattr(modeling, "merge_input_ids_with_audio_features", spy)
        out = both.boson._forward(**batch)
    embeddings, attended, _, positions, _, _, heard, said = merges[0]
    x, is_audio = both.ours.embed_prompt(prompt)
    assert x.shape == tuple(embeddings.shape)
    assert attended.all()
    assert positions[0].tolist() == list(range(x.shape[1]))
    assert np.array_equal((heard | said).numpy(), is_audio)
    assert np.abs(embeddings.numpy() - np.array(x)).max() <= 1e-4
    hidden = both.ours.hidden(x, both.ours.make_cache(), is_audio)
    theirs = out.hidden_states[-1].numpy()
    assert np.abs(theirs - np.array(hidden)).max() <= 2e-4 * max(1.0, np.abs(theirs).max())


def conversation(heard: list[Recording], said: Recording | None) -> list[Turn]:
    """The first recording in the system turn, the others in a user's, and one of an assistant."""
    system = [*with_markers(SYSTEM), heard[0], *with_markers("\n<|scene_desc_end|>")]
    turns = [Turn("system", system), Turn("user", ["What is said here?", *heard[1:]])]
    if said is not None:
        turns += [Turn("assistant", [said]), Turn("user", ["And now one more."])]
    return turns


@boson
@pytest.mark.parametrize("codes", [True, False], ids=["both", "features"])
def test_prompts_are_merged_as_bosons(tmp_path, seed: int, codes: bool, monkeypatch):
    both, rng = Both(tmp_path / "checkpoint", seed, codes=codes), np.random.default_rng(seed)
    clips = [
        Recording(mx.array(both.codes(rng, int(frames))), noise(rng, int(frames) * 640 - 7))
        for frames in rng.integers(5, 90, size=3)
    ]
    turns = conversation(clips[:2], clips[2])
    batch = collated(both, turns, clips)
    check_merge(both, batch, both.prompts.render(turns), monkeypatch)


@boson
def test_a_user_who_answers_is_merged_as_bosons(both: Both, seed: int, monkeypatch):
    """What is heard after something was said, by Boson's model; its collator counts wrongly."""
    rng = np.random.default_rng(seed)
    clips = [
        Recording(mx.array(both.codes(rng, int(frames))), noise(rng, int(frames) * 640 - 7))
        for frames in rng.integers(5, 90, size=3)
    ]
    batch = collated(both, conversation(clips[:2], clips[2]), clips)
    system, user, assistant, last = conversation(clips[:1], clips[2])
    turns = [system, user, assistant, Turn("user", [*last.parts, clips[1]])]
    with pytest.raises(IndexError):
        collated(both, turns, [clips[0], clips[2], clips[1]])
    batch["input_ids"] = torch.tensor([token_ids(both, turns)])
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    check_merge(both, batch, both.prompts.render(turns), monkeypatch)


@boson
def test_codes_alone_where_there_is_no_tower(tmp_path, seed: int, monkeypatch):
    both, rng = Both(tmp_path / "checkpoint", seed, tower=False), np.random.default_rng(seed)
    clips = [
        Recording(mx.array(both.codes(rng, int(frames))), noise(rng, int(frames) * 640))
        for frames in rng.integers(5, 90, size=3)
    ]
    turns = conversation(clips[:2], clips[2])
    batch = collated(both, turns, clips)
    batch |= {"audio_features": None, "audio_feature_attention_mask": None}
    check_merge(both, batch, both.prompts.render(turns), monkeypatch)


@boson
def test_long_clips_are_cut_as_bosons(tmp_path, seed: int, monkeypatch):
    """Two and a half stretches, then a clip of one; nothing said, or their indices go astray."""
    both, rng = Both(tmp_path / "checkpoint", seed, codes=False), np.random.default_rng(seed)
    samples = [2 * STRETCH + int(rng.integers(1, STRETCH)), int(rng.integers(3000, STRETCH))]
    clips = [Recording(mx.array(both.codes(rng, 5)), noise(rng, n)) for n in samples]
    turns = conversation(clips, None)
    batch = collated(both, turns, clips)
    assert len(batch["audio_features"]) == 4
    check_merge(both, batch, both.prompts.render(turns), monkeypatch)


@boson
def test_their_collator_cannot_cut_codes(tmp_path, seed: int):
    """Where ours does (a long clip, features and codes), there is nothing to compare it with."""
    both, rng = Both(tmp_path / "checkpoint", seed), np.random.default_rng(seed)
    clip = Recording(mx.array(both.codes(rng, 800)), noise(rng, STRETCH + 32_000))
    with pytest.raises(IndexError):
        collated(both, conversation([clip], None), [clip])


@boson
def test_a_tower_that_is_not_to_be_read_fails_there_too(both: Both):
    """skip_audio_tower false, encode_whisper_embed false: no features are made, and none missed."""
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(AttributeError):
        both.boson._forward(input_ids=ids, attention_mask=torch.ones_like(ids))


@boson
@pytest.mark.parametrize("features", [True, False])
def test_a_recording_that_nobody_reads_counts_for_nothing_there(tmp_path, seed: int, features):
    """No tower and no codes: Boson's placeholder is masked. Here it is an error, in one line."""
    folder = tmp_path / "checkpoint"
    both = Both(folder, seed, tower=False)
    both.boson.model.config.encode_audio_in_tokens = False
    ids = torch.tensor([[1, 2, both.config.audio_in_token_idx, 3]])
    out = both.boson._forward(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert out.attention_mask[0].tolist() == [1, 1, 0, 1]
    both.prompts.hearing = type(both.prompts.hearing)(features=False, codes=False)
    rng = np.random.default_rng(seed)
    clip = Recording(mx.array(both.codes(rng, 9)), noise(rng, 999) if features else None)
    with pytest.raises(InputError, match="hears no recordings"):
        both.prompts.render([Turn("user", [clip])])
