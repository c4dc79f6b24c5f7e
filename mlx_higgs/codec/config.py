"""The codec's sizes, read off its tensors; a config file only adds what no shape tells.

Public config files disagree with their weights (bandwidths that imply 16 codebooks, left-over DAC
fields), so the tensors decide and a config that contradicts them on what it must know is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class HubertConfig:
    """The semantic model at 16 kHz."""

    width: int = 768
    num_layers: int = 12
    heads: int | None = 12  # None: nothing says it, so there is no encoding
    ffn_width: int = 3072
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_taps: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    pos_taps: int = 128
    pos_groups: int = 16
    eps: float = 1e-5

    @property
    def hop(self) -> int:
        """Samples at 16 kHz of one frame (320: 20 ms)."""
        return math.prod(self.conv_strides)

    def frames(self, samples: int) -> int:
        """Frames the feature extractor makes of ``samples``."""
        for taps, stride in zip(self.conv_taps, self.conv_strides, strict=True):
            samples = (samples - taps) // stride + 1
        return samples


@dataclass(frozen=True)
class CodecConfig:
    """The whole codec; the defaults are those of Higgs Audio v2 and v3."""

    sample_rate: int = 24_000
    semantic_rate: int = 16_000
    strides: tuple[int, ...] = (8, 5, 4, 2, 3)  # encoder and decoder, in the same order
    hidden: int = 256
    encoder_width: int = 64
    decoder_width: int = 1024
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 64
    semantic: HubertConfig = HubertConfig()

    @property
    def hop(self) -> int:
        """Samples in one frame."""
        return math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    @property
    def latent(self) -> int:
        """Width of what is quantised: acoustic and semantic features side by side."""
        return self.hidden + self.semantic.width

    @property
    def semantic_step(self) -> int:
        """HuBERT frames per codec frame; every ``semantic_step``-th one is kept."""
        return self.hop * self.semantic_rate // (self.sample_rate * self.semantic.hop)

    @classmethod
    def from_shapes(cls, shapes: Shapes, declared: Mapping[str, Any] | None = None) -> CodecConfig:
        """Sizes of a codec from its tensors' shapes, in transformers' names and axis order.

        Args:
            shapes: one entry per tensor, weight norm folded.
            declared: a ``config.json``, of Boson (``ratios``, ``n_q``, ...) or of transformers.

        Raises:
            CheckpointError: a tensor the sizes are read from is missing, or ``declared``
                contradicts the tensors.
        """
        declared = declared or {}
        try:
            config = cls(
                sample_rate=declared.get("sample_rate", cls.sample_rate),
                semantic_rate=declared.get("semantic_sample_rate", cls.semantic_rate),
                strides=_strides(shapes),
                hidden=shapes["acoustic_decoder.conv1.weight"][1],
                encoder_width=shapes["acoustic_encoder.conv1.weight"][0],
                decoder_width=shapes["acoustic_decoder.conv1.weight"][0],
                num_codebooks=_count(shapes, "quantizer.quantizers."),
                codebook_size=shapes["quantizer.quantizers.0.codebook.embed"][0],
                codebook_dim=shapes["quantizer.quantizers.0.codebook.embed"][1],
                semantic=_hubert(shapes, declared.get("semantic_model_config") or {}),
            )
            config._check(declared)
        except KeyError as error:
            raise CheckpointError(f"The codec's weights lack {error.args[0]}.") from error
        except CheckpointError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"The codec's config cannot be understood: {error}.") from error
        return config

    def _check(self, declared: Mapping[str, Any]) -> None:
        acoustic = declared.get("acoustic_model_config") or {}
        semantic = declared.get("semantic_model_config") or {}
        said = {
            "codebook_size": (declared.get("codebook_size"), self.codebook_size),
            "codebook_dim": (declared.get("codebook_dim"), self.codebook_dim),
            "bins": (declared.get("bins"), self.codebook_size),
            "n_q": (declared.get("n_q"), self.num_codebooks),
            "D": (declared.get("D"), self.hidden),
            "ratios": (declared.get("ratios"), list(self.strides)),
            "downsampling_ratios": (acoustic.get("downsampling_ratios"), list(self.strides)),
            "upsampling_ratios": (acoustic.get("upsampling_ratios"), list(self.strides)),
            "num_hidden_layers": (semantic.get("num_hidden_layers"), self.semantic.num_layers),
            # what no tensor's shape shows
            "hidden_act": (semantic.get("hidden_act"), "gelu"),
            "feat_extract_activation": (semantic.get("feat_extract_activation"), "gelu"),
            "block_dilations": (declared.get("block_dilations"), [1, 1]),
            "strides": (declared.get("strides"), [1, 1]),
            "channel_ratios": (declared.get("channel_ratios"), [1, 1]),
        }
        rates = (self.sample_rate, self.semantic_rate)
        if not all(type(rate) is int and rate > 0 for rate in rates) or not self.semantic_step:
            raise CheckpointError(f"The codec's config has sample rates {rates}.")
        heads = self.semantic.heads
        if heads is not None and (type(heads) is not int or self.semantic.width % max(heads, 1)):
            raise CheckpointError(
                f"The codec's {self.semantic.heads} heads do not share {self.semantic.width}."
            )
        for name, (value, actual) in said.items():
            if value is not None and value != actual:
                raise CheckpointError(
                    f"The codec's config says {name} = {value}; only {actual} fits its weights."
                )

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json`` of transformers' ``HiggsAudioV2TokenizerModel``."""
        bits = math.ceil(math.log2(self.codebook_size))
        bandwidth = math.ceil(self.frame_rate) * bits / 1000  # kbit/s of one codebook
        return {
            "architectures": ["HiggsAudioV2TokenizerModel"],
            "model_type": "higgs_audio_v2_tokenizer",
            "dtype": "float32",
            "sample_rate": self.sample_rate,
            "semantic_sample_rate": self.semantic_rate,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "downsample_factor": self.semantic.hop,
            # transformers counts codebooks by the last one, rounding down: 1e-6 keeps it whole
            "target_bandwidths": [n * bandwidth + 1e-6 for n in range(1, self.num_codebooks + 1)],
            "acoustic_model_config": self._acoustic_dict(),
            "semantic_model_config": self._semantic_dict(),
        }

    def _acoustic_dict(self) -> dict[str, Any]:
        return {
            "model_type": "dac",
            "encoder_hidden_size": self.encoder_width,
            "decoder_hidden_size": self.decoder_width,
            "hidden_size": self.hidden,
            "downsampling_ratios": list(self.strides),
            "upsampling_ratios": list(self.strides),
            "hop_length": self.hop,
            "sampling_rate": self.sample_rate,
        }

    def _semantic_dict(self) -> dict[str, Any]:
        return {
            "model_type": "hubert",
            "hidden_size": self.semantic.width,
            "num_hidden_layers": self.semantic.num_layers,
            "num_attention_heads": self.semantic.heads,
            "intermediate_size": self.semantic.ffn_width,
            "conv_dim": list(self.semantic.conv_widths),
            "conv_kernel": list(self.semantic.conv_taps),
            "conv_stride": list(self.semantic.conv_strides),
            "num_feat_extract_layers": len(self.semantic.conv_taps),
            "num_conv_pos_embeddings": self.semantic.pos_taps,
            "num_conv_pos_embedding_groups": self.semantic.pos_groups,
            "layer_norm_eps": self.semantic.eps,
            "mask_time_prob": 0.0,
        }


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts there are under ``prefix``, going by the highest number."""
    numbers = (name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=1)


def _strides(shapes: Shapes) -> tuple[int, ...]:
    """Each stride is half of its transposed convolution's taps."""
    blocks = range(_count(shapes, "acoustic_decoder.block."))
    return tuple(shapes[f"acoustic_decoder.block.{i}.conv_t1.weight"][2] // 2 for i in blocks)


def _hubert(shapes: Shapes, declared: Mapping[str, Any]) -> HubertConfig:
    conv = "semantic_model.feature_extractor.conv_layers."
    strides = tuple(declared.get("conv_stride", HubertConfig.conv_strides))
    convs = [shapes[f"{conv}{i}.conv.weight"] for i in range(len(strides))]
    up = shapes["semantic_model.encoder.layers.0.feed_forward.intermediate_dense.weight"]
    position = shapes["semantic_model.encoder.pos_conv_embed.conv.weight"]
    if declared.get("do_stable_layer_norm") or declared.get("feat_extract_norm") == "layer":
        raise CheckpointError("The codec's HuBERT is of the pre-norm kind; only base is known.")
    return HubertConfig(
        width=up[1],
        num_layers=_count(shapes, "semantic_model.encoder.layers."),
        # HuBERT has heads of 64; no tensor shows another number
        heads=declared.get("num_attention_heads", None if up[1] % 64 else up[1] // 64),
        ffn_width=up[0],
        conv_widths=tuple(shape[0] for shape in convs),
        conv_taps=tuple(shape[2] for shape in convs),
        conv_strides=strides,
        pos_taps=position[2],
        pos_groups=position[0] // position[1],
        eps=declared.get("layer_norm_eps", HubertConfig.eps),
    )
