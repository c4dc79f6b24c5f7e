"""Laws of ``evaluate quant``: floats are the same numbers, figures are their definitions."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import all_logits, random_checkpoint, relative_error, tensors

from mlx_higgs.convert import convert
from mlx_higgs.delay import DelayPattern
from mlx_higgs.evaluate import quant, quant_models
from mlx_higgs.evaluate.__main__ import main
from mlx_higgs.evaluate.outcomes import Clip, Outcome
from mlx_higgs.evaluate.quant_floats import as_floats
from mlx_higgs.evaluate.quant_forced import compare, summed_up
from mlx_higgs.evaluate.quant_models import Entry, Storage, entries, storage
from mlx_higgs.evaluate.quant_record import write
from mlx_higgs.evaluate.quant_report import Column, faults, verdict
from mlx_higgs.evaluate.quant_sizes import sizes
from mlx_higgs.evaluate.quant_spoken import paired_change, sum_up
from mlx_higgs.evaluate.trials import Take
from mlx_higgs.evaluate.words import word_errors
from mlx_higgs.loading import load_model
from mlx_higgs.quantization import MODES, Plan, Quantization
from mlx_higgs.recipes import shipped
from mlx_higgs.sources import DEMO
from mlx_higgs.types import GenerationError, InputError

EVERY_WIDTH = [(mode, bits) for mode, (_, widths) in MODES.items() for bits in widths]
V2 = DelayPattern(3, bos_id=5, eos_id=6, edge_frames=1)
V3 = DelayPattern(3, bos_id=5, eos_id=6, machine="strict")


# -- the same numbers as floats -------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "bits"), EVERY_WIDTH)
def test_floats_are_what_the_quantised_weights_stand_for(tmp_path: Path, seed, mode, bits):
    folder = random_checkpoint(tmp_path / "model", seed, num_hidden_layers=2)
    how = Quantization.of(bits, mode=mode)
    quantised, floats = (load_model(folder, quantize=how) for _ in range(2))
    quantised.set_dtype(mx.float32)
    assert any(name.endswith(".scales") for name in tensors(quantised))
    as_floats(floats)
    assert not any(name.endswith(".scales") for name in tensors(floats))
    assert all(array.dtype == mx.float32 for array in tensors(floats).values())
    original = all_logits(load_model(folder))
    exact, found = all_logits(quantised), all_logits(floats)
    assert relative_error(found, exact) < 1e-4
    assert relative_error(found, original) > 1e-3  # or nothing was quantised


# -- figures of teacher forcing -------------------------------------------------------------------


def drawn(seed: int, rows: int = 40, books: int = 3, vocab: int = 7):
    """Logits of two talkers, and what followed: some not scored, one end of speech."""
    rng = np.random.default_rng(seed)
    known, guessed = rng.normal(0, 2, (2, rows, books, vocab)).astype(np.float32)
    targets = rng.integers(0, 5, (rows, books))
    targets[:2, 1], targets[:3, 2] = -100, -100  # they begin later
    for book in range(books):
        targets[rows - 4 + book, book] = 6
        targets[rows - 3 + book :, book] = -100
    return known, guessed, targets


def judged(known, guessed, targets, delay=V2):
    return summed_up(compare(mx.array(known), mx.array(guessed), targets, delay))


def test_a_talker_is_near_itself(seed: int):
    known, _, targets = drawn(seed)
    found = judged(known, known + 3, targets)  # a constant changes no chance
    assert found.together.kl_mean == pytest.approx(0, abs=1e-5)
    assert found.together.top1 == 1
    assert found.together.regret_max == 0
    assert found.ending.error_max == pytest.approx(0, abs=1e-5)
    assert found.ending.false == pytest.approx(found.ending.false_reference)


def test_figures_are_their_definitions(seed: int):
    """Spelled out, code by code."""
    known, guessed, targets = drawn(seed)
    found = judged(known, guessed, targets)
    kl, same, regret = {}, {}, {}
    for n, k in zip(*np.nonzero(targets >= 0), strict=True):
        p, q = (np.exp(x[n, k]) / np.exp(x[n, k]).sum() for x in (known, guessed))
        kl[n, k] = float((p * np.log(p / q)).sum())
        same[n, k] = p.argmax() == q.argmax()
        regret[n, k] = math.log(p.max() / p[q.argmax()])
    assert found.together.codes == len(kl)
    assert found.together.kl_mean == pytest.approx(np.mean([*kl.values()]), rel=1e-4)
    assert found.together.kl_p99 == pytest.approx(np.quantile([*kl.values()], 0.99), rel=1e-4)
    assert found.together.top1 == pytest.approx(np.mean([*same.values()]))
    assert found.together.regret_mean == pytest.approx(np.mean([*regret.values()]), rel=1e-4)
    assert found.together.regret_max == pytest.approx(max(regret.values()), rel=1e-4)
    for book, near in enumerate(found.books):
        own = [value for (_, k), value in kl.items() if k == book]
        assert (near.codes, near.kl_mean) == (len(own), pytest.approx(np.mean(own), rel=1e-4))


@pytest.mark.parametrize(("delay", "able"), [(V2, 3), (V3, 1)], ids=["v2", "v3"])
def test_the_end_is_said_by_the_codebooks_that_may(seed: int, delay: DelayPattern, able: int):
    known, guessed, targets = drawn(seed)
    found = judged(known, guessed, targets, delay).ending

    def chance(logits: np.ndarray, n: int) -> float:
        goes_on = 1.0
        for k in range(able):
            if targets[n, k] >= 0:
                goes_on *= 1 - np.exp(logits[n, k, 6]) / np.exp(logits[n, k]).sum()
        return 1 - goes_on

    end = len(targets) - 4  # where the first codebook says so
    assert found.frames == 1
    assert found.reference == pytest.approx(chance(known, end), abs=1e-5)
    assert found.candidate == pytest.approx(chance(guessed, end), abs=1e-5)
    assert found.error_max == pytest.approx(abs(found.reference - found.candidate), abs=1e-6)
    assert found.false == pytest.approx(max(chance(guessed, n) for n in range(end)), abs=1e-5)


# -- figures of free runs -------------------------------------------------------------------------


def said(text: str, heard: str, seed: int = 0, *, f0: float = 100.0, length: float = 1.0, **take):
    clip = Clip(np.full(39, f0 / 100), f0, length)
    take = {"stop_reason": "eos"} | take
    measured = None if take.get("failure") else clip
    return Outcome(
        Take(text, np.zeros(0, np.float32), 24_000, seed=seed, **take), heard, length, measured
    )


def test_a_change_of_words_is_between_the_same_runs(seed: int):
    pytest.importorskip("jiwer")
    rng = np.random.default_rng(seed)
    texts = [f"text number{n} of some words" for n in range(20) for _ in range(2)]
    ours = [(int(rng.integers(0, 6)), 5) for _ in texts]
    theirs = [(int(rng.integers(0, 6)), 5) for _ in texts]
    same = paired_change(texts, ours, ours)
    assert (same.points, same.low, same.high) == (0, 0, 0)
    worse = paired_change(texts, [(wrong + 1, words) for wrong, words in theirs], theirs)
    assert (worse.points, worse.low, worse.high) == (20, 20, 20)  # a word in five, everywhere
    found = paired_change(texts, ours, theirs)
    rates = [sum(wrong for wrong, _ in runs) / (5 * len(texts)) for runs in (ours, theirs)]
    assert found.points == pytest.approx(100 * (rates[0] - rates[1]))
    assert found.low <= found.points <= found.high
    order = rng.permutation(len(texts))
    again = paired_change(*([values[i] for i in order] for values in (texts, ours, theirs)))
    assert again.points == pytest.approx(found.points)


def test_the_interval_of_one_model_is_that_of_its_error_rate():
    """Against a model without an error, the change is the rate: words.py draws the same."""
    pytest.importorskip("jiwer")
    texts, heard = ["one two", "three four five", "six"], ["one two", "three nine", "six"]
    errors = word_errors(texts, heard)
    change = paired_change(texts, errors.per_text, [(0, 1)] * 3)
    assert (change.points, change.low, change.high) == pytest.approx(
        (100 * errors.rate, 100 * errors.low, 100 * errors.high)
    )


def test_runs_are_compared_with_the_references_of_the_same_seed():
    pytest.importorskip("jiwer")
    texts = [("one two", 0), ("one two", 1), ("three four", 0), ("three four", 1)]
    theirs = [said(text, text, seed, f0=100, length=2) for text, seed in texts]
    ours = [said(text, "one four", seed, f0=200, length=3) for text, seed in texts[:2]]
    ours.append(said("three four", "", 0, failure="no sound", stop_reason=None))
    ours.append(said("three four", "three four", 1, f0=200, length=3, stop_reason="length"))
    found = sum_up(ours, theirs, hears=True)
    assert (found.runs, found.unended, found.failed, found.ended) == (4, 2, 1, 0.5)
    assert found.ended_low < 0.5 < found.ended_high
    assert found.length_ratio == 1.5
    assert found.f0_drift_semitones == pytest.approx(12)
    assert found.similarity == pytest.approx(1 - math.sqrt(39) / 7.6)
    assert found.wer == 0.5  # a failed run got both of its words wrong
    assert found.change is not None
    assert found.change.points == 50
    own = sum_up(theirs, None, hears=True)
    assert (own.change, own.wer, own.similarity, own.f0_drift_semitones) == (None, 0, 1, 0)
    deaf = sum_up(ours, theirs, hears=False)
    assert (deaf.wer, deaf.change, deaf.trials[0].heard) == (None, None, None)
    assert deaf.ended == found.ended


# -- what is stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["q8", "q6-q4", "mxfp4"])
def test_quantised_while_loading_is_counted_as_converted(tmp_path: Path, recipe: str):
    folder = convert("demo", tmp_path / "out", quantize=shipped()[recipe].plan)
    made, named = Entry.of(str(folder)), Entry.of(f"demo@{recipe}")
    there, promised = storage(made, made.talker()), storage(named, named.talker())
    assert (there.frame, there.bits, there.all_bits) == (
        promised.frame,
        promised.bits,
        promised.all_bits,
    )
    assert there.disk == (folder / "model.safetensors").stat().st_size
    assert 0 <= there.disk - promised.disk < 60_000  # the header
    if recipe == "q8":
        assert there.bits == 8.5


def test_figures_of_the_original_are_those_of_its_floats():
    entry = Entry.of("demo")
    found = storage(entry, entry.talker())
    assert (found.bits, found.all_bits) == (16, 16)
    assert found.disk == sum(path.stat().st_size for path in DEMO.glob("*.safetensors"))


def test_bytes_of_the_published_shapes():
    """GB, from the numbers of parameters alone: a width's bits and a half, and 2 bytes a float."""
    kept = {"v2-3b": 2 * 25.166e6, "v3-4b": 2 * 21.012e6}
    read = {"v2-3b": 2818.57e6, "v3-4b": 3633.32e6}
    found = {(size.shape, size.recipe): size for size in sizes(list(read))}
    assert {name for _, name in found} == {"bfloat16", *shipped()}
    for (shape, name), size in found.items():
        bits = {"bfloat16": 16, "q8": 8.5, "q6": 6.5, "q5": 5.5, "q4": 4.5, "mxfp4": 4.25}.get(name)
        if bits is not None:
            assert size.bits == pytest.approx(bits)
            frame = read[shape] * bits / 8 + kept[shape]
            assert size.frame == pytest.approx(frame, rel=1e-3)
    assert found["v2-3b", "q8"].disk / 1e9 == pytest.approx(6.18, abs=5e-3)
    assert found["v2-3b", "q8-q4"].memory / 1e9 == pytest.approx(4.51, abs=5e-3)
    assert found["v2-3b", "q8"].frame == found["v2-3b", "q8-q4"].frame
    target, plain = found["v2-3b", "mixed-4.5"], found["v2-3b", "q4"]
    assert target.about
    assert target.disk == pytest.approx(plain.disk, rel=1e-3)


def test_labels_tell_models_apart(tmp_path: Path):
    for parent in "ab":
        (tmp_path / parent).mkdir()
        random_checkpoint(tmp_path / parent / "same", 1)
    folders = [str(tmp_path / parent / "same") for parent in "ab"]
    assert [entry.label for entry in entries(["demo", f"{folders[0]}@q8"])] == ["demo", "same@q8"]
    assert [entry.label for entry in entries(folders)] == folders
    with pytest.raises(InputError, match="is there twice"):
        entries(["demo@q8", "demo@q8"])


# -- what to do -----------------------------------------------------------------------------------


def column(label: str, frame: int, kl: float, **spoken) -> Column:
    near = judged(*drawn(1))
    forced = replace(near, together=replace(near.together, kl_mean=kl))
    base = sum_up([said("one", "one")], [said("one", "one")], hears=True)
    runs = replace(base, runs=200, **spoken) if spoken.pop("heard", True) else None
    return Column(label, label, "", Storage(frame, frame, 4.5, 4.5), forced, runs)


def test_the_smallest_within_the_limits_is_named():
    pytest.importorskip("jiwer")
    reference = replace(column("original", 100, 0), forced=None)
    candidates = [
        column("big", 60, 0.001),
        column("small", 40, 0.029),
        column("far", 20, 0.031),
        column("endless", 10, 0.01, ended=0.98, unended=4),
        column("off", 5, 0.01, f0_drift_semitones=-0.6),
    ]
    judged_ = [replace(one, faults=faults(one, reference)) for one in candidates]
    assert [bool(one.faults) for one in judged_] == [False, False, True, True, True]
    assert "4 of 200 runs never ended" in judged_[3].faults
    assert verdict(reference, judged_).startswith("Choose small: ")
    assert "40% of the bytes" in verdict(reference, judged_)
    stay = verdict(reference, judged_[2:])
    assert stay.startswith("Stay with original: ")
    assert "far (KL 0.031 nat)" in stay
    unending = replace(reference, spoken=candidates[3].spoken)  # no more is asked than it does
    assert not faults(candidates[3], unending)


def test_a_divergence_that_is_no_number_is_a_fault():
    reference = replace(column("original", 100, 0), forced=None)
    assert faults(column("broken", 10, math.nan), reference)


def test_figures_are_written_beside_what_is_there(tmp_path: Path):
    folder = convert("demo", tmp_path / "out", quantize=Plan.parse("8"))
    before = json.loads((folder / "config.json").read_text())
    names = {path.name for path in folder.iterdir()}
    write(folder, {"kl_mean": 0.5})
    write(folder, {"kl_mean": 0.25, "date": "today"})
    after = json.loads((folder / "config.json").read_text())
    assert after["mlx_higgs"]["measured"] == {"kl_mean": 0.25, "date": "today"}
    ours = after.pop("mlx_higgs")
    assert {key: value for key, value in ours.items() if key != "measured"} == before.pop(
        "mlx_higgs", {}
    )
    assert after == before
    assert {path.name for path in folder.iterdir()} == names  # no half file


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("quant") / "q4", quantize=Plan.parse("4"))


def test_the_demo_end_to_end(tmp_path: Path, candidate: Path, capsys, monkeypatch):
    for name in ("pocketsphinx", "jiwer", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(candidate, tmp_path / "mine")
    (tmp_path / "texts.txt").write_text("one two three\nseven nine five\n")
    words = ["quant", "--reference", "demo", "--candidate", str(folder)]
    words += ["--texts", "texts.txt", "--seeds", "1"]
    assert main([*words, "--json", "--plot", "plot.png", "--record"]) == 0
    report = json.loads(capsys.readouterr().out)
    (found,) = report["candidates"]
    assert (found["label"], report["texts"], report["seeds"]) == ("mine", 2, 1)
    assert 0 < found["forced"]["together"]["kl_mean"] < 1
    assert len(found["forced"]["books"]) == 8
    assert found["forced"]["ending"]["frames"] == report["passages"]
    assert found["spoken"]["runs"] == report["reference"]["spoken"]["runs"] == 2
    assert found["spoken"]["change"]["low"] <= found["spoken"]["change"]["points"]
    assert [run["text"] for run in found["spoken"]["trials"]] == [
        "one two three",
        "seven nine five",
    ]
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"
    measured = json.loads((folder / "config.json").read_text())["mlx_higgs"]["measured"]
    assert measured["kl_mean"] == found["forced"]["together"]["kl_mean"]
    assert (measured["reference"], measured["texts"], measured["seeds"]) == ("demo", 2, 1)
    assert measured["end_of_speech"] == found["spoken"]["ended"]
    assert str(tmp_path) not in json.dumps(measured)


def test_without_a_recogniser_the_rest_is_measured(tmp_path: Path, capsys, monkeypatch):
    def missing():
        raise InputError("Word errors need jiwer: install it.")

    monkeypatch.setattr(quant, "installed_jiwer", missing)
    (tmp_path / "texts.txt").write_text("four\n")
    words = ["--reference", "demo", "--candidate", "demo@8", "--texts", str(tmp_path / "texts.txt")]
    assert main(["quant", *words, "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "recogniser  none: Word errors need jiwer" in out
    assert "ended by themselves" in out
    row = next(line for line in out.splitlines() if line.startswith("words wrong"))
    assert row.split()[2:] == ["-", "-"]
    assert out.splitlines()[-1].startswith(("Choose demo@8: ", "Stay with demo: "))


def test_only_forced_says_nothing_and_is_repeatable(capsys):
    words = ["quant", "--reference", "demo", "--candidate", "demo@q6", "--limit", "1"]
    reports = []
    for _ in range(2):
        assert main([*words, "--only-forced", "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1]
    assert reports[0]["candidates"][0]["spoken"] is None
    assert "Nothing was listened to" in reports[0]["verdict"]
    assert main([*words, "--only-forced", "--markdown"]) == 0
    heads, rule, *lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in (heads, rule, *lines[:2])}) == 1
    assert lines[1].startswith("| demo@q6 | 6.50 |")


def test_the_reference_against_itself_is_the_same(tmp_path: Path, capsys):
    copy = shutil.copytree(DEMO, tmp_path / "copy")
    words = ["--reference", "demo", "--candidate", str(copy), "--limit", "1", "--only-forced"]
    assert main(["quant", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"][0]["forced"]
    assert found["together"]["kl_mean"] == pytest.approx(0, abs=1e-6)
    assert found["together"]["top1"] == 1


def changed(folder: Path, **fields) -> Path:
    return random_checkpoint(folder, 1, **fields)


def other_tokens(folder: Path) -> None:
    """The demo with every word in the next one's place."""
    path = shutil.copytree(DEMO, folder) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    spelled = [word for word in words if word.isalpha() and len(word) > 1]
    ids = [words[word] for word in spelled]
    words |= dict(zip(spelled, ids[1:] + ids[:1], strict=True))
    path.write_text(json.dumps(tokenizer))


PAIR = ["--reference", "demo", "--candidate"]
BAD = {
    "nothing": ([], "Name a --reference"),
    "no candidate": (["--reference", "demo"], "at least one --candidate"),
    "no such model": ([*PAIR, "nowhere"], "no folder nowhere"),
    "no such recipe": ([*PAIR, "demo@q9x"], "'q9x' is no way to quantise"),
    "no recipe": ([*PAIR, "demo@"], "demo@ lacks the recipe's name"),
    "no model": ([*PAIR, "@q8"], "@q8 lacks the model's name"),
    "no such width": ([*PAIR, "demo@7"], "no bits 7"),
    "measured first": ([*PAIR, "demo@mixed-4.5"], "Convert first"),
    "quantised twice": ([*PAIR, "small@q8"], "quantised already"),
    "twice": ([*PAIR, "demo@q8", "demo@q8"], "is there twice"),
    "itself": ([*PAIR, "demo"], "is there twice"),
    "codebooks": ([*PAIR, "books"], "its number of codebooks is 4, the reference's is 8"),
    "vocabulary": ([*PAIR, "words"], "its vocabulary is 2000, the reference's is 1082"),
    "layers": ([*PAIR, "layers"], "its num_hidden_layers is 2, the reference's is 5"),
    "another kind": ([*PAIR, "v3"], "kind of model is v3"),
    "tokens": ([*PAIR, "tokens"], "as other tokens than the reference"),
    "no texts": ([*PAIR, "demo@q8", "--texts", "empty.txt"], "no text in"),
    "no file": ([*PAIR, "demo@q8", "--texts", "nowhere.txt"], "cannot be read"),
    "zero texts": ([*PAIR, "demo@q8", "--limit", "0"], "--limit is 0"),
    "zero runs": ([*PAIR, "demo@q8", "--seeds", "0"], "--seeds is 0"),
    "zero at once": ([*PAIR, "demo@q8", "--max-batch", "0"], "--max-batch is 0"),
    "temperature": ([*PAIR, "demo@q8", "--temperature", "-1"], "temperature"),
    "no plot": ([*PAIR, "demo@q8", "--plot", "plot.doc"], "no known suffix"),
    "nowhere to write": ([*PAIR, "demo@q8", "--record"], "--record writes into folders"),
    "into the bundled": (["--reference", "small", "--candidate", "demo", "--record"], "is none"),
    "no such shape": (["--shape", "v9"], "no shape 'v9'"),
    "shape and models": (["--shape", "v2-3b", *PAIR, "demo@q8"], "no weights to compare"),
    "no whisper": ([*PAIR, "demo@q8", "--whisper-model", "nowhere.bin"], "no whisper.cpp model"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory, candidate: Path) -> Path:
    """A folder of models that are no candidates."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(candidate, folder / "small")
    changed(folder / "books", num_codebooks=4)
    changed(folder / "words", vocab_size=2000)
    changed(folder / "layers", num_hidden_layers=2)
    other_tokens(folder / "tokens")
    tiny_v3(folder / "v3")
    (folder / "empty.txt").write_text("\n#\n")
    return folder


def tiny_v3(folder: Path) -> None:
    from mlx_higgs.evaluate.shapes import SHAPES
    from mlx_higgs.loading import build_model

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES["v3-tiny"]))
    model = build_model(SHAPES["v3-tiny"])
    mx.save_safetensors(str(folder / "model.safetensors"), tensors(model))


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_before_anything_is_said(
    options: list[str], message: str, home: Path, monkeypatch, capsys
):
    for name in ("pocketsphinx", "jiwer", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.chdir(home)
    assert main(["quant", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("mlx_higgs.evaluate: error: ")
    assert "\n" not in error


def test_a_reference_that_never_ends_is_told(capsys, monkeypatch):
    def never(*_, **__):
        raise GenerationError("None of 2 texts was said to its end.")

    monkeypatch.setattr(quant, "spoken", never)
    assert main(["quant", *PAIR, "demo@q8", "--limit", "2", "--only-forced"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "mlx_higgs.evaluate: error: The reference cannot be compared with. "
        "None of 2 texts was said to its end."
    )


def test_too_little_memory_is_told_before_anything_is_read(monkeypatch, capsys):
    monkeypatch.setattr(quant_models, "machine_limit", lambda: 10_000_000)
    monkeypatch.setattr(quant_models, "on_cpu", lambda: True)
    assert main(["quant", *PAIR, "demo@q8", "--only-forced"]) == 2
    assert "measured in float32, which takes 16 MB" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, candidate: Path, capsys, monkeypatch):
    """In the middle of the free runs: no figures, no plot, one line."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(candidate, tmp_path / "mine")
    before = (folder / "config.json").read_bytes()

    def interrupted(takes, ears):
        next(takes)
        raise KeyboardInterrupt

    monkeypatch.setattr(quant, "listen", interrupted)
    words = ["--reference", "demo", "--candidate", str(folder), "--limit", "1", "--seeds", "1"]
    assert main(["quant", *words, "--record"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("interrupted")
    assert (folder / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
