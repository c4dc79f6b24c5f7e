"""``data check`` finds what is wrong; ``data convert`` loses nothing without saying so."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_higgs import cli
from mlx_higgs.prompts.chatml import ONE_SPEAKER
from mlx_higgs.train.data.check import check
from mlx_higgs.train.data.clips import read_clip
from mlx_higgs.train.data.command import add_data_parser, run_data
from mlx_higgs.train.data.conversation import Clip, Conversation, Message
from mlx_higgs.train.data.formats import FORMS, read_conversations
from mlx_higgs.train.data.writing import convert, split
from mlx_higgs.types import InputError

JSON_LINES = ("chatml", "swift", "conversations")
WORDS = "This is a sentence."


def command(*arguments: object) -> int:
    """``mlx_higgs.train data ...``: the exit code."""
    parser = cli.Parser(prog="mlx_higgs.train")
    add_data_parser(parser.add_subparsers())
    return cli.run(parser, run_data, ["data", *map(str, arguments)])


def clip(folder: Path, name: str, seconds: float = 1.2, loud: float = 0.3, seed: int = 0) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *name.encode()])
    soundfile.write(path, rng.uniform(-loud, loud, round(seconds * 24_000)), 24_000)
    return path


def recordings(folder: Path, count: int = 6, speakers: tuple[str, ...] = ("",)) -> Path:
    for number in range(count):
        path = clip(folder / speakers[number % len(speakers)], f"{number:02}.wav")
        path.with_suffix(".txt").write_text(f"{WORDS} Number {number}.", encoding="utf-8")
    return folder


def lines(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def line(*clips: Path | str, text: str = WORDS, **fields: object) -> dict:
    turns = []
    for each in clips:
        turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": {"type": "audio", "audio_url": str(each)}},
        ]
    return {"messages": turns, **fields}


def reading(path: Path, text: str = WORDS, **fields: object) -> Conversation:
    system = Message("system", (ONE_SPEAKER,))
    turns = (Message("user", (text,)), Message("assistant", (Clip(path),)))
    return Conversation((system, *turns), source=str(path), **fields)


def cloning(folder: Path) -> Conversation:
    """What every form but a bare folder can hold."""
    turns = []
    for name in ("a", "b"):
        turns += [
            Message("user", (f"{WORDS} {name}",)),
            Message("assistant", (Clip(clip(folder, f"{name}.wav")),)),
        ]
    about = {"speaker": "ann", "scene": "A quiet room.", "misc": {"id": "n7", "take": 2}}
    return Conversation(tuple(turns), 2, **about, source="train.jsonl:1")


def place(clip: Clip) -> Path:
    assert clip.path is not None
    return clip.path


def same(found: Conversation, wanted: Conversation, *, sound: bool = False) -> None:
    """Equal but for where they stand; with ``sound`` the clips may be elsewhere."""

    def bare(conversation: Conversation) -> Conversation:
        messages = tuple(
            replace(m, parts=tuple("" if sound and isinstance(p, Clip) else p for p in m.parts))
            for m in conversation.messages
        )
        misc = {k: v for k, v in (conversation.misc or {}).items() if k != "id"}
        return replace(conversation, messages=messages, misc=misc, source="")

    assert bare(found) == bare(wanted)
    for one, other in zip(found.clips, wanted.clips, strict=True):
        assert np.array_equal(read_clip(one), read_clip(other))


# -- convert ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_readings_survive_every_form(tmp_path, form):
    source = [reading(clip(tmp_path, f"{n}.wav"), f"{WORDS} {n}", speaker="ann") for n in range(3)]
    lost = convert(source, tmp_path / "x", tmp_path / "new", form)
    assert lost == []
    found = list(read_conversations(tmp_path / "new"))
    for one, other in zip(found, source, strict=True):
        same(one, other, sound=form not in JSON_LINES)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
def test_references_scene_and_misc_survive(tmp_path, form):
    source = cloning(tmp_path)
    assert convert([source], tmp_path / "x", tmp_path / "new", form) == []
    (found,) = read_conversations(tmp_path / "new")
    same(found, source, sound=form == "metadata")


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_there_and_back(tmp_path, first, second):
    """Any form, made into any other and back, is what it was."""
    source = [reading(clip(tmp_path, f"{n}.wav"), f"{WORDS} {n}", speaker="ann") for n in range(2)]
    convert(source, tmp_path / "x", tmp_path / "1", first)
    one = list(read_conversations(tmp_path / "1"))
    assert convert(one, tmp_path / "1", tmp_path / "2", second) == []
    two = list(read_conversations(tmp_path / "2"))
    assert convert(two, tmp_path / "2", tmp_path / "3", first) == []
    for found, wanted in zip(read_conversations(tmp_path / "3"), one, strict=True):
        same(found, wanted, sound=True)


@pytest.mark.parametrize("form", FORMS)
def test_pieces_and_clips_inside_the_json_are_kept(tmp_path, form):
    whole = clip(tmp_path, "a.wav", 3.0)
    clips = [Clip(whole, 0.5, 0.75), Clip(whole, 1.5), Clip(None, data=whole.read_bytes())]
    source = [
        replace(reading(whole, f"{WORDS} {n}"), messages=(*reading(whole).messages[:1], *turns))
        for n, piece in enumerate(clips)
        for turns in [(Message("user", (f"{WORDS} {n}",)), Message("assistant", (piece,)))]
    ]
    assert convert(source, tmp_path / "x", tmp_path / "new", form) == []
    found = {each.messages[1].text: each for each in read_conversations(tmp_path / "new")}
    for each in source:
        same(found[each.messages[1].text], each, sound=True)


def test_swift_is_what_swift_documents(tmp_path):
    source = cloning(tmp_path)
    convert([source], tmp_path / "x", tmp_path / "new.jsonl", "swift")
    record = json.loads((tmp_path / "new.jsonl").read_text())
    assert record["messages"] == [
        {"role": "user", "content": f"{WORDS} a"},
        {"role": "assistant", "content": "<audio>", "loss": False},
        {"role": "user", "content": f"{WORDS} b"},
        {"role": "assistant", "content": "<audio>"},
    ]
    assert record["audios"] == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    convert([source], tmp_path / "x", tmp_path / "from.jsonl", "conversations")
    record = json.loads((tmp_path / "from.jsonl").read_text())
    assert record["conversations"][2:] == [
        {"from": "human", "value": f"{WORDS} b"},
        {"from": "gpt", "value": "<audio>"},
    ]


def test_metadata_is_what_the_community_reads(tmp_path):
    source = replace(cloning(tmp_path), scene="Audio is recorded from quiet room.")
    convert([source], tmp_path / "x", tmp_path / "new", "metadata")
    record = json.loads((tmp_path / "new" / "metadata.json").read_text())
    assert record["samples"] == [
        {
            "id": "n7",
            "take": 2,
            "audio_file": "b.wav",
            "transcript_file": "b.txt",
            "duration": 1.2,
            "speaker_id": "ann",
            "scene": "quiet_room",
            "ref_audio_file": "a.wav",
            "ref_transcript": f"{WORDS} a",
        }
    ]
    assert record["dataset_info"] == {
        "total_samples": 1,
        "speakers": ["ann"],
        "languages": [],
        "total_duration": 1.2,
        "avg_duration": 1.2,
    }
    assert (tmp_path / "new" / "b.txt").read_text() == f"{WORDS} b"


def test_paths_inside_a_data_set_are_relative(tmp_path):
    inside, outside = clip(tmp_path / "set", "audio/a.wav"), clip(tmp_path, "b.wav")
    source = [reading(inside), reading(outside)]
    convert(source, tmp_path / "x", tmp_path / "set" / "train.jsonl", "chatml")
    text = (tmp_path / "set" / "train.jsonl").read_text()
    assert '"audio/a.wav"' in text
    assert f'"{outside}"' in text
    (tmp_path / "set").rename(tmp_path / "moved")
    first, _ = read_conversations(tmp_path / "moved" / "train.jsonl")
    assert first.clips[0].path == tmp_path / "moved" / "audio" / "a.wav"


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("folder", {"scene": "A hall."}, "does not keep the scene"),
        ("folder", {"misc": {"id": 3}}, r"does not keep misc \(id\)"),
        ("metadata", {"misc": {"duration": 3}}, r"does not keep misc \(duration\)"),
        ("swift", {"row_id": 3}, "does not keep row_id"),
        ("swift", {"cut": True}, "does not keep where a text is cut"),
        ("folder", {"system": "Speak!"}, r"does not keep .*system text"),
    ],
)
def test_what_a_form_cannot_hold_is_said(tmp_path, form, change, said):
    source = reading(clip(tmp_path, "a.wav"))
    system, user, answer = source.messages
    if "row_id" in change:
        answer = replace(answer, parts=(replace(answer.clips[0], row_id=change.pop("row_id")),))
    if change.pop("cut", False):
        user = replace(user, parts=("This is ", "a sentence."))
    if "system" in change:
        system = replace(system, parts=(change.pop("system"),))
    source = replace(source, messages=(system, user, answer), **change)
    notes = convert([source, reading(clip(tmp_path, "b.wav"))], tmp_path, tmp_path / "new", form)
    assert any(re.search(said, note) and "1 of 2" in note for note in notes), notes


@pytest.mark.parametrize("form", ["metadata", "folder"])
def test_several_answers_are_an_error_where_one_is_held(tmp_path, form):
    source = replace(cloning(tmp_path), start_index=0)
    with pytest.raises(InputError, match=r"train\.jsonl:1: .* --to chatml"):
        convert([source], tmp_path / "x", tmp_path / "new", form)
    assert not (tmp_path / "new").exists()


def test_a_placeholder_in_a_text_is_an_error(tmp_path):
    source = reading(clip(tmp_path, "a.wav"), "Say <audio> now.")
    with pytest.raises(InputError, match="holds <audio> itself"):
        convert([source], tmp_path / "x", tmp_path / "new", "swift")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_replaced_without_force(tmp_path, form):
    source = [reading(clip(tmp_path, "a.wav"))]
    target = tmp_path / "new"
    convert(source, tmp_path / "x", target, form)
    with pytest.raises(InputError, match="--force"):
        convert(source, tmp_path / "x", target, form)
    convert(source * 2, tmp_path / "x", target, form, force=True)
    assert len(list(read_conversations(target))) == 2
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_force_replaces_no_other_folder_and_no_source(tmp_path):
    source = [reading(clip(tmp_path / "set", "a.wav"))]
    (tmp_path / "set" / "thesis.pdf").write_text("")
    for target in ("set", ""):
        with pytest.raises(InputError, match="holds"):
            convert(source, tmp_path / "x", tmp_path / target, "folder", force=True)
    with pytest.raises(InputError, match="holds the source"):
        convert(source, tmp_path / "set" / "a", tmp_path / "set", "folder", force=True)
    with pytest.raises(InputError, match="holds the source"):
        convert(source, tmp_path / "a.jsonl", tmp_path / "a.jsonl", "chatml", force=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_leaves_what_was_there(tmp_path, form):
    convert([reading(clip(tmp_path, "a.wav"))], tmp_path / "x", tmp_path / "new", form)
    broken = [reading(clip(tmp_path, "b.wav")), reading(Path("gone.wav"), "<audio>")]
    broken[1] = replace(broken[1], messages=broken[1].messages[1:] * 3, start_index=1)
    if form == "chatml":
        broken[1] = replace(broken[1], misc={"not": object()})
    with pytest.raises((InputError, TypeError)):
        convert(broken, tmp_path / "x", tmp_path / "new", form, force=True)
    (found,) = read_conversations(tmp_path / "new")
    assert place(found.clips[0]).name == "a.wav"
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_a_split_is_a_partition_that_the_seed_decides(tmp_path, seed):
    source = [reading(Path(f"{n}.wav")) for n in range(40)]
    parts = split(source, {"valid": 0.1, "test": 0.05}, seed)
    assert {name: len(part) for name, part in parts.items()} == {"train": 34, "valid": 4, "test": 2}
    everything = [each for part in parts.values() for each in part]
    assert sorted(everything, key=lambda each: each.source) == sorted(
        source, key=lambda each: each.source
    )
    assert parts["train"] == [each for each in source if each in parts["train"]]
    assert split(source, {"valid": 0.1, "test": 0.05}, seed) == parts
    assert split(source, {"valid": 0.1}, seed + 1)["valid"] != parts["valid"]


@pytest.mark.parametrize("form", FORMS)
def test_a_split_is_written_whole(tmp_path, form):
    recordings(tmp_path / "in")
    options = ["--to", form, "--split", "valid=0.3"]
    assert command("convert", tmp_path / "in", tmp_path / "out", *options) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == ({"train.jsonl", "valid.jsonl"} if form in JSON_LINES else {"train", "valid"})
    assert len(list(read_conversations(tmp_path / "out"))) == 6


@pytest.mark.parametrize(
    "wrong", ["valid", "valid=2", "other=0.1", "valid=0.5,test=0.5", "valid=x"]
)
def test_a_wrong_split_is_one_line(tmp_path, capsys, wrong):
    recordings(tmp_path / "in")
    assert command("convert", tmp_path / "in", tmp_path / "out", "--split", wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_drawn_references_are_another_clip_of_the_same_speaker(tmp_path, seed):
    recordings(tmp_path / "in", 12, ("ann", "bob"))
    out = [tmp_path / f"{n}.jsonl" for n in range(2)]
    for path in out:
        assert command("convert", tmp_path / "in", path, "--reference", "draw", "--seed", seed) == 0
    assert out[0].read_text() == out[1].read_text()
    for each in read_conversations(out[0]):
        reference, target = each.clips
        assert reference != target
        assert place(reference).parent == place(target).parent
        assert each.start_index == 2
        assert [m.role for m in each.messages] == ["user", "assistant"] * 2
        assert each.messages[0].text == place(reference).with_suffix(".txt").read_text()


def test_a_given_reference_scene_and_speaker(tmp_path):
    recordings(tmp_path / "in", 3)
    voice = recordings(tmp_path / "voice", 1) / "00.wav"
    options = ["--reference", voice, "--scene", "A hall.", "--speaker", "ann"]
    assert command("convert", tmp_path / "in", tmp_path / "o.jsonl", *options) == 0
    for each in read_conversations(tmp_path / "o.jsonl"):
        assert (each.clips[0].path, each.scene, each.speaker) == (voice, "A hall.", "ann")
        assert [m.role for m in each.messages] == ["user", "assistant"] * 2


def test_a_share_of_references(tmp_path):
    recordings(tmp_path / "in", 20)
    options = ["--reference", "draw", "--reference-share", 0.5]
    assert command("convert", tmp_path / "in", tmp_path / "o.jsonl", *options) == 0
    counts = [len(each.clips) for each in read_conversations(tmp_path / "o.jsonl")]
    assert 0 < counts.count(2) < 20


def test_normalised_as_generation_does(tmp_path):
    lines(tmp_path / "in.jsonl", line("a.wav", text="So （this） is “it”"))
    assert command("convert", tmp_path / "in.jsonl", tmp_path / "o.jsonl", "--normalize") == 0
    (found,) = read_conversations(tmp_path / "o.jsonl")
    assert found.messages[0].text == 'So this is "it"'


def test_raw_audio_stays_in_chatml(tmp_path):
    data = clip(tmp_path, "a.wav").read_bytes()
    part = {"type": "audio", "raw_audio": base64.b64encode(data).decode()}
    record = {"messages": [{"role": "assistant", "content": part}]}
    lines(tmp_path / "in.jsonl", record)
    assert command("convert", tmp_path / "in.jsonl", tmp_path / "o.jsonl") == 0
    (found,) = read_conversations(tmp_path / "o.jsonl")
    assert found.clips == (Clip(None, data=data),)


def test_data_that_cannot_be_read_is_not_converted(tmp_path, capsys):
    lines(tmp_path / "in.jsonl", line("a.wav"), {"messages": 3})
    assert command("convert", tmp_path / "in.jsonl", tmp_path / "o.jsonl") == 2
    assert "in.jsonl:2: messages is 3, not a list. Try data check." in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


# -- check --------------------------------------------------------------------------------------


def test_good_data_passes(tmp_path, capsys):
    recordings(tmp_path, 4, ("ann", "bob"))
    assert command("check", tmp_path) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4 entries, 4 usable: 0 errors, 0 warnings"
    assert out[2] == "speakers: ann (2), bob (2)"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (line("gone.wav"), "gone.wav does not exist"),
        (line("text.wav"), "cannot be read as audio"),
        (line("short.wav"), "0.10 s: 0.2 to 60 s"),
        (line("long.wav"), "61.00 s: 0.2 to 60 s"),
        (line("silent.wav"), "is silent"),
        (line("good.wav", text=" ..."), "a user message says nothing"),
        (line("good.wav", text="Hi <|eot_id|> there"), "control tokens in a text: <|eot_id|>"),
        (line("good.wav", text="Hi \ud800 there"), "half a character"),
        (line("good.wav", text="Hi <audio> there"), "<audio> in a text"),
        (line("good.wav", start_index=2), "no assistant message from start_index 2 on"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "no assistant audio"),
        ({"messages": []}, "no assistant message"),
        (line("good.wav") | {"start_index": 9}, "start_index is 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_found(tmp_path, capsys, record, said):
    clip(tmp_path, "good.wav")
    clip(tmp_path, "short.wav", 0.1)
    clip(tmp_path, "silent.wav", loud=0.0)
    soundfile.write(tmp_path / "long.wav", np.ones(61 * 4_000) / 2, 4_000)
    (tmp_path / "text.wav").write_text("no audio")
    path = lines(tmp_path / "train.jsonl", line("good.wav"), record)
    assert command("check", path) == 2
    out, err = capsys.readouterr()
    assert any(f"{path}:2: error: " in text and said in text for text in out.splitlines())
    assert "1 of 2 entries cannot be used" in err


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (line("good.wav", text="word " * 40), "faster than anybody speaks"),
        (line("slow.wav", text="hi"), "far slower than anybody speaks"),
        (line("loud.wav"), "is clipped"),
        (line("good.wav", lang="en"), "fields that are not read: lang"),
        (line("other.wav"), "the same target as"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_warnings_leave_the_data_usable(tmp_path, capsys, record, said):
    clip(tmp_path, "good.wav")
    clip(tmp_path, "other.wav")
    clip(tmp_path, "slow.wav", 8.0)
    soundfile.write(tmp_path / "loud.wav", np.sign(np.sin(np.arange(30_000))), 24_000)
    path = lines(tmp_path / "train.jsonl", line("other.wav"), record)
    assert command("check", path) == 0
    out = capsys.readouterr().out
    assert f"{path}:2: warning: " in out
    assert said in out


def test_all_problems_of_all_lines(tmp_path):
    bad = line("gone.wav", "other.wav", text="<|eot_id|>")
    report = check(lines(tmp_path / "train.jsonl", bad, {"messages": 3}, bad))
    lines_of = [Path(problem.source).name for problem in report.problems]
    assert lines_of.count("train.jsonl:1") == 4
    assert lines_of.count("train.jsonl:3") == 6  # and twice the same target as before
    assert lines_of.count("train.jsonl:2") == 1
    assert (report.entries, report.usable) == (3, 0)


def test_the_summary_counts_what_is_trained(tmp_path):
    clip(tmp_path, "a.wav", 2.0)
    clip(tmp_path, "b.wav", 3.0)
    path = lines(tmp_path / "train.jsonl", line("a.wav", "b.wav", start_index=2, speaker="ann"))
    for audio in (True, False):
        report = check(path, audio=audio)
        assert (report.trained_seconds, report.reference_seconds) == (3.0, 2.0)
        assert (report.longest_seconds, report.longest) == (5.0, f"{path}:1")
        assert (report.turns, report.trained_clips, report.speakers) == (4, 1, {"ann": 1})


def test_markers_are_allowed_in_a_system_text_alone(tmp_path):
    clip(tmp_path, "a.wav")
    system = {
        "role": "system",
        "content": "Go.\n\n<|scene_desc_start|>\nA hall.\n<|scene_desc_end|>",
    }
    record = line("a.wav")
    record["messages"].insert(0, system)
    assert not check(lines(tmp_path / "a.jsonl", record)).problems
    (problem,) = check(lines(tmp_path / "b.jsonl", {**record, "scene": "x"})).problems
    assert "scene is not used" in problem.message


def test_json_is_one_object(tmp_path, capsys):
    recordings(tmp_path, 2)
    lines(tmp_path / "train.jsonl", line("00.wav"), line("gone.wav"))
    assert command("check", tmp_path / "train.jsonl", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["warnings"], found["entries"], found["usable"]) == (1, 0, 2, 1)
    (problem,) = found["problems"]
    assert problem["level"] == "error"
    assert problem["source"] == f"{tmp_path / 'train.jsonl'}:2"


def test_texts_that_generation_would_write_otherwise_are_counted(tmp_path):
    clip(tmp_path, "a.wav")
    path = lines(tmp_path / "train.jsonl", line("a.wav", text="No full stop"))
    assert check(path).not_normalized == 1


def test_the_commands_import_nothing_heavy():
    code = (
        "import sys, mlx_higgs.train.data.command; "
        "heavy = {'mlx', 'numpy', 'soundfile', 'tokenizers', 'tqdm'} & set(sys.modules); "
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
