"""The sampler against transformers' rules written out slowly, and RAS against measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.delay import DelayPattern
from mlx_higgs.sampling import (
    FrameKeys,
    Sampler,
    SamplingParams,
    frame_keys,
    nucleus,
    sample_codes,
    seed_key,
    slide_window,
    start_window,
)
from mlx_higgs.types import InputError


def pattern_of(codes: int, machine=None) -> DelayPattern:
    return DelayPattern(2, codes, codes + 1, edge_frames=1).under(machine)


def slow_filter(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Kept ids of one codebook, by the definition of transformers' warpers."""
    scores = logits / params.temperature
    if params.top_k:
        kth = np.sort(scores)[-min(params.top_k, len(scores))]
        scores = np.where(scores < kth, -np.inf, scores)
    order = np.argsort(scores, kind="stable")
    probs = np.exp(scores[order] - scores.max())
    removed = np.cumsum(probs / probs.sum()) <= 1 - params.top_p
    removed[-1] = False
    kept = np.isfinite(scores)
    if params.top_p < 1:
        kept[order[removed]] = False
    return kept


def kept_ids(logits: mx.array, params: SamplingParams) -> np.ndarray:
    """Which ids of ``[K, V]`` may still be drawn."""
    sampler = Sampler.of([params], logits.shape[-1])
    kept = nucleus(logits[None] / sampler.values.temperature, sampler)
    return np.array(kept[0]) > -math.inf


def keys_of(seed: int, frame: int) -> FrameKeys:
    return frame_keys(seed_key(seed)[None], mx.array([frame]))


def drawn(logits: mx.array, params: SamplingParams, keys: FrameKeys, window=None) -> mx.array:
    """One row ``[K]`` from ``[K, V]``."""
    sampler = Sampler.of([params], logits.shape[-1])
    return sample_codes(logits[None], sampler, keys, window)[0]


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (50, 1.0), (0, 0.95), (50, 0.95), (1, 0.5), (5000, 0.01)]
)
def test_filter_keeps_what_the_warpers_keep(seed: int, top_k: int, top_p: float):
    rng = np.random.default_rng(seed)
    params = SamplingParams(temperature=float(rng.uniform(0.3, 1.5)), top_k=top_k, top_p=top_p)
    logits = rng.normal(0, 3, (8, 130)).astype(np.float32)
    kept = kept_ids(mx.array(logits), params)
    assert np.array_equal(kept, np.stack([slow_filter(row, params) for row in logits]))


def test_top_k_keeps_ties():
    params = SamplingParams(temperature=1, top_k=2, top_p=1)
    kept = kept_ids(mx.array([[3.0, 1.0, 1.0, 0.0]]), params)
    assert kept.tolist() == [[True, True, True, False]]


def test_top_p_cuts_through_ties():
    """Of equal codes just as many stay as are needed, as in a sort."""
    params = SamplingParams(temperature=1, top_k=0, top_p=0.5)
    kept = kept_ids(mx.array([[0.0] * 10]), params)
    assert kept.sum() in (5, 6)  # the cumulative sum of tenths is not exact


def in_a_window_of(length: int, window: mx.array | None) -> mx.array:
    unsaid = mx.full((1, length, 8), -1)
    return unsaid if window is None else mx.concatenate([unsaid, window], axis=1)[:, -length:]


def test_a_row_draws_the_same_in_any_company(seed: int):
    """Mixed temperatures, filters and windows: each row as if it were alone."""
    V, furthest = 60, 7
    requests = [
        SamplingParams(seed=1),
        SamplingParams(0.0, ras_window=0, seed=2),
        SamplingParams(1.3, 0.5, 0, ras_window=3, seed=3),
        SamplingParams(0.9, 1.0, 5, ras_window=5, ras_max_repeats=1, seed=4),
        SamplingParams(1.0, 1.0, 0, ras_window=1, seed=5),
    ]
    rng = np.random.default_rng(seed)
    logits = mx.array(rng.normal(0, 2, (5, 8, V)).astype(np.float32))
    heard = mx.array(rng.integers(0, 6, (5, 20, 8)))
    windows = [start_window(heard[i], p, pattern_of(V)) for i, p in enumerate(requests)]
    together = sample_codes(
        logits,
        Sampler.of(requests, V),
        frame_keys(mx.stack([seed_key(p.seed) for p in requests]), mx.arange(5)),
        mx.concatenate([in_a_window_of(furthest, w) for w in windows]),
    )
    for i, params in enumerate(requests):
        alone = drawn(logits[i], params, keys_of(params.seed, i), windows[i])
        assert together[i].tolist() == alone.tolist()


def test_top_k_1_and_tiny_top_p_and_zero_temperature_are_greedy(seed: int):
    logits = mx.random.normal((8, 60), key=mx.random.key(seed))
    greedy = mx.argmax(logits, axis=-1).tolist()
    for choice in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.0}):
        assert drawn(logits, SamplingParams(**choice), keys_of(seed, 3)).tolist() == greedy


def test_draws_follow_the_distribution(seed: int):
    probs = np.array([0.5, 0.3, 0.2])
    logits = mx.log(mx.array(probs))[None] * mx.ones((20_000, 1))
    params = SamplingParams(temperature=1, top_k=0, top_p=1)
    codes = np.array(drawn(logits, params, keys_of(seed, 0)))
    assert np.abs(np.bincount(codes, minlength=3) / len(codes) - probs).max() < 0.02


def test_keys_differ_by_seed_and_frame():
    keys = [tuple(keys_of(s, f).draw[0].tolist()) for s in range(20) for f in range(20)]
    assert len(set(keys)) == 400
    keys = keys_of(1, 1)
    assert keys.draw.tolist() != keys.redraw.tolist()


def test_window_looks_back_on_the_given_rows():
    params = SamplingParams(ras_window=3)
    heard = mx.array([[1, 2], [3, 4]])
    window = start_window(heard, params, pattern_of(100))
    assert window is not None
    assert window.tolist() == [[[-1, -1], [1, 2], [3, 4]]]
    window = slide_window(window, mx.array([[5, 100]]), pattern_of(100, params.machine))
    assert window is not None
    assert window.tolist() == [[[1, 2], [3, 4], [5, 100]]]
    assert start_window(heard, SamplingParams(ras_window=0), pattern_of(100)) is None


def test_the_transformers_window_does_not_count_specials():
    params = SamplingParams(ras_window=2, machine="transformers")
    window = start_window(mx.array([[1, 100], [101, 4]]), params, pattern_of(100, params.machine))
    assert window is not None
    assert window.tolist() == [[[1, -1], [-1, 4]]]
    window = slide_window(window, mx.array([[5, 100]]), pattern_of(100, params.machine))
    assert window is not None
    assert window.tolist() == [[[-1, 4], [5, -1]]]


def test_ras_redraws_a_repeated_code_from_the_raw_softmax(seed: int):
    """One code is sure after filtering; twice in the window it is drawn again from all."""
    K, frames = 60, 50
    logits = mx.broadcast_to(mx.log(mx.array([0.6, 0.3, 0.1])), (K, 3))
    params = SamplingParams(temperature=1, top_k=1, top_p=1, ras_window=7, ras_max_repeats=2)
    fresh = mx.broadcast_to(mx.array([[[0], [1], [2], [1], [2], [1], [2]]]), (1, 7, K))
    often = mx.broadcast_to(mx.array([[[0], [0], [2], [1], [2], [1], [2]]]), (1, 7, K))
    draws = {"fresh": [], "often": []}
    for frame in range(frames):
        keys = keys_of(seed, frame)
        draws["fresh"].append(drawn(logits, params, keys, fresh))
        draws["often"].append(drawn(logits, params, keys, often))
    assert set(mx.concatenate(draws["fresh"]).tolist()) == {0}
    share = np.bincount(np.array(mx.concatenate(draws["often"])), minlength=3) / (K * frames)
    assert np.abs(share - [0.6, 0.3, 0.1]).max() < 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("ras_window", -1),
        ("ras_max_repeats", 0),
        ("max_frames", 0),
        ("seed", -1),
        ("machine", "other"),
    ],
)
def test_params_refuse_values_that_mean_nothing(field: str, value):
    with pytest.raises(InputError, match=field):
        SamplingParams(**{field: value})


RAS = json.loads((Path(__file__).parent / "golden" / "ras.json").read_text())


@pytest.mark.parametrize("rule", ["plain", "boson", "transformers"])
@pytest.mark.parametrize("setup", RAS["setups"], ids=lambda setup: setup["name"])
def test_ras_repeats_as_often_as_the_references(seed: int, setup: dict, rule):
    """The same logits at every row: how often does the likeliest id come?

    The references' figures come from 40,000 draws, ours from 64,000 in 640 streams at once.
    """
    K, V = 640, setup["codes"] + 2
    row = np.zeros(V, np.float32)
    row[setup["codes"] :] = RAS["marker_logit"]
    row[setup["peak_id"]] = setup["peak_logit"]
    logits = mx.broadcast_to(mx.array(row), (K, V))
    params = SamplingParams(
        temperature=setup["temperature"],
        top_k=setup["top_k"],
        top_p=setup["top_p"],
        ras_window=0 if rule == "plain" else RAS["ras_win_len"],
        ras_max_repeats=RAS["ras_win_max_num_repeat"],
        machine="boson" if rule == "plain" else rule,
    )
    bos = mx.full((1, K), setup["codes"], dtype=mx.int32)
    pattern = pattern_of(setup["codes"], params.machine)
    window, rows = start_window(bos, params, pattern), []
    base, sampler = seed_key(seed)[None], Sampler.of([params], V)
    for frame in range(130):
        keys = frame_keys(base, mx.array([frame]))
        rows.append(sample_codes(logits[None], sampler, keys, window))
        window = slide_window(window, rows[-1], pattern)
        if frame % 10 == 0:
            mx.eval(rows, [] if window is None else window)
    share = (mx.stack(rows[30:]) == setup["peak_id"]).mean().item()
    assert abs(share - setup["frequency"][rule]) <= 0.01


def test_numbers_of_numpy_are_numbers():
    params = SamplingParams(np.float32(0.5), np.float64(0.9), np.int32(5), seed=np.int64(3))
    assert params == SamplingParams(0.5, 0.9, 5, seed=3)
    assert [type(v) for v in (params.temperature, params.top_k, params.seed)] == [float, int, int]
    for wrong in ({"top_k": 1.5}, {"temperature": "hot"}, {"seed": True}):
        with pytest.raises(InputError):
            SamplingParams(**wrong)
