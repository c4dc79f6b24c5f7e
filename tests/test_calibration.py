"""Calibrated rounding: each method loses less than the nearest steps, by its own measure."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_calibration import passages
from tiny_model import tiny_model

from convert.tiny_v3 import write_v3
from mlx_higgs.calibration import awq, dwq, gptq
from mlx_higgs.calibration.allocate import allocate
from mlx_higgs.calibration.bench import Bench, Passages
from mlx_higgs.calibration.forced import forced_logits
from mlx_higgs.calibration.rounding import Rounded, pack, stored_bits, unpack
from mlx_higgs.calibration.run import calibrate, methods_of
from mlx_higgs.calibration.units import Unit, units_of
from mlx_higgs.loading import load_model
from mlx_higgs.quantization import Plan, Quantization, Rule, quantizable
from mlx_higgs.train.batches import collate
from mlx_higgs.types import InputError

GROUPS = 32
WIDTHS = (2, 3, 4, 5, 6, 8)
FEW = (3, 4, 6)  # of those that a choice is made among, to be quick


def plan(bits: int) -> Plan:
    return Plan.of(Quantization(bits, GROUPS))


def bench_of(model) -> tuple[Bench, dict[str, Quantization]]:
    table = quantizable(model, plan(4))
    return Bench(model, table), table


def v3(folder: Path, seed: int):
    return load_model(write_v3(folder / "v3", seed=seed, codes=20), dtype="float32")


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


# ---------------------------------------------------------------- storage


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_packed_as_mlx_packs_them(seed, bits):
    weight = mx.array(np.random.default_rng(seed).normal(size=(5, 96)).astype(np.float32))
    packed, scales, biases = mx.quantize(weight, GROUPS, bits)
    codes = unpack(np.array(packed), bits)
    assert codes.max() < 2**bits
    assert (pack(codes, bits) == np.array(packed)).all()
    spread = (np.repeat(np.array(part), GROUPS, axis=1) for part in (scales, biases))
    scale, bias = spread
    values = Rounded(Quantization(bits, GROUPS), packed, scales, biases).dense(mx.float32)
    np.testing.assert_allclose(np.array(values), codes * scale + bias, atol=1e-5)


@pytest.mark.parametrize("how", [Quantization(b, 32) for b in WIDTHS] + [Quantization(4, 64)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_bits_are_those_that_are_stored(how, dtype):
    module = nn.Linear(128, 6, bias=False)
    module.set_dtype(dtype)
    stored = Rounded.plain(module, how)
    assert stored.biases is not None
    size = sum(array.nbytes for array in (stored.weight, stored.scales, stored.biases))
    assert stored_bits((6, 128), how, dtype) == 8 * size


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_bits_of_the_float_modes(mode):
    how = Quantization.of(mode=mode)
    stored = Rounded.plain(nn.Linear(128, 6, bias=False), how)
    assert stored_bits((6, 128), how, mx.float32) == 8 * (
        stored.weight.nbytes + stored.scales.nbytes
    )


# ---------------------------------------------------------------- the choice of widths


def test_the_choice_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        shapes = rng.integers(1, 5, rng.integers(1, 6))
        costs = [rng.integers(1, 12, n).tolist() for n in shapes]
        losses = [rng.integers(0, 9, n).tolist() for n in shapes]
        least, most = sum(map(min, costs)), sum(map(max, costs))
        budget = int(rng.integers(least, most + 1))
        picked = allocate(costs, losses, budget)
        assert sum(c[i] for c, i in zip(costs, picked, strict=True)) <= budget
        best = min(
            sum(row[i] for row, i in zip(losses, every, strict=True))
            for every in itertools.product(*(range(n) for n in shapes))
            if sum(row[i] for row, i in zip(costs, every, strict=True)) <= budget
        )
        assert sum(row[i] for row, i in zip(losses, picked, strict=True)) == best


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(InputError, match="The least these widths need is 7 bits; the budget is 6"):
        allocate([[3, 9], [4]], [[1.0, 0.0], [0.0]], 6)


def test_units_are_what_is_fused(seed):
    """Every module is in one; what one multiplication reads shares a width."""
    model = tiny_model(seed)
    table = quantizable(model, plan(4))
    modules = dict(model.named_modules())
    units = units_of({path: modules[path] for path in table})
    assert sorted(path for unit in units for path in unit.paths) == sorted(table)
    model.fuse()
    fused = {p for p, m in model.named_modules() if model.quant_predicate(p, m)}
    assert len(units) == len(fused)


@pytest.mark.parametrize("target", [5.2, 6.5, 7.5])  # of which float32 scales take 2
def test_the_target_is_kept(seed, target):
    """By the bits that are stored."""
    model = tiny_model(seed)
    found = calibrate(model, Plan(), passages(model, seed), target_bpw=target, widths=FEW)
    assert found.record["bits_per_weight"] <= target
    assert set(found.record["widths"]) <= set(FEW)
    bits = sum(
        8 * sum(array.nbytes for array in module.parameters().values())
        for path, module in model.named_modules()
        if path in found.chosen
    )
    size = sum(m.weight.size for p, m in tiny_model(seed).named_modules() if p in found.chosen)
    assert bits / size == pytest.approx(found.record["bits_per_weight"], abs=1e-4)


def test_a_target_out_of_reach_says_by_how_much(seed):
    model = tiny_model(seed)
    with pytest.raises(InputError, match="bits per weight more than the target allows"):
        calibrate(model, Plan(), passages(model, seed, 4), target_bpw=3.0, widths=FEW)


def test_what_rules_say_is_not_chosen(seed):
    model = tiny_model(seed)
    rules = (Rule(r"o_proj$", Quantization(8, GROUPS)), Rule(r"down_proj$", None))
    found = calibrate(
        model, Plan(rules=rules), passages(model, seed, 4), target_bpw=6.0, widths=FEW
    )
    assert {h.bits for p, h in found.chosen.items() if p.endswith("o_proj")} == {8}
    assert not any(path.endswith("down_proj") for path in found.chosen)
    assert type(model.layers[0].mlp.down_proj) is nn.Linear


@pytest.mark.parametrize("method", [None, "awq+gptq+dwq"])
def test_a_text_head_takes_the_width_of_the_whole(seed, method):
    """No passage of speech tells what it needs; it must not be the choice's savings."""
    model = tiny_model(seed, text_head=True)
    found = calibrate(
        model, Plan(), passages(model, seed, 4), method=method, target_bpw=6.2, widths=FEW
    )
    assert found.chosen[model.TEXT_HEAD].bits == 4  # 6, with 2 of its scales, are too many
    assert found.record["bits_per_weight"] <= 6.2


# ---------------------------------------------------------------- GPTQ


def correlated(seed: int, width: int = 64) -> tuple[mx.array, np.ndarray]:
    """A matrix ``[16, width]``, and the Hessian of inputs that hang together."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, width)) @ rng.normal(size=(width, width))
    return mx.array(rng.normal(size=(16, width)).astype(np.float32)), (x.T @ x).astype(np.float32)


def harm(weight: mx.array, rounded: Rounded, hessian: np.ndarray) -> float:
    """Summed squared error of what a matrix makes of its inputs."""
    error = np.array(weight - rounded.dense(mx.float32), np.float64)
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("bits", WIDTHS)
def test_gptq_makes_less_of_its_inputs_wrong(seed, bits):
    weight, hessian = correlated(seed)
    how, module = Quantization(bits, GROUPS), nn.Linear(1, 1, bias=False)
    module.weight = weight
    ours = gptq.round_matrix(weight, hessian, how, mx.float32)
    assert harm(weight, ours, hessian) < harm(weight, Rounded.plain(module, how), hessian)


@pytest.mark.parametrize("bits", gptq.THEIRS)
def test_our_gptq_and_mlx_lm_s_choose_the_same_codes(seed, bits):
    model = tiny_model(seed)
    bench, _ = bench_of(model)
    paths = ["layers.0.self_attn.q_proj", "layers.0.audio_mlp.down_proj"]
    batches = [collate([sample]) for sample in passages(model, seed)]
    how = Quantization(bits, GROUPS)
    theirs, ours = (
        work(bench, paths, how, batches) for work in (gptq._by_mlx_lm, gptq._by_hessian)
    )
    for path in paths:
        pair = [unpack(np.array(r[path].weight), bits).astype(int) for r in (ours, theirs)]
        # they invert in float32, we in float64: a tie may fall to the other side, and what follows
        assert np.mean(pair[0] != pair[1]) < 0.02, path


def test_gptq_takes_what_it_cannot_weigh_as_it_is(seed):
    model = tiny_model(seed)
    bench, table = bench_of(model)
    plain = bench.plain(table)
    rounded = gptq.round_with_gptq(bench, table, passages(model, seed, 3))
    same = {p for p in table if bool(mx.array_equal(plain[p].weight, rounded[p].weight))}
    assert same == {"embed_tokens"}
    assert all(bool(mx.array_equal(bench.modules[p].weight, bench.exact[p])) for p in table)


# ---------------------------------------------------------------- AWQ


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_scaling_alone_changes_nothing(seed, tmp_path, version):
    """Every norm that feeds a matrix is divided by what the matrix is multiplied by."""
    model = tiny_model(seed) if version == "v2" else v3(tmp_path, seed)
    samples = passages(model, seed, 4)
    batch = collate(samples)
    before = np.array(forced_logits(model, batch))
    bench, table = bench_of(model)
    weights = dict(bench.exact)
    awq.transform(bench, table, samples, clip=False)
    assert any(not mx.array_equal(weights[path], bench.exact[path]) for path in table)
    after = np.array(forced_logits(model, batch))
    np.testing.assert_allclose(after, before, atol=1e-4 * max(1, np.abs(before).max()))


# ---------------------------------------------------------------- DWQ


@pytest.mark.parametrize("rate", [1e-3, 1.0])  # one that learns, one that destroys
def test_dwq_is_never_worse_where_it_is_checked(seed, rate):
    """And better where it has learnt; its codes are those that there were."""
    model = tiny_model(seed)
    bench, table = bench_of(model)
    samples = passages(model, seed, 12)
    lessons, others = Passages(model, samples[:9], 3), Passages(model, samples[9:])
    plain, course = bench.plain(table), dwq.Course(epochs=4, learning_rate=rate)
    for checks in (lessons, others):
        bench.put(plain)
        before = bench.divergence(checks)
        bench.restore()
        better = dwq.train(bench, plain, lessons, checks, course=course)
        assert all(mx.array_equal(better[p].weight, plain[p].weight) for p in table)
        bench.put(better)
        after = bench.divergence(checks)
        bench.restore()
        assert after <= before
        if checks is lessons and rate < 1:
            assert after < before


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_moved_by_nothing_is_where_it_was(seed, bits):
    weight, _ = correlated(seed)
    module = nn.Linear(1, 1, bias=False)
    module.weight = weight
    stored = Rounded.plain(module, Quantization(bits, GROUPS))
    still = {name: mx.zeros(stored.scales.shape) for name in ("scales", "biases")}
    scales, biases = dwq.moved(stored, still)
    assert mx.array_equal(scales, stored.scales)
    assert mx.array_equal(biases, stored.biases)


# ---------------------------------------------------------------- all of it


@pytest.mark.parametrize("method", [None, "awq", "gptq", "dwq", "awq+gptq+dwq"])
@pytest.mark.parametrize("target", [None, 6.0])
def test_the_record_is_complete_and_true(seed, method, target):
    """What it says of the result holds for the quantised modules that are there afterwards."""
    model, exact = tiny_model(seed), tiny_model(seed)
    samples = passages(model, seed, 8)
    wanted = Plan() if target else plan(4)
    found = calibrate(model, wanted, samples, method=method, target_bpw=target, widths=FEW)
    record = found.record
    assert record == json.loads(json.dumps(record))
    assert {"method", "target_bpw", "bits_per_weight", "seed", "kl_plain", "kl"} <= record.keys()
    assert (record["passages"], record["held_out_passages"]) == (7, 1)
    assert record.get("tried", record["method"]) == method  # of a random model, it may not help
    assert record["target_bpw"] == target
    stored = {p for p, m in model.named_modules() if hasattr(m, "bits")}
    assert stored == set(found.chosen)
    for path, module in model.named_modules():
        if path in stored:
            assert (module.bits, module.group_size) == (
                found.chosen[path].bits,
                found.chosen[path].group_size,
            )
    judged = Passages(exact, samples[-1:])
    bench = Bench(model, ())
    assert bench.divergence(judged) == pytest.approx(record["kl"], rel=1e-2, abs=1e-5)
    if method is None:
        assert record["kl"] == record["kl_plain"]


def test_uncalibrated_it_is_what_conversion_makes(seed, tmp_path):
    source = write_v3(tmp_path / "v3", seed=seed, codes=20)
    model = load_model(source)
    calibrate(model, plan(4), passages(model, seed, 4))
    expected = arrays_as_floats(load_model(source, quantize=plan(4)))
    found = arrays_as_floats(model)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def arrays_as_floats(model) -> dict[str, np.ndarray]:
    """bfloat16 is nothing that numpy knows; what MLX calls it is compared as well."""
    return {
        f"{name} {array.dtype}": np.array(
            array if array.dtype == mx.uint32 else array.astype(mx.float32)
        )
        for name, array in tree_flatten(model.parameters())
    }


def test_the_same_seed_makes_the_same_weights(seed):
    made = []
    for _ in range(2):
        model = tiny_model(seed)
        calibrate(
            model, Plan(), passages(model, seed, 6), method="gptq+dwq", target_bpw=6, widths=FEW
        )
        made.append(arrays(model))
    assert made[0].keys() == made[1].keys()
    assert all((made[0][name] == made[1][name]).all() for name in made[0])


@pytest.mark.parametrize(
    "work", ["measuring sensitivity", "scaling", "rounding", "training scales"]
)
def test_an_interrupt_leaves_the_model_as_it_was(seed, work):
    model = tiny_model(seed)
    before = arrays(model)

    def interrupted(items, what, total):
        for number, item in enumerate(items):
            if what == work and number == total // 2:
                raise KeyboardInterrupt
            yield item

    samples = passages(model, seed, 6)
    with pytest.raises(KeyboardInterrupt):
        calibrate(
            model,
            Plan(),
            samples,
            method="awq+gptq+dwq",
            target_bpw=6,
            widths=(4, 6),
            watch=interrupted,
        )
    after = arrays(model)
    assert after.keys() == before.keys()
    assert all((after[name] == before[name]).all() for name in before)
    assert forced_logits(model, collate(samples)).shape[-1] == 22  # it still works


def test_methods_are_done_in_their_order():
    assert methods_of("dwq+gptq") == ("gptq", "dwq")
    assert methods_of(None) == ()
    with pytest.raises(InputError, match="There is no calibration 'qat'"):
        methods_of("gptq+qat")


def test_nothing_to_quantise_is_said(seed):
    model = tiny_model(seed)
    with pytest.raises(InputError, match="Nothing is quantised by this plan"):
        calibrate(model, Plan(), passages(model, seed, 2))


def test_a_unit_s_choices_divide_its_rows():
    unit = Unit(("a", "b"), ((4, 96), (8, 192)))
    assert {how.group_size for how in unit.choices((4,))} == {32}
    assert unit.size == 4 * 96 + 8 * 192


# ---------------------------------------------------------------- no gain


def test_a_calibration_that_loses_more_is_left_out(seed, monkeypatch):
    def coarse(bench, table, *_):
        return bench.plain(dict.fromkeys(table, Quantization(2, GROUPS)))

    monkeypatch.setattr(gptq, "round_with_gptq", coarse)
    model = tiny_model(seed)
    done = calibrate(model, plan(6), passages(model, seed), method="awq+gptq", seed=seed)
    same = tiny_model(seed)
    calibrate(same, plan(6), passages(same, seed))
    got, wanted = arrays(model), arrays(same)
    assert got.keys() == wanted.keys()
    assert all((got[name] == wanted[name]).all() for name in got)
    record = done.record
    assert (record["method"], record["tried"]) == (None, "awq+gptq")
    assert record["kl"] == record["kl_plain"] < record["kl_tried"]


def test_what_nothing_can_fit_is_refused(seed):
    model = tiny_model(seed)
    before = arrays(model)
    floats = Plan.of(Quantization(4, 32, "mxfp4"))
    with pytest.raises(InputError, match=r"mode mxfp4.*leave --calibrate out"):
        calibrate(model, floats, passages(model, seed), method="gptq")
    after = arrays(model)
    assert all((before[name] == after[name]).all() for name in before)
