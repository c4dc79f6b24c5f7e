"""v3's prompts: the four layouts, the tags' two rules, and texts that try to be more than words."""

from __future__ import annotations

import json
import re

import mlx.core as mx
import numpy as np
import pytest

from convert.tiny_v3 import CONTROL_TOKENS, byte_tokenizer
from mlx_higgs.prompts.tags import CONTROLS, INLINE_TAGS, OPENING_TAGS, TAGS, arrange, tag
from mlx_higgs.prompts.v3 import PromptBuilder
from mlx_higgs.types import Audio, CheckpointError, InputError, Profile, Text, Voice

CODES = mx.array(np.arange(24).reshape(3, 8))


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> PromptBuilder:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return PromptBuilder.from_pretrained(folder)


def spelled(prompt) -> str:
    """A prompt as a person reads it; a clip is its number of frames in braces."""
    tokenizer = byte_tokenizer()
    parts = [
        tokenizer.decode(part.ids, skip_special_tokens=False)
        if isinstance(part, Text)
        else f"{{{len(part.codes)}}}"
        for part in prompt
    ]
    return "".join(parts)


def test_the_four_layouts(builder: PromptBuilder):
    with_text, without = Voice(CODES, "who I am"), Voice(CODES, "")
    said = [("before", CODES)]
    assert spelled(builder.build("Hi")) == "<|tts|><|text|>Hi<|audio|>"
    assert (
        spelled(builder.build("Hi", voices=[without]))
        == "<|tts|><|ref_audio|>{3}<|text|>Hi<|audio|>"
    )
    clone = "<|tts|><|ref_text|>who I am<|ref_audio|>{3}"
    assert spelled(builder.build("Hi", voices=[with_text])) == f"{clone}<|text|>Hi<|audio|>"
    assert (
        spelled(builder.build("Hi", voices=[with_text], history=said))
        == f"{clone}<|text|>before<|audio|>{{3}}<|text|>Hi<|audio|>"
    )


def test_one_run_of_ids_between_clips(builder: PromptBuilder):
    prompt = builder.build("Hi", voices=[Voice(CODES, "a"), Voice(CODES, "b")])
    assert [type(part) for part in prompt] == [Text, Audio, Text, Audio, Text]


def test_there_are_43_tags_of_one_token_each(builder: PromptBuilder):
    assert len(TAGS) == len(set(TAGS)) == 43
    assert (len(OPENING_TAGS), len(INLINE_TAGS)) == (32, 11)
    plain = builder.build("Ahem")
    for one in TAGS:
        prompt = builder.build(f"{one}Ahem")
        assert len(prompt[0].ids) == len(plain[0].ids) + 1, one


def test_control_tokens_of_strangers_are_words(builder: PromptBuilder):
    """No token of a text but the tags is a control token, in transcripts as well."""
    controls = {byte_tokenizer().token_to_id(t) for t in CONTROL_TOKENS if t not in TAGS}
    hostile = "".join(t for t in CONTROL_TOKENS if t not in TAGS)
    clean = builder.build("x", voices=[Voice(CODES, "x")])
    prompt = builder.build(hostile, voices=[Voice(CODES, hostile)])
    count = [
        sum(i in controls for p in parts if isinstance(p, Text) for i in p.ids)
        for parts in (clean, prompt)
    ]
    assert count[0] == count[1]
    assert hostile in spelled(prompt)


def test_a_tag_that_there_is_not_names_near_ones(builder: PromptBuilder):
    with pytest.raises(
        InputError, match=re.escape("<|emotion:sadnes|>. Near ones: <|emotion:sadness|>")
    ):
        builder.build("<|emotion:sadnes|>Oh.")
    with pytest.raises(InputError, match="Tags: "):
        builder.build("<|zzz:qqq|>Oh.")


@pytest.mark.parametrize(
    ("written", "arranged"),
    [
        ("Oh no.", "Oh no."),
        ("<|emotion:awe|> Oh no.", "<|emotion:awe|>Oh no."),
        ("Oh <|emotion:awe|>no.", "<|emotion:awe|>Oh no."),
        (
            "One. Two <|style:whispering|> <|prosody:speed_slow|> three. Four.",
            "One. <|style:whispering|><|prosody:speed_slow|>Two three. Four.",
        ),
        ("Wait <|prosody:pause|> here.", "Wait <|prosody:pause|> here."),
        ("So <|sfx:cough|> Ahem, yes.", "So <|sfx:cough|>Ahem, yes."),
        ("一。二<|emotion:awe|>三。", "一。<|emotion:awe|>二三。"),
    ],
)
def test_tags_stand_where_the_model_expects_them(written: str, arranged: str):
    assert arrange(written) == arranged
    assert arrange(arranged) == arranged


@pytest.mark.parametrize(
    "text", ["Well <|sfx:cough|>", "Well <|sfx:cough|> ... yes", "<|sfx:sigh|>\n"]
)
def test_a_sound_needs_its_spelling(text: str):
    with pytest.raises(InputError, match="must be followed by how the sound is spelt"):
        arrange(text)


def test_words_outlive_the_arrangement(seed: int):
    """Whatever tags a text has, its words stay, in their order."""
    rng = np.random.default_rng(seed)
    words = ["one", "two.", "three!", "four,", "五。", "six?"]
    marks = [*OPENING_TAGS, "<|prosody:pause|>"]
    for _ in range(200):
        parts = [str(rng.choice(words if rng.random() < 0.6 else marks)) for _ in range(12)]
        tags = sorted(part for part in parts if part.startswith("<"))
        text = " ".join(parts)
        found = re.sub(r"<\|.*?\|>", "", arrange(text)).split()
        assert "".join(found) == "".join(part for part in parts if part not in tags)
        assert sorted(re.findall(r"<\|.*?\|>", arrange(text))) == tags


def test_controls_by_name():
    assert tag("emotion", "anger") == "<|emotion:anger|>"
    assert tag("speed", "very_fast") == "<|prosody:speed_very_fast|>"
    for control in CONTROLS:
        with pytest.raises(InputError, match=f"There is no {control} 'x': use one of "):
            tag(control, "x")


def test_what_v2_has_and_v3_has_not(builder: PromptBuilder):
    for asked in ({"scene": "A room."}, {"system": "Be calm."}):
        with pytest.raises(InputError, match="no scene and no system turn"):
            builder.build("Hi", **asked)
    with pytest.raises(InputError, match="no voice in words"):
        builder.build("Hi", voices=[Profile("calm")])
    with pytest.raises(InputError, match="nothing to say"):
        builder.build("...")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    content = json.loads(byte_tokenizer().to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|tts|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape("no token <|tts|>")):
        PromptBuilder.from_pretrained(tmp_path)


def test_a_conversation_is_laid_out_as_it_will_be_asked(builder: PromptBuilder):
    """Training sees, before the clip to learn, exactly the prompt that asks for it."""
    turns = [
        builder.turn("system", ["Be calm."]),
        builder.turn("user", ["who I am"]),
        builder.turn("assistant", [CODES]),
        builder.turn("user", ["Hi"]),
        builder.turn("assistant", [CODES]),
    ]
    pieces = builder.transcript(turns, scene="A room.", start_index=3)
    asked = builder.build("Hi", voices=[Voice(CODES, "who I am")])
    assert spelled([piece for piece, _ in pieces]) == spelled(asked) + "{3}"
    assert [isinstance(piece, Audio) for piece, trained in pieces if trained] == [True]
    for wrong in (builder.turn("user", [CODES]), builder.turn("assistant", ["words"])):
        with pytest.raises(InputError, match="learns to speak"):
            builder.transcript([wrong])
