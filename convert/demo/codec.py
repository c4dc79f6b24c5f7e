"""Stages 2 and 6: the demo's codec, in PyTorch, because MLX's convolutions are slow on a Linux CPU.

    python -m convert.demo.codec encoder BUILD [--minutes 26]
    python -m convert.demo.codec decoder BUILD [--minutes 95] [--until 33]

`encoder` regresses a latent found by linear algebra (features.py), then fits the residual
quantiser to what the encoder really says. `decoder` learns to speak from those codes, and from
those of composed sentences (compose.py). Each saves its state every minute and goes on from it.
Checkpoints, in transformers' layout: BUILD/start/codec, whose encoder is final, then BUILD/codec.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import nn

from convert.reference import codec_class, sinc_resample
from mlx_higgs.codec import HiggsCodec
from mlx_higgs.train.data.codes import CodesCache, codec_fingerprint
from mlx_higgs.train.data.conversation import Clip
from mlx_higgs.types import FRAME_RATE, HOP, SAMPLE_RATE

from .features import Latent, frame_features, mel_bank
from .speech import GUESTS, read_manifest

CODEBOOKS, CODEBOOK_SIZE, CODE_WIDTH = 8, 256, 32
LATENT = 128  # 64 acoustic + 64 semantic
STRIDES = [8, 5, 4, 2, 3]
CLIPS, HELD_OUT = 1500, 40  # utterances the codec learns from, and those it is measured on
FRAMES_IN_BATCH = 192
LEARNING_RATE = 2e-3
COMPOSED = 0.75  # share of what the decoder learns: it is what the talker will say
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unneeded() -> HiggsCodec:
    raise RuntimeError("every clip has been encoded")


def load_encoder(build_folder: Path) -> Any:
    """The codec whose encoder is final, and whose decoder may not be."""
    return codec_class().from_pretrained(build_folder / "start" / "codec").to(DEVICE).eval()


def open_codes(build_folder: Path) -> CodesCache:
    """The trainer's cache of that encoder's codes."""
    fingerprint = codec_fingerprint(build_folder / "start" / "codec")
    return CodesCache(build_folder / "codes", unneeded, fingerprint)


def config() -> Any:
    from transformers import HiggsAudioV2TokenizerConfig

    kbps = FRAME_RATE * math.log2(CODEBOOK_SIZE) / 1000
    semantic = {
        "model_type": "hubert",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
    }
    dropouts = ("hidden", "attention", "activation", "feat_proj", "final")
    semantic |= {f"{name}_dropout": 0.0 for name in dropouts}
    acoustic = {
        "model_type": "dac",
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 192,
        "downsampling_ratios": STRIDES,
        "upsampling_ratios": STRIDES,
        "hidden_size": 64,
        "sampling_rate": SAMPLE_RATE,
    }
    return HiggsAudioV2TokenizerConfig(
        sample_rate=SAMPLE_RATE,
        codebook_size=CODEBOOK_SIZE,
        codebook_dim=CODE_WIDTH,
        target_bandwidths=[kbps, kbps * 2, kbps * 4, kbps * CODEBOOKS + 1e-6],
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
    )


def build(seed: int = 0) -> Any:
    """Random weights by PyTorch's own rules; the class's would start some layers at zero."""
    torch.manual_seed(seed)
    model = codec_class()(config())
    for part in (model.acoustic_encoder, model.acoustic_decoder, model.encoder_semantic):
        for layer in part.modules():
            if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
                layer.reset_parameters()
    for layer in (model.fc, model.fc1, model.fc2):
        layer.reset_parameters()
    return model.to(DEVICE)


# ---------------------------------------------------------------- encoder


def encode(model: Any, wave: torch.Tensor) -> torch.Tensor:
    """``[B, 1, N]`` -> the latent before quantisation ``[B, T, LATENT]``, as Boson aligns it."""
    slow = sinc_resample(wave, SAMPLE_RATE, 16000)[:, 0]
    slow = nn.functional.pad(slow, (160, 160))
    layers = model.semantic_model(slow, output_hidden_states=True).hidden_states
    heard = torch.stack(layers, 1).mean(1)[:, :: model.config.semantic_downsample_factor]
    semantic = model.encoder_semantic(heard.transpose(1, 2))
    if acoustic_frames(wave.shape[2]) != semantic.shape[2]:
        margin = 160 * model.config.semantic_downsample_factor
        wave = nn.functional.pad(wave, (margin, margin))
    acoustic = model.acoustic_encoder(wave)
    frames = min(acoustic.shape[2], semantic.shape[2])
    both = torch.cat([acoustic[..., :frames], semantic[..., :frames]], 1)
    return model.fc(both.transpose(1, 2))


def acoustic_frames(samples: int) -> int:
    """What the strided convolutions of the acoustic encoder leave of a wave."""
    for stride in STRIDES:
        samples = (samples + 2 * math.ceil(stride / 2) - 2 * stride) // stride + 1
    return samples


def is_encoder(name: str) -> bool:
    return name.startswith(("acoustic_encoder", "encoder_semantic", "semantic_model", "fc."))


def train_encoder(build_folder: Path, until: float, minutes: float) -> None:
    clips = read_clips(build_folder)
    features = [frame_features(clip) for clip in clips]
    latent = Latent.fit(torch.cat(features), LATENT)
    targets = [latent(part) for part in features]
    model = build()
    known = len(clips) - HELD_OUT
    rng = np.random.default_rng(0)

    def loss() -> torch.Tensor:
        frames = int(rng.choice([24, 48, 96]))  # the semantic branch sees whole clips later
        waves, wanted = [], []
        for index in rng.integers(0, known, FRAMES_IN_BATCH // frames):
            start = int(rng.integers(0, max(1, len(targets[index]) - frames + 1)))
            waves.append(cut(clips[index], start, frames))
            wanted.append(cut_rows(targets[index], start, frames))
        found = encode(model, torch.stack(waves)[:, None].to(DEVICE))
        wanted = torch.stack(wanted)[:, : found.shape[1]].to(DEVICE)
        return nn.functional.mse_loss(found[:, 1:-1], wanted[:, 1:-1])

    parameters = [p for name, p in model.named_parameters() if is_encoder(name)]
    descend("encoder", build_folder, model, parameters, loss, until, minutes)
    model.eval()
    with torch.no_grad():
        spoken = [encode(model, as_batch(clip))[0] for clip in clips]
    fit_quantizer(model, torch.cat(spoken[:known]))
    report(model, spoken[known:], targets[known:])
    model.save_pretrained(build_folder / "start" / "codec")


@torch.no_grad()
def fit_quantizer(model: Any, latents: torch.Tensor, rounds: int = 25) -> None:
    """Each stage: the residual's leading directions, and k-means in them."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    residual = latents.clone()
    for stage in model.quantizer.quantizers:
        mean = residual.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov((residual - mean).T))
        basis = vectors.flip(1)[:, :CODE_WIDTH].T
        stage.project_in.weight.copy_(basis)
        stage.project_in.bias.copy_(-(basis @ mean))
        stage.project_out.weight.copy_(basis.T)
        stage.project_out.bias.copy_(mean)
        _k_means(stage.codebook, stage.project_in(residual), rounds, generator)
        codes = stage.codebook.quantize(stage.project_in(residual))
        residual = residual - stage.decode(codes[None])[0].T


def _k_means(codebook: Any, points: torch.Tensor, rounds: int, generator: torch.Generator) -> None:
    size = codebook.codebook_size
    centres = points[torch.randperm(len(points), generator=generator, device=DEVICE)[:size]].clone()
    for _ in range(rounds):
        codebook.embed.copy_(centres)
        nearest = codebook.quantize(points)
        counts = torch.bincount(nearest, minlength=size).float()[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        spare = points[torch.randint(len(points), (size,), generator=generator, device=DEVICE)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), spare)
    codebook.embed.copy_(centres)
    codebook.embed_avg.copy_(centres)
    codebook.cluster_size.fill_(1.0)


@torch.no_grad()
def report(model: Any, spoken: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    pairs = list(zip(spoken, wanted, strict=True))
    found = torch.cat([s[: len(w)] for s, w in pairs])  # the encoder rounds up, the target down
    aim = torch.cat([w[: len(s)] for s, w in pairs]).to(DEVICE)
    print(f"held-out clips: encoder error {_share(found - aim, aim):.4f} of the latent's variance")
    codes = model.quantizer.encode(found.T[None], model.config.target_bandwidths[-1])
    for books in (1, 2, 4, 8):
        again = model.quantizer.decode(codes[:books])[0].T
        print(f"{books} codebooks leave {_share(again - found, found):.4f}")


def _share(error: torch.Tensor, whole: torch.Tensor) -> float:
    return float((error**2).mean() / whole.var(0).mean())


# ---------------------------------------------------------------- decoder


def train_decoder(build_folder: Path, until: float, minutes: float) -> None:
    clips = read_guests(build_folder) + read_clips(build_folder)
    model = load_encoder(build_folder)
    latents = [quantised(model, to_codes(model, clip)) for clip in clips]
    composed = read_composed(build_folder)
    first_natural = len(composed)
    clips = [wave for wave, _ in composed] + clips
    latents = [quantised(model, codes) for _, codes in composed] + latents
    loss_function = SpectralLoss()
    known = len(clips) - HELD_OUT
    rng = np.random.default_rng(0)
    frames, context = 12, 2  # what is scored, and what the decoder sees beside it

    def loss() -> torch.Tensor:
        waves, codes = [], []
        for _ in range(8):
            natural = rng.random() >= COMPOSED
            index = rng.integers(*((first_natural, known) if natural else (0, first_natural)))
            length = frames + 2 * context
            start = int(rng.integers(0, max(1, len(latents[index]) - length + 1)))
            waves.append(cut(clips[index], start, length))
            codes.append(cut_rows(latents[index], start, length))
        made = model.acoustic_decoder(model.fc2(torch.stack(codes)).transpose(1, 2))[:, 0]
        inside = slice(context * HOP, (context + frames) * HOP)
        return loss_function(made[:, inside], torch.stack(waves)[:, inside].to(DEVICE))

    parameters = [*model.acoustic_decoder.parameters(), *model.fc2.parameters()]
    descend("decoder", build_folder, model, parameters, loss, until, minutes)
    model.save_pretrained(build_folder / "codec")


@torch.no_grad()
def to_codes(model: Any, wave: np.ndarray) -> torch.Tensor:
    """float32 ``[N]`` -> codes ``[K, T]``."""
    latent = encode(model, as_batch(wave)).transpose(1, 2)
    return model.quantizer.encode(latent, model.config.target_bandwidths[-1])[:, 0]


@torch.no_grad()
def quantised(model: Any, codes: torch.Tensor) -> torch.Tensor:
    """Codes ``[K, T]`` -> what the decoder will be given: ``[T, LATENT]``."""
    return model.quantizer.decode(codes[:, None].to(DEVICE))[0].T


def read_composed(build_folder: Path) -> list[tuple[np.ndarray, torch.Tensor]]:
    """As many composed sentences as natural ones, with their codes ``[K, T]``."""
    spoken = read_manifest(build_folder, "composed.jsonl")
    chosen = spoken[:: max(1, len(spoken) // CLIPS)]
    codes = open_codes(build_folder)
    return [
        (wave, torch.as_tensor(codes.codes(Clip(build_folder / one.path)).T.astype(np.int64)))
        for one in chosen
        for wave in [soundfile.read(build_folder / one.path, dtype="float32")[0]]
    ]


class SpectralLoss:
    """L1 of log mel and log magnitude and spectral convergence, at five resolutions."""

    RESOLUTIONS = ((2048, 160), (1024, 80), (512, 40), (256, 20), (128, 10))

    def __init__(self) -> None:
        self._banks = {
            n_fft: mel_bank(n_fft, bands).to(DEVICE) for n_fft, bands in self.RESOLUTIONS
        }

    def __call__(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        losses = [self._at(n_fft, made, real) for n_fft, _ in self.RESOLUTIONS]
        return torch.stack(losses).mean()

    def _at(self, n_fft: int, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        a, b = (_magnitude(wave, n_fft) for wave in (made, real))
        bank, l1 = self._banks[n_fft], nn.functional.l1_loss
        mel_a, mel_b = ((m.transpose(1, 2) @ bank).clamp(min=1e-4).log10() for m in (a, b))
        log_a, log_b = (m.clamp(min=1e-3).log10() for m in (a, b))
        return l1(mel_a, mel_b) + 0.5 * l1(log_a, log_b) + 0.3 * (a - b).norm() / (b.norm() + 1e-6)


def _magnitude(wave: torch.Tensor, n_fft: int) -> torch.Tensor:
    window = torch.hann_window(n_fft, device=DEVICE)
    spectrum = torch.stft(wave, n_fft, n_fft // 4, n_fft, window, return_complex=True)
    return (spectrum.real**2 + spectrum.imag**2 + 1e-8).sqrt()


# ---------------------------------------------------------------- both


def descend(
    stage: str,
    build_folder: Path,
    model: Any,
    parameters: list[nn.Parameter],
    loss: Callable[[], torch.Tensor],
    until: float,
    minutes: float,
) -> None:
    """AdamW under a cosine over ``minutes`` of processor time; the state is saved every minute.

    Args:
        until: minute to stop at for now.
    """
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    path = build_folder / f"codec_{stage}.pt"
    spent, step = 0.0, 0
    if path.exists():
        state = torch.load(path, map_location=DEVICE)
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["spent"], state["step"]
    total, end, recent = minutes * 60, until * 60, []
    mark = saved = time.process_time()
    model.train()
    while spent < end:
        rate = min(1, (step + 1) / 50) * (0.03 + 0.97 * (1 + math.cos(math.pi * spent / total)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append(float(value.detach()))
        now = time.process_time()
        step, spent, mark = step + 1, spent + now - mark, now
        if now - saved > 60 or spent >= end:
            saved = now
            print(
                f"{stage} step {step}, {spent:.0f} s: loss {np.mean(recent[-200:]):.4f}", flush=True
            )
            state = {"parameters": parameters, "optimizer": optimizer.state_dict()}
            _keep(path, state | {"spent": spent, "step": step})


def _keep(path: Path, state: dict[str, Any]) -> None:
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def read_clips(build_folder: Path) -> list[np.ndarray]:
    chosen = read_manifest(build_folder)[:CLIPS]
    if len(chosen) < CLIPS:
        raise SystemExit(
            f"{build_folder} has {len(chosen)} of {CLIPS} utterances: run speech first"
        )
    return [soundfile.read(build_folder / one.path, dtype="float32")[0] for one in chosen]


def read_guests(build_folder: Path) -> list[np.ndarray]:
    """Speech of a voice that the talker never learns; a fine-tune may."""
    spoken = read_manifest(build_folder, GUESTS)
    return [soundfile.read(build_folder / one.path, dtype="float32")[0] for one in spoken]


def as_batch(wave: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(wave, device=DEVICE)[None, None]


def cut(wave: np.ndarray, start: int, frames: int) -> torch.Tensor:
    """``frames`` frames of a clip from frame ``start``, with silence after its end."""
    piece = wave[start * HOP : (start + frames) * HOP]
    return torch.as_tensor(np.pad(piece, (0, frames * HOP - len(piece))))


def cut_rows(rows: torch.Tensor, start: int, frames: int) -> torch.Tensor:
    piece = rows[start : start + frames]
    return torch.cat([piece, piece[-1:].expand(frames - len(piece), -1)])


STAGES: dict[str, Callable[[Path, float, float], None]] = {
    "encoder": train_encoder,
    "decoder": train_decoder,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's codec.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("build", type=Path)
    parser.add_argument("--minutes", type=float, default=30, help="to train, all in all")
    parser.add_argument("--until", type=float, help="minute to stop at for now")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.process_time()
    until = min(arguments.until or arguments.minutes, arguments.minutes)
    STAGES[arguments.stage](arguments.build, until, arguments.minutes)
    print(f"{arguments.stage}: {time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
