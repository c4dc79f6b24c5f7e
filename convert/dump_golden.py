"""Write goldens from the reference implementations.

    python convert/dump_golden.py model CHECKPOINT OUT.safetensors
    python convert/dump_golden.py model CHECKPOINT OUT.safetensors --reference boson \\
        --boson-repo HIGGS_AUDIO_CHECKOUT
    python convert/dump_golden.py codec CHECKPOINT OUT.safetensors --length-mode boson
    python convert/dump_golden.py stages CHECKPOINT OUT.safetensors

convert/README.md lists what the files hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from mlx_higgs.cli import run
from mlx_higgs.types import InputError

if TYPE_CHECKING:
    import torch

    from convert.reference import Prompt, Reference

CLIP_FRAMES = 6
CODED_FRAMES = 12


# ---------------------------------------------------------------- prompts


def random_prompt(config: Any, seed: int) -> Prompt:
    """Text, a clip, more text, and the token that starts speech."""
    import numpy as np

    rng = np.random.default_rng(seed)
    K = config.num_codebooks
    words = config.words if is_v3(config) else min(config.bos_token_id, config.vocab_size)

    def text(count: int) -> list[int]:
        return rng.integers(0, words, count).tolist()

    codes = rng.integers(0, config.audio_stream_bos_id, (CLIP_FRAMES, K)).tolist()
    if is_v3(config):
        return assemble(config, config.cloning(text(12), codes, text(16)))
    start = [config.audio_bos_token_id]
    # transformers looks for its delay ids in the last K ids: keep the clip further away
    parts = [[config.bos_token_id, *text(12), *start], codes, [*text(K + 8), *start]]
    return assemble(config, parts)


def is_v3(config: Any) -> bool:
    """Whether prompts are those of v3: other tokens, no edge rows around a clip."""
    from convert.reference_v3 import Config

    return isinstance(config, Config)


def assemble(config: Any, parts: list[Any]) -> Prompt:
    """Runs of ids ``[n]`` and clips of aligned codes ``[T, K]`` -> one expanded prompt."""
    from convert.reference import Prompt

    K = config.num_codebooks
    ids: list[int] = []
    rows: list[list[int]] = []
    for part in parts:
        if not (part and isinstance(part[0], list)):
            ids += part
            continue
        edge = 0 if is_v3(config) else 1
        stream = config.audio_stream_bos_id, config.audio_stream_eos_id
        clip = delay(part, *stream, edge, getattr(config, "shift", 1))
        ids += [config.audio_token_id] * (len(clip) - K + 1) + [config.audio_delay_token_id] * (
            K - 1
        )
        rows += clip
    if not ids or ids[-1] != config.audio_bos_token_id:
        raise InputError(f"The prompt must end with id {config.audio_bos_token_id}, which speaks.")
    return Prompt(ids, rows)


def delay(
    codes: list[list[int]], bos: int, eos: int, edge: int = 1, shift: int = 1
) -> list[list[int]]:
    """Aligned codes ``[T, K]`` -> rows ``[T + shift * (K - 1) + 2 * edge, K]``.

    ``edge`` all-BOS rows come first, and as many all-EOS rows last.
    """
    T, K = len(codes), len(codes[0])

    def at(row: int, k: int) -> int:
        source = row - edge - shift * k
        return bos if source < 0 else eos if source >= T else codes[source][k]

    return [[at(row, k) for k in range(K)] for row in range(T + shift * (K - 1) + 2 * edge)]


def read_prompt(path: Path, config: Any) -> Prompt:
    """A JSON list of ``{"text": [ids]}`` and ``{"audio": [[K codes], ...]}`` items."""
    try:
        parts = [item["text"] if "text" in item else item["audio"] for item in _load_json(path)]
    except (TypeError, KeyError) as error:
        raise InputError(f'{path}: every item must have "text" or "audio".') from error
    for part in parts:
        clip = bool(part) and isinstance(part[0], list)
        values = [code for row in part for code in row] if clip else part
        top = config.audio_stream_bos_id if clip else config.vocab_size
        if clip and any(len(row) != config.num_codebooks for row in part):
            raise InputError(f"{path}: every row of a clip must hold {config.num_codebooks} codes.")
        if not all(isinstance(v, int) and 0 <= v < top for v in values):
            raise InputError(f"{path}: ids and codes must be whole numbers from 0 to {top - 1}.")
    return assemble(config, parts)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


# ---------------------------------------------------------------- goldens


def dump_model(args: argparse.Namespace) -> str:
    import torch

    reference = _talker(args)
    config = reference.config
    prompt = (
        read_prompt(args.prompt_json, config)
        if args.prompt_json
        else random_prompt(config, args.seed)
    )
    audio, text = reference.prefill(prompt)
    rows = reference.greedy(prompt, args.frames)
    K = config.num_codebooks
    tensors = {
        "input_ids": torch.tensor(prompt.ids, dtype=torch.int32),
        "audio_rows": torch.tensor(prompt.rows, dtype=torch.int32).reshape(-1, K),
        "audio_logits": audio.float(),
        "greedy_rows": torch.tensor(rows, dtype=torch.int32).reshape(-1, K),
    }
    if text is not None:
        tensors.update(_text_logits(text, args.text_positions))
    metadata = {
        "layout": reference.layout,
        "reference": reference.name,
        "machine": reference.machine,
        "dtype": "float32",
    }
    save(args.out, tensors, metadata)
    return f"{len(prompt.ids)} positions, {len(prompt.rows)} clip rows, {len(rows)} greedy rows"


def _talker(args: argparse.Namespace) -> Reference:
    from convert import reference_v3
    from convert.reference import TransformersTalker

    if reference_v3.is_v3(args.checkpoint):
        return reference_v3.QwenTalker(args.checkpoint)
    if args.reference == "boson":
        from convert.boson_repo import BosonTalker

        if args.boson_repo is None:
            raise InputError("--reference boson needs --boson-repo, a checkout of its code.")
        return BosonTalker(args.checkpoint, args.boson_repo)
    return TransformersTalker(args.checkpoint)


def _text_logits(text: torch.Tensor, positions: list[int] | None) -> dict[str, torch.Tensor]:
    import torch

    if positions is None:
        return {"text_logits": text.float()}
    if not positions:
        return {}
    S = len(text)
    outside = [p for p in positions if not -S <= p < S]
    if outside:
        raise InputError(f"--text-positions {outside[0]} lies outside the prompt's {S} positions.")
    index = torch.tensor([p % S for p in positions])
    return {"text_logits": text[index].float(), "text_positions": index.int()}


def dump_codec(args: argparse.Namespace) -> str:
    import torch

    from convert.reference import TransformersCodec

    codec = TransformersCodec(args.checkpoint)
    rate = codec.model.config.sample_rate
    wave = _read_wav(args.wav, rate) if args.wav else _tone(args.samples, rate, args.seed)
    codes = codec.encode(wave, args.length_mode)
    audio = codec.decode(codes)
    tensors = {"wave": wave, "codes": codes.to(torch.int32), "audio": audio}
    metadata = {"length_mode": args.length_mode, "reference": codec.name, "dtype": "float32"}
    save(args.out, tensors, metadata)
    return f"{len(wave)} samples, {len(codes)} frames of {codes.shape[1]} codes"


def dump_stages(args: argparse.Namespace) -> str:
    """What lies between a waveform and its codes, in all length modes; codes and their audio."""
    import torch

    from convert.reference import LENGTH_MODES, TransformersCodec

    codec = TransformersCodec(args.checkpoint)
    model, hop = codec.model, codec.hop
    wave = _tone(args.samples, model.config.sample_rate, args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    books, size = len(model.quantizer.quantizers), model.config.codebook_size
    codes = torch.randint(size, (CODED_FRAMES, books), generator=generator)
    with torch.no_grad():
        features = model._extract_semantic_features(wave[None, None])
        semantic = model.encoder_semantic(features.transpose(1, 2))[0].T
    tensors = {
        "wave": wave,
        "semantic": semantic.contiguous(),
        "encoded_whole": codec.encode(wave[: len(wave) // hop * hop], "hf").to(torch.int32),
        **{f"encoded_{mode}": codec.encode(wave, mode).to(torch.int32) for mode in LENGTH_MODES},
        "codes": codes.to(torch.int32),
        "decoded": codec.decode(codes),
    }
    save(args.out, tensors, {"reference": codec.name, "dtype": "float32"})
    return f"{len(wave)} samples, {len(codes)} frames of codes"


def _tone(samples: int, rate: int, seed: int) -> torch.Tensor:
    """A gliding, swelling tone in noise: no two frames alike."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    start, glide, swell = (torch.rand(3, generator=generator, dtype=torch.float64) + 0.5).tolist()
    t = torch.arange(samples, dtype=torch.float64) / rate
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    tone = torch.sin(2 * torch.pi * t * (220 * start + 300 * glide * t))
    return ((0.6 + 0.4 * torch.sin(9 * swell * t)) * (0.3 * tone + 0.05 * noise)).float()


def _read_wav(path: Path, rate: int) -> torch.Tensor:
    import soundfile
    import torch

    try:
        samples, found = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if found != rate or samples.ndim != 1:
        raise InputError(f"{path} must be mono at {rate} Hz, so that nothing else resamples it.")
    return torch.from_numpy(samples)


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a golden; InputError where it cannot be."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata=metadata)
    except Exception as error:  # safetensors raises its own kind for a missing folder
        raise InputError(f"{path} cannot be written: {error}") from error


# ---------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write goldens from the reference models.")
    commands = parser.add_subparsers(required=True, metavar="model | codec | stages")

    model = commands.add_parser("model", help="logits of a prompt and a greedy continuation")
    model.add_argument(
        "checkpoint", type=Path, help="a talker folder, v2's of either layout or v3's"
    )
    model.add_argument("out", type=Path, help="the .safetensors file to write")
    model.add_argument("--seed", type=int, default=0, help="draws the prompt")
    model.add_argument("--prompt-json", type=Path, help='[{"text": [ids]}, {"audio": [[codes]]}]')
    model.add_argument("--frames", type=int, default=24, help="most greedy rows")
    model.add_argument(
        "--text-positions",
        type=int,
        nargs="*",
        metavar="P",
        help="keep text logits of these positions only (none given: of no position)",
    )
    model.add_argument("--reference", choices=["transformers", "boson"], default="transformers")
    model.add_argument("--boson-repo", type=Path, help="a checkout of boson-ai/higgs-audio")
    model.set_defaults(run=dump_model)

    codec = commands.add_parser("codec", help="a waveform, its codes and their audio")
    codec.add_argument("checkpoint", type=Path, help="a codec folder in transformers' layout")
    codec.add_argument("out", type=Path, help="the .safetensors file to write")
    codec.add_argument("--length-mode", choices=["hf", "boson", "align"], default="hf")
    codec.add_argument("--seed", type=int, default=0, help="draws the waveform")
    codec.add_argument("--samples", type=int, default=20 * 960, help="its length")
    codec.add_argument("--wav", type=Path, help="a recording instead of a drawn waveform")
    codec.set_defaults(run=dump_codec)
    stages = commands.add_parser("stages", help="what a codec computes on the way")
    stages.add_argument("checkpoint", type=Path, help="a codec folder in transformers' layout")
    stages.add_argument("out", type=Path, help="the .safetensors file to write")
    stages.add_argument("--seed", type=int, default=0, help="draws waveform and codes")
    stages.add_argument("--samples", type=int, default=7980, help="no whole number of frames")
    stages.set_defaults(run=dump_stages)
    return parser


def dump(args: argparse.Namespace) -> None:
    print(f"{args.out}: {args.run(args)}")


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), dump))
