"""Write the goldens of the two gates, in the formats that openinfer and its fork use.

    python convert/dump_gate.py text CHECKPOINT OUT.safetensors
    python convert/dump_gate.py audio CHECKPOINT OUT.safetensors --text "Hello." --rows 0 8 40

CHECKPOINT is a Higgs v3 folder, for ``text`` also a plain Qwen3. bfloat16 is what the gates' limits
were measured in; the checkpoint takes 8 GB of memory then. convert/README.md lists what is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from mlx_higgs.cli import run
from mlx_higgs.types import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from convert.reference import Prompt
    from convert.reference_v3 import QwenTalker

TOP = 64  # likeliest tokens or codes kept
WORDS = 100_000  # ids below this are words of Qwen3's vocabulary
TEXTS = ("Hello from the audio gate.",)


# ---------------------------------------------------------------- text


class Sequence(NamedTuple):
    """Token ids of a prompt, and those fed after it."""

    prompt: list[int]
    fed: list[int]


def draw(args: argparse.Namespace, words: int) -> list[Sequence]:
    """Random sequences of ids that are words; id 0 is left out."""
    import torch

    generator = torch.Generator().manual_seed(args.seed)

    def ids(count: int) -> list[int]:
        return torch.randint(1, words, (count,), generator=generator).tolist()

    def length() -> int:
        return int(torch.randint(1, args.longest + 1, (1,), generator=generator))

    return [Sequence(ids(length()), ids(args.fed)) for _ in range(args.sequences)]


def dump_text(args: argparse.Namespace) -> str:
    import torch

    logits_of, words = _language_model(args)
    sequences = draw(args, min(words, WORDS))
    ids, scores = [], []
    for sequence in sequences:
        logits = logits_of(sequence.prompt + sequence.fed)[len(sequence.prompt) - 1 :]
        best = logits.log_softmax(-1).topk(min(TOP, logits.shape[-1]))
        ids.append(best.indices)
        scores.append(best.values)
    tensors = {
        "prompt_tokens": torch.tensor([i for s in sequences for i in s.prompt]),
        "prompt_lens": torch.tensor([len(s.prompt) for s in sequences]),
        "decode_tokens": torch.tensor([s.fed for s in sequences]),
        "topk_ids": torch.stack(ids),
    }
    tensors = {name: tensor.to(torch.int32).cpu() for name, tensor in tensors.items()}
    tensors["topk_logprobs"] = torch.stack(scores).float().cpu()
    _save(args, tensors, {"seed": str(args.seed), "top_k": str(tensors["topk_ids"].shape[-1])})
    return f"{len(sequences)} sequences, {tensors['topk_ids'][..., 0].numel()} positions"


def _language_model(args: argparse.Namespace) -> tuple[Callable[[list[int]], torch.Tensor], int]:
    """Ids ``[S]`` -> float32 logits ``[S, vocab]``, and how many ids are words."""
    import torch

    from convert.reference import Prompt
    from convert.reference_v3 import QwenTalker, is_v3

    if is_v3(args.checkpoint):
        talker = QwenTalker(args.checkpoint, args.dtype, args.device)
        return lambda ids: talker.text_logits(talker.hidden(Prompt(ids, []))), talker.config.words
    from transformers import Qwen3ForCausalLM

    dtype = getattr(torch, args.dtype)
    try:
        model: Any = Qwen3ForCausalLM.from_pretrained(args.checkpoint, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{args.checkpoint} is no Higgs v3 and no Qwen3: {error}") from error
    model = model.to(args.device).eval()

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids], device=args.device)).logits[0].float()

    return logits, model.config.vocab_size


# ---------------------------------------------------------------- audio


def dump_audio(args: argparse.Namespace) -> str:
    import torch

    from convert.reference_v3 import QwenTalker

    talker = QwenTalker(args.checkpoint, args.dtype, args.device)
    prompts = list(_prompts(args, talker))
    hidden = torch.stack([talker.hidden(prompt)[-1] for prompt in prompts])
    logits = talker.audio_logits(hidden)
    best = logits.log_softmax(-1).topk(min(TOP, logits.shape[-1]))
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    places = torch.arange(int(lengths.max()))
    short = {"bfloat16": "bf16", "float32": "f32"}[args.dtype]
    tensors = {
        "prompt.input_ids_padded": _padded([prompt.ids for prompt in prompts], _padding(talker)),
        "prompt.attention_mask": (places < lengths[:, None]).long(),
        "prompt.lengths": lengths,
        f"final_hidden.{short}": hidden,
        "audio_logits.f32": logits,
        "audio_top64.ids": best.indices,
        "audio_top64.logprobs.f32": best.values,
        "audio_argmax.ids": logits.argmax(-1),
    }
    rows = [row for prompt in prompts for row in prompt.rows]
    if rows:
        tensors["prompt.audio_rows"] = torch.tensor(rows, dtype=torch.int32)
    _save(args, {name: tensor.cpu() for name, tensor in tensors.items()}, _origin(args))
    return f"{len(prompts)} prompts, {len(rows)} rows in them"


def _prompts(args: argparse.Namespace, talker: QwenTalker) -> Iterator[Prompt]:
    """Every text, with nothing said yet and with so many rows of random codes."""
    import torch

    from convert.dump_golden import delay
    from convert.reference import Prompt
    from convert.reference_v3 import PLACEHOLDER

    config, generator = talker.config, torch.Generator().manual_seed(args.seed)
    ids = config.plain
    for text in args.text or TEXTS:
        for count in args.rows:
            shape = (count, config.num_codebooks)
            codes = torch.randint(config.audio_stream_bos_id, shape, generator=generator)
            # the stream goes on: its last codes have not reached the lower codebooks yet
            rows = delay(codes.tolist(), config.audio_stream_bos_id, 0, 0)[:count] if count else []
            yield Prompt([*ids(text), *[PLACEHOLDER] * count], rows)


def _padding(talker: QwenTalker) -> int:
    return talker.config.token("<|endoftext|>")


def _padded(runs: list[list[int]], padding: int) -> torch.Tensor:
    import torch

    longest = max(map(len, runs))
    return torch.tensor([run + [padding] * (longest - len(run)) for run in runs])


def _origin(args: argparse.Namespace) -> dict[str, str]:
    """What tells one checkpoint from another: the hashes of its small files."""
    files = {
        "config_sha256": "config.json",
        "tokenizer_json_sha256": "tokenizer.json",
        "model_index_sha256": "model.safetensors.index.json",
    }
    paths = {name: args.checkpoint / file for name, file in files.items()}
    hashes = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if path.is_file()
    }
    return {"prompts_json": json.dumps(args.text or TEXTS), "seed": str(args.seed), **hashes}


# ---------------------------------------------------------------- command line


def _save(args: argparse.Namespace, tensors: dict, about: dict[str, str]) -> None:
    import torch
    import transformers

    from convert.dump_golden import save

    versions = {
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }
    save(args.out, tensors, {"dtype": args.dtype, **versions, **about})


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write the gates' goldens from transformers.")
    commands = parser.add_subparsers(required=True, metavar="text | audio")

    text = commands.add_parser("text", help="log-probabilities of words, the golden's tokens fed")
    _add_common(text)
    text.add_argument("--sequences", type=int, default=48)
    text.add_argument("--longest", type=int, default=256, help="tokens in a prompt at most")
    text.add_argument("--fed", type=int, default=16, help="tokens after each prompt")
    text.set_defaults(run=dump_text)

    audio = commands.add_parser("audio", help="the codes that a prompt leads to")
    _add_common(audio)
    audio.add_argument("--text", action="append", help="what is said; once for each prompt")
    audio.add_argument(
        "--rows", type=int, nargs="+", default=[0], help="rows said before; a prompt for each"
    )
    audio.set_defaults(run=dump_audio)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)


def dump(args: argparse.Namespace) -> None:
    print(f"{args.out}: {args.run(args)}")


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), dump))
