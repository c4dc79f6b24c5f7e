"""What the demo codec's latent is asked to hold: log mels of each frame, pitch and voicing.

No gradient is needed for it: a latent that linear algebra finds is what the encoder learns to
predict, which trains in minutes where encoder, quantiser and decoder together diverged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mlx_higgs.resample import resample
from mlx_higgs.types import HOP, SAMPLE_RATE

MELS, STEPS = 40, 4  # bands below 8 kHz, pictures in a frame
N_FFT = 1024
QUIET = 2e-3
PITCH_RATE = 8000  # Hz, for the autocorrelation
PITCHES = (70, 348)  # Hz


def mel_bank(n_fft: int, bands: int, top: float = SAMPLE_RATE / 2) -> torch.Tensor:
    """Slaney's triangular filters ``[n_fft / 2 + 1, bands]``."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        n_fft // 2 + 1, bands, 0.0, top, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.tensor(bank, dtype=torch.float32)


def frame_features(wave: np.ndarray) -> torch.Tensor:
    """float32 ``[N]`` -> ``[N // HOP, MELS * STEPS + 8]``."""
    frames = len(wave) // HOP
    whole = torch.as_tensor(wave[: frames * HOP], dtype=torch.float32)
    return torch.cat([_log_mels(whole, frames), _pitch(whole, frames)], dim=1)


_BANK: dict[str, torch.Tensor] = {}


def _log_mels(wave: torch.Tensor, frames: int) -> torch.Tensor:
    if "mels" not in _BANK:
        _BANK["mels"] = mel_bank(N_FFT, MELS, 8000.0)
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(wave, N_FFT, HOP // STEPS, N_FFT, window, return_complex=True).abs()
    mels = (spectrum.T @ _BANK["mels"]).clamp(min=QUIET).log()
    return mels[: STEPS * frames].reshape(frames, STEPS * MELS)


def _pitch(wave: torch.Tensor, frames: int) -> torch.Tensor:
    """Log F0 and voicing, two of each in a frame, each twice: their weight in the latent."""
    slow = torch.as_tensor(resample(wave.numpy(), SAMPLE_RATE, PITCH_RATE))
    pieces = torch.nn.functional.pad(slow, (160, 480)).unfold(0, 480, 160)[: 2 * frames]
    pieces = pieces - pieces.mean(1, keepdim=True)
    power = torch.fft.rfft(pieces * torch.hann_window(480), N_FFT).abs() ** 2
    correlation = torch.fft.irfft(power)[:, :160]
    correlation = correlation / (correlation[:, :1] + 1e-3)
    lags = torch.arange(160)
    correlation = correlation / (1 - lags / 480 * 0.9)  # the window's own decay
    first, last = PITCH_RATE // PITCHES[1] + 1, PITCH_RATE // PITCHES[0] + 1
    height, lag = correlation[:, first:last].max(1)
    loud = (pieces**2).mean(1).sqrt() > 0.004
    voiced = ((height > 0.45) & loud).float()
    log_f0 = torch.log2(PITCH_RATE / (lag + first).float() / 140.0) * voiced
    both = torch.stack([log_f0 * 4, voiced * 1.5], 1).reshape(frames, 4)
    return both.repeat(1, 2)


@dataclass(frozen=True)
class Latent:
    """The leading directions of the features: ``z = (features - mean) @ basis / scale``."""

    mean: torch.Tensor
    basis: torch.Tensor  # [features, width]
    scale: float

    @classmethod
    def fit(cls, features: torch.Tensor, width: int) -> Latent:
        mean = features.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
        basis = vectors.flip(1)[:, :width].contiguous()
        return cls(mean, basis, float(((features - mean) @ basis).std()))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) @ self.basis / self.scale
