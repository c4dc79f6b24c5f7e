"""The parity commands: equal to the goldens, and able to say that something is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.evaluate.__main__ import main
from mlx_higgs.evaluate.codec import lag
from mlx_higgs.evaluate.parity import parity
from mlx_higgs.sources import DEMO

GOLDEN = Path(__file__).parent / "golden"
LAYOUTS = ("transformers", "boson", "v3")


def golden_of(layout: str) -> Path:
    return GOLDEN / f"model_tiny_{layout}.safetensors"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_talker_equals_the_reference(layout: str, capsys):
    """Neither checkpoint has a tokenizer or a codec beside it."""
    command = ["parity", str(GOLDEN / f"tiny_{layout}"), str(golden_of(layout)), "--json"]
    assert main([*command, "--tolerance", "1e-4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["max_abs"] <= 1e-4
    assert report["text_max_abs"] <= 1e-4
    assert report["mean"] <= report["p99"] <= report["max_abs"]
    assert report["regret"] == 0
    assert report["argmax_agreement"] == report["text_argmax_agreement"] == 1
    assert report["greedy_rows_equal"] is True
    assert report["positions"] == len(mx.load(str(golden_of(layout)))["input_ids"])


def test_a_wrong_weight_is_seen(tmp_path: Path, capsys):
    folder = shutil.copytree(GOLDEN / "tiny_transformers", tmp_path / "wrong")
    weights = mx.load(str(folder / "model.safetensors"))
    name = "model.layers.0.audio_mlp.down_proj.weight"
    weights[name] = -weights[name]
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    command = ["parity", str(folder), str(golden_of("transformers")), "--tolerance", "1e-4"]
    assert main(command) == 1
    assert "Not equal to the reference" in capsys.readouterr().err
    report = parity(folder, golden_of("transformers"))
    assert report.max_abs > 1e-2
    assert report.regret > 0
    assert not report.greedy_rows_equal


def test_placeholders_of_minus_100_are_understood(tmp_path: Path):
    arrays = mx.load(str(golden_of("transformers")))
    ids = np.array(arrays["input_ids"])
    config = json.loads((GOLDEN / "tiny_transformers" / "config.json").read_text())
    marks = np.isin(ids, [config["audio_token_id"], config["audio_delay_token_id"]])
    arrays["input_ids"] = mx.array(np.where(marks, -100, ids).astype(np.int32))
    del arrays["text_logits"]
    mx.save_safetensors(str(tmp_path / "golden.safetensors"), arrays)
    report = parity(GOLDEN / "tiny_transformers", tmp_path / "golden.safetensors")
    assert report.max_abs <= 1e-4
    assert report.text_max_abs is None


def test_greedy_rows_follow_the_rules_they_were_made_by(tmp_path: Path, capsys):
    """Rows full of markers, to the end: the golden's rules make them, the product's do not."""
    arrays, metadata = mx.load(str(golden_of("v3")), return_metadata=True)
    assert isinstance(arrays, dict)
    assert isinstance(metadata, dict)
    rows = np.array(arrays["greedy_rows"])
    assert (rows[8:-7] >= 10).any()
    assert rows[-7, 0] == 11  # an EOC in row r makes r + 7 rows
    equal = {}
    for machine in ("sglang", "strict", None):
        named = {**metadata, "machine": machine} if machine else {"dtype": "float32"}
        mx.save_safetensors(str(tmp_path / "golden.safetensors"), arrays, named)
        report = parity(GOLDEN / "tiny_v3", tmp_path / "golden.safetensors")
        equal[machine] = report.greedy_rows_equal
        assert report.machine == (machine or "sglang")
    assert equal == {"sglang": True, "strict": False, None: True}
    named = {**metadata, "machine": "boson"}
    mx.save_safetensors(str(tmp_path / "golden.safetensors"), arrays, named)
    assert main(["parity", str(GOLDEN / "tiny_v3"), str(tmp_path / "golden.safetensors")]) == 2
    assert "ends by strict or sglang" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["boson", "hf", "align"])
def test_the_codec_equals_the_reference(mode: str, capsys):
    golden = GOLDEN / f"codec_{mode}.safetensors"
    for checkpoint in ("demo", str(DEMO / "codec")):  # a model with a codec, and a codec
        assert main(["codec", checkpoint, str(golden), "--json", "--tolerance", "1e-4"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["code_agreement"] == 1
        assert report["decode_max_abs"] <= 1e-4
        assert report["lag_samples"] == 0
        assert report["frames"] == report["frames_ours"] > 0


def test_text_logits_may_be_kept_for_some_positions(tmp_path: Path):
    arrays = mx.load(str(golden_of("boson")))
    arrays["text_positions"] = mx.array([0, 7], dtype=mx.int32)
    arrays["text_logits"] = arrays["text_logits"][mx.array([0, 7])]
    mx.save_safetensors(str(tmp_path / "golden.safetensors"), arrays)
    report = parity(GOLDEN / "tiny_boson", tmp_path / "golden.safetensors")
    assert report.text_max_abs is not None
    assert report.text_max_abs <= 1e-4


def test_files_that_do_not_fit_are_one_line_each(tmp_path: Path, capsys):
    checkpoint = str(GOLDEN / "tiny_transformers")
    wrong = {
        str(tmp_path / "none.safetensors"): "no golden file",
        str(GOLDEN / "tiny_transformers" / "model.safetensors"): "lacks input_ids",
        str(golden_of("boson")): "audio rows",
    }
    for path, message in wrong.items():
        assert main(["parity", checkpoint, path]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


def test_lag_is_the_shift_of_the_later_one(seed: int):
    wave = np.random.default_rng(seed).normal(size=5000)
    assert lag(wave, wave) == 0
    assert lag(np.roll(wave, 25), wave) == 25
    assert lag(np.roll(wave, -25), wave) == -25
