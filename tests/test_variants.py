"""Laws of every v2 variant, and what Boson's own model answered (tests/golden/variants)."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoints import all_logits, tensors
from mlx.utils import tree_flatten, tree_map_with_path

from convert.tiny_variants import VARIANTS, variant_config, write_variant
from mlx_higgs.batch import Batch
from mlx_higgs.convert import convert
from mlx_higgs.delay import DelayPattern, RowReverter, codes_from_rows
from mlx_higgs.evaluate.parity import parity
from mlx_higgs.evaluate.reads import frame_readings
from mlx_higgs.footprint import footprint
from mlx_higgs.frames import Rows, prefill
from mlx_higgs.fuse import fuse
from mlx_higgs.loading import load_model
from mlx_higgs.models.cache import length
from mlx_higgs.models.layers import Route
from mlx_higgs.models.v2 import Model, ModelArgs, joined
from mlx_higgs.prefix import PrefixCache
from mlx_higgs.quantization import Plan, Quantization
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.types import Audio, CheckpointError, InputError, Prompt, Text

GOLDEN = Path(__file__).parent / "golden" / "variants"
SKIPPING = ("fast_forward", "everything")
ATTENDING = ("self_attention", "everything")
Q8 = Plan.of(Quantization(8, 32))
# float32 noise is 7e-6 on logits of a std near 2
TOLERANCE = 1e-4


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture
def model(variant: str, tmp_path: Path, seed: int) -> Model:
    return load(tmp_path, variant, seed)


def load(folder: Path, variant: str, seed: int, **options) -> Model:
    write_variant(folder / variant, variant, seed=seed)
    return load_model(folder / variant, **options)  # type: ignore[return-value]


def mixed(model: Model, seed: int, *, ends_in_words: bool = True) -> Prompt:
    """Runs of words and of codes, short ones too."""
    rng = np.random.default_rng(seed)

    def words(n: int) -> Text:
        return Text(rng.integers(0, 60, n).tolist())

    def clip(n: int) -> Audio:
        return Audio(mx.array(rng.integers(0, 16, (n, model.delay.num_codebooks))))

    prompt: Prompt = [words(5), clip(3), words(1), clip(1)]
    return [*prompt, words(4)] if ends_in_words else prompt


# -- what Boson's model says ---------------------------------------------------------------------


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.safetensors")), ids=lambda p: p.stem)
def test_logits_and_greedy_rows_are_bosons(golden: Path, tmp_path: Path):
    write_variant(tmp_path / "it", golden.stem, seed=7)
    report = parity(tmp_path / "it", golden)
    assert report.max_abs <= TOLERANCE
    assert report.text_max_abs is not None
    assert report.text_max_abs <= TOLERANCE
    assert report.greedy_rows_equal


# -- one forward, many ways ----------------------------------------------------------------------


def test_in_pieces_equals_whole(model: Model, seed: int):
    rng = np.random.default_rng(seed)
    x, is_audio = model.embed_prompt(mixed(model, seed))
    whole = model.hidden(x, model.make_cache(), is_audio)
    S = x.shape[1]
    for cuts in (rng.choice(np.arange(1, S), 3, replace=False), np.arange(1, S)):
        cache, parts = model.make_cache(), []
        for start, stop in itertools.pairwise([0, *sorted(cuts), S]):
            assert length(cache) == start
            parts.append(model.hidden(x[:, start:stop], cache, is_audio[:, start:stop]))
        assert mx.abs(mx.concatenate(parts, axis=1) - whole).max().item() < TOLERANCE


def test_training_on_several_sequences_is_each_by_itself(model: Model, seed: int):
    """Without caches, side by side, differently many of either modality."""
    prompts = [mixed(model, seed), mixed(model, seed + 1)[1:]]
    embedded = [model.embed_prompt(prompt) for prompt in prompts]
    S = embedded[1][0].shape[1]
    x = mx.concatenate([x[:, :S] for x, _ in embedded])
    is_audio = np.concatenate([mask[:, :S] for _, mask in embedded])
    assert len(set(is_audio.sum(axis=1))) == 2
    both = model.hidden(x, None, is_audio)
    for row, (alone, mask) in enumerate(embedded):
        h = model.hidden(alone[:, :S], model.make_cache(), mask[:, :S])
        assert mx.abs(both[row] - h[0]).max().item() < TOLERANCE


def test_every_weight_that_is_read_is_trained(model: Model, seed: int):
    """Gradients are numbers, and zero only where neither words nor speech look."""

    def loss(model: Model) -> mx.array:
        x, is_audio = model.embed_prompt(mixed(model, seed))
        h = model.hidden(x, None, is_audio)
        return (model.audio_logits(h) ** 2).mean()

    _, gradients = nn.value_and_grad(model, loss)(model)
    for name, gradient in tree_flatten(gradients):
        assert mx.isfinite(gradient).all().item(), name
        assert mx.any(gradient != 0).item(), name


def test_sorting_by_modality_changes_each_position_alone(seed: int):
    rng = np.random.default_rng(seed)
    is_audio = rng.random((3, 11)) < rng.random((3, 1))
    x = mx.array(rng.normal(size=(3, 11, 2)).astype(np.float32))
    for modality, mine in (("audio", is_audio), ("text", ~is_audio)):
        turn: Any = SimpleNamespace(of=lambda places: places)
        changed = Route(is_audio).only(modality, x, turn, lambda x, at: x + 1 + at[..., None])
        wanted = np.array(x) + np.where(mine, 1 + np.arange(11), 0)[..., None]
        assert np.allclose(np.array(changed), wanted, atol=1e-5)


# -- who looks at what ---------------------------------------------------------------------------


def test_what_frames_do_not_read_is_the_text_side(model: Model):
    readings, _ = frame_readings(model)
    read = {reading.path for reading in readings}
    matrices = {p for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    unread = {path for path in matrices if re.fullmatch(model.TEXT_SIDE, path)}
    assert read & matrices == matrices - unread
    assert not any(re.fullmatch(model.TEXT_SIDE, path) for path in read)


@pytest.mark.parametrize("variant", SKIPPING)
def test_speech_goes_past_a_skipped_layer(model: Model, seed: int):
    """It neither changes there, nor is it seen, nor does it take room in the cache."""
    layer = next(layer for layer in model.layers if layer.CACHES == ("text",))
    x, is_audio = model.embed_prompt(mixed(model, seed))
    turn = model._rotary.at(0, x.shape[1], x.dtype)
    louder = mx.where(mx.array(is_audio)[..., None], 3 * x, x)
    out, other = (layer(h, Route(is_audio), turn, None) for h in (x, louder))
    at = mx.array(np.flatnonzero(is_audio))
    words = mx.array(np.flatnonzero(~is_audio))
    assert mx.array_equal(out[:, at], x[:, at])
    assert mx.array_equal(out[:, words], other[:, words])
    cache = prefill(model, mixed(model, seed))
    spoken = int(is_audio.sum())
    held = {c.holds: c.offset for c in cache}
    assert held["text"] == held["all"] - spoken
    model.hidden(x[:, at[:1]], cache)
    assert {c.holds: c.offset for c in cache} == {
        **{holds: offset + 1 for holds, offset in held.items()},
        "text": held["text"],
    }


@pytest.mark.parametrize("variant", ATTENDING)
def test_words_do_not_see_the_attention_of_speech(model: Model, seed: int):
    x, is_audio = model.embed_prompt(mixed(model, seed)[:1])
    poisoned = tree_map_with_path(
        lambda p, a: mx.full(a.shape, mx.nan) if "audio_" in p else a, model.parameters()
    )
    model.update(poisoned)
    assert mx.isfinite(model.hidden(x, model.make_cache(), is_audio)).all().item()


# -- speech --------------------------------------------------------------------------------------


@pytest.mark.parametrize("voiced", [True, False])
def test_every_loop_and_company_makes_the_same_rows(model: Model, seed: int, voiced: bool):
    prompt = mixed(model, seed) if voiced else [Text([1, 2, 3])]
    other: Prompt = [Text([5, 6])]

    def asked(seed: int, frames: int) -> SamplingParams:
        return SamplingParams(seed=seed, max_frames=frames)

    alone = np.stack(list(Rows(model, prompt, asked(seed, 20), loop="eager")))
    for loop in ("async", "compiled"):
        rows = Rows(model, prompt, asked(seed, 20), loop=loop)
        assert np.array_equal(np.stack(list(rows)), alone)
    batch = Batch(model)
    first = batch.join(other, asked(seed + 1, 5))
    company = [batch.join(prompt, asked(seed, 20)), batch.join(other, asked(seed + 2, 30))]
    assert len(list(first)) <= 5
    late = batch.join(mixed(model, seed + 3), asked(seed + 3, 9))
    assert np.array_equal(np.stack(list(company[0])), alone)
    assert len(list(late)) <= 9


def test_a_kept_voice_changes_no_row(model: Model, seed: int, tmp_path: Path):
    prompt = [*mixed(model, seed), Text([3, 1, 4, 1, 5])]
    params = SamplingParams(max_frames=12, seed=seed)
    whole = np.stack(list(Rows(model, prompt, params)))
    for start in (prompt, prompt[1:]):  # the second begins with codes
        whole = np.stack(list(Rows(model, start, params)))
        for _ in range(2):
            known = PrefixCache(model, "", folder=tmp_path).get(start)
            assert known is not None
            assert np.array_equal(np.stack(list(Rows(model, start, params, prefix=known))), whole)


def test_without_delay_codes_are_rows(seed: int):
    rng = np.random.default_rng(seed)
    pattern = DelayPattern(3, 8, 9, edge_frames=1, shift=0)
    codes = mx.array(rng.integers(0, 8, (5, 3)))
    rows = pattern.apply(codes)
    wanted = np.concatenate([[[8] * 3], np.array(codes), [[9] * 3]])
    assert np.array_equal(np.array(rows), wanted)
    assert len(rows) == pattern.num_rows(5)
    assert mx.array_equal(pattern.revert(rows), codes)
    assert np.array_equal(codes_from_rows(np.array(rows), pattern), np.array(codes))
    reverter = RowReverter(pattern)
    assert [len(reverter.push(row)) for row in np.array(rows)] == [0, 1, 1, 1, 1, 1, 0]
    with pytest.raises(InputError, match="'transformers'"):
        pattern.under("transformers")


def test_without_delay_the_first_eos_ends_the_stream(seed: int):
    pattern = DelayPattern(3, 8, 9, edge_frames=1, shift=0)
    row, state = pattern.advance(mx.array([[1, 2, 3], [1, 9, 3]]), pattern.start(2))
    assert row.tolist() == [[1, 2, 3], [1, 9, 3]]
    assert state.done.tolist() == [False, True]


# -- the tools -----------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", [None, Q8], ids=["as it is", "q8"])
def test_converted_is_quantised_while_loading(variant: str, seed: int, tmp_path: Path, quantize):
    fresh = load(tmp_path, variant, seed, quantize=quantize, text_head=True)
    made = convert(str(tmp_path / variant), tmp_path / "out", quantize=quantize)
    saved = load_model(made, text_head=True)
    assert tensors(saved).keys() == tensors(fresh).keys()
    assert np.array_equal(all_logits(saved), all_logits(fresh))


def test_kept_whole_are_the_table_its_projector_and_the_head(variant: str, seed: int, tmp_path):
    model = load(tmp_path, variant, seed, quantize=Q8)
    kept = {path for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    assert kept - {"audio_out_embed_projector"} == {
        "audio_codebook_embeddings",
        "audio_decoder_proj.audio_lm_head",
    }
    assert ("audio_out_embed_projector" in kept) == (variant in ("projected", "everything"))


def test_adapters_go_to_what_speaks_and_fuse(variant: str, seed: int, tmp_path: Path):
    pytest.importorskip("mlx_lm", reason="adapters are mlx-lm's")
    from tiny_adapter import adapted

    from mlx_higgs.adapters import save_adapter
    from mlx_higgs.train.methods import lora_parameters

    model = load(tmp_path, variant, seed)
    parameters = lora_parameters(model, {"rank": 2, "scale": 1.7})
    settings = {"fine_tune_type": "lora", "num_layers": 3, "lora_parameters": parameters}
    before = set(tensors(model))
    trained = adapted(model, settings, seed)
    added = {name for name in tensors(trained) if "lora_" in name}
    places = {name.split(".", 2)[2].rsplit(".", 1)[0] for name in added}
    assert places == set(model.ADAPTED)
    save_adapter(tmp_path / "adapter", trained, settings)
    made = fuse(str(tmp_path / variant), tmp_path / "adapter", tmp_path / "fused")
    fused = load_model(made)
    assert set(tensors(fused)) == before
    assert np.abs(all_logits(fused) - all_logits(trained)).max() < TOLERANCE  # 8e-6 of 60 seeds


def test_freezing_the_language_model_leaves_what_boson_leaves(variant: str, seed: int, tmp_path):
    """``HiggsAudioModel.freeze_llm``: all of a layer but what is for speech, norm and table."""
    from mlx_higgs.train.methods import prepare
    from mlx_higgs.train.options import Options

    model = load(tmp_path, variant, seed)
    prepare(model, Options(data="-", fine_tune_type="full", freeze_llm=True))
    trained = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert trained == {name for name in tensors(model) if "audio_" in name}


def test_a_layer_past_which_speech_goes_takes_less(tmp_path: Path, seed: int):
    skipping, plain, attending = (
        footprint(load(tmp_path, variant, seed), Plan(), streams=2)
        for variant in ("fast_forward", "some_dual", "self_attention")
    )
    assert skipping.cache < plain.cache < attending.cache
    assert skipping.audio < plain.audio < attending.audio
    assert skipping.weights == plain.weights


# -- files and configs ---------------------------------------------------------------------------


def test_rows_frozen_and_trained_apart_are_joined(variant: str, seed: int, tmp_path: Path):
    rng = np.random.default_rng(seed)
    whole = load(tmp_path, variant, seed, text_head=True)
    source = mx.load(str(tmp_path / variant / "model.safetensors"))
    assert isinstance(source, dict)
    for name, kind in (
        ("embed_tokens", "embedding"),
        ("audio_decoder_proj.text_lm_head", "linear"),
        ("audio_decoder_proj.audio_lm_head", "linear"),
    ):
        rows = source.pop(f"{name}.weight")
        cut = int(rng.integers(1, len(rows)))
        source[f"{name}.{kind}_frozen.weight"] = mx.contiguous(rows[:cut])
        source[f"{name}.{kind}_trainable.weight"] = mx.contiguous(rows[cut:])
    mx.save_safetensors(str(tmp_path / variant / "model.safetensors"), source)
    split = load_model(tmp_path / variant, text_head=True)
    assert all(mx.array_equal(a, tensors(whole)[name]) for name, a in tensors(split).items())
    half = {"embed_tokens.embedding_frozen.weight": mx.zeros((2, 2))}
    assert joined(half) == half  # said to be unknown by who compares the names


def test_a_published_config_means_dual_layers_alone():
    args = ModelArgs.from_dict(variant_config("projected") | {"audio_embed_avg": 0})
    assert set(args.layers) == {"dual"}
    assert replace(args, projected=False) == ModelArgs.from_dict(
        variant_config("projected")
        | {"audio_embed_avg": None, "use_audio_out_embed_projector": False}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_adapter_type": "moe"}, "'moe'.*known are stack, dual_ffn, dual_ffn_fast_forward"),
        ({"audio_dual_ffn_layers": None}, "lacks audio_dual_ffn_layers"),
        ({"audio_dual_ffn_layers": []}, "past all layers"),
        ({"audio_decoder_proj_num_layers": 1}, "audio_decoder_proj_num_layers"),
        ({"use_rq_transformer": True}, "use_rq_transformer"),
    ],
)
def test_what_the_reference_cannot_run_is_refused(changes: dict, message: str):
    config = json.loads(json.dumps(variant_config("fast_forward") | changes))
    with pytest.raises(CheckpointError, match=message) as error:
        ModelArgs.from_dict(config)
    assert "\n" not in str(error.value)
