"""Run both references' own generation code on scripted and on constant logits.

    python convert/dump_delay.py delay OUT.json --boson-repo HIGGS_AUDIO_CHECKOUT
    python convert/dump_delay.py ras OUT.json --boson-repo HIGGS_AUDIO_CHECKOUT

`delay` feeds the same raw samples to both and keeps the rows that come out; `ras` counts how
often repetition-aware sampling lets the likeliest code through.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

from mlx_higgs.cli import run

if TYPE_CHECKING:
    import numpy as np
    import torch

Rows = list[list[int]]

# ---------------------------------------------------------------- the two references


class BosonLoop:
    """Boson's sampling method and trimming, without a language model in front."""

    def __init__(self, repo: Path, K: int, bos: int, eos: int):
        from convert.boson_repo import import_boson

        modeling = import_boson(repo)
        self.K, self.bos = K, bos
        config = SimpleNamespace(
            audio_stream_bos_id=bos, audio_stream_eos_id=eos, audio_out_token_idx=-1
        )
        self.model: Any = SimpleNamespace(
            config=config, use_delay_pattern=True, audio_num_codebooks=K
        )
        method = modeling.HiggsAudioModel._sample_audio_tokens
        self.model._sample_audio_tokens = lambda **options: method(self.model, **options)
        self.revert = sys.modules[f"{modeling.__package__}.utils"].revert_delay_pattern

    def rows(self, logits: torch.Tensor, **sampling: Any) -> Rows:
        """Logits ``[F, K, V]``, one step each -> rows, from the all-BOS row to the last."""
        import torch

        from convert.boson_repo import Sampler

        sampler = Sampler(self.model, **sampling)
        history = torch.full((self.K, len(logits) + 1), self.bos)
        used = 1
        for step in logits:
            row = sampler.next_row(step[None], history[:, :used])
            history[:, used] = row
            used += 1
            if sampler.finished:
                break
        return history[:, :used].T.tolist()

    def columns(self, rows: Rows) -> Rows | None:
        """Aligned codes as its examples trim them, or None where they crash."""
        import torch

        try:  # examples/generation.py: revert, clip, drop the first and the last column
            aligned = self.revert(torch.tensor(rows).T).clip(0, self.bos - 1)[:, 1:-1]
        except RuntimeError:
            return None
        return aligned.T.tolist()


class TransformersLoop:
    """transformers' ``generate`` and ``batch_decode`` around a model that only recites."""

    def __init__(self, K: int, bos: int):
        import transformers
        from transformers.modeling_outputs import CausalLMOutputWithPast

        from convert.layouts import NUM_SPECIAL, Widths, transformers_config

        class Reciter(transformers.HiggsAudioV2ForConditionalGeneration):
            script: Any = None  # [F, K, V]
            position = 0

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                step = self.script[self.position]
                self.position += 1
                return CausalLMOutputWithPast(logits=step.reshape(1, 1, -1))

        widths = Widths(
            hidden_size=8,
            intermediate_size=8,
            layers=1,
            heads=1,
            kv_heads=1,
            head_dim=8,
            vocab_size=NUM_SPECIAL + 16,
            first_special=16,
            codebooks=K,
            codes=bos,
        )
        config = transformers.HiggsAudioV2Config(**transformers_config(widths))
        self.model: Any = Reciter(config).eval()
        self.bos = bos
        self.processor_class: Any = transformers.HiggsAudioV2Processor

    def rows(self, logits: torch.Tensor, **sampling: Any) -> Rows:
        """Logits ``[F, K, V]`` of the steps after the all-BOS row -> every row."""
        import torch

        self.model.script = torch.cat([logits[:1], logits])  # its own first row is forced to BOS
        self.model.position = 0
        # read as attributes of the configuration only: generate() refuses them as arguments
        for name in ("ras_win_len", "ras_win_max_num_repeat"):
            setattr(self.model.generation_config, name, sampling.pop(name, None))
        options = {"do_sample": False, **sampling}
        prompt = torch.tensor([[*range(10), self.model.config.audio_bos_token_id]])
        steps = len(self.model.script)
        ids = self.model.generate(prompt, max_new_tokens=steps, use_cache=False, **options)
        return ids[0].tolist()

    def columns(self, rows: Rows) -> Rows | None:
        """Aligned codes as its processor hands them to the codec, or None where it crashes."""
        import torch

        seen: list[torch.Tensor] = []

        def decode(codes: torch.Tensor) -> Any:
            seen.append(codes)
            return SimpleNamespace(audio_values=torch.zeros(1))

        cls = self.processor_class
        processor = SimpleNamespace(
            audio_stream_bos_id=self.bos,
            audio_stream_eos_id=self.bos + 1,
            audio_tokenizer=SimpleNamespace(decode=decode),
            revert_delay_pattern=lambda ids: cls.revert_delay_pattern(processor, ids),
        )
        try:
            cls.batch_decode(processor, torch.tensor([rows]))
        except (RuntimeError, IndexError):
            return None
        return seen[0][0].T.tolist()


# ---------------------------------------------------------------- delay cases


def eos_cases(K: int, bos: int, eos: int) -> dict[str, np.ndarray]:
    """Samples ``[F, K]`` by name: ways a stream can end at row 12, at row 1, or never."""
    import numpy as np

    rng = np.random.default_rng(0)
    at = 12 - 1  # sampled rows begin with row 1

    def speech() -> np.ndarray:
        return rng.integers(0, bos, (29, K))

    cases = {name: speech() for name in ("textbook", "first only", "fourth first", "last first")}
    for k in range(K):
        cases["textbook"][at + k, k] = eos
    for name, k in (("first only", 0), ("fourth first", 3), ("last first", K - 1)):
        cases[name][at, k] = eos
    cases["first and third together"] = speech()
    cases["first and third together"][at, [0, 2]] = eos
    cases["all at once"] = speech()
    cases["all at once"][at] = eos
    cases["at the very first row"] = speech()
    cases["at the very first row"][0] = eos
    cases["cut by the limit"] = speech()
    return cases


def random_cases(count: int, K: int, bos: int, eos: int, seed: int) -> dict[str, np.ndarray]:
    """Noise in which EOS (and now and then BOS) turns up anywhere, sooner or later."""
    import numpy as np

    rng = np.random.default_rng(seed)
    cases = {}
    for i in range(count):
        short = i % 5 == 0  # cut before a column is complete, or just after
        samples = rng.integers(0, bos, (int(rng.integers(1, 2 * K) + (0 if short else 2 * K)), K))
        samples[rng.random(samples.shape) < rng.choice([0.003, 0.01, 0.03, 0.1])] = eos
        samples[rng.random(samples.shape) < rng.choice([0.0, 0.0, 0.02])] = bos
        cases[f"random {i} of {K}"] = samples
    return cases


def dump_delay(args: argparse.Namespace) -> str:
    import numpy as np
    import torch

    cases = []
    for K, codes in ((8, 10), (3, 6)):
        bos, eos = codes, codes + 1
        boson, hf = BosonLoop(args.boson_repo, K, bos, eos), TransformersLoop(K, bos)
        scripts = eos_cases(K, bos, eos) if K == 8 else {}
        scripts |= random_cases(args.random, K, bos, eos, seed=K)
        for name, samples in scripts.items():
            logits = torch.from_numpy(10.0 * np.eye(codes + 2, dtype=np.float32)[samples])
            b, h = boson.rows(logits), hf.rows(logits)
            case = {"name": name, "num_codebooks": K, "bos": bos, "eos": eos}
            case |= {"sampled": samples.tolist(), "boson_rows": b, "transformers_rows": h}
            case |= {"boson_columns": boson.columns(b), "transformers_columns": hf.columns(h)}
            cases.append(case)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    args.out.write_text(f"[\n{lines}\n]\n")
    return f"{len(cases)} cases"


# ---------------------------------------------------------------- repetition-aware sampling

# one id stands above all others, which share a logit of 0; the marker ids that do not stand out
# get NEVER, so that nothing ends. temperature 0 is greedy, top_k 0 and top_p 1 are off.
NEVER = -30.0
RAS_SETUPS: list[dict[str, Any]] = [
    {"name": "a code", "codes": 98, "peak_id": 5, "peak_logit": 3.5}
    | {"temperature": 0.6, "top_k": 0, "top_p": 0.95},
    {"name": "BOS", "codes": 98, "peak_id": 98, "peak_logit": 3.5}
    | {"temperature": 0.6, "top_k": 0, "top_p": 0.95},
    {"name": "a code, hub settings", "codes": 1024, "peak_id": 7, "peak_logit": 6.0}
    | {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    {"name": "a code, greedy", "codes": 64, "peak_id": 9, "peak_logit": 3.0}
    | {"temperature": 0.0, "top_k": 0, "top_p": 1.0},
]
RAS = {"ras_win_len": 7, "ras_win_max_num_repeat": 2}
RAS_CODEBOOKS = 2


def dump_ras(args: argparse.Namespace) -> str:
    import torch

    results = []
    for setup in RAS_SETUPS:
        torch.manual_seed(0)
        codes = setup["codes"]
        boson = BosonLoop(args.boson_repo, RAS_CODEBOOKS, codes, codes + 1)
        hf = TransformersLoop(RAS_CODEBOOKS, codes)
        logits = _constant_logits(setup, args.frames)
        hf_options = _generate_options(setup)
        runs = {
            "plain": boson.rows(logits, **_sampler_options(setup)),
            "boson": boson.rows(logits, **_sampler_options(setup), **RAS),
            "transformers": hf.rows(logits, **hf_options, **RAS),
        }
        measured = {name: _frequency(rows, setup["peak_id"]) for name, rows in runs.items()}
        results.append(setup | {"frequency": measured})
    content = {"num_codebooks": RAS_CODEBOOKS, "frames": args.frames, "marker_logit": NEVER}
    args.out.write_text(json.dumps(content | RAS | {"setups": results}, indent=1) + "\n")
    return ", ".join(f"{r['name']} {r['frequency']}" for r in results)


def _constant_logits(setup: dict[str, Any], frames: int) -> torch.Tensor:
    import torch

    logits = torch.zeros(setup["codes"] + 2)
    logits[-2:] = NEVER
    logits[setup["peak_id"]] = setup["peak_logit"]
    return logits.expand(frames, RAS_CODEBOOKS, -1)


def _sampler_options(setup: dict[str, Any]) -> dict[str, Any]:
    from transformers.generation import logits_process as warpers

    chosen = warpers.LogitsProcessorList()
    if setup["temperature"] not in (0.0, 1.0):
        chosen.append(warpers.TemperatureLogitsWarper(setup["temperature"]))
    if setup["top_k"]:
        chosen.append(warpers.TopKLogitsWarper(setup["top_k"]))
    if setup["top_p"] < 1:
        chosen.append(warpers.TopPLogitsWarper(setup["top_p"]))
    return {"processor": chosen, "do_sample": setup["temperature"] > 0}


def _generate_options(setup: dict[str, Any]) -> dict[str, Any]:
    if setup["temperature"] == 0:
        return {"do_sample": False}
    return {"do_sample": True} | {name: setup[name] for name in ("temperature", "top_k", "top_p")}


def _frequency(rows: Rows, wanted: int) -> float:
    settled = rows[RAS_CODEBOOKS + 1 :]  # behind the ramp-in, where nothing is forced
    hits = sum(row.count(wanted) for row in settled)
    return round(hits / (len(settled) * RAS_CODEBOOKS), 4)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run the references' sampling code on scripts.")
    parser.add_argument("what", choices=["delay", "ras"])
    parser.add_argument("out", type=Path, help="the .json file to write")
    parser.add_argument("--boson-repo", type=Path, required=True, help="boson-ai/higgs-audio")
    parser.add_argument("--random", type=int, default=20, help="random cases for each K")
    parser.add_argument("--frames", type=int, default=20_000, help="rows of each ras run")
    return parser


def dump(args: argparse.Namespace) -> None:
    report = dump_delay(args) if args.what == "delay" else dump_ras(args)
    print(f"{args.out}: {report}")


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), dump))
