"""Every accepted form of training data gives the conversation it means, or says why it cannot."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_higgs.prompts.chatml import ONE_SPEAKER
from mlx_higgs.prompts.v2 import PromptBuilder
from mlx_higgs.sources import DEMO
from mlx_higgs.train.data.conversation import Clip, Conversation, Message
from mlx_higgs.train.data.formats import read_conversations, read_lines
from mlx_higgs.types import InputError, Text, Voice


def lines(folder: Path, *records: object, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(folder: Path, record: object) -> Conversation:
    (conversation,) = read_conversations(lines(folder, record))
    return conversation


def problems(folder: Path, record: object) -> list[str]:
    ((line, _),) = read_lines(lines(folder, record))
    return line.problems


def warnings(folder: Path, record: object) -> list[str]:
    ((line, _),) = read_lines(lines(folder, record))
    assert not line.problems
    return line.warnings


def user(*parts: str | Clip) -> Message:
    return Message("user", parts)


def answer(*parts: str | Clip) -> Message:
    return Message("assistant", parts)


AUDIO = {"type": "audio", "audio_url": "a.wav"}
SPOKEN = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": AUDIO}]


# -- ChatML -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    ["Hi.", {"type": "text", "text": "Hi."}, ["Hi."], [{"type": "text", "text": "Hi."}]],
    ids=["text", "part", "list of text", "list of parts"],
)
def test_chatml_content_in_every_shape(tmp_path, content):
    found = read(tmp_path, {"messages": [{"role": "user", "content": content}, *SPOKEN[1:]]})
    assert found.messages == (user("Hi."), answer(Clip(tmp_path / "a.wav")))
    assert (found.start_index, found.speaker, found.scene, found.misc) == (0, None, None, None)
    assert found.source == f"{tmp_path / 'train.jsonl'}:1"


def test_chatml_with_every_field(tmp_path):
    audio = {**AUDIO, "offset": 1, "duration": 2.5, "row_id": 7}
    record = {
        "messages": [
            {"role": "system", "content": ["Be brief. ", {"type": "audio", "audio_url": "s.wav"}]},
            {"role": "user", "content": "One."},
            {"role": "assistant", "content": [audio]},
            {"role": "user", "content": "Two."},
            {"role": "assistant", "content": ["so", AUDIO], "recipient": "tool"},
        ],
        "start_index": 3,
        "speaker": "ann",
        "scene": "A quiet room.",
        "misc": {"id": 4},
    }
    found = read(tmp_path, record)
    assert found == Conversation(
        (
            Message("system", ("Be brief. ", Clip(tmp_path / "s.wav"))),
            user("One."),
            answer(Clip(tmp_path / "a.wav", 1.0, 2.5, row_id=7)),
            user("Two."),
            Message("assistant", ("so", Clip(tmp_path / "a.wav")), "tool"),
        ),
        3,
        "ann",
        "A quiet room.",
        {"id": 4},
        f"{tmp_path / 'train.jsonl'}:1",
    )
    assert found.targets == found.messages[4:]
    assert len(found.clips) == 3


def test_chatml_of_pandas_has_nan_for_nothing(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        f'{{"messages": {json.dumps(SPOKEN)}, "start_index": NaN, "speaker": NaN, "misc": null}}\n'
    )
    (found,) = read_conversations(path)
    assert (found.start_index, found.speaker, found.misc) == (0, None, None)


def test_speaker_may_stand_in_misc_as_boson_has_it(tmp_path):
    assert read(tmp_path, {"messages": SPOKEN, "misc": {"speaker": "ann"}}).speaker == "ann"


def test_raw_audio_is_decoded_and_wins(tmp_path):
    raw = base64.b64encode(b"RIFF").decode()
    found = read(
        tmp_path, {"messages": [{"role": "assistant", "content": AUDIO | {"raw_audio": raw}}]}
    )
    assert found.clips == (Clip(None, data=b"RIFF"),)


def test_the_scene_of_transformers_is_a_role(tmp_path):
    scene = {"role": "scene", "content": [{"type": "text", "text": "A hall."}]}
    record = {"messages": [scene, *SPOKEN, *SPOKEN], "start_index": 3}
    found = read(tmp_path, record)
    assert found.scene == "A hall."
    assert found.start_index == 2
    assert found.targets == found.messages[3:]


@pytest.mark.parametrize("name", ["url", "audio", "path", "audio_url"])
@pytest.mark.parametrize("written", ["/far/a b.wav", "file:///far/a%20b.wav"])
def test_absolute_paths(tmp_path, name, written):
    record = {"messages": [{"role": "assistant", "content": {"type": "audio", name: written}}]}
    assert read(tmp_path, record).clips == (Clip(Path("/far/a b.wav")),)


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path):
    path = tmp_path / "train.jsonl"
    text = json.dumps({"messages": SPOKEN})
    path.write_text(f"\ufeff{text}\n\n  \n{text}\n", encoding="utf-8")
    assert [each.source for each in read_conversations(path)] == [f"{path}:1", f"{path}:4"]


def message(content: object, role: object = "assistant", **fields: object) -> dict:
    return {"messages": [{"role": role, "content": content, **fields}]}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("a", "not a JSON object"),
        ({"text": "a"}, "neither messages nor conversations"),
        ({"messages": "a"}, "messages is 'a', not a list"),
        ({"messages": ["a"]}, "message 0 is 'a', not an object"),
        (message("a", "robot"), "the role 'robot' is none of system, user, assistant"),
        (message("a", None), "the role None is none of"),
        (message("a", ["user"]), "the role"),
        (message("a", "user", recipient="tool"), "a user message has the recipient 'tool'"),
        (message(3), "a part is 3: its type must be text or audio"),
        (message({"type": "image"}), "its type must be text or audio"),
        (message({"type": "text", "text": 3}), "text is 3, not text"),
        (message({"type": "audio"}), "neither audio_url nor raw_audio"),
        (message(AUDIO | {"audio_url": ["a"]}), "audio_url is"),
        (message(AUDIO | {"audio_url": "https://x.org/a.wav"}), "download it first"),
        (message(AUDIO | {"audio_url": "data:audio/wav;base64,UklG"}), "raw_audio"),
        (message(AUDIO | {"audio_url": "a\0.wav"}), "an audio path is"),
        (message(AUDIO | {"raw_audio": "?"}), "raw_audio is not base64"),
        (message(AUDIO | {"offset": -1}), "offset is -1.0"),
        (message(AUDIO | {"offset": "a"}), "offset is 'a', not a number"),
        (message(AUDIO | {"duration": 0}), "duration is 0.0"),
        ({"messages": SPOKEN, "start_index": 3}, "start_index is 3, for 2 messages"),
        ({"messages": SPOKEN, "start_index": -1}, "start_index is -1"),
        ({"messages": SPOKEN, "start_index": True}, "start_index is True"),
        ({"messages": SPOKEN, "speaker": 3}, "speaker is 3, not text"),
        ({"messages": SPOKEN, "misc": []}, "misc is [], not an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_chatml_says_what_is_wrong(tmp_path, record, said):
    assert said in problems(tmp_path, record)[0]
    with pytest.raises(InputError, match=r"train\.jsonl:1: "):
        list(read_conversations(tmp_path / "train.jsonl"))


def test_all_problems_of_a_line_are_found(tmp_path):
    record = message([{"type": "audio"}, 3], "robot") | {"speaker": 1}
    assert len(problems(tmp_path, record)) == 4


def test_what_is_not_read_is_warned_of(tmp_path):
    record = {"messages": [SPOKEN[0], SPOKEN[1] | {"name": "x"}], "lang": "en"}
    assert warnings(tmp_path, record) == [
        "the line has fields that are not read: lang",
        "a message has fields that are not read: name",
    ]


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps({"messages": SPOKEN}).encode() + b'\n{"messages": [\n\xff\n')
    found = [(line.source, bool(line.problems)) for line, _ in read_lines(path)]
    assert found == [(f"{path}:{n}", n > 1) for n in (1, 2, 3)]


# -- ms-swift -----------------------------------------------------------------------------------


def test_swift_places_audios_in_their_order(tmp_path):
    record = {
        "messages": [
            {"role": "system", "content": "Speak."},
            {"role": "user", "content": "<audio>Like this: <audio>!"},
            {"role": "assistant", "content": "<audio>"},
        ],
        "audios": ["1.wav", "2.wav", "/far/3.wav"],
    }
    one, two = Clip(tmp_path / "1.wav"), Clip(tmp_path / "2.wav")
    assert read(tmp_path, record).messages == (
        Message("system", ("Speak.",)),
        user(one, "Like this: ", two, "!"),
        answer(Clip(Path("/far/3.wav"))),
    )


@pytest.mark.parametrize("key", ["conversations", "conversation"])
@pytest.mark.parametrize("names", [("human", "gpt"), ("user", "assistant"), ("human", "bot")])
def test_conversations_with_from_and_value(tmp_path, key, names):
    asked, answered = names
    record = {
        key: [{"from": asked, "value": "Hi."}, {"from": answered, "value": "<audio>"}],
        "audio": "a.wav",
        "system": "Speak.",
    }
    assert read(tmp_path, record).messages == (
        Message("system", ("Speak.",)),
        user("Hi."),
        answer(Clip(tmp_path / "a.wav")),
    )


def test_loss_false_is_what_start_index_says(tmp_path):
    reference = [SPOKEN[0], {"role": "assistant", "content": "<audio>", "loss": False}]
    target = [SPOKEN[0], {"role": "assistant", "content": "<audio>", "loss": True}]
    found = read(tmp_path, {"messages": [*reference, *target], "audios": ["a.wav", "b.wav"]})
    assert found.start_index == 2
    assert found.targets == found.messages[3:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audios": ["a.wav", "b.wav"]}, "1 <audio> placeholders for 2 audios"),
        ({"audios": []}, "1 <audio> placeholders for 0 audios"),
        ({"audios": [3]}, "an entry of audios is 3, not a path"),
        ({"audios": 3}, "audios is 3, not a list"),
        ({"audios": ["http://x.org/a.wav"]}, "download it first"),
        ({"images": ["a.png"]}, "the line has images"),
        ({"messages": [{"role": "tool", "content": "<audio>"}]}, "the role 'tool'"),
        ({"messages": [{"role": "user", "content": "<audio>a.wav</audio>"}]}, "</audio> in a text"),
        ({"messages": [{"role": "assistant", "content": "<audio>", "loss": 0.5}]}, "loss is 0.5"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "<audio>"},
                    {"role": "assistant", "content": "b", "loss": False},
                ]
            },
            "loss is false after",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_swift_says_what_is_wrong(tmp_path, change, said):
    good = {"messages": [{"role": "assistant", "content": "<audio>"}], "audios": ["a.wav"]}
    assert not problems(tmp_path, good)
    assert any(said in problem for problem in problems(tmp_path, good | change))


# -- folders ------------------------------------------------------------------------------------


SAMPLE = {
    "id": "huo_000",
    "audio_file": "huo_000.wav",
    "transcript_file": "huo_000.txt",
    "duration": 3.86,
    "speaker_id": "huo",
    "scene": "quiet_room",
    "emotion": "alerting",
}


def metadata(folder: Path, *samples: object, **information: object) -> Path:
    (folder / "huo_000.txt").write_text("Good morning.\n", encoding="utf-8")
    record = {"dataset_info": information, "samples": samples}
    (folder / "metadata.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["", "metadata.json"])
def test_metadata(tmp_path, name):
    (found,) = read_conversations(metadata(tmp_path, SAMPLE) / name)
    assert found.messages == (user("Good morning."), answer(Clip(tmp_path / "huo_000.wav")))
    assert (found.speaker, found.scene) == ("huo", "Audio is recorded from quiet room.")
    assert found.misc == {"emotion": "alerting"}  # the id is the name of the clip
    assert found.source == f"{tmp_path / 'metadata.json'}: sample 1"


def test_metadata_without_scene_is_prompted_as_generation_does(tmp_path):
    (found,) = read_conversations(metadata(tmp_path, {**SAMPLE, "scene": None}))
    assert found.messages[0] == Message("system", (ONE_SPEAKER,))
    assert found.start_index == 0


def test_metadata_with_a_reference(tmp_path):
    reference = {"ref_audio_file": "ref.wav", "ref_transcript": "I am she."}
    (found,) = read_conversations(metadata(tmp_path, SAMPLE | reference))
    assert found.messages == (
        user("I am she."),
        answer(Clip(tmp_path / "ref.wav")),
        user("Good morning."),
        answer(Clip(tmp_path / "huo_000.wav")),
    )
    assert found.start_index == 2
    assert found.targets == found.messages[3:]


def test_the_words_of_a_reference_may_lie_beside_it(tmp_path):
    (tmp_path / "ref.txt").write_text("I am she.")
    (found,) = read_conversations(metadata(tmp_path, SAMPLE | {"ref_audio_file": "ref.wav"}))
    assert found.messages[0] == user("I am she.")


def test_metadata_with_several_speakers(tmp_path):
    speakers = [
        {"ref_audio_file": "a.wav", "ref_transcript": "A."},
        {"ref_audio_file": "b.wav", "ref_transcript": "B.", "speaker_tag": "[SPEAKER7]"},
    ]
    (found,) = read_conversations(metadata(tmp_path, SAMPLE | {"ref_speakers": speakers}))
    assert [m.text for m in found.messages if m.role == "user"] == [
        "[SPEAKER0] A.",
        "[SPEAKER7] B.",
        "Good morning.",
    ]
    assert found.start_index == 4


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("huo", "it is 'huo', not an object"),
        ({**SAMPLE, "audio_file": None}, "there is no audio_file"),
        ({**SAMPLE, "transcript_file": "none.txt"}, "none.txt cannot be read"),
        ({**SAMPLE, "ref_audio_file": "ref.wav"}, "ref.txt cannot be read"),
        ({**SAMPLE, "speaker_id": 3}, "speaker_id is 3, not text"),
    ],
)
def test_metadata_says_what_is_wrong(tmp_path, sample, said):
    ((line, _),) = read_lines(metadata(tmp_path, sample))
    assert any(said in problem for problem in line.problems)


def test_what_metadata_says_of_itself_is_not_lost_silently(tmp_path):
    ((line, _),) = read_lines(metadata(tmp_path, SAMPLE, total_samples=1, created_from="x"))
    assert line.warnings == ["dataset_info has fields that are not read: created_from"]


def test_a_folder_of_clips_and_texts(tmp_path):
    for name in ("b.wav", "a.flac", "ann/c.mp3", ".hidden/d.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        path.with_suffix(".txt").write_text(f"{path.stem} \n")
    found = list(read_conversations(tmp_path))
    assert [(each.messages[1].text, each.speaker) for each in found] == [
        ("a", None),
        ("c", "ann"),
        ("b", None),
    ]
    assert found[0].messages == (
        Message("system", (ONE_SPEAKER,)),
        user("a"),
        answer(Clip(tmp_path / "a.flac")),
    )


def test_a_clip_without_words_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.wav: it has no transcript.*a\.txt"):
        list(read_conversations(tmp_path))


SCENE = "Audio is recorded from a quiet room."


@pytest.mark.parametrize("scene", [None, SCENE])
@pytest.mark.parametrize("referenced", [False, True])
def test_readings_are_prompted_as_generation_prompts(tmp_path, scene, referenced):
    """What a model is trained with is what ``generate`` will show it, token for token."""
    prompts = PromptBuilder.from_pretrained(DEMO)
    reference = {"ref_audio_file": "ref.wav", "ref_transcript": "I am she."} if referenced else {}
    (found,) = read_conversations(metadata(tmp_path, {**SAMPLE, "scene": scene} | reference))
    codes = mx.zeros((3, 8), mx.int32)
    turns = [
        prompts.turn(each.role, [part if isinstance(part, str) else codes for part in each.parts])
        for each in found.messages
    ]
    pieces = prompts.transcript(turns, scene=found.scene, start_index=found.start_index)
    voices = [Voice(codes, "I am she.")] if referenced else []
    shown = prompts.build("Good morning.", voices=voices, scene=scene)
    assert flat([piece for piece, _ in pieces])[: len(flat(shown))] == flat(shown)


def flat(pieces: list) -> list:
    """Ids one by one, a clip as None."""
    return [i for piece in pieces for i in (piece.ids if isinstance(piece, Text) else [None])]


# -- which form it is ---------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("single", [True, False])
def test_one_json_document_is_read_too(tmp_path, indent, single):
    record = {"messages": SPOKEN}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(record if single else [record, record], indent=indent))
    assert len(list(read_conversations(path))) == (1 if single else 2)


def test_a_folder_is_read_part_after_part(tmp_path):
    for name in ("valid", "train", "more", "test"):
        lines(tmp_path, {"messages": SPOKEN}, name=f"{name}.jsonl")
    names = [Path(each.source).name for each in read_conversations(tmp_path)]
    assert names == ["train.jsonl:1", "valid.jsonl:1", "test.jsonl:1", "more.jsonl:1"]


def test_parts_may_be_folders(tmp_path):
    for name in ("valid", "train"):
        (tmp_path / name).mkdir()
        metadata(tmp_path / name, SAMPLE)
    assert [Path(each.source).parent.name for each in read_conversations(tmp_path)] == [
        "train",
        "valid",
    ]


@pytest.mark.parametrize("name", ["nothing", "empty", "other.json"])
def test_what_is_no_data_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"samples": 3}')
    with pytest.raises(InputError, match=name):
        list(read_conversations(tmp_path / name))


def test_forms_may_be_mixed_in_a_file(tmp_path):
    swift = {"conversations": [{"from": "gpt", "value": "<audio>"}], "audios": ["b.wav"]}
    path = lines(tmp_path, {"messages": SPOKEN}, swift)
    assert [str(each.clips[0]) for each in read_conversations(path)] == [
        str(tmp_path / name) for name in ("a.wav", "b.wav")
    ]
