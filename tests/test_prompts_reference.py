"""v2 prompts against transformers' processor, where it agrees with Boson's script.

The strings are what its chat template renders for the same conversations; the processor tokenises
them whole and puts a placeholder for each delayed row of a clip.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from toy_tokenizer import expanded_ids, toy_tokenizer

from mlx_higgs.prompts.v2 import PromptBuilder
from mlx_higgs.types import Prompt, Voice

torch = pytest.importorskip("torch", reason="the reference gates need torch")
transformers = pytest.importorskip("transformers", reason="the reference gates need transformers")

K = 8
BUILDER = PromptBuilder(toy_tokenizer())
SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Generate audio following instruction."
)
SCENE = "\n\n<|scene_desc_start|>\nA quiet room.\n\nThe clock ticks.\n<|scene_desc_end|>"
USER = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
CLIP = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
SPEAK = ASSISTANT + "<|audio_out_bos|>"
TEXTS = [
    "The sun rises in the east.",
    "你好, 世界.\nSecond line, <SE>[Laughter]</SE> 👍",
    "[SPEAKER0] One [SPEAKER12] two 1234567.",
]


@pytest.fixture(scope="module")
def processor() -> Any:
    """transformers' processor around a codec that makes one frame of a sample."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=toy_tokenizer(),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
    )
    extractor = transformers.DacFeatureExtractor(hop_length=1, sampling_rate=24000)
    processor = transformers.HiggsAudioV2Processor(extractor, tokenizer, None)
    processor.audio_tokenizer = SimpleNamespace(
        device="cpu", config=SimpleNamespace(num_quantizers=K), encode=one_frame_of_a_sample
    )
    return processor


def one_frame_of_a_sample(input_values: Any) -> SimpleNamespace:
    frames = input_values.shape[-1]
    return SimpleNamespace(audio_codes=torch.zeros((1, K, frames), dtype=torch.long))


def reference_ids(processor: Any, rendered: str, frames: list[int]) -> list[int]:
    clips = [np.zeros(T, np.float32) for T in frames]
    inputs = processor(
        text=rendered, audio=clips or None, return_tensors="pt", add_special_tokens=False
    )
    ids = inputs["input_ids"][0].tolist()
    if clips:
        placeholders = processor.audio_token_id, processor.audio_delay_token_id
        assert sum(token in placeholders for token in ids) == inputs["audio_input_ids"].shape[1]
    return ids


def ours(prompt: Prompt) -> list[int]:
    return expanded_ids(prompt, toy_tokenizer())


@pytest.mark.parametrize("text", TEXTS)
def test_smart_voice(processor: Any, text: str) -> None:
    plain = BUILDER.build(text, speakers=[])
    assert ours(plain) == reference_ids(processor, SYSTEM + USER + text + SPEAK, [])
    scene = BUILDER.build(text, scene="A quiet room.\n\nThe clock ticks.", speakers=[])
    assert ours(scene) == reference_ids(processor, SYSTEM + SCENE + USER + text + SPEAK, [])


@pytest.mark.parametrize("text", TEXTS)
def test_clone_with_a_scene(processor: Any, text: str, seed: int) -> None:
    T = int(np.random.default_rng(seed).integers(1, 60))
    voice = Voice(mx.zeros((T, K), dtype=mx.int32), "What the clip says.")
    prompt = BUILDER.build(text, voices=[voice], scene="A quiet room.\n\nThe clock ticks.")
    rendered = SYSTEM + SCENE + USER + "What the clip says." + ASSISTANT + CLIP + USER + text
    assert ours(prompt) == reference_ids(processor, rendered + SPEAK, [T])


def test_two_voices_and_history(processor: Any, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(1, 60, size=3).tolist()
    first, second, said = (mx.zeros((T, K), dtype=mx.int32) for T in frames)
    prompt = BUILDER.build(
        "[SPEAKER1] And you?",
        voices=[Voice(first, "I am one."), Voice(second, "I am two.")],
        system="Generate audio following instruction.",
        history=[("[SPEAKER0] Hello.", said)],
    )
    turns = ["[SPEAKER0] I am one.", "[SPEAKER1] I am two.", "[SPEAKER0] Hello."]
    rendered = SYSTEM + "".join(USER + turn + ASSISTANT + CLIP for turn in turns)
    assert ours(prompt) == reference_ids(
        processor, rendered + USER + "[SPEAKER1] And you?" + SPEAK, frames
    )
