"""Waveform <-> codes: the Higgs Audio codec of v2 and v3, always in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..resample import resample
from ..types import CheckpointError, InputError
from . import checkpoint
from .checkpoint import TensorSource
from .config import CodecConfig
from .inputs import checked_codes, checked_wave
from .layers import Conv1d, ConvTranspose1d, on_cpu, taps_first
from .model import CodecDecoder, CodecEncoder
from .streaming import StreamingDecoder, lookahead_samples

LengthMode = Literal["boson", "hf", "align"]

SEMANTIC_PADDING = 160  # zeros on either side of HuBERT's input


class HiggsCodec:
    """Waveform <-> codes. Codes are ``[T, K]``, waves mono float32 ``[N]``.

    The encoder's weights are read at the first ``encode`` and can be released again.
    """

    def __init__(self, config: CodecConfig, source: TensorSource):
        """``source``: all tensors of the codec in transformers' names."""
        self.config = config
        self._source = source
        self._decoder = CodecDecoder(config)
        self._encoder: CodecEncoder | None = None
        found = checkpoint.module_shapes(source.shapes)
        checkpoint.check_shapes(found, _shapes(self._decoder) | _shapes(CodecEncoder(config)))
        self._load(self._decoder)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> HiggsCodec:
        """A local folder with ``config.json`` and ``model.safetensors`` or ``model.pth``.

        Raises:
            CheckpointError: not a codec, or one with missing, unknown or misshapen tensors.
        """
        source, declared = checkpoint.open_folder(Path(folder))
        source = checkpoint.as_transformers(source)
        return cls(CodecConfig.from_shapes(source.shapes, declared), source)

    @classmethod
    def from_files(
        cls, paths: list[Path], prefix: str, declared: Mapping[str, Any] | None = None
    ) -> HiggsCodec:
        """A codec bundled in another model's safetensors files, its names under ``prefix``.

        ``declared`` is the codec's config, where there is one.
        """
        source = checkpoint.as_transformers(checkpoint.from_safetensors(paths, prefix))
        return cls(CodecConfig.from_shapes(source.shapes, declared), source)

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, mx.array], config: CodecConfig | None = None
    ) -> HiggsCodec:
        """A codec from named arrays in either layout, which it keeps (see ``from_files``).

        Without ``config`` the sizes are read off the tensors.
        """
        source = checkpoint.as_transformers(checkpoint.from_arrays(tensors))
        return cls(config or CodecConfig.from_shapes(source.shapes), source)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.config.hop

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.config.frame_rate

    @property
    def num_codebooks(self) -> int:
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def lookahead_samples(self) -> int:
        """Samples the streaming decoder holds back until ``finish``."""
        return lookahead_samples(self._decoder.acoustic_decoder)

    @property
    def context_frames(self) -> int:
        """Neighbours on either side that a frame's samples depend on (10)."""
        return -(-self.lookahead_samples // self.hop)

    def encode(self, wave: np.ndarray | mx.array, *, length_mode: LengthMode = "boson") -> mx.array:
        """Mono float ``[N]`` at ``sample_rate`` -> codes ``[T, K]`` int32.

        The two halves of the encoder disagree by a frame on about half of all lengths;
        ``length_mode`` says what happens then. ``"boson"`` pads the acoustic half by 320 samples
        on either side, as Boson's code does, ``"hf"`` by half a frame, as transformers does.
        ``"align"`` pads every clip with silence to whole frames, where all agree. A clip is
        encoded in one piece: HuBERT normalises and attends over all of it.

        Raises:
            InputError: not ``[N]``, NaN or infinite samples, shorter than a frame, or longer
                than 60 s.
        """
        wave = checked_wave(wave, self.config)
        if length_mode == "align":
            wave = np.pad(wave, (0, -len(wave) % self.hop))
        elif length_mode not in ("boson", "hf"):
            raise InputError(f"length_mode is boson, hf or align, not {length_mode!r}.")
        semantic_wave = resample(wave, self.sample_rate, self.config.semantic_rate)
        semantic_wave = np.pad(semantic_wave, SEMANTIC_PADDING)
        if self._acoustic_frames(len(wave)) != self._semantic_frames(len(semantic_wave)):
            margin = SEMANTIC_PADDING * self.config.semantic_step
            wave = np.pad(wave, margin if length_mode == "boson" else self.hop // 2)
        features = self._loaded_encoder()(
            mx.array(wave)[None, :, None], mx.array(semantic_wave)[None, :, None]
        )
        codes = self._decoder.quantizer.encode(features[0])
        mx.eval(codes)
        return codes

    def release_encoder(self) -> None:
        """Free the encoder's weights; the next ``encode`` reads them again."""
        if self._encoder is not None:
            self._encoder = None
            mx.clear_cache()  # Metal and CUDA keep freed buffers for reuse

    def decode(self, codes: np.ndarray | mx.array) -> mx.array:
        """Codes ``[T, K]`` -> samples float32 ``[T * hop]``, unclipped, in bounded memory.

        Fewer than K codebooks are allowed: each one only refines the ones before it.

        Raises:
            InputError: not ``[T, K]`` whole numbers from 0 to ``codebook_size - 1``.
        """
        decoder = self.decoder()
        return mx.concatenate([decoder.push(codes), decoder.finish()])

    def decoder(self) -> StreamingDecoder:
        """A decoder for codes that arrive bit by bit; its pieces join to what decode gives."""
        return StreamingDecoder(self._decoder, self.config)

    def decode_window(
        self, codes: np.ndarray | mx.array, start: int, stop: int, *, context: int | None = None
    ) -> mx.array:
        """The samples of frames ``[start, stop)`` alone, without any state.

        ``context`` frames on either side are decoded along with them; the default is what
        exactness needs.
        """
        checked = checked_codes(codes, self.config)
        if not 0 <= start <= stop <= len(checked):
            raise InputError(f"Frames {start} to {stop} are not within {len(checked)} frames.")
        context = self.context_frames if context is None else context
        if start == stop:
            return mx.zeros((0,))
        first = max(0, start - context)
        wave = self._decoder(checked[None, first : stop + context])[0]
        return wave[(start - first) * self.hop : (stop - first) * self.hop]

    def save(self, folder: Path | str) -> None:
        """Write the codec as float32 ``model.safetensors`` + ``config.json``.

        Names and axis order are transformers', so that both load it.
        """
        checkpoint.save(self._source, self.config, Path(folder))

    def _load(self, module: nn.Module) -> None:
        """One layer at a time, no name for the tensors: nothing but the result is kept."""
        names = _shapes(module).keys()
        module.load_weights(list(checkpoint.module_tensors(self._source.read(names)).items()))
        for layer in module.modules():
            if isinstance(layer, ConvTranspose1d) or (isinstance(layer, Conv1d) and on_cpu()):
                layer.weight = taps_first(layer.weight)
            if not layer.children():
                mx.eval(layer.parameters())
        mx.eval(module.parameters())

    def _loaded_encoder(self) -> CodecEncoder:
        if self._encoder is None:
            if self.config.semantic.heads is None:
                raise CheckpointError(
                    f"The codec's HuBERT is {self.config.semantic.width} wide, and its config does "
                    "not say in how many attention heads: add num_attention_heads to its "
                    "semantic_model_config."
                )
            encoder = CodecEncoder(self.config)
            self._load(encoder)
            self._encoder = encoder
        return self._encoder

    def _acoustic_frames(self, samples: int) -> int:
        for stride in self.config.strides:
            samples = (samples + 2 * (-(-stride // 2)) - 2 * stride) // stride + 1
        return samples

    def _semantic_frames(self, samples: int) -> int:
        return -(-self.config.semantic.frames(samples) // self.config.semantic_step)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    parameters = dict(tree_flatten(module.parameters()))
    return {name: array.shape for name, array in parameters.items()}
