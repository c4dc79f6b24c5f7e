"""Methods: what moves and what stays, and that saving memory changes no number."""

from __future__ import annotations

import copy
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_train_loss import random_samples
from tiny_model import tiny_model

from mlx_higgs.train.batches import Schedule
from mlx_higgs.train.loop import Trainer
from mlx_higgs.train.loss import Weights
from mlx_higgs.train.methods import build_optimizer, learning_rate, lora_parameters, prepare
from mlx_higgs.train.options import OPTIMIZER_NAMES, Options
from mlx_higgs.types import GenerationError, InputError

FULL = Options(data="-", fine_tune_type="full", learning_rate=1e-2)


def lora(**fields) -> Options:
    pytest.importorskip("mlx_lm", reason="adapters are mlx-lm's")
    return replace(Options(data="-", learning_rate=1e-2), **fields)


def trainer_of(model, options: Options, seed: int, *, samples=6) -> Trainer:
    masks = prepare(model, options)
    schedule = Schedule(random_samples(model, seed, samples), options.batch_size, seed)
    weights = Weights((1.0,) * model.delay.num_codebooks, float(model.args.text_head))
    return Trainer(
        model,
        build_optimizer(options),
        schedule,
        weights,
        accumulate=options.grad_accumulation_steps,
        code_noise=options.code_noise,
        grad_clip=options.grad_clip,
        seed=options.seed,
        masks=masks,
    )


def flat(tree) -> dict[str, np.ndarray]:
    return {name: np.array(array.astype(mx.float32)) for name, array in tree_flatten(tree)}


def moved(model, options: Options, seed: int, steps: int = 2) -> tuple[set[str], dict, dict]:
    """Names of the weights that training changed, and all before and after."""
    trainer = trainer_of(model, options, seed)
    before = flat(model.parameters())
    for _ in range(steps):
        trainer.step()
    after = flat(model.parameters())
    return {k for k in before if not np.array_equal(before[k], after[k])}, before, after


# -- what moves --------------------------------------------------------------------------------


def test_full_moves_everything(seed):
    names, before, _ = moved(tiny_model(seed, text_head=True), FULL, seed)
    assert names == before.keys()


def test_freeze_llm_keeps_what_text_alone_uses(seed):
    names, before, _ = moved(tiny_model(seed, text_head=True), replace(FULL, freeze_llm=True), seed)
    heads = ("audio_decoder_proj.", "audio_codebook_embeddings.")
    assert names == {k for k in before if k.startswith(heads) or ".audio_" in k}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_move_only_themselves_in_the_default_places(seed, kind):
    model = tiny_model(seed, text_head=True)
    names, before, _ = moved(model, lora(fine_tune_type=kind), seed)
    leaves = {"lora": {"lora_a", "lora_b"}, "dora": {"lora_a", "lora_b", "m"}}[kind]
    places = {name.rpartition(".")[0] for name in names}
    assert {name.rpartition(".")[2] for name in names} == leaves
    keys = [f"self_attn.{x}_proj" for x in "qkvo"]
    keys += [f"audio_mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert places == {f"layers.{i}.{key}" for i in range(2) for key in keys}
    assert names == {k for k in before if k.rpartition(".")[2] in leaves}


def test_num_layers_and_keys_choose_the_places(seed):
    options = lora(num_layers=1, lora_parameters={"keys": ["self_attn.v_proj"], "rank": 2})
    model = tiny_model(seed)
    prepare(model, options)
    shapes = {name: array.shape for name, array in flat(model.trainable_parameters()).items()}
    place = "layers.1.self_attn.v_proj"
    assert shapes == {f"{place}.lora_a": (32, 2), f"{place}.lora_b": (2, 16)}
    assert model.layers[1].self_attn.v_proj.scale == 20.0


def test_alpha_is_scale_times_rank(seed):
    found = lora_parameters(tiny_model(seed), {"rank": 8, "alpha": 16})
    assert found["scale"] == 2.0
    assert "alpha" not in found


def test_a_new_adapter_changes_nothing(seed):
    model = tiny_model(seed, text_head=True)
    before = trainer_of(copy.deepcopy(model), FULL, seed)
    after = trainer_of(model, lora(), seed)
    samples = random_samples(model, seed, 4)
    assert after.score(samples, 2).loss == pytest.approx(before.score(samples, 2).loss, rel=1e-6)


def test_frozen_rows_stay_under_weight_decay(seed):
    model = tiny_model(seed, text_head=True)
    options = replace(
        FULL,
        optimizer="adamw",
        optimizer_config={"adamw": {"weight_decay": 0.5}},
        freeze_embed_until_idx=40,
        freeze_text_head_until_idx=30,
    )
    _, before, after = moved(model, options, seed)
    head = "audio_decoder_proj.text_lm_head.weight"
    for name, count in (("embed_tokens.weight", 40), (head, 30)):
        np.testing.assert_array_equal(after[name][:count], before[name][:count])
        assert (after[name][count:] != before[name][count:]).any(axis=1).all(), name


def test_partly_frozen_embedding_goes_with_a_frozen_language_model(seed):
    options = replace(FULL, freeze_llm=True, freeze_embed_until_idx=40)
    names, before, after = moved(tiny_model(seed, text_head=True), options, seed)
    assert "embed_tokens.weight" in names
    assert "norm.weight" not in names
    kept = after["embed_tokens.weight"][:40]
    np.testing.assert_array_equal(kept, before["embed_tokens.weight"][:40])


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_learn_on_a_quantised_base(seed, bits):
    model = tiny_model(seed, text_head=True)
    nn.quantize(model, 32, bits, class_predicate=model.quant_predicate)
    packed = {k: np.array(v) for k, v in tree_flatten(model.parameters()) if v.dtype == mx.uint32}
    assert packed
    trainer = trainer_of(model, lora(), seed)
    samples = random_samples(model, seed, 6)
    before = trainer.score(samples, 4).loss
    for _ in range(15):
        trainer.step()
    assert trainer.score(samples, 4).loss < before
    now = [np.array(v) for _, v in tree_flatten(model.parameters()) if v.dtype == mx.uint32]
    assert all(np.array_equal(a, b) for a, b in zip(packed.values(), now, strict=True))


def test_a_quantised_base_is_not_trained_in_full(seed):
    model = tiny_model(seed)
    nn.quantize(model, 32, 8, class_predicate=model.quant_predicate)
    with pytest.raises(InputError, match="quantised model cannot be trained in full"):
        prepare(model, FULL)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bfloat16_learns_and_stays_bfloat16(seed, kind):
    model = tiny_model(seed, text_head=True)
    model.set_dtype(mx.bfloat16)
    options = replace(lora(), fine_tune_type=kind)
    trainer = trainer_of(model, options, seed)
    samples = random_samples(model, seed, 6)
    before = trainer.score(samples, 4).loss
    for _ in range(15):
        trainer.step()
    assert trainer.score(samples, 4).loss < before
    base = [v.dtype for k, v in tree_flatten(model.parameters()) if "lora_" not in k]
    assert set(base) == {mx.bfloat16}


# -- the same numbers for less memory ----------------------------------------------------------


def gradients_of(model, options: Options, seed: int) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and every gradient of a first step."""
    found = {}

    class Watching(optim.SGD):
        def apply_gradients(self, gradients, parameters):
            found.update(flat(gradients))
            return super().apply_gradients(gradients, parameters)

    trainer = trainer_of(model, replace(options, grad_clip=0.0), seed)
    trainer.optimizer = Watching(0.0)
    tally, _ = trainer.step()
    return tally.score().loss, found


def assert_close(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = np.linalg.norm(found[name] - gradient) / max(np.linalg.norm(gradient), 1e-9)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    "options", [FULL, lora(), replace(lora(), num_layers=1)], ids=["full", "lora", "last layer"]
)
def test_checkpointing_changes_no_number(seed, options):
    options = replace(options, batch_size=3)
    plain, saving = tiny_model(seed, text_head=True), tiny_model(seed, text_head=True)
    loss, expected = gradients_of(plain, options, seed)
    again, found = gradients_of(saving, replace(options, grad_checkpoint=True), seed)
    assert again == loss
    assert_close(found, expected, 1e-6)
    assert flat(saving.parameters()).keys() == flat(plain.parameters()).keys()
    assert type(plain.layers[0]) is not type(saving.layers[0]), "other models keep their layers"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_checkpointing_draws_the_same_dropout_twice(seed, kind):
    """A short step along the gradient lowers the loss by its squared length."""
    parameters = {**lora().lora_parameters, "dropout": 0.5}
    options = replace(lora(), fine_tune_type=kind, lora_parameters=parameters, grad_clip=0.0)
    model = tiny_model(seed, text_head=True)
    trainer = trainer_of(model, replace(options, grad_checkpoint=True, batch_size=3), seed)
    trainer.optimizer = optim.SGD(0.0)
    _, norm = trainer.step()
    drop = 1e-3
    trainer.optimizer = optim.SGD(drop / norm**2)
    losses = []
    for _ in range(2):
        trainer.iteration = 0  # the same samples, the same draws
        tally, _ = trainer.step()
        losses.append(tally.score().loss)
    assert losses[0] - losses[1] == pytest.approx(drop, rel=0.1)  # measured: within 2 %


def test_accumulated_batches_are_one_big_batch(seed):
    """Of unequal sizes, where a mean of means would differ."""
    options = replace(FULL, batch_size=6)
    loss, expected = gradients_of(tiny_model(seed, text_head=True), options, seed)
    options = replace(FULL, batch_size=4, grad_accumulation_steps=2)  # 4 and 2
    again, found = gradients_of(tiny_model(seed, text_head=True), options, seed)
    assert again == pytest.approx(loss, rel=1e-6)
    # measured: 1e-6, rounding of sums in another order
    assert_close(found, expected, 1e-5)


def test_clipping_bounds_the_gradient(seed):
    trainer = trainer_of(tiny_model(seed, text_head=True), replace(FULL, grad_clip=1e-3), seed)
    trainer.optimizer = optim.SGD(1.0)
    before = flat(trainer.model.parameters())
    _, norm = trainer.step()
    change = sum(((flat(trainer.model.parameters())[k] - v) ** 2).sum() for k, v in before.items())
    assert norm > 1e-3
    assert change**0.5 == pytest.approx(1e-3, rel=1e-2)


# -- optimizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_every_optimizer_learns(seed, name):
    rate = 1e-1 if name == "sgd" else 1e-2
    model = tiny_model(seed, text_head=True)
    trainer = trainer_of(model, replace(FULL, optimizer=name, learning_rate=rate), seed)
    samples = random_samples(model, seed, 6)
    before = trainer.score(samples, 4).loss
    for _ in range(15):
        trainer.step()
    assert trainer.score(samples, 4).loss < before


def test_optimizer_config_is_read_under_the_optimizers_name():
    config = {"adamw": {"betas": [0.8, 0.9], "weight_decay": 0.3}, "sgd": {"momentum": 0.5}}
    found = build_optimizer(replace(FULL, optimizer="adamw", optimizer_config=config))
    assert isinstance(found, optim.AdamW)
    assert (found.betas, found.weight_decay) == ([0.8, 0.9], 0.3)


@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_mlx_lms(warmup):
    tuner = pytest.importorskip("mlx_lm.tuner.utils")
    config = {"name": "cosine_decay", "arguments": [1e-2, 50, 1e-4]}
    config |= {"warmup": warmup, "warmup_init": 1e-5} if warmup else {}
    ours, theirs = learning_rate(replace(FULL, lr_schedule=config)), tuner.build_schedule(config)
    steps = [0, 1, 5, 7, 8, 9, 30, 60]
    assert [float(ours(mx.array(n))) for n in steps] == [float(theirs(mx.array(n))) for n in steps]


def test_a_loss_that_is_no_number_stops(seed):
    model = tiny_model(seed, text_head=True)
    model.norm.weight = model.norm.weight * float("nan")
    with pytest.raises(GenerationError, match=r"not finite at iteration 1"):
        trainer_of(model, FULL, seed).step()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_parameters": {"rnak": 8}}, "no rnak"),
        ({"lora_parameters": {"rank": 0}}, "rank is 0"),
        ({"lora_parameters": {"rank": 4, "alpha": 8, "scale": 2}}, "give one"),
        ({"lora_parameters": {"alpha": "much"}}, "alpha is 'much', not a number"),
        ({"lora_parameters": {"scale": None}}, "scale is None, not a number"),
        ({"lora_parameters": {"dropout": 1.5}}, "dropout is 1.5: from 0 to below 1"),
        ({"lora_parameters": {"keys": "self_attn.q_proj"}}, "not a list of modules"),
        ({"num_layers": 9}, "num_layers is 9: use 1 to 2, or -1"),
        ({"num_layers": 0}, "num_layers is 0: use 1 to 2, or -1"),
        ({"lora_parameters": {"keys": ["self_attn.w_proj"]}}, r"no module \['self_attn.w_proj'\]"),
        ({"freeze_llm": True}, "freeze_llm goes with fine_tune_type full"),
        ({"fine_tune_type": "full", "freeze_embed_until_idx": 61}, "has 60 rows"),
        ({"fine_tune_type": "full", "freeze_text_head_until_idx": 1}, "no audio_decoder_proj"),
    ],
)
def test_methods_that_cannot_be_are_errors(seed, options, words):
    with pytest.raises(InputError, match=words):
        prepare(tiny_model(seed), lora(**options))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer_config": {"adam": {"beta": 1}}}, "beta"),
        ({"optimizer_config": {"betas": [1, 2]}}, "under the optimizer's name"),
        ({"optimizer_config": {"adam": {"eps": "small"}}}, "eps is 'small', not a number"),
        ({"lr_schedule": {"name": "cosine", "arguments": [1.0]}}, "cosine_decay"),
        ({"lr_schedule": {"name": "cosine_decay", "arguments": [1.0]}}, "decay_steps"),
        ({"lr_schedule": {"name": "cosine_decay", "arguments": 3}}, "a list"),
        ({"lr_schedule": {"name": "Callable", "arguments": [1.0]}}, "cosine_decay"),
    ],
)
def test_optimizers_that_cannot_be_are_errors(fields, words):
    with pytest.raises(InputError, match=words):
        build_optimizer(replace(FULL, **fields))
