"""v2 prompts: the reference's ids in every mode, and nothing but words from hostile words."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from toy_tokenizer import CONTROL_TOKENS, placeholder_ids, token_id, toy_tokenizer

import mlx_higgs
from mlx_higgs.prompts.chatml import MARKERS, Turn, with_markers
from mlx_higgs.prompts.tokenizer import PromptTokenizer, read_tokenizer
from mlx_higgs.prompts.v2 import SOUND_TOKENS, PromptBuilder
from mlx_higgs.text import is_blank, speaker_tags
from mlx_higgs.types import Audio, CheckpointError, InputError, Profile, Prompt, Text, Voice

GOLDEN = json.loads((Path(__file__).parent / "golden/prompts_v2.json").read_text("utf-8"))
TOKENIZER = toy_tokenizer()
BUILDER = PromptBuilder(toy_tokenizer())
FIRST_CONTROL = token_id(TOKENIZER, CONTROL_TOKENS[0])
SPEAK = token_id(TOKENIZER, "<|audio_out_bos|>")


def codes(frames: int = 3) -> mx.array:
    return mx.zeros((frames, 8), dtype=mx.int32)


def voice(fields: dict[str, str]) -> Voice | Profile:
    if "description" in fields:
        return Profile(fields["description"])
    return Voice(codes(), fields["transcript"])


def texts_of(prompt: Prompt) -> str:
    """All of a prompt's words and control tokens, clips left out."""
    ids = [token for part in prompt if isinstance(part, Text) for token in part.ids]
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def build(case: dict[str, Any], chunk: dict[str, Any], **more: Any) -> Prompt:
    return BUILDER.build(
        chunk["text"],
        voices=[voice(fields) for fields in case["voices"]],
        scene=case["scene"],
        references_in_system=case["references_in_system"],
        history=[(text, codes()) for text in chunk["history"]],
        **more,
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_every_mode_has_the_reference_ids(case: dict[str, Any]) -> None:
    for chunk in case["chunks"]:
        if is_blank(chunk["text"]):
            with pytest.raises(InputError, match="nothing to say"):
                build(case, chunk)
            continue
        prompt = build(case, chunk, speakers=case["speakers"])
        assert placeholder_ids(prompt, TOKENIZER) == [*chunk["ids"], SPEAK]


@pytest.mark.parametrize("case", GOLDEN["conversations"])
def test_free_conversations_have_the_reference_ids(case: dict[str, Any]) -> None:
    turns = []
    for role, parts in case["turns"]:
        cut = ([codes()] if part is None else with_markers(part) for part in parts)
        turns.append(Turn(role, list(chain.from_iterable(cut))))
    assert placeholder_ids(BUILDER.render(turns), TOKENIZER) == [*case["ids"], SPEAK]


def test_a_system_text_of_ones_own_replaces_the_made_one() -> None:
    cases = [case for case in GOLDEN["conversations"] if case["turns"][0][0] == "system"]
    assert len(cases) > 5
    for case in cases[:-1]:
        (_, [system]), *references, (_, [text]) = case["turns"]
        voices = [Voice(codes(), references[0][1][0])] if references else []
        prompt = BUILDER.build(text, system=system, voices=voices)
        assert placeholder_ids(prompt, TOKENIZER) == [*case["ids"], SPEAK]


def test_speakers_default_to_the_tags_of_the_text() -> None:
    text = "[SPEAKER1] Hello. [SPEAKER0] Hi."
    assert BUILDER.build(text) == BUILDER.build(text, speakers=speaker_tags(text))
    assert BUILDER.build(text) != BUILDER.build(text, speakers=[])


def test_a_prompt_alternates_text_and_clips_and_ends_asking_for_speech() -> None:
    voices = [Voice(codes(4), "one"), Profile("Calm."), Voice(codes(5), "two")]
    prompt = BUILDER.build("three", voices=voices, history=[("four", codes(6))])
    assert [type(part) for part in prompt] == [Text, Audio, Text, Audio, Text, Audio, Text]
    clips = [part for part in prompt if isinstance(part, Audio)]
    assert [(len(clip.codes), clip.spoken) for clip in clips] == [(4, False), (5, False), (6, True)]
    opening = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"
    assert isinstance(prompt[-1], Text)
    assert TOKENIZER.decode(prompt[-1].ids, skip_special_tokens=False).endswith(opening)


def test_the_demo_gets_the_ids_it_was_trained_with() -> None:
    """Its pre-tokeniser is GPT-2's, and it was trained on prompts encoded whole."""
    demo = Path(mlx_higgs.__file__).parent / "demo"
    prompt = PromptBuilder.from_pretrained(demo).build("one seven", scene="SPEAKER0: masculine")
    whole = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Generate audio following instruction.\n\n"
        "<|scene_desc_start|>\nSPEAKER0: masculine\n<|scene_desc_end|><|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\none seven<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"
    )
    tokenizer = read_tokenizer(demo)
    assert prompt == [Text(tokenizer.encode(whole, add_special_tokens=False).ids)]


def hostile(rng: np.random.Generator) -> str:
    """Words, line ends and every control token that a text may not hold, in any order."""
    forbidden = [token for token in CONTROL_TOKENS if token not in SOUND_TOKENS]
    pieces = [*forbidden, "<|", "|>", "one", " ", "\n\n", "，", "👍", "<SE", "é"]
    return "a" + "".join(rng.choice(pieces, size=12))


@pytest.mark.parametrize(
    "place",
    [
        lambda text: BUILDER.build(text),
        lambda text: BUILDER.build("x", scene=text),
        lambda text: BUILDER.build("x", voices=[Voice(codes(), text)]),
        lambda text: BUILDER.build("x", voices=[Profile(text)]),
        lambda text: BUILDER.build("x", history=[(text, codes())]),
    ],
    ids=["text", "scene", "transcript", "profile", "history"],
)
def test_hostile_words_stay_words(place: Callable[[str], Prompt], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        text = hostile(rng).strip()
        prompt, plain = place(text), place("harmless")
        assert controls(prompt) == controls(plain)
        assert texts_of(prompt) == texts_of(plain).replace("harmless", text)


def test_a_free_system_text_may_hold_markers_only() -> None:
    harmless = controls(BUILDER.build("x", system="harmless"))
    for token in CONTROL_TOKENS:
        extra = len(controls(BUILDER.build("x", system=f"a{token}b"))) - len(harmless)
        assert extra == (token in MARKERS or token in SOUND_TOKENS), token


def controls(prompt: Prompt) -> list[int]:
    ids = [token for part in prompt if isinstance(part, Text) for token in part.ids]
    return [token for token in ids if token >= FIRST_CONTROL]


@pytest.mark.parametrize("token", SOUND_TOKENS)
def test_sound_tags_are_control_tokens_in_any_text(token: str) -> None:
    assert token_id(TOKENIZER, token) in controls(BUILDER.build(f"ha {token} ha"))


def test_words_encode_as_the_tokenizer_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = PromptTokenizer(toy_tokenizer(), SOUND_TOKENS)
    pieces = ["one", " the", "\n", " ", "...", "SPEAKER", "世界", "👍", "<", "|>", *SOUND_TOKENS]
    for _ in range(50):
        text = "".join(rng.choice(pieces, size=rng.integers(0, 10)))
        assert tokens.encode(text) == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_contradictions_are_refused() -> None:
    clip = Voice(codes(), "one")
    contradictions: list[dict[str, Any]] = [
        {"system": "Be calm.", "scene": "A room."},
        {"system": "Be calm.", "voices": [Profile("Low voice.")]},
        {"system": "Be calm.", "voices": [clip], "references_in_system": True},
        {"references_in_system": True},
    ]
    for arguments in contradictions:
        with pytest.raises(InputError):
            BUILDER.build("hello", **arguments)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="surrogate"):
        BUILDER.build("half \ud83d of a character")


def test_missing_tokens_are_named() -> None:
    lacking = [token for token in CONTROL_TOKENS if token != "<|audio_out_bos|>"]
    with pytest.raises(CheckpointError, match="audio_out_bos"):
        PromptBuilder(toy_tokenizer(lacking))
    soundless = [token for token in CONTROL_TOKENS if token not in SOUND_TOKENS]
    builder = PromptBuilder(toy_tokenizer(soundless))
    assert builder.build("hello")
    with pytest.raises(CheckpointError, match="<SE>"):
        builder.build("hello <SE>[Laughter]</SE>")


def test_control_tokens_filed_as_ordinary_are_refused() -> None:
    with pytest.raises(CheckpointError, match="special"):
        PromptBuilder(toy_tokenizer(special=False))


def test_a_folder_is_read_or_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        PromptBuilder.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        PromptBuilder.from_pretrained(tmp_path)
    toy_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert PromptBuilder.from_pretrained(tmp_path).build("hi") == BUILDER.build("hi")
