"""Stage 8: the talker, the codec and what belongs to them, as one checkpoint in float16.

python -m convert.demo.assemble BUILD [OUTPUT]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_higgs.adapters import apply_adapter
from mlx_higgs.loading import load_model
from mlx_higgs.models.v2 import Model

from . import texts

LAST = "practice_4"  # the talker's last stage of training
NOTICE = (
    "Model: the bundled demo, a tiny voice that knows 453 English words. "
    "The full model: --model bosonai/higgs-tts-2-3b-base"
)
GENERATION = {
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 50,
    "top_p": 0.95,
    "ras_win_len": 0,  # a tiny codebook repeats itself in silence
    "ras_win_max_num_repeat": 2,
    "context": 0,  # it never learnt what was said before
    "letters": 40,  # of a piece: it learnt short sentences
    "chats": False,  # its text head is as it was drawn
    "scene": "SPEAKER0: feminine",
    "notice": NOTICE,
}


def as_transformers(model: Model) -> dict[str, np.ndarray]:
    """A talker's tensors by transformers' names, in float16."""
    tensors = {}
    for name, array in tree_flatten(model.parameters()):
        assert isinstance(array, mx.array)
        for theirs, ours in Model.WEIGHT_NAMES:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        tensors[name] = np.array(array.astype(mx.float16))
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the demo together.")
    parser.add_argument("build", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=Path("mlx_higgs/demo"))
    arguments = parser.parse_args()
    build, output = arguments.build, arguments.output
    model = load_model(build / "start", text_head=True)
    model = apply_adapter(model, build / "talker" / LAST)
    (output / "codec").mkdir(parents=True, exist_ok=True)
    save_file(as_transformers(model), output / "model.safetensors", metadata={"format": "pt"})
    codec = load_file(build / "codec" / "model.safetensors")
    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in codec.items()}
    save_file(half, output / "codec" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(build / "codec" / "config.json", output / "codec")
    shutil.copy(build / "start" / "tokenizer.json", output)
    config = json.loads((build / "start" / "config.json").read_text()) | {"dtype": "float16"}
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(output / "config.json", config)
    write_json(output / "generation_config.json", ids | GENERATION | {"words": texts.WORDS})
    write_json(output / "tokenizer_config.json", TOKENIZER)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
    "model_max_length": 4096,
    "clean_up_tokenization_spaces": False,
}


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
