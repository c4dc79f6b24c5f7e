"""The codec's two networks, their parts under transformers' weight names."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .config import CodecConfig
from .dac import AcousticDecoder, AcousticEncoder
from .hubert import Hubert, SemanticEncoder
from .quantizer import ResidualQuantizer


class CodecDecoder(nn.Module):
    """Codes ``[B, T, K]`` -> samples ``[B, T * hop]``; holds the codebooks for both ways."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.quantizer = ResidualQuantizer(
            config.num_codebooks, config.latent, config.codebook_size, config.codebook_dim
        )
        self.fc2 = nn.Linear(config.latent, config.hidden)
        self.acoustic_decoder = AcousticDecoder(config.decoder_width, config.hidden, config.strides)

    def features(self, codes: mx.array) -> mx.array:
        """Codes ``[B, T, K]`` -> the acoustic decoder's input ``[B, T, hidden]``."""
        return self.fc2(self.quantizer.decode(codes))

    def __call__(self, codes: mx.array) -> mx.array:
        return self.acoustic_decoder(self.features(codes))[..., 0]


class CodecEncoder(nn.Module):
    """Samples -> the features that are quantised."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.step = config.semantic_step
        self.acoustic_encoder = AcousticEncoder(config.encoder_width, config.hidden, config.strides)
        self.semantic_model = Hubert(config.semantic)
        self.encoder_semantic = SemanticEncoder(config.semantic.width)
        self.fc = nn.Linear(config.latent, config.latent)

    def semantic(self, wave: mx.array) -> mx.array:
        """Padded samples ``[B, N, 1]`` at 16 kHz -> ``[B, T, width]``."""
        states = self.semantic_model(wave)
        mean = sum(states[1:], states[0]) / len(states)
        return self.encoder_semantic(mean[:, :: self.step])

    def __call__(self, wave: mx.array, semantic_wave: mx.array) -> mx.array:
        """Samples ``[B, N, 1]`` at 24 and (padded) at 16 kHz -> ``[B, T, latent]``."""
        semantic = self.semantic(semantic_wave)
        acoustic = self.acoustic_encoder(wave)
        frames = min(acoustic.shape[1], semantic.shape[1])
        both = mx.concatenate([acoustic[:, :frames], semantic[:, :frames]], axis=-1)
        return self.fc(both)
