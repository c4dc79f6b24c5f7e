"""What one audio frame may cost, counted in its graph: laws that need no clock.

The graph is the CPU's, which spells out what a GPU does in one kernel (norm, rotary positions,
attention), so the budgets bound growth; they are no launch counts of a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_model import tiny_model

from mlx_higgs.codec.config import CodecConfig
from mlx_higgs.codec.layers import Conv1d, ConvTranspose1d
from mlx_higgs.codec.model import CodecDecoder
from mlx_higgs.codec.streaming import StreamingDecoder
from mlx_higgs.frames import heard_window, prefill
from mlx_higgs.models.v2 import Model
from mlx_higgs.sampling import Sampler, SamplingParams, seed_key
from mlx_higgs.step import AudioStep, first_state
from mlx_higgs.types import Prompt, Text

TINY_CODEC = CodecConfig(hidden=16, decoder_width=64, codebook_size=20, codebook_dim=8)
PROMPT: Prompt = [Text([1, 2, 3])]
VIEWS = {  # they move no data
    "Broadcast",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unflatten",
}
# kernels of a layer and of the rest (embedding, head, sampler, delay), recorded 2026-11-22
LAYER, FUSED_LAYER, REST = 38, 31, 131
FUSED_MATMULS = 6  # qkv, out, gate and up, down; and two that are attention


def step_graph(model: Model, folder: Path, **choices) -> Counter[str]:
    """Primitives by name that one frame evaluates, given the state of the frame before."""
    params = SamplingParams(seed=1, **choices)
    step = AudioStep(
        model, model.delay, Sampler.of([params], model.args.codebook_vocab), seed_key(1)[None]
    )
    caches = prefill(model, PROMPT)
    state = first_state(model.delay, heard_window(PROMPT, params, model.delay))
    mx.eval([(c.keys, c.values) for c in caches], state.row, state.window, *state.delay)
    mx.eval(step.keys, *step.sampler.values)
    after = step(state, caches)
    path = folder / "step.dot"
    stores = [store for c in caches for store in (c.keys, c.values)]
    mx.export_to_dot(str(path), after.report, after.window, *after.delay, *stores)
    return Counter(re.findall(r'label ?= ?"([A-Za-z]+)', path.read_text()))


def kernels(graph: Counter[str]) -> int:
    return sum(count for name, count in graph.items() if name not in VIEWS)


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def graphs(request, seed: int, tmp_path: Path) -> tuple[Counter[str], Counter[str], bool]:
    """Of two layers and of three."""
    found = []
    for layers in (2, 3):
        model = tiny_model(seed, num_hidden_layers=layers)
        if request.param:
            model.fuse()
        mx.eval(model.parameters())
        found.append(step_graph(model, tmp_path))
    return *found, request.param


def test_a_frame_sorts_once_and_gathers_its_codes_once(graphs):
    two, _, _ = graphs
    assert two["Sort"] == 1
    assert two["ArgSort"] == two["Partition"] == two["ArgPartition"] == 0
    assert two["Gather"] == 1


def test_a_greedy_frame_without_ras_neither_sorts_nor_draws(seed: int, tmp_path: Path):
    model = tiny_model(seed)
    params = SamplingParams(temperature=0, ras_window=0, seed=1)
    step = AudioStep(model, model.delay, Sampler.of([params], 22), seed_key(1)[None])
    caches = prefill(model, PROMPT)
    mx.eval([(c.keys, c.values) for c in caches], *step.sampler.values)
    path = tmp_path / "step.dot"
    mx.export_to_dot(str(path), step(first_state(model.delay, None), caches).report)
    assert not re.search("Sort|RandomBits", path.read_text())


def test_a_layer_and_the_rest_stay_within_their_budget(graphs):
    two, three, fused = graphs
    layer = kernels(three) - kernels(two)
    assert layer <= (FUSED_LAYER if fused else LAYER)
    assert kernels(two) - 2 * layer <= REST


def test_fused_matrices_are_multiplied_once(graphs):
    two, three, fused = graphs
    if fused:
        assert three["Matmul"] - two["Matmul"] == FUSED_MATMULS
    else:
        assert three["Matmul"] - two["Matmul"] == FUSED_MATMULS + 3


def test_a_streamed_decode_multiplies_as_often_as_a_whole_one(monkeypatch: pytest.MonkeyPatch):
    """Products of the convolutions, for one chunk a frame and for all frames at once."""
    products = []
    valid, halves = Conv1d.valid, ConvTranspose1d.halves

    def counting_valid(self, x):
        y = valid(self, x)
        products.append(y.shape[1] * self.weight.size)
        return y

    def counting_halves(self, x):
        products.append(x.shape[1] * self.weight.size)
        return halves(self, x)

    monkeypatch.setattr(Conv1d, "valid", counting_valid)
    monkeypatch.setattr(ConvTranspose1d, "halves", counting_halves)
    model = CodecDecoder(TINY_CODEC)
    codes = mx.zeros((1, 40, TINY_CODEC.num_codebooks), dtype=mx.int32)
    model.acoustic_decoder(model.features(codes))
    whole, products[:] = sum(products), []
    stream = StreamingDecoder(model, TINY_CODEC)
    for frame in range(40):
        stream.push(codes[0, frame : frame + 1])
    stream.finish()
    assert whole > 0
    assert sum(products) <= 1.02 * whole
