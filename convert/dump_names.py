"""Write every weight of a published checkpoint with its shape, without any weights.

    python convert/dump_names.py v2 OUT.json
    python convert/dump_names.py v3 OUT.json

v2: the 3B in both spellings. v3: the 4B and its codec, in one file as published.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from mlx_higgs.cli import run

Shapes = dict[str, list[int]]
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
AUDIO_ROWS = 8 * 1026
RATES = [8, 5, 4, 2, 3]
CODEC: dict[str, Any] = {  # the published file has no config of it
    "target_bandwidths": [0.5, 1, 1.5, 2],  # kbit/s: 8 codebooks of 10 bits at 25 frames a second
    "codebook_dim": 64,
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 64,
        "decoder_hidden_size": 1024,
        "hidden_size": 256,
        "downsampling_ratios": RATES,
        "upsampling_ratios": RATES,
    },
}


def v2_names() -> dict[str, Any]:
    """The 3B's tensors in both spellings."""
    import torch
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    from convert.layouts import LAYOUTS, REAL, rename, transformers_config

    with torch.device("meta"):
        config = HiggsAudioV2Config(**transformers_config(REAL))
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    shapes = _shapes(model)
    spelled = {layout: {rename(k, layout): v for k, v in shapes.items()} for layout in LAYOUTS}
    return {**_count(shapes), **spelled}


def v3_names() -> dict[str, Any]:
    """The 4B's 398 tensors of the backbone, its table of codes, and the codec's 528."""
    import torch
    import transformers

    from convert.reference import codec_class
    from convert.reference_v3 import AUDIO_TABLE, BODY, ELSEWHERE, TEXT_TABLE

    with torch.device("meta"):
        body = _shapes(transformers.Qwen3Model(transformers.Qwen3Config(**QWEN3_4B)))
        codec = _shapes(codec_class()(transformers.HiggsAudioV2TokenizerConfig(**CODEC)))
    width = QWEN3_4B["hidden_size"]
    talker = {TEXT_TABLE: body.pop("embed_tokens.weight")}
    talker |= {BODY + name: shape for name, shape in body.items()}
    # transformers makes it only where training masks; the checkpoint has it
    codec["semantic_model.masked_spec_embed"] = codec["semantic_model.encoder.layer_norm.weight"]
    shapes = {
        **talker,
        AUDIO_TABLE: [AUDIO_ROWS, width],
        **{ELSEWHERE[0] + name: shape for name, shape in codec.items()},
    }
    return {**_count(shapes), "published": shapes}


def _shapes(model: Any) -> Shapes:
    return {name: list(weight.shape) for name, weight in model.state_dict().items()}


def _count(shapes: Shapes) -> dict[str, int]:
    total = sum(math.prod(shape) for shape in shapes.values())
    return {"tensors": len(shapes), "parameters": total}


NAMES = {"v2": v2_names, "v3": v3_names}


def dump(args: argparse.Namespace) -> None:
    content = NAMES[args.model]()
    lines = json.dumps(content, indent=0).replace(",\n", ", ").replace("[\n", "[")
    args.out.write_text(lines.replace("\n]", "]").replace('], "', '],\n"') + "\n")
    print(f"{args.out}: {content['tensors']} tensors, {content['parameters']:,} parameters")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a published checkpoint's weight names.")
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("out", type=Path, help="the .json file to write")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), dump))
