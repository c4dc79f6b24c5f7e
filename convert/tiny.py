"""Tiny random checkpoints of Higgs v2 and its codec, in every layout met in the wild.

python convert/tiny.py model FOLDER --seed 7 --config boson --weights boson --shards 3
python convert/tiny.py codec FOLDER --seed 7
python convert/tiny.py listener FOLDER --seed 7  (the bundled demo with a random audio tower)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

if TYPE_CHECKING:
    import torch

    from convert.layouts import Layout, Widths

HUB_GENERATION = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 0.95,
    "ras_win_len": 7,
    "ras_win_max_num_repeat": 2,
    "use_cache": True,
    "use_text_head": True,
}


def draw_widths(seed: int) -> Widths:
    """Small sizes nobody chose, in the proportions the architecture allows."""
    import numpy as np

    from convert.layouts import NUM_SPECIAL, Widths

    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 3))
    heads = kv_heads * int(rng.integers(1, 4))
    first_special = int(rng.integers(280, 520))
    return Widths(
        hidden_size=math.lcm(32, heads),  # 32: a quantisation group; heads: transformers insists
        intermediate_size=32 * int(rng.integers(2, 5)),
        layers=int(rng.integers(1, 4)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(rng.choice([8, 16, 32])),
        vocab_size=first_special + NUM_SPECIAL + int(rng.integers(0, 40)),
        first_special=first_special,
        codes=int(rng.integers(16, 33)),
    )


def write_checkpoint(
    folder: str | Path,
    *,
    seed: int,
    config_layout: Layout = "transformers",
    weight_layout: Layout = "transformers",
    shards: int = 1,
    dtype: str = "float32",
    text_head: bool = True,
    **widths: int,
) -> Widths:
    """Write a random talker to ``folder``; the same seed gives the same numbers in every layout.

    Args:
        shards: 1 writes ``model.safetensors``; more write numbered files and their index.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        widths: fields of `convert.layouts.Widths` in place of the ones drawn from the seed.
    """
    import torch

    from convert.layouts import rename

    w = replace(draw_widths(seed), **widths)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_talker(w, seed, text_head)
    target = getattr(torch, dtype)
    renamed = {rename(k, weight_layout): v.to(target) for k, v in tensors.items()}
    _write_weights(folder, renamed, shards)
    _write_config(folder, w, config_layout, dtype)
    return w


def random_talker(w: Widths, seed: int, text_head: bool) -> dict[str, torch.Tensor]:
    """Random float32 weights under transformers' names, whose logits have a std near 2."""
    import torch
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    from convert.layouts import transformers_config

    config = HiggsAudioV2Config(**transformers_config(w))
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=text_head)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _random_weight(name, tuple(weight.shape), generator)
        for name, weight in model.state_dict().items()
    }
    # quiet BOS and EOS rows: a random head would end every greedy run within a few rows
    head = tensors["audio_lm_head.weight"].view(w.codebooks, w.codes + 2, w.hidden_size)
    head[:, w.codes :] *= 0.1
    return tensors


def _random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    import torch

    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:  # norm weights
        return 1 + 0.2 * noise
    if "embed" in name:
        return noise
    return noise * (2 if name.endswith("lm_head.weight") else 1) / math.sqrt(shape[1])


def _write_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    from safetensors.torch import save_file

    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_config(folder: Path, w: Widths, layout: Layout, dtype: str) -> None:
    from transformers import HiggsAudioV2Config

    from convert.layouts import EOS, EOT, boson_config, transformers_config

    ids: dict[str, Any] = {"bos_token_id": w.first_special, "pad_token_id": w.first_special + EOS}
    if layout == "boson":
        _write_json(folder / "config.json", boson_config(w, dtype))
        ids["eos_token_id"] = w.first_special + EOS
        _write_json(folder / "generation_config.json", ids)
        return
    config = HiggsAudioV2Config(**transformers_config(w), dtype=dtype)
    config.architectures = ["HiggsAudioV2ForConditionalGeneration"]
    config.save_pretrained(folder)
    ids["eos_token_id"] = w.first_special + EOT
    _write_json(folder / "generation_config.json", {**HUB_GENERATION, **ids})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_codec(folder: str | Path, *, seed: int, codes: int = 32) -> None:
    """Write a random codec to ``folder``: the real topology and hop, 8 codebooks of ``codes``.

    Its codebooks are filled so that noise uses many codes; its decoder speaks at a std near 0.1.
    """
    import torch

    from convert.reference import codec_class

    torch.manual_seed(seed)
    codec = codec_class()(_codec_config(codes)).eval()
    with torch.no_grad():
        for name, weight in codec.named_parameters():
            weight.copy_(_random_codec_weight(name, weight))
        _fill_codebooks(codec)
        _set_loudness(codec)
    codec.save_pretrained(folder)


def _codec_config(codes: int) -> Any:
    from transformers import HiggsAudioV2TokenizerConfig

    ratios = [8, 5, 4, 2, 3]
    kbps = 8 * 25 * math.ceil(math.log2(codes)) / 1000  # what 8 codebooks take at 25 frames/s
    dac = {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "hidden_size": 16,
        "downsampling_ratios": ratios,
        "upsampling_ratios": ratios,
    }
    hubert = {
        "model_type": "hubert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "mask_time_prob": 0.0,
    }
    return HiggsAudioV2TokenizerConfig(
        acoustic_model_config=dac,
        semantic_model_config=hubert,
        codebook_size=codes,
        codebook_dim=8,
        # a hair above, or the class rounds the number of codebooks down
        target_bandwidths=[kbps / 4 + 1e-6, kbps / 2 + 1e-6, kbps + 1e-6],
    )


def _random_codec_weight(name: str, weight: torch.Tensor) -> torch.Tensor:
    import torch

    noise = torch.randn(weight.shape)
    if name.endswith("alpha"):  # Snake: real files hold some negative ones
        alpha = 0.3 + torch.rand(weight.shape)
        return torch.where(torch.rand(weight.shape) < 1 / 17, -alpha, alpha)
    if "parametrizations" in name:  # weight norm of the positional convolution
        return weight
    if weight.ndim == 1:
        return 0.1 * noise + (1 if "norm" in name and name.endswith("weight") else 0)
    # a transposed convolution (stride half its kernel) feeds each output from two taps
    fan_in = weight.shape[0] * 2 if "conv_t1" in name else math.prod(weight.shape[1:])
    return noise * (0.5 if "res_unit" in name else 1.0) / math.sqrt(fan_in)


def _fill_codebooks(codec: Any) -> None:
    import torch

    embeddings: list[torch.Tensor] = []
    with codec.fc.register_forward_hook(lambda _, args, out: embeddings.append(out)):
        codec.encode(0.1 * torch.randn(1, 1, 2 * 24_000))
    residual = embeddings[0][0]  # [T, latent]
    for layer in codec.quantizer.quantizers:
        rows = torch.linalg.qr(torch.randn_like(layer.project_in.weight).T)[0].T
        layer.project_in.weight.copy_(rows)
        layer.project_out.weight.copy_(rows.T)  # so that each stage removes what it explains
        z = layer.project_in(residual)
        spread = torch.randn_like(layer.codebook.embed)
        layer.codebook.embed.copy_(z.mean(0) + z.std(0) * spread)
        codes = layer.encode(residual.T[None])
        residual = residual - layer.decode(codes)[0].T


def _set_loudness(codec: Any) -> None:
    import torch

    codes = torch.randint(0, codec.config.codebook_size, (1, len(codec.quantizer.quantizers), 25))
    last = codec.acoustic_decoder.conv2
    last.weight.mul_(0.1 / codec.decode(codes).audio_values.std())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random checkpoint.")
    parser.add_argument("kind", choices=["model", "codec", "listener"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", choices=["boson", "transformers"], default="transformers")
    parser.add_argument("--weights", choices=["boson", "transformers"], default="transformers")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    args = parser.parse_args()
    if args.kind == "codec":
        write_codec(args.folder, seed=args.seed)
        return
    if args.kind == "listener":
        from convert.tower import write_listener

        write_listener(args.folder, seed=args.seed)
        return
    write_checkpoint(
        args.folder,
        seed=args.seed,
        config_layout=args.config,
        weight_layout=args.weights,
        shards=args.shards,
        dtype=args.dtype,
    )


if __name__ == "__main__":
    main()
