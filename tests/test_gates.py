"""The gates of ``evaluate parity``: passed by the model itself, and not by a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gate_goldens import CODES, audio_golden, plain_qwen3, text_golden

from convert.tiny_v3 import config, write_v3
from mlx_higgs.evaluate import audio_gate, text_gate
from mlx_higgs.evaluate.__main__ import main
from mlx_higgs.evaluate.verdict import number
from mlx_higgs.loading import load_model
from mlx_higgs.models.cache import Slots
from mlx_higgs.prefix import Prefix
from mlx_higgs.weights import load_tensors, weight_files

EXACT = 1e-3  # nat and logits: what float32 leaves is below 1e-5


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    return write_v3(tmp_path / "v3", seed=seed, codes=CODES)


LENGTHS = (1, 2, 7, 30, 12, 3, 19, 5, 9, 11, 4)  # more than a batch
GOLDENS = {"text": lambda m, s, p: text_golden(m, s, p, LENGTHS), "audio": audio_golden}


@pytest.fixture(params=GOLDENS)
def golden(request, folder: Path, seed: int, tmp_path: Path) -> Path:
    return GOLDENS[request.param](
        load_model(folder), seed, tmp_path / f"{request.param}.safetensors"
    )


def changed(folder: Path, name: str, change) -> Path:
    """The checkpoint with one tensor changed."""
    target = shutil.copytree(folder, folder.parent / "changed", dirs_exist_ok=True)
    tensors = load_tensors(weight_files(folder))
    tensors[name] = change(tensors[name])
    mx.eval(tensors)
    mx.save_safetensors(str(target / "model.safetensors"), tensors)
    return target


def test_the_model_passes_its_own(folder: Path, golden: Path, capsys):
    assert main(["parity", str(folder), str(golden), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gate"] == golden.stem
    assert report["passed"]
    assert report["failures"] == []
    assert report["dtype"] == "float32"  # the golden's
    if golden.stem == "text":
        assert report["bit_identical"]
        assert report["cached_tokens"] > 0
        for replay, sequences in REPLAYS.items():
            figures = report[replay]
            assert figures["positions"] == 5 * sequences
            assert figures["deltas"] == 8 * figures["positions"]
            assert figures["max"] < EXACT
            assert figures["unlisted"] == 0
    else:
        assert report["rows"] == 3
        assert report["argmax_agreement"] == 1
        assert report["top64_overlap"] >= 63  # the 64th may be a tie
        assert report["logits_max_abs"] < EXACT
    assert main(["parity", str(folder), str(golden)]) == 0
    assert "passed" in capsys.readouterr().out


REPLAYS = {"single": 11, "cached": 11, "batched": 9, "cached_batched": 9}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("body.layers.1.self_attn.q_norm.weight", lambda w: 1.4 * w),
        ("body.layers.0.mlp.down_proj.weight", lambda w: -w),
        ("body.norm.weight", lambda w: w * mx.nan),
        ("body.layers.1.self_attn.v_proj.weight", lambda w: mx.roll(w, 1, axis=0)),
    ],
)
def test_a_wrong_weight_fails_it(folder: Path, golden: Path, capsys, name: str, change):
    assert main(["parity", str(changed(folder, name, change)), str(golden), "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert not report["passed"]
    assert report["failures"]
    assert f"Outside the {golden.stem} gate" in err
    assert len(err.strip().splitlines()) == 1


def test_another_base_of_positions_fails_both(folder: Path, golden: Path):
    other = config(codes=CODES, rope_parameters={"rope_theta": 100.0, "rope_type": "default"})
    (folder / "config.json").write_text(json.dumps(other))
    assert main(["parity", str(folder), str(golden)]) == 1


# ---------------------------------------------------------------- each rule of the text gate


@pytest.fixture
def words(folder: Path, seed: int, tmp_path: Path) -> Path:
    return text_golden(load_model(folder), seed, tmp_path / "text.safetensors", (20, 9, 6))


def edited(path: Path, name: str, change) -> Path:
    """A golden with one array changed."""
    arrays, metadata = mx.load(str(path), return_metadata=True)
    arrays[name] = mx.array(change(np.array(arrays[name])))
    mx.eval(arrays)
    mx.save_safetensors(str(path), arrays, metadata)
    return path


def only(verdict, *clauses: str) -> bool:
    """Whether each failure is one of these, and each of these there."""
    return all(any(c in f for c in clauses) for f in verdict.failures) and all(
        any(c in f for f in verdict.failures) for c in clauses
    )


def test_a_drift_of_all_tokens_is_seen_by_the_mean(folder: Path, words: Path):
    verdict = text_gate.judge(folder, edited(words, "topk_logprobs", lambda x: x + 0.075))
    assert only(verdict, "mean 0.07")
    assert verdict.figures["single"]["p50"] == pytest.approx(0.075, abs=EXACT)
    below = text_gate.judge(folder, edited(words, "topk_logprobs", lambda x: x - 0.02))
    assert below.passed


def test_a_few_noisy_tokens_are_seen_by_the_p99(folder: Path, words: Path):
    def one(scores: np.ndarray) -> np.ndarray:
        scores[0, 0, 1:4] -= 0.55  # 3 of 120: the mean moves by 0.014
        return scores

    assert only(text_gate.judge(folder, edited(words, "topk_logprobs", one)), "p99 0.5")


def test_a_choice_the_reference_thinks_little_of_is_seen(folder: Path, words: Path):
    def other(scores: np.ndarray) -> np.ndarray:
        scores[1, 2, 5] = scores[1, 2, 0] + 0.255
        return scores

    verdict = text_gate.judge(folder, edited(words, "topk_logprobs", other))
    assert any("single: regret 0.25" in clause for clause in verdict.failures)


def test_a_choice_the_reference_does_not_list_is_seen(folder: Path, words: Path):
    def gone(ids: np.ndarray) -> np.ndarray:
        ids[2, 1, 0] = 5000
        return ids

    verdict = text_gate.judge(folder, edited(words, "topk_ids", gone))
    assert any("likeliest token of 1 positions" in clause for clause in verdict.failures)


def test_too_little_in_common_is_seen(folder: Path, words: Path):
    def none(ids: np.ndarray) -> np.ndarray:
        return ids * 0 + np.arange(5000, 5064).astype(ids.dtype)

    verdict = text_gate.judge(folder, edited(words, "topk_ids", none))
    assert any("tokens in common at 15 positions" in clause for clause in verdict.failures)


def test_requests_that_mix_are_seen(folder: Path, words: Path, monkeypatch):
    """Only together: each looks one position further than it may."""
    advance = Slots.advance

    def too_far(self, said: str) -> None:
        advance(self, said)
        advance(self, said)

    monkeypatch.setattr(Slots, "advance", too_far)
    verdict = text_gate.judge(folder, words)
    assert verdict.failures
    assert all(clause.startswith(("batched", "cached_batched")) for clause in verdict.failures)


def test_a_prefix_that_its_first_user_spoils_is_seen(folder: Path, words: Path, monkeypatch):
    monkeypatch.setattr(Prefix, "start", lambda self: self.cache)
    verdict = text_gate.judge(folder, words)
    assert verdict.failures
    assert all(clause.startswith("cached") for clause in verdict.failures)


def test_a_run_that_differs_from_itself_is_seen(folder: Path, words: Path, monkeypatch):
    calls, afresh = [], text_gate.afresh

    def trembling(model, prompt):
        caches, h = afresh(model, prompt)
        calls.append(1)
        return caches, h + 1e-6 * len(calls)

    monkeypatch.setattr(text_gate, "afresh", trembling)
    assert only(text_gate.judge(folder, words), "a second run gives other bits")


def test_prompts_of_one_token_have_no_prefix(folder: Path, seed: int, tmp_path: Path):
    golden = text_golden(load_model(folder), seed, tmp_path / "short.safetensors", (1, 1))
    assert only(text_gate.judge(folder, golden), "long enough to have a prefix")


def test_the_p99_is_the_one_at_int_of_n_times_its_share():
    values = np.arange(200.0)
    assert text_gate._quantile(values, 0.99) == 198
    assert text_gate._quantile(values[:5], 0.99) == 4
    assert text_gate._quantile(values[:0], 0.99) is None
    assert number(np.nan) is number(np.inf) is None


# ---------------------------------------------------------------- each rule of the audio gate


@pytest.fixture
def sounds(folder: Path, seed: int, tmp_path: Path) -> Path:
    return audio_golden(load_model(folder), seed, tmp_path / "audio.safetensors")


def test_the_audio_gate_sees_each_thing(folder: Path, sounds: Path, tmp_path: Path, seed: int):
    def turned(x: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=x.shape) * np.abs(x).mean()
        return (x + 0.1 * noise).astype(x.dtype)

    def other_best(ids: np.ndarray) -> np.ndarray:
        ids[0, 0] = (ids[0, 0] + 1) % CODES
        return ids

    def other_top(ids: np.ndarray) -> np.ndarray:
        ids[1, 3, 30:] = -1
        return ids

    def better(logits: np.ndarray) -> np.ndarray:
        logits[0, 0, logits[0, 0].argmin()] = logits[0, 0].max() + 0.35
        return logits

    expected = {
        "final_hidden.f32": (turned, ["hidden_cosine"]),
        "audio_argmax.ids": (other_best, ["argmax_agreement"]),
        "audio_top64.ids": (other_top, ["top64_overlap 30"]),
        "audio_logits.f32": (better, ["regret 0.3", "logits_cosine"]),
    }
    arrays, metadata = mx.load(str(sounds), return_metadata=True)
    arrays["final_hidden.f32"] = arrays.pop("final_hidden.bf16").astype(mx.float32)
    for name, (change, clauses) in expected.items():
        path = tmp_path / "edited.safetensors"
        mx.save_safetensors(str(path), arrays, metadata)
        verdict = audio_gate.judge(folder, edited(path, name, change))
        assert only(verdict, *clauses), (name, verdict.failures)


# ---------------------------------------------------------------- who may stand before them


def test_plain_qwen3_is_judged_as_the_same_backbone(folder: Path, words: Path, tmp_path: Path):
    verdict = text_gate.judge(plain_qwen3(folder, tmp_path / "qwen3"), words)
    assert verdict.passed
    assert verdict.figures == text_gate.judge(folder, words).figures


def test_what_does_not_fit_is_one_line(
    folder: Path, words: Path, sounds: Path, tmp_path: Path, capsys
):
    tied = plain_qwen3(folder, tmp_path / "qwen3")
    own_head = plain_qwen3(folder, tmp_path / "own", tie_word_embeddings=False)
    narrow = write_v3(tmp_path / "narrow", seed=1, codes=CODES, hidden_size=32)
    few = write_v3(tmp_path / "few", seed=1, codes=24)
    torn = shutil.copy(words, tmp_path / "torn.safetensors")
    edited(torn, "prompt_lens", lambda x: x + 1)
    wrong = [
        ([folder, words, "--tolerance", "1"], "limits of its own"),
        ([tied, sounds], "codebooks"),
        ([own_head, words], "text head of its own"),
        ([tied, words, "--adapter", str(folder)], "takes no --adapter"),
        ([narrow, sounds], "64 wide"),
        ([few, sounds], "8 of 26"),
        ([folder, torn], "do not fit together"),
    ]
    for arguments, message in wrong:
        assert main(["parity", *map(str, arguments)]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
