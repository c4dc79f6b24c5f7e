"""Write adapters as PEFT does, and what the reference thinks with them.

    python convert/dump_peft.py lora CHECKPOINT FOLDER OUT.safetensors --seed 21
    python convert/dump_peft.py dora CHECKPOINT FOLDER OUT.safetensors --seed 22

FOLDER becomes PEFT's own (`save_pretrained`), OUT a model golden (convert/README.md) of the
checkpoint with it. Needs `pip install peft`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from mlx_higgs.cli import run

if TYPE_CHECKING:
    from convert.reference import TransformersTalker

LINEAR = ["q_proj", "v_proj", "mlp.down_proj", "audio_mlp.gate_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    # every module of another rank or factor, a table, and a head that is saved whole
    "lora": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": [*LINEAR, "embed_audio_tokens.embed_audio_tokens"],
        "rank_pattern": {"v_proj": 2, r"layers\.0\.mlp\.down_proj": 1},
        "alpha_pattern": {"q_proj": 3},
        "modules_to_save": ["audio_lm_head"],
    },
    "dora": {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": LINEAR},
}


def adapted(talker: TransformersTalker, settings: dict[str, Any], seed: int) -> Any:
    """The talker's model with PEFT's layers in it, all their tensors random; PEFT's wrapper."""
    import torch
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    wrapper: Any = get_peft_model(talker.model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if parameter.requires_grad:
                # DoRA's lengths are positive
                spread = 0.1 * parameter if "magnitude" in name else 0.2
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    return wrapper.eval()


def dump(args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    from convert.dump_golden import random_prompt
    from convert.reference import TransformersTalker

    talker = TransformersTalker(args.checkpoint)
    wrapper = adapted(talker, SETTINGS[args.kind], args.seed)
    wrapper.save_pretrained(args.folder)
    (args.folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    prompt = random_prompt(talker.config, args.seed)
    audio, _ = talker.prefill(prompt)
    rows = talker.greedy(prompt, args.frames)
    K = talker.config.num_codebooks
    tensors = {
        "input_ids": torch.tensor(prompt.ids, dtype=torch.int32),
        "audio_rows": torch.tensor(prompt.rows, dtype=torch.int32).reshape(-1, K),
        "audio_logits": audio.float().contiguous(),
        "greedy_rows": torch.tensor(rows, dtype=torch.int32).reshape(-1, K),
    }
    save_file(tensors, args.out, metadata={"reference": talker.name, "dtype": "float32"})


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a PEFT adapter and its golden.")
    parser.add_argument("kind", choices=sorted(SETTINGS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=8)
    return run(parser, dump)


if __name__ == "__main__":
    raise SystemExit(main())
