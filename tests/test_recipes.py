"""Recipes: rules on paths, their arithmetic at full size, what is recorded, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import all_logits, nbytes, random_checkpoint, tensors
from mlx.utils import tree_unflatten

from mlx_higgs import calibrated
from mlx_higgs.convert import build_parser, convert, main
from mlx_higgs.convert_options import Texts, asked_recipe
from mlx_higgs.evaluate.reads import frame_bytes
from mlx_higgs.evaluate.shapes import SHAPES
from mlx_higgs.footprint import bits_per_weight, footprint
from mlx_higgs.generate import main as generate
from mlx_higgs.loading import build_model, leaves, load, load_model, open_model
from mlx_higgs.models import get_model_classes
from mlx_higgs.quantization import ORIGINAL, Plan, Quantization, Rule, quantizable
from mlx_higgs.recipes import METHODS, Recipe, find, of, read, shipped
from mlx_higgs.sources import DEMO
from mlx_higgs.types import InputError

EVEN = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
Q4, Q8 = Quantization.of(4), Quantization.of(8)
AT_ONCE = [name for name, recipe in shipped().items() if not recipe.measured]
HEADS = ("audio_codebook_embeddings", "audio_lm_head")

# GB that a frame reads of the weights: 2818.6 million of v2 and 3633.3 million of v3 in the width's
# bits (scales included), and 25.2 and 21.0 million of the audio head in 16.
PER_FRAME = {
    "none": (5.688, 7.309),
    "q8": (3.045, 3.902),
    "q8-q4": (3.045, 3.902),
    "mxfp8": (2.957, 3.789),
    "q6": (2.341, 2.994),
    "q6-q4": (2.341, 2.994),
    "q5": (1.988, 2.540),
    "q4-attention8": (1.988, 2.558),  # 704.6 and 943.7 million of attention in 8.5
    "q4": (1.636, 2.086),
    "nvfp4": (1.636, 2.086),
    "mxfp4": (1.548, 1.972),
}
RESIDENT = {  # GB in memory: v2 without its text head, v3
    "none": (10.75, 8.09),
    "q8": (5.76, 4.32),
    "q8-q4": (4.51, None),
    "q6-q4": (3.80, None),
    "q6": (None, 3.31),
    "q4-attention8": (3.45, None),
    "q4": (3.10, 2.30),
    "mxfp4": (None, 2.18),
}
ON_DISK = {"none": 11.54, "q8": 6.18, "q6": 4.75, "q4": 3.32}  # GB, v2 with its text head


# -- arithmetic ---------------------------------------------------------------------------------


def full_size(shape: str, *, text_head: bool = False) -> Any:
    model = build_model(SHAPES[shape], text_head=text_head)
    model.set_dtype(mx.bfloat16)
    return model


def quantised(model: Any, plan: Plan) -> Any:
    """Lazily: nothing is computed."""
    modules = leaves(model)
    for path, how in quantizable(model, plan).items():
        module = modules.pop(path).to_quantized(how.group_size, how.bits, how.mode)
        model.update_modules(tree_unflatten([(path, module)]))
    return model


def plan_of(name: str) -> Plan:
    return ORIGINAL if name == "none" else shipped()[name].plan


def test_every_recipe_has_its_arithmetic():
    assert set(PER_FRAME) == {"none", *AT_ONCE}


@pytest.mark.parametrize("shape", ["v2-3b", "v3-4b"])
@pytest.mark.parametrize("name", PER_FRAME)
def test_bytes_of_a_frame_at_full_size(name: str, shape: str):
    before = mx.get_active_memory()
    parts = frame_bytes(quantised(full_size(shape), plan_of(name))).parts
    weights = sum(size for part, size in parts.items() if part != "other")  # norms, rows looked up
    expected = PER_FRAME[name][["v2-3b", "v3-4b"].index(shape)]
    assert weights / 1e9 == pytest.approx(expected, abs=0.0006)
    assert mx.get_active_memory() - before < 1e6


@pytest.mark.parametrize("name", RESIDENT)
def test_bytes_in_memory_at_full_size(name: str):
    for shape, expected in zip(("v2-3b", "v3-4b"), RESIDENT[name], strict=True):
        if expected is not None:
            weights = footprint(full_size(shape), plan_of(name)).weights
            assert weights / 1e9 == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("name", ON_DISK)
def test_bytes_on_disk_at_full_size(name: str):
    weights = footprint(full_size("v2-3b", text_head=True), plan_of(name)).weights
    assert weights / 1e9 == pytest.approx(ON_DISK[name], abs=0.006)


@pytest.mark.parametrize("name", AT_ONCE)
def test_bits_per_weight_before_and_after(tmp_path: Path, seed: int, name: str):
    source = random_checkpoint(tmp_path / "source", seed, **EVEN)
    plan = plan_of(name)
    model = load_model(source, quantize=plan)
    assert footprint(open_model(source), plan).weights == nbytes(model)
    before, after = bits_per_weight(open_model(source), plan), bits_per_weight(model)
    assert before == after
    plain = {"q8": 8.5, "q6": 6.5, "q5": 5.5, "q4": 4.5, "nvfp4": 4.5, "mxfp4": 4.25, "mxfp8": 8.25}
    assert after == pytest.approx(plain.get(name, after))


# -- plans --------------------------------------------------------------------------------------


@pytest.fixture
def model(seed: int) -> Any:
    mx.random.seed(seed)
    return with_layers(EVEN["num_hidden_layers"])


def with_layers(layers: int) -> Any:
    config = json.loads((DEMO / "config.json").read_text()) | EVEN
    return build_model(config | {"num_hidden_layers": layers}, text_head=True)


def test_a_later_rule_beats_an_earlier(model: Any):
    plan = Plan(Q8, Q4).but(
        Rule(r"attn", Quantization.of(6)),
        Rule(how=Quantization.of(5), ends=1),
        Rule(r"layers\.[03]\..*q_proj", None),
        Rule(r"v_proj$", Quantization.of(3)),
    )
    chosen = quantizable(model, plan)
    bits = {path: how.bits for path, how in chosen.items()}
    assert bits["layers.1.self_attn.o_proj"] == 6
    assert bits["layers.1.audio_mlp.up_proj"] == 8
    assert bits["layers.1.mlp.up_proj"] == bits["embed_tokens"] == 4
    assert bits["layers.0.mlp.up_proj"] == bits["layers.3.self_attn.k_proj"] == 5
    assert "layers.0.self_attn.q_proj" not in bits
    assert bits["layers.2.self_attn.q_proj"] == 6
    assert {bits[f"layers.{i}.self_attn.v_proj"] for i in range(4)} == {3}


@pytest.mark.parametrize(("ends", "layers"), [(1, 1), (1, 2), (1, 4), (2, 5), (2, 6)])
def test_layers_at_either_end(ends: int, layers: int):
    chosen = quantizable(with_layers(layers), Plan(Q4, Q4).but(Rule(how=Q8, ends=ends)))
    eight = {path.split(".")[1] for path, how in chosen.items() if how == Q8}
    assert eight == {str(i) for i in range(layers) if min(i, layers - 1 - i) < ends}


@pytest.mark.parametrize("ends", [2, 3, 9])
def test_ends_that_are_all_layers_are_refused(ends: int):
    with pytest.raises(InputError, match=f"last {ends} layers are all of this .* has 4: "):
        quantizable(with_layers(4), Plan(Q4, Q4).but(Rule(how=Q8, ends=ends)))


@pytest.mark.parametrize("shape", ["v2-3b", "v3-4b"])
def test_no_rule_reaches_the_heads(shape: str):
    model = full_size(shape)
    everything = Plan().but(Rule(".*", Q4))
    assert not [path for path in quantizable(model, everything) if path.endswith(HEADS)]
    table = {path: Q4 for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    assert any(path.endswith(HEADS) for path in table)
    assert quantizable(model, Plan.exact(table)) == quantizable(model, everything)


def test_a_table_is_a_plan(model: Any):
    chosen = quantizable(model, Plan(Q8, Q4).but(Rule("o_proj", None)))
    plan = Plan.exact(chosen)
    assert quantizable(model, plan) == chosen
    assert hash(plan) == hash(Plan.exact(dict(reversed(chosen.items()))))
    block = plan.config(chosen)
    assert block is not None
    stored = {path: {**block, **block.get(path, {})}["bits"] for path in chosen}
    assert stored == {path: how.bits for path, how in chosen.items()}


@pytest.mark.parametrize("pattern", ["nothing", "audio_lm_head", "codebook"])
def test_a_rule_for_nothing_is_refused(model: Any, pattern: str):
    with pytest.raises(InputError, match=r"finds no module .* layers\.0\."):
        quantizable(model, Plan(Q8, Q8).but(Rule(pattern, Q4)))


def test_unequal_widths_stay_apart_and_speak_alike(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed, dtype="float32", **EVEN)
    plan = Plan(Q4, Q4).but(Rule(r"layers\.0\..*k_proj", Q8), Rule(r"layers\.1\..*gate_proj", None))
    apart, joined = load_model(source, quantize=plan), load(source, quantize=plan).model
    assert np.abs(all_logits(apart) - all_logits(joined)).max() < 1e-4
    names = {path for path, _ in joined.named_modules()}
    assert "layers.0.self_attn.k_proj" in names
    assert "layers.0.self_attn.qkv_proj" not in names
    assert "layers.1.self_attn.qkv_proj" in names
    assert "layers.1.audio_mlp.gate_proj" in names
    assert "layers.0.audio_mlp.gate_up_proj" in names


# -- what is written ----------------------------------------------------------------------------

RULES = [
    "--q-bits",
    "4",
    "--q-attention",
    "8",
    "--q-first-last",
    "6",
    "--q-path",
    r"\.1\..*down=none",
]


@pytest.mark.parametrize("recipe", [*AT_ONCE, "rules"])
def test_every_recipe_is_written_and_read(tmp_path: Path, seed: int, recipe: str):
    from mlx_lm.utils import load_model as mlx_lm_load_model

    source = random_checkpoint(tmp_path / "source", seed, **EVEN)
    options = RULES if recipe == "rules" else ["--recipe", recipe]
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), *options]) == 0
    plan = asked(*options).plan
    ours, fresh = load_model(tmp_path / "out"), load_model(source, quantize=plan)
    assert tensors(ours).keys() == tensors(fresh).keys()
    assert np.array_equal(all_logits(ours), all_logits(fresh))
    theirs, _ = mlx_lm_load_model(tmp_path / "out", get_model_classes=get_model_classes)
    assert np.array_equal(all_logits(theirs), all_logits(ours))


def asked(*options: str) -> Recipe:
    recipe = asked_recipe(build_parser().parse_args(list(options)))
    assert recipe is not None
    return recipe


def test_config_and_card_say_what_was_done(tmp_path: Path, seed: int):
    source = random_checkpoint(tmp_path / "source", seed, **EVEN)
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), *RULES]) == 0
    block = json.loads((tmp_path / "out/config.json").read_text())["mlx_higgs"]
    assert block["recipe"] == "custom"
    assert block["rules"] == [
        "4 bits in groups of 64 (affine)",
        "attention: 8 bits in groups of 64 (affine)",
        "the first and the last layer: 6 bits in groups of 64 (affine)",
        r"what '\\.1\\..*down' finds: no",
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert r"--q-bits 4 --q-attention 8 --q-first-last 6 --q-path '\.1\..*down=none'" in card
    assert all(rule in card for rule in block["rules"])
    model = load_model(tmp_path / "out", text_head=True)
    assert f"custom: {bits_per_weight(model):.2f} bits per weight" in card


@pytest.mark.parametrize("name", ["q4", "q8-q4", "q4-attention8"])
def test_the_cards_command_makes_it_again(tmp_path: Path, seed: int, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    random_checkpoint(tmp_path / "source", seed, **EVEN)
    once = convert("source", "once", quantize=name)
    card = (once / "README.md").read_text()
    command = card.split("python -m mlx_higgs.convert")[1].split("```")[0].replace("\\\n", " ")
    assert main([*command.split(), "--mlx-path", "twice"]) == 0
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / file).read_bytes() == (once / file).read_bytes()
    assert json.loads((once / "config.json").read_text())["mlx_higgs"]["recipe"] == name


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name", "plan"),
    [
        (["--recipe", "q4"], "q4", Plan(Q4, Q4)),
        (["--q-bits", "4"], "q4", Plan(Q4, Q4)),
        (["--q-bits", "4", "--q-attention", "8"], "q4-attention8", plan_of("q4-attention8")),
        (
            ["--recipe", "q4", "--q-path", "o_proj=8"],
            "q4 refined",
            Plan(Q4, Q4).but(Rule("o_proj", Q8)),
        ),
        (["--recipe", "q8-q4", "--q-bits", "6"], "q8-q4 refined", Plan.parse("6")),
        (["--recipe", "q8-q4", "--q-group-size", "32"], "q8-q4 refined", Plan.parse("8/4", 32)),
        (["--recipe", "q8", "--q-mode", "mxfp8"], "q8 refined", Plan.parse("8", mode="mxfp8")),
        (["--recipe", "mixed-4.5", "--q-bits", "4"], "mixed-4.5 refined", Plan(Q4, Q4)),
        (["--q-bits", "4", "--calibrate", "awq"], "custom", Plan(Q4, Q4)),
        (["--q-first-last", "2:none"], "custom", Plan(Q8, Q8).but(Rule(how=None, ends=2))),
    ],
)
def test_options_refine_recipes(options: list[str], name: str, plan: Plan):
    recipe = asked(*options)
    assert (recipe.name, recipe.plan) == (name, plan)
    if "refined" in name:
        assert not recipe.cautions


def test_auto_and_calibration():
    recipe = asked("--recipe", "mixed-4.5", "--target-bpw", "4")
    assert (recipe.target_bpw, recipe.calibrate) == (4, shipped()["mixed-4.5"].calibrate)
    recipe = asked("--q-bits", "auto", "--target-bpw", "5", "--q-path", "embed=8")
    assert (recipe.target_bpw, recipe.calibrate, recipe.plan.rules) == (
        5,
        None,
        (Rule("embed", Q8),),
    )
    assert asked("--recipe", "mixed-4.5") == find("mixed-4.5") or recipe.measured
    assert asked("--recipe", "q4", "--calibrate", "gptq").measured


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--q-path nothing=4", "finds no module"),
        ("--q-path audio_lm_head=4", "finds no module"),
        ("--q-path ([=4", "no regular expression"),
        ("--q-path o_proj", "REGEX=BITS"),
        ("--q-path o_proj=many", "no number of bits"),
        ("--q-attention 7", "no bits 7"),
        ("--q-first-last 0:8", "1 or more"),
        ("--q-first-last some:8", "N:BITS"),
        ("--q-first-last 9:8", "which has 5"),
        ("--list-recipes --recipe nope", "leave out --recipe nope"),
        ("--list-recipes -q --q-bits 4", "leave out -q, --q-bits 4"),
        ("--q-bits auto", "--target-bpw"),
        ("--target-bpw 4.5", "--q-bits auto"),
        ("--q-bits 4 --target-bpw 4.5", "--q-bits auto"),
        ("--q-bits auto --target-bpw 2", "cannot be met"),
        ("--q-bits auto --target-bpw 4.5 --q-mode mxfp4", "leave those out"),
        ("--recipe nope", "use q8, "),
        ("--recipe nope.toml", "cannot be read"),
        ("--recipe mixed-4.5 --memory-limit 1MB", "--memory-limit"),
        ("--recipe mixed-4.5 --calibration-data nowhere", "no folder nowhere"),
        ("--recipe mixed-4.5 --calibration-texts nothing.txt", "no file nothing.txt"),
        ("--recipe mixed-4.5 --calibration-samples 1", "the least"),
        ("--q-bits 4 --calibration-texts nothing.txt", "is for --calibrate"),
    ],
)
def test_refused_before_any_work(tmp_path: Path, monkeypatch, capsys, options: str, words: str):
    monkeypatch.chdir(tmp_path)
    assert main(options.split()) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_recipes_are_listed(capsys):
    assert main(["--list-recipes"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list(shipped())
    assert all(recipe.about in out for recipe in shipped().values())


# -- files --------------------------------------------------------------------------------------


def test_a_file_of_ones_own(tmp_path: Path, seed: int):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[mine]\nabout = "for my voice"\nbits = "6/4"\ngroup_size = 32\nattention = 8\n'
        'paths = [["down_proj", 8], ["embed", "none"]]\nsampling = {temperature = 0.4}\n'
    )
    mine = find(str(file))
    assert mine.plan.audio == Quantization.of(6, 32)
    assert [rule.how for rule in mine.plan.rules] == [Quantization.of(8, 32)] * 2 + [None]
    source = random_checkpoint(tmp_path / "source", seed, **EVEN)
    folder = convert(str(source), tmp_path / "out", quantize=str(file))
    converted, at_once = load(folder), load(source, quantize=str(file))
    assert np.array_equal(all_logits(converted.model), all_logits(at_once.model))
    for higgs in (converted, at_once):
        assert higgs.defaults.sampling.temperature == 0.4
    assert str(tmp_path) not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no recipe"),
        ("bits = 8", "no table"),
        ("[a]\nbits = 8.5", "bits is 8.5"),
        ('[a]\nbits = "9"', "no bits 9"),
        ('[a]\nbite = "8"', "'bite' means nothing"),
        ('[a]\nbits = "auto"', "--target-bpw"),
        ('[a]\nbits = "4"\ntarget_bpw = 4.5', "auto"),
        ('[a]\nbits = "4"\ncalibrate = "magic"', ", ".join(METHODS)),
        ('[a]\nbits = "4"\npaths = [["x"]]', "no pair"),
        ('[a]\nbits = "4"\nsampling = {heat = 1}', "'heat'"),
        ('[a]\nbits = "4"\nsampling = {temperature = -1}', "temperature"),
        ('[a]\nbits = "auto"\ntarget_bpw = 4.5\nwidths = [7]', "no bits 7"),
        ('[a]\ncalibrate = "dwq"', "--q-bits 4"),
        ("[a", "cannot be read"),
        ('[a]\nbits = "4"\n[b]\nbits = "8"', "2 recipes (a, b)"),
    ],
)
def test_a_file_that_means_nothing(tmp_path: Path, text: str, words: str):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError) as refusal:
        find(str(tmp_path / "r.toml"))
    assert words in str(refusal.value)


def test_what_a_plan_is_called():
    assert of(None).name == "none"
    assert of(Q8).name == of("8").name == read("q8").name == "q8"
    assert of(Plan(Q8, None)).name == "custom"
    with pytest.raises(InputError, match=r"'most' is no way .* a recipe: q8, "):
        read("most")


# -- measured recipes ---------------------------------------------------------------------------


def test_a_measured_recipe_is_converted_first(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert generate(["--text", "one", "--quantize", "mixed-4.5"]) == 2
    err = capsys.readouterr().err
    assert "mlx_higgs.convert --recipe mixed-4.5 --hf-path demo" in err
    assert len(err.splitlines()) == 1
    with pytest.raises(InputError, match="Convert first"):
        load("demo", quantize="mixed-4.5")


@pytest.fixture
def stubbed(monkeypatch) -> list[dict]:
    """A calibration that rounds to 4 bits and 8, and tells what it was asked."""
    calls: list[dict] = []

    def calibrate(model: Any, plan: Plan, samples: list, **options: Any) -> SimpleNamespace:
        calls.append({"plan": plan, "samples": samples, **options})
        chosen = quantizable(model, Plan(Q4, Q4).but(Rule("o_proj", Q8)))
        quantised(model, Plan.exact(chosen))
        mx.eval(model.parameters())
        record = {"method": "dwq", "kl_plain": 0.2, "kl": 0.05, "passages": 7}
        return SimpleNamespace(chosen=chosen, record=record)

    monkeypatch.setattr(calibrated, "calibrate", calibrate)
    monkeypatch.setattr(calibrated, "spoken", lambda higgs, texts, **_: list(texts))
    return calls


def test_what_was_measured_is_written_and_recorded(tmp_path: Path, monkeypatch, capsys, stubbed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("# mine\none two\n\nthree four\nfive\n")
    options = ["--recipe", "mixed-4.5", "--calibration-texts", "texts.txt", "--mlx-path", "out"]
    assert main([*options, "--calibration-samples", "2"]) == 0
    (call,) = stubbed
    assert call["samples"] == ["one two", "three four"]
    assert (call["method"], call["target_bpw"]) == (shipped()["mixed-4.5"].calibrate, 4.5)
    said = capsys.readouterr().err
    assert "expected peak" in said
    assert "0.05 nat a code off on held-out passages, 0.2 as MLX rounds" in said
    assert "warning: held-out speech was 0.05 nat a code off" in said
    config = json.loads(Path("out/config.json").read_text())
    assert config["mlx_higgs"]["recipe"] == "mixed-4.5"
    assert config["mlx_higgs"]["calibration"]["kl"] == 0.05
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["layers.0.self_attn.o_proj"]["bits"] == 8
    card = Path("out/README.md").read_text()
    assert "--calibration-samples 2 --calibration-seed 0" in card
    assert "kl 0.05" in card
    bits = {m.bits for _, m in load_model(Path("out")).named_modules() if "scales" in m}
    assert bits == {4, 8}


def test_calibration_draws_its_own_texts(stubbed):
    higgs = load("demo", read_now=False)
    first, other = (calibrated.passages(higgs, Texts(count=5, seed=seed)) for seed in (0, 1))
    assert len(first) == len(other) == 5
    assert not set(first) & set(other)


def test_room_for_the_float_model(tmp_path: Path):
    assert "expected peak" in calibrated.check_room(DEMO, Texts(), "1GB")
    with pytest.raises(InputError, match="and there are 9 MB"):
        calibrated.check_room(DEMO, Texts(), "9MB")


def test_a_source_with_figures_of_its_own_is_not_believed(tmp_path: Path):
    shutil.copytree(DEMO, tmp_path / "source")
    path = tmp_path / "source/config.json"
    config = json.loads(path.read_text()) | {"mlx_higgs": {"measured": {"kl_mean": 9.0}}}
    path.write_text(json.dumps(config))
    folder = convert(str(tmp_path / "source"), tmp_path / "out", dtype="float32")
    assert "mlx_higgs" not in json.loads((folder / "config.json").read_text())
