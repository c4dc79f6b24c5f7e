"""Laws of ``evaluate speech``: nothing is dropped, controls speak up, clones are told apart."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs.audio import read_reference, write
from mlx_higgs.evaluate.__main__ import main
from mlx_higgs.evaluate.cloning import Voices, cloning_report, wilson
from mlx_higgs.evaluate.outcomes import Originals, judge
from mlx_higgs.evaluate.plot import plot
from mlx_higgs.evaluate.report import References, speech_report
from mlx_higgs.evaluate.show import show
from mlx_higgs.evaluate.texts import SENTENCES, read_recordings
from mlx_higgs.evaluate.trials import Trial, perform, plan, play_back
from mlx_higgs.evaluate.words import DIGITS, spoken_words
from mlx_higgs.sources import DEMO
from mlx_higgs.types import CheckpointError, GenerationError, InputError, Speech
from mlx_higgs.vocabulary import draw_texts

PROMPTS = Path(__file__).parent.parent / "examples" / "voice_prompts"
NAMES = ("en_man", "en_man_deep", "en_woman")
RATE = 24_000


class Ears:
    """A recogniser that knows some sounds, and hears a hiss in all others."""

    name = "ears"

    def __init__(self):
        self.known: dict[bytes, str] = {}

    def transcribe(self, pcm: np.ndarray, rate: int) -> str:
        return self.known.get(pcm.tobytes(), "hiss")

    def unknown(self, words) -> list[str]:
        return []


class Mouth:
    """A server that says every text in the voice ``who`` answers, or fails."""

    def __init__(self, ears: Ears, pieces: dict[str, np.ndarray], who):
        self.ears, self.pieces, self.who, self.asked = ears, pieces, who, []

    def generate(self, text: str, *, seed: int, reference_audio_path=None, **options) -> Speech:
        self.asked.append((text, seed, reference_audio_path, options))
        if "fail" in text:
            raise GenerationError("The model made no sound.")
        wave = np.pad(self.pieces[self.who(reference_audio_path)], (1000 + len(self.asked), 0))
        self.ears.known[wave.tobytes()] = text
        return Speech(wave, RATE, 10, 5, "eos", seed, seconds=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two clips a voice: the first two thirds of the examples' clips."""
    folder = tmp_path_factory.mktemp("voices")
    for name in NAMES:
        for index, piece in enumerate(thirds(name)[:2]):
            write(folder / f"{name}_{index}.wav", piece)
            (folder / f"{name}_{index}.txt").write_text("some words\n")
    return folder


def thirds(name: str) -> list[np.ndarray]:
    return np.array_split(read_reference(PROMPTS / f"{name}.wav"), 3)


def heard(who, trials: list[Trial], ears: Ears):
    mouth = Mouth(ears, {name: thirds(name)[2] for name in NAMES}, who)
    takes = perform(mouth, trials, {"scene": None})
    return mouth, [judge(take, ears, Originals([]), noise=True) for take in takes]


def test_a_clone_is_counted_for_the_voice_that_came_out(folder: Path):
    pytest.importorskip("jiwer")
    voices = Voices(folder)
    trials = plan(["one two", "three", "four"], [7], voices.clips)
    assert len(trials) == 9
    mouth, good = heard(lambda clip: clip.stem.rpartition("_")[0], trials, Ears())
    report = cloning_report(good, voices)
    assert (report.correct, report.runs, report.chance) == (9, 9, 1 / 3)
    assert report.clips_accuracy == 1.0
    used = {path.stem for _, _, path, _ in mouth.asked}
    assert len(used) == 6  # the clips take turns
    _, bad = heard(lambda clip: "en_woman", trials, Ears())
    report = cloning_report(bad, voices)
    assert report.accuracy == pytest.approx(1 / 3)
    assert {row["en_woman"] for row in report.confusion.values()} == {3}
    assert sum(sum(row.values()) for row in report.confusion.values()) == 9


def test_a_failure_is_all_words_wrong_and_listed(folder: Path):
    pytest.importorskip("jiwer")
    ears, voices = Ears(), Voices(folder)
    trials = plan(["one two three", "fail now"], [0, 1], {"en_man": voices.clips["en_man"]})
    _, outcomes = heard(lambda clip: "en_man", trials, ears)
    cloning = cloning_report(outcomes, voices)
    report = speech_report(outcomes, ears, References(), cloning)
    assert (report.runs, report.texts, report.words, report.failed) == (4, 2, 10, 2)
    assert report.wer == 0.4
    assert report.ended == 0.5
    assert report.shuffled_wer is not None
    assert report.noise_wer is not None
    assert min(report.shuffled_wer, report.noise_wer) >= 1
    assert cloning.confusion["en_man"]["(no voice)"] == 2
    assert cloning.accuracy == 0.5
    lines = "\n".join(show(report))
    assert lines.count("failed (seed") == 2
    assert "made no sound" in lines


def test_measures_are_against_the_clip_that_was_cloned(folder: Path):
    pytest.importorskip("jiwer")
    ears, voices = Ears(), Voices(folder)
    trials = plan(["one", "two"], [0], {"en_woman": voices.clips["en_woman"]})
    near = speech_report(heard(lambda _: "en_woman", trials, ears)[1], ears, References())
    far = speech_report(heard(lambda _: "en_man_deep", trials, ears)[1], ears, References())
    assert near.similarity is not None
    assert far.similarity is not None
    assert near.similarity > far.similarity + 0.3
    assert abs(near.f0_drift_semitones) < 1.5
    assert far.f0_drift_semitones is not None
    assert far.f0_drift_semitones < -8
    assert near.real_time_factor == pytest.approx(2 / sum(run.seconds for run in near.trials))


def test_a_broken_checkpoint_is_no_failure_of_a_text():
    class Broken:
        def generate(self, *_, **__):
            raise CheckpointError("The codec is not there.")

    with pytest.raises(CheckpointError):
        list(perform(Broken(), [Trial("one", 0)], {}))


def test_recordings_are_their_own_originals(folder: Path):
    pytest.importorskip("jiwer")
    clips = read_recordings(PROMPTS)
    ears = Ears()
    outcomes = [judge(take, ears, Originals(clips)) for take in play_back(clips)]
    report = speech_report(outcomes, ears, References())
    assert report.duration_ratio == 1
    assert report.similarity == pytest.approx(1)
    assert report.f0_drift_semitones == 0
    assert (report.ended, report.real_time_factor) == (None, None)
    assert [run.voice for run in report.trials] == sorted(NAMES)
    nobody = dataclasses.replace(next(play_back(clips)), voice="nobody")
    voices = Voices(folder)
    with pytest.raises(InputError, match="is of 'nobody'"):
        cloning_report([judge(nobody, ears, Originals([]))], voices)


def test_texts_are_drawn_from_the_words_and_repeatably(seed: int):
    words = [f"word{index}" for index in range(30)]
    texts = draw_texts(words, 25, seed)
    assert texts == draw_texts(words, 25, seed) != draw_texts(words, 25, seed + 1)
    assert len(set(texts)) == 25
    assert all(4 <= len(text.split()) <= 8 for text in texts)
    assert all(3 <= len(text.split()) <= 6 for text in draw_texts(DIGITS, 25, seed))
    assert len(draw_texts(["one"], 25, seed)) == 4  # all there are
    assert len(set(SENTENCES)) == 20
    assert all(spoken_words(text) for text in SENTENCES)


def test_a_share_has_an_interval_around_it():
    for right, of in (0, 60), (60, 60), (57, 60), (1, 2):
        low, high = wilson(right, of)
        assert 0 <= low <= right / of <= high <= 1
        assert high - low > 0.04
    assert wilson(57, 60)[0] == pytest.approx(0.863, abs=2e-3)  # R: prop.test(correct=FALSE)


def test_the_demo_end_to_end(tmp_path: Path, capsys):
    """Spoken, saved, drawn; and what was saved scores alike as recordings."""
    for name in ("pocketsphinx", "jiwer"):
        pytest.importorskip(name)
    texts, wavs = tmp_path / "texts.txt", tmp_path / "wavs"
    texts.write_text("# three\none two three\n\nseven nine five\nfour four zero\n")
    command = ["speech", "--texts", str(texts), "--json", "--seed", "3"]
    assert main([*command, "--save-wavs", str(wavs), "--limit", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["runs"], report["texts"], report["words"], report["failed"]) == (2, 2, 6, 0)
    assert report["wer"] <= 0.34
    assert report["shuffled_wer"] >= 0.6
    assert report["real_time_factor"] > 0
    assert "digit loop" in report["recogniser"]
    assert sorted(path.name for path in wavs.glob("*.txt")) == ["speech_001.txt", "speech_002.txt"]
    assert main(["speech", "--recordings", str(wavs), "--original", str(wavs), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert abs(again["wer"] - report["wer"]) <= 0.17  # 16 bits may turn one word of six
    assert again["f0_hz"] == pytest.approx(report["f0_hz"], rel=0.01)
    assert again["original_wer"] == again["wer"]
    assert main(["speech", "--recordings", str(wavs)]) == 0
    assert "word error rate" in capsys.readouterr().out


def test_a_report_can_be_drawn(folder: Path, tmp_path: Path):
    for name in ("matplotlib", "jiwer"):
        pytest.importorskip(name)
    ears, voices = Ears(), Voices(folder)
    _, outcomes = heard(lambda _: "en_man", plan(["one", "two"], [0], voices.clips), ears)
    for cloning in (None, cloning_report(outcomes, voices)):
        plot(speech_report(outcomes, ears, References(), cloning), tmp_path / "report.png")
        assert (tmp_path / "report.png").read_bytes()[1:4] == b"PNG"


BAD = {
    "no folder": (["--recordings", "nowhere"], "no folder nowhere"),
    "no sound": (["--recordings", "."], "no sound file"),
    "no texts": (["--texts", "nowhere.txt"], "cannot be read"),
    "empty": (["--texts", "empty.txt"], "no text in"),
    "not a word": (["--texts", "marks.txt"], "has no word"),
    "zero runs": (["--seeds", "0"], "at least 1"),
    "zero texts": (["--limit", "0"], "at least 1"),
    "two voices": (["--voice", "en_man", "--ref-audio", "x.wav"], "Name one of"),
    "no such voice": (["--voice", "nobody"], "no voice 'nobody'"),
    "words of no clip": (["--ref-text", "hello"], "needs --ref-audio"),
    "one voice": (["--references", "one"], "at least two"),
    "no clones": (["--model", "one_voice", "--voice", "en_man"], "cannot clone"),
    "texts of recordings": (["--recordings", ".", "--texts", "x"], "do not apply"),
    "no plot": (["--plot", "plot.doc"], "no known suffix"),
    "no plot folder": (["--plot", "nowhere/plot.png"], "does not exist"),
    "full folder": (["--save-wavs", "one"], "holds something"),
    "unknown words": (["--texts", "odd.txt", "--grammar", "words"], "cannot hear blorptastic"),
    "not digits": (["--texts", "cats.txt", "--grammar", "digits"], "cannot hear cats"),
    "no whisper": (["--whisper-model", "nowhere.bin"], "no whisper.cpp model"),
    "whisper's grammar": (["--whisper-model", "x", "--grammar", "full"], "no grammar"),
    "no model": (["--model", "nowhere"], "no folder nowhere"),
    "temperature": (["--temperature", "-1"], "temperature"),
}


def one_voice(folder: Path) -> None:
    """The demo as if it could not clone."""
    config = shutil.copytree(DEMO, folder / "one_voice") / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clones": False}))


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_before_anything_is_said(
    options: list[str], message: str, tmp_path: Path, monkeypatch, capsys
):
    for name in ("pocketsphinx", "jiwer", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty": "\n#\n", "marks": "one\n...\n", "odd": "one blorptastic"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "cats.txt").write_text("one\ncats\n")
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "me.wav", thirds("en_man")[0])
    (tmp_path / "one" / "me.txt").write_text("some words")
    if "one_voice" in options:
        one_voice(tmp_path)
    assert main(["speech", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("mlx_higgs.evaluate: error: ")
    assert "\n" not in error
