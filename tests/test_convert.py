"""Converting: nothing is lost, everybody can load it, and it is there whole or not at all."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, all_logits, nbytes, random_checkpoint, tensors

from mlx_higgs import __version__, saving
from mlx_higgs.cli import run
from mlx_higgs.convert import build_parser, convert, main
from mlx_higgs.convert_options import asked_recipe
from mlx_higgs.loading import load, load_codec, load_model
from mlx_higgs.models import get_model_classes
from mlx_higgs.quantization import MODES, Plan, Quantization
from mlx_higgs.sources import DEMO
from mlx_higgs.types import CheckpointError
from mlx_higgs.weights import INDEX, read_header, weight_files

EVERY_MODE = [(mode, bits) for mode, (_, widths) in MODES.items() for bits in widths]
Q8 = Quantization.of(8)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "bits"), EVERY_MODE)
def test_saved_and_loaded_is_quantised_while_loading(work: Path, mode: str, bits: int):
    how = Quantization.of(bits, mode=mode)
    folder = convert("demo", work / "out", quantize=how)
    saved, fresh = tensors(load_model(folder)), tensors(load_model(DEMO, quantize=how))
    assert saved.keys() == fresh.keys()
    assert all(mx.array_equal(saved[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize("layout", TINY)
@pytest.mark.parametrize("how", [None, Quantization.of(mode="nvfp4")], ids=str)
def test_same_rows_from_either_layout(work: Path, layout: str, how: Quantization | None):
    folder = convert(str(TINY[layout]), work / "out", quantize=how)
    converted, source = load_model(folder), load_model(TINY[layout], quantize=how)
    assert np.array_equal(all_logits(converted), all_logits(source))
    assert "text_config" in json.loads((folder / "config.json").read_text()) or layout != "boson"


def test_the_text_head_is_kept(work: Path):
    folder = convert(str(TINY["boson"]), work / "out")
    found, source = (tensors(load_model(f, text_head=True)) for f in (folder, TINY["boson"]))
    name = "audio_decoder_proj.text_lm_head.weight"
    assert mx.array_equal(found[name], source[name])
    assert name not in tensors(load_model(folder))


def test_mlx_lm_loads_it(work: Path):
    from mlx_lm.utils import load_model as mlx_lm_load_model

    folder = convert("demo", work / "out", quantize=Q8)
    theirs, config = mlx_lm_load_model(folder, get_model_classes=get_model_classes)
    assert not any("text_lm_head" in name for name in tensors(theirs))
    assert config["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert np.array_equal(all_logits(theirs), all_logits(load_model(folder)))


def test_the_whole_checkpoint_speaks_alone(work: Path):
    higgs = load(convert("demo", work / "out", quantize=Q8))
    assert {p.name for p in higgs.path.iterdir()} == {
        *("README.md", "codec", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    assert higgs.defaults == load("demo").defaults
    assert higgs.prompts
    dtypes = {info.dtype for info in read_header(higgs.path / "codec/model.safetensors").values()}
    assert dtypes == {"F32"}
    codes = mx.zeros((2, higgs.codec.num_codebooks), mx.int32)
    assert mx.array_equal(higgs.codec.decode(codes), load_codec(DEMO / "codec").decode(codes))


def test_config_is_the_sources_and_a_quantization_block(work: Path):
    source = json.loads((TINY["boson"] / "config.json").read_text())
    how = Quantization.of(8, 32)
    folder = convert("demo", work / "demo", quantize=how, dtype="bfloat16")
    demo = json.loads((DEMO / "config.json").read_text())
    block = {"group_size": 32, "bits": 8, "mode": "affine"}
    rules = ["8 bits in groups of 32 (affine)"]
    ours = {"recipe": "custom", "rules": rules, "version": __version__}
    added = {"dtype": "bfloat16", "quantization": block, "quantization_config": block}
    added |= {"mlx_higgs": ours}
    assert json.loads((folder / "config.json").read_text()) == demo | added
    folder = convert(str(TINY["boson"]), work / "boson", dtype="float16")
    text = source["text_config"] | {"torch_dtype": "float16"}
    added = {"torch_dtype": "float16", "text_config": text}
    assert json.loads((folder / "config.json").read_text()) == source | added
    assert {array.dtype for array in tensors(load_model(folder)).values()} == {mx.float16}


def test_model_card(work: Path):
    folder = convert(str(TINY["boson"]), work / "out", quantize=Quantization.of(mode="nvfp4"))
    card = (folder / "README.md").read_text()
    assert "--q-bits 4 --q-group-size 16 --q-mode nvfp4" in card
    size = nbytes(load_model(folder, text_head=True))
    assert f"{size:,} bytes" in card
    assert "audio_codebook_embeddings, audio_decoder_proj.audio_lm_head" in card
    assert "Boson Higgs Audio 2 Community License" in card
    assert "inherit its licence" in card
    assert str(TINY["boson"].parent) not in card  # nobody else's business


def test_a_hub_source_is_named_in_the_card(work: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = work / "snapshots" / "0ff4877"
    shutil.copytree(TINY["boson"], snapshot)
    monkeypatch.setattr("mlx_higgs.sources._download", lambda repo, revision: snapshot)
    card = (convert("bosonai/higgs", work / "out") / "README.md").read_text()
    assert "base_model: bosonai/higgs\n" in card
    assert "--hf-path bosonai/higgs \\\n    --revision 0ff4877" in card


# -- shards -------------------------------------------------------------------------------------


def test_shards_and_their_index(work: Path, seed: int):
    model = load_model(random_checkpoint(work / "source", seed), text_head=True)
    limit = nbytes(model) // 5
    (work / "out").mkdir()
    total = saving.save_weights(model, work / "out", limit)  # type: ignore[arg-type]
    shutil.copyfile(work / "source/config.json", work / "out/config.json")
    index = json.loads((work / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == total == nbytes(model)
    files = weight_files(work / "out")
    assert [p.name for p in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert 5 <= len(files) <= 10
    for path in files:
        header = read_header(path)
        assert {name for name, home in index["weight_map"].items() if home == path.name} == set(
            header
        )
        assert path.stat().st_size < limit + 100_000  # its header
    assert np.array_equal(all_logits(load_model(work / "out")), all_logits(model))


def test_split_keeps_order_and_limit(seed: int):
    sizes = np.random.default_rng(seed).integers(1, 100, 50)
    arrays = {str(i): mx.zeros(int(size), mx.uint8) for i, size in enumerate(sizes)}
    shards = saving.split(arrays, 99)
    assert [name for shard in shards for name in shard] == list(arrays)
    filled = [sum(array.nbytes for array in shard.values()) for shard in shards]
    assert max(filled) <= 99
    assert all(a + next(iter(b.values())).nbytes > 99 for a, b in zip(filled, shards[1:]))  # noqa: B905
    assert [len(shard) for shard in saving.split(arrays, 0)] == [1] * 50


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 2])
def test_memory_is_the_results(work: Path, seed: int, bits: int):
    fields: dict[str, Any] = {"intermediate_size": 640, "num_hidden_layers": 16, "vocab_size": 4000}
    source = random_checkpoint(work / "source", seed, hidden_size=256, **fields)
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    folder = convert(str(source), work / "out", quantize=Quantization.of(bits))
    size = (folder / "model.safetensors").stat().st_size
    assert mx.get_peak_memory() - before <= 1.15 * size


# -- whole or not at all ------------------------------------------------------------------------


def half_written(error: BaseException):
    def save(model, folder: Path, limit: int = 0, **_) -> int:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    return save


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError("No space left"), 1)]
)
@pytest.mark.parametrize("force", [False, True])
def test_interrupted_leaves_what_was_there(
    work: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, force: bool
):
    if force:
        convert("demo", "out")
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*")}
    monkeypatch.setattr(saving, "save_weights", half_written(error))
    assert main(["--mlx-path", "out", *(["--force"] if force else [])]) == code
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*")} == before


def test_killed_leaves_nothing_under_the_name(work: Path):
    script = (
        "import os, signal, mlx_higgs.saving as saving, mlx_higgs.convert as convert\n"
        "write = saving.save_weights\n"
        "def save(model, folder, **_):\n"
        "    write(model, folder)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "saving.save_weights = save\n"
        "convert.main(['--mlx-path', 'out'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = work.iterdir()
    assert re.fullmatch(r"\.out\.partial-[0-9a-f]{8}", partial.name)
    assert main(["--mlx-path", "out"]) == 0
    assert (work / "out/model.safetensors").is_file()


def test_force_replaces_a_checkpoint_and_nothing_else(work: Path, capsys):
    assert main(["--mlx-path", "out"]) == 0
    (work / "out/stale.txt").write_text("of the old one")
    assert main(["--mlx-path", "out", "--q-bits", "4"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["--mlx-path", "out", "--q-bits", "4", "--force"]) == 0
    assert not (work / "out/stale.txt").exists()
    assert json.loads((work / "out/config.json").read_text())["quantization"]["bits"] == 4
    assert [p.name for p in work.iterdir()] == ["out"]
    (work / "photos").mkdir()
    (work / "photos/cat.jpg").write_bytes(b"cat")
    assert main(["--mlx-path", "photos", "--force"]) == 2
    assert "not a checkpoint" in capsys.readouterr().err
    assert (work / "photos/cat.jpg").read_bytes() == b"cat"


def test_failing_rename_brings_the_old_one_back(work: Path, monkeypatch: pytest.MonkeyPatch):
    target = work / "out"
    target.mkdir()
    (target / "config.json").write_text("{}")
    rename = Path.rename

    def fails(self: Path, to: Path) -> Path:
        if "partial" in self.name:
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"), saving.new_folder(target, force=True):
        pass
    assert [p.name for p in work.iterdir()] == ["out"]
    assert (target / "config.json").read_text() == "{}"


def test_a_target_that_appeared_meanwhile_is_kept(work: Path, monkeypatch: pytest.MonkeyPatch):
    def save(model, folder: Path, **_) -> int:
        (work / "out").mkdir()
        (work / "out/other").write_text("x")
        return 1

    monkeypatch.setattr(saving, "save_weights", save)
    assert main(["--mlx-path", "out"]) == 1
    assert [p.name for p in work.rglob("*")] == ["out", "other"]


def test_empty_target_and_new_parents(work: Path):
    (work / "empty").mkdir()
    assert convert("demo", "empty") == (work / "empty").resolve()
    assert (convert("demo", "a/b/c") / "config.json").is_file()


# -- errors -------------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of a command that ends with code 2."""
    assert main(options) == 2
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("mlx_higgs.convert: error: ")
    return last


def test_target_errors(work: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    (work / "file").write_text("x")
    shutil.copytree(DEMO, work / "source/inner")
    assert "is a file" in fails(capsys, "--mlx-path", "file")
    assert "cannot be written" in fails(capsys, "--mlx-path", "file/out")
    for target in ("source/inner", "source", "."):
        options = ("--hf-path", "source/inner", "--mlx-path", target, "--force")
        assert "holds the source" in fails(capsys, *options)
    options = ("--hf-path", str(TINY["boson"]), "--codec", "source/inner/codec")
    assert "holds the source" in fails(capsys, *options, "--mlx-path", "source/inner", "--force")

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "Permission denied" in fails(capsys, "--mlx-path", "out")


def test_source_errors(work: Path, capsys):
    convert("demo", "q8", quantize=Q8)
    assert "quantised already" in fails(capsys, "--hf-path", "q8", "--q-bits", "4")
    assert "quantised already" in fails(capsys, "--hf-path", "q8")
    assert "no folder" in fails(capsys, "--hf-path", "nowhere")
    (work / "nothing").mkdir()
    assert "config.json" in fails(capsys, "--hf-path", "nothing")
    assert "groups of 128" in fails(capsys, "--q-group-size", "128")
    assert "group size 48" in fails(capsys, "--q-group-size", "48")
    assert "mxfp4 has no bits 8" in fails(capsys, "--q-mode", "mxfp4", "--q-bits", "8")
    assert "owner/name" in fails(capsys, "--upload-repo", "name")
    assert {p.name for p in work.iterdir()} == {"q8", "nothing"}


def test_a_codec_of_another_model(work: Path):
    with pytest.raises(CheckpointError, match="do not belong together"):
        convert(str(TINY["boson"]), "out", codec=DEMO / "codec")
    assert not list(work.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_an_os_error(work: Path):
    model = load_model(TINY["boson"])
    (work / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="could not be written"):
        saving.save_weights(model, work)  # type: ignore[arg-type]


# -- the command --------------------------------------------------------------------------------


def test_bits_alone_quantise_the_demo(work: Path, capsys):
    assert main(["--q-bits", "8"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{(work / 'mlx_model').resolve()}\n"
    assert [line.split(":")[0] for line in output.err.splitlines()][:3] == [
        "codec",
        "weights",
        "weights",
    ]
    assert (work / "mlx_model/model.safetensors").stat().st_size < 5_500_000


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], None),
        (["--dtype", "float16"], None),
        (["-q"], Quantization(8, 64, "affine")),
        (["--q-bits", "3"], Quantization(3, 64, "affine")),
        (["--q-group-size", "32"], Quantization(8, 32, "affine")),
        (["--q-mode", "mxfp8"], Quantization(8, 32, "mxfp8")),
        (["-q", "--q-bits", "4", "--q-mode", "nvfp4"], Quantization(4, 16, "nvfp4")),
    ],
)
def test_any_option_asks_for_quantisation(options: list[str], asked: Quantization | None):
    recipe = asked_recipe(build_parser().parse_args(options))
    assert (recipe and recipe.plan) == (asked and Plan.of(asked))


def test_both_spellings_of_options():
    seen = []
    assert run(build_parser(), seen.append, ["--q_bits", "8", "--model", "x", "--mlx_path=y"]) == 0
    assert (seen[0].q_bits, seen[0].hf_path, seen[0].mlx_path) == ("8", "x", "y")


def test_without_tokenizer_and_codec(work: Path, capsys):
    assert main(["--hf-path", str(TINY["transformers"]), "--mlx-path", "out"]) == 0
    notes = capsys.readouterr().err
    assert "no codec beside it" in notes
    assert "no tokenizer.json beside it" in notes
    assert not (work / "out/codec").exists()
    assert (work / "out/README.md").read_text().count("not included") == 2


def test_codec_from_elsewhere(work: Path):
    shutil.copytree(DEMO, work / "alone", ignore=lambda *_: ["codec"])
    folder = convert("alone", "out", codec=DEMO / "codec")
    assert load(folder).codec.num_codebooks == 8


# -- the hub ------------------------------------------------------------------------------------


class FakeHub:
    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, exist_ok))

    def upload_folder(self, *, folder_path: str, repo_id: str) -> None:
        files = sorted(p.name for p in Path(folder_path).iterdir())
        self.calls.append(("upload", repo_id, files))


def test_upload(work: Path, monkeypatch: pytest.MonkeyPatch):
    hub = FakeHub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: hub))
    folder = convert("demo", "out", upload_repo="me/higgs-8bit")
    assert hub.calls == [
        ("create", "me/higgs-8bit", True),
        ("upload", "me/higgs-8bit", sorted(p.name for p in folder.iterdir())),
    ]
    assert "# me/higgs-8bit\n" in (folder / "README.md").read_text()


def test_failed_upload_keeps_the_folder(work: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    hub = FakeHub()

    def refuse(*args, **kwargs):
        raise RuntimeError("401: who are you?\nA page of help.")

    monkeypatch.setattr(hub, "create_repo", refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: hub))
    assert main(["--mlx-path", "out", "--upload-repo", "me/higgs"]) == 1
    error = capsys.readouterr().err
    assert "is complete, but its upload to me/higgs failed (401: who are you?)." in error
    assert load_model(work / "out")
