"""The acoustic decoder one frame at a time, exactly: no frame is computed twice.

Every layer keeps the inputs its next outputs still need, so samples come out as soon as nothing
in the future can change them. A push is worked off frame by frame: matrix products round
differently for different numbers of rows, and this way their shapes depend on a frame's place
in the clip alone, never on the chunking.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..types import InputError
from .config import CodecConfig
from .dac import AcousticDecoder, ResidualUnit
from .inputs import checked_codes
from .layers import Conv1d, ConvTranspose1d, Snake
from .model import CodecDecoder

EVAL_EVERY = 8  # frames between evaluations: bounds the graph, and memory with it


class _Conv:
    """Holds the last ``reach`` inputs; zeros stand for what lies beyond either end."""

    def __init__(self, conv: Conv1d):
        self.conv = conv
        self.zeros = mx.zeros((1, conv.padding, conv.weight.shape[2]))
        self.held = self.zeros

    def push(self, x: mx.array, last: bool) -> mx.array:
        x = mx.concatenate([self.held, x] + [self.zeros] * last, axis=1)
        y = self.conv.valid(x)
        self.held = x[:, y.shape[1] :]
        return y

    @property
    def state(self) -> list[mx.array]:
        return [self.held]


class _ConvTranspose:
    """Holds what the last input adds to the outputs after its own."""

    def __init__(self, conv: ConvTranspose1d):
        self.conv = conv
        self.held = mx.zeros((1, 1, conv.stride, conv.weight.shape[0]))
        self.to_cut = conv.cut

    def push(self, x: mx.array, last: bool) -> mx.array:
        own, following = self.conv.halves(x)
        following = mx.concatenate([self.held, following], axis=1)
        y = (own + following[:, :-1]).flatten(1, 2)
        self.held = following[:, -1:]
        if last:
            y = mx.concatenate([y, self.held[:, 0, : self.conv.cut]], axis=1)
        y, self.to_cut = y[:, self.to_cut :], max(0, self.to_cut - y.shape[1])
        return y + self.conv.bias

    @property
    def state(self) -> list[mx.array]:
        return [self.held]


class _Residual:
    """Holds the inputs whose convolved twins are not out yet."""

    def __init__(self, unit: ResidualUnit):
        self.unit = unit
        self.conv1 = _Conv(unit.conv1)
        self.held = self.conv1.held[:, :0]

    def push(self, x: mx.array, last: bool) -> mx.array:
        y = self.conv1.push(self.unit.snake1(x), last)
        y = self.unit.conv2(self.unit.snake2(y))
        x = mx.concatenate([self.held, x], axis=1)
        self.held = x[:, y.shape[1] :]
        return x[:, : y.shape[1]] + y

    @property
    def state(self) -> list[mx.array]:
        return [self.held, *self.conv1.state]


class _Stateless:
    def __init__(self, layer: Snake):
        self.layer = layer

    def push(self, x: mx.array, last: bool) -> mx.array:
        return self.layer(x)

    @property
    def state(self) -> list[mx.array]:
        return []


def _steps(decoder: AcousticDecoder) -> list[_Conv | _ConvTranspose | _Residual | _Stateless]:
    steps: list[_Conv | _ConvTranspose | _Residual | _Stateless] = [_Conv(decoder.conv1)]
    for block in decoder.block:
        steps += [_Stateless(block.snake1), _ConvTranspose(block.conv_t1)]
        steps += [_Residual(unit) for unit in block.res_units]
    return [*steps, _Stateless(decoder.snake1), _Conv(decoder.conv2)]


def lookahead_samples(decoder: AcousticDecoder) -> int:
    """Samples held back until later frames are known (9458 for Higgs: 394 ms)."""
    samples = decoder.conv1.padding
    for block in decoder.block:
        samples = samples * block.conv_t1.stride + block.conv_t1.cut
        samples += sum(unit.conv1.padding for unit in block.res_units)
    return samples + decoder.conv2.padding


class StreamingAcousticDecoder:
    """Features ``[1, n, hidden]`` in, final samples ``[1, m, 1]`` out."""

    def __init__(self, decoder: AcousticDecoder):
        self.steps = _steps(decoder)

    def push(self, x: mx.array, last: bool = False) -> mx.array:
        for step in self.steps:
            x = step.push(x, last)
        return x

    @property
    def state(self) -> list[mx.array]:
        return [array for step in self.steps for array in step.state]


class StreamingDecoder:
    """Codes in as they come, samples out as soon as they are final.

    What ``push`` and ``finish`` return, joined, is bit for bit what ``HiggsCodec.decode``
    returns, however the codes are cut.
    """

    def __init__(self, model: CodecDecoder, config: CodecConfig):
        self._model, self._config = model, config
        self._acoustic = StreamingAcousticDecoder(model.acoustic_decoder)
        self._finished = False

    @property
    def lookahead_samples(self) -> int:
        """Samples held back: ``max(0, frames * hop - lookahead_samples)`` are out so far."""
        return lookahead_samples(self._model.acoustic_decoder)

    def push(self, codes: np.ndarray | mx.array) -> mx.array:
        """Codes ``[t, K]`` -> the samples ``[n]`` they complete, maybe none.

        Raises:
            InputError: not codes (see ``HiggsCodec.decode``), or after ``finish``.
        """
        if self._finished:
            raise InputError("This decoder has finished; take a new one for another clip.")
        checked = checked_codes(codes, self._config)
        pieces = [mx.zeros((0,))]
        for frame in range(len(checked)):
            features = self._model.features(checked[None, frame : frame + 1])
            pieces.append(self._acoustic.push(features)[0, :, 0])
            if frame % EVAL_EVERY == 0:
                mx.eval(pieces[-EVAL_EVERY:], self._acoustic.state)
        wave = mx.concatenate(pieces)
        mx.eval(wave, self._acoustic.state)
        return wave

    def finish(self) -> mx.array:
        """The samples ``[n]`` that were held back. Nothing can be pushed afterwards."""
        if self._finished:
            return mx.zeros((0,))
        self._finished = True
        none = mx.zeros((1, 0, self._config.hidden))
        wave = self._acoustic.push(none, last=True)[0, :, 0]
        mx.eval(wave)
        return wave
