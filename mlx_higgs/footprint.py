"""What a checkpoint will take of the memory there is, and how it is best stored in it.

Everything is told from configs and headers: no weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .codec import checkpoint
from .codec.config import CodecConfig
from .codec.model import CodecDecoder, CodecEncoder
from .frames import PREFILL_POSITIONS
from .loading import open_model
from .memory import gigabytes, machine_limit, parse_size
from .models.cache import Holds, buckets
from .quantization import ORIGINAL, PLANS, Plan, Quantization, quantizable
from .ranks import ALONE, Ranks
from .recipes import Recipe, at_once, of, read
from .shard import check, split_modules
from .types import FRAME_RATE, InputError
from .weights import nbytes, num_weights

AUTO = "auto"  # as a plan: the best that fits
SPEECH, REFERENCE = 60.0, 30.0  # seconds that an expected peak is for
TOKENS_PER_SECOND = 5.0  # of text, for each second of speech
PER_SECOND: dict[Holds, float] = {  # positions, by what a cache holds
    "all": FRAME_RATE + TOKENS_PER_SECOND,
    "audio": FRAME_RATE,
    "text": TOKENS_PER_SECOND,
}
# Buffers of the widest layer alive at once, as measured on the CPU.
PREFILL_BUFFERS = 14
ENCODE_BUFFERS = 16
DECODE_BUFFERS, DECODE_FRAMES = 64, 8  # so many frames go between two evaluations


@dataclass(frozen=True)
class Footprint:
    """Bytes of a checkpoint's parts under one plan.

    Attributes:
        audio: weights that a frame of speech reads, and may be quantised.
        text: those that only text reads and writes: of a prompt, and of an answer in words.
        kept: weights that are never quantised: codebook table, audio head, norms.
        cache: keys and values of 1 min of speech and a reference of 30 s, kept as a voice, too,
            for each stream.
        joining: a layer of the streams' own, a second time while a text joins or leaves them.
        prefill: what computing such a prompt, or listening to its reference, needs meanwhile.
        decoder: the codec's decoder with what a window needs.
        encoding: the codec's encoder with what a reference of 30 s needs.
        streams: texts spoken at once.
    """

    audio: int
    text: int
    kept: int
    cache: int
    joining: int
    prefill: int
    decoder: int
    encoding: int
    streams: int = 1

    @property
    def weights(self) -> int:
        """The talker's."""
        return self.audio + self.text + self.kept

    @property
    def speaking(self) -> int:
        return self.weights + self.cache + max(self.prefill, self.joining) + self.decoder

    @property
    def peak(self) -> int:
        """A reference is encoded before the talker is read (``load(..., read_now=False)``)."""
        return max(self.speaking, self.encoding + self.decoder)

    @property
    def together(self) -> int:
        """The peak when a reference is encoded while the talker is in memory, and others speak."""
        others = self.cache if self.streams > 1 else 0
        return max(self.speaking, self.weights + self.decoder + others + self.encoding)


def footprint(
    model: Any,
    plan: Plan,
    codec: CodecConfig | None = None,
    *,
    streams: int = 1,
    ranks: Ranks = ALONE,
) -> Footprint:
    """What an opened talker will take with its weights stored by ``plan``.

    Args:
        model: as ``loading.open_model`` gives it: shapes and dtypes, nothing read.
        codec: None leaves the codec out.
        streams: texts spoken at once.
        ranks: each of which holds a part of the talker: what one of them takes.

    Raises:
        InputError: a width that the weights cannot take, or more ranks than there can be.
    """
    sides = _weights(model, plan, ranks)
    decoder, encoding = (0, 0) if codec is None else _codec(codec)
    prompt = _prompt(model, streams, ranks.size)
    return Footprint(**sides, **prompt, decoder=decoder, encoding=encoding, streams=streams)


def _weights(model: Any, plan: Plan, ranks: Ranks) -> dict[str, int]:
    chosen = quantizable(model, plan)
    check(model, ranks, chosen)
    cut = split_modules(model)
    text_side = re.compile(model.TEXT_SIDE)
    sizes = {"audio": 0, "text": 0, "kept": 0}
    for path, module in model.named_modules():
        if module.children():
            continue
        floats = model.quant_predicate(path, module) or "scales" in module
        side = "text" if text_side.fullmatch(path) else "audio" if floats else "kept"
        sizes[side] += _size(module, chosen.get(path)) // (ranks.size if path in cut else 1)
    return sizes


def _size(module: Any, how: Quantization | None) -> int:
    """Bytes of a module, stored as ``how`` says."""
    if how is None:
        return nbytes(module)
    return how.nbytes(module.weight.size, module.weight.itemsize)


def bits_per_weight(model: Any, plan: Plan = ORIGINAL) -> float:
    """Stored bits, those of scales included, of each weight that may be quantised.

    Args:
        model: stored as it is, or opened to be stored by ``plan``.
    """
    chosen = quantizable(model, plan)
    size = count = 0
    for path, module in model.named_modules():
        if "scales" in module or model.quant_predicate(path, module):
            count += num_weights(module)
            size += _size(module, chosen.get(path))
    return 8 * size / count


def _prompt(model: Any, streams: int, parts: int) -> dict[str, int]:
    """The voice is computed before the text, and kept for the next request beside this one's."""
    args, item = model.args, model.norm.weight.itemsize
    position = 2 * args.num_key_value_heads * args.head_dim * item // parts  # of one cache
    holds = [cache.holds for cache in model.make_cache()]
    heard = model.hearing.features * FRAME_RATE  # in the system turn a reference is heard as well
    voices = [math.ceil(REFERENCE * (PER_SECOND[h] + heard * (h != "audio"))) for h in holds]
    spoken = [math.ceil(SPEECH * PER_SECOND[h]) for h in holds]
    wholes = [buckets(v + s) for v, s in zip(voices, spoken, strict=True)]
    widest = max(args.intermediate_size // parts, args.hidden_size)
    prefill = PREFILL_BUFFERS * min(max(voices), PREFILL_POSITIONS) * widest * item
    return {
        "cache": streams * (sum(voices) + sum(wholes)) * position,
        "joining": streams * max(wholes) * position if streams > 1 else 0,
        "prefill": max(prefill, model.listening_bytes),
    }


def _codec(config: CodecConfig) -> tuple[int, int]:
    decoder, encoder = (nbytes(part(config)) for part in (CodecDecoder, CodecEncoder))
    narrowest = config.decoder_width // 2 ** len(config.strides)
    window = DECODE_BUFFERS * DECODE_FRAMES * config.hop * narrowest * 4
    wave = ENCODE_BUFFERS * round(REFERENCE * config.sample_rate) * config.encoder_width * 4
    return decoder + window, encoder + wave


def codec_config(folder: Path) -> CodecConfig:
    """A codec's sizes from its headers.

    Raises:
        CheckpointError: not a codec.
    """
    source, declared = checkpoint.open_folder(folder)
    return CodecConfig.from_shapes(checkpoint.as_transformers(source).shapes, declared)


@dataclass(frozen=True)
class Choice:
    """How a checkpoint is to be stored, and what is then expected.

    Attributes:
        peak: bytes expected.
        line: what a person should be told before the load; None if it goes without saying.
    """

    folder: Path
    recipe: Recipe
    expected: Footprint
    peak: int
    limit: int | None
    line: str | None

    @property
    def plan(self) -> Plan:
        return self.recipe.plan

    @property
    def roomy(self) -> bool:
        """Whether a reference can be encoded while the talker is in memory."""
        return self.limit is None or self.expected.together <= self.limit


def choose(
    folder: Path,
    codec_folder: Path,
    asked: str | None = None,
    limit: str | None = None,
    *,
    source: str = "SOURCE",
    streams: int = 1,
    late_clips: bool = False,
    text_head: bool = False,
    ranks: Ranks = ALONE,
) -> Choice:
    """The plan for a checkpoint: the one asked for, or the best that fits.

    Args:
        asked: as ``recipes.read`` reads it, ``auto``, or None: nothing is quantised that need not
            be.
        limit: as ``parse_size`` reads it; None is the machine's.
        source: what the user calls the checkpoint.
        streams: texts spoken at once.
        late_clips: references are encoded while the talker is in memory.
        text_head: loaded, too.
        ranks: each of which holds a part of the talker, and has the same ``limit``.

    Raises:
        InputError: a recipe or a limit that cannot be read, a recipe that needs a conversion, or
            too little memory: what would fit.
        CheckpointError: a checkpoint that cannot be used.
    """
    named = None if asked is None or asked == AUTO else at_once(read(asked), source)
    plan = None if named is None else named.plan
    allowed = machine_limit() if limit is None else parse_size(limit)
    model = open_model(folder, text_head=text_head)
    if plan is not None or ranks.size > 1:
        open_model(folder, quantize=plan, text_head=text_head, ranks=ranks)  # raises, as loading
    looked_at: dict[Plan, int] = {}
    for candidate, expected in _sizes(model, codec_config(codec_folder), plan, streams, ranks):
        peak = expected.together if late_clips else expected.peak
        looked_at[candidate] = peak
        if allowed is None or (peak <= allowed and plan in (None, candidate)):
            break
    else:
        raise InputError(_refusal(named, looked_at, allowed or 0, streams))
    line = f"{gigabytes(allowed)} of memory: " if allowed is not None else ""
    recipe = named or of(candidate)
    line += f"loading {_bits(candidate, named)}, expected peak {gigabytes(peak, up=True)}"
    line += f" with {streams} texts at once" if streams > 1 else ""
    line += f" on each of {ranks.size} ranks" if ranks.size > 1 else ""
    told = asked or limit or len(looked_at) > 1 or ranks.size > 1
    return Choice(folder, recipe, expected, peak, allowed, line if told else None)


def _sizes(
    model: Any, codec: CodecConfig, first: Plan | None, streams: int, ranks: Ranks
) -> Iterator[tuple[Plan, Footprint]]:
    """Plans that a model's widths allow: ``first``, then the named ones, best first.

    What is quantised already can only stay so.
    """
    stored = any("scales" in module for module in model.modules())
    for plan in dict.fromkeys([first, Plan()] if stored else [first, *PLANS.values()]):
        if plan is not None:
            with suppress(InputError):
                yield plan, footprint(model, plan, codec, streams=streams, ranks=ranks)


def _bits(plan: Plan, named: Recipe | None = None) -> str:
    if plan == Plan():
        return "as it is stored"
    if plan in PLANS.values() or named is None:
        return f"at {plan.name} bits"
    return f"as the recipe {named.name} has it"


def _refusal(named: Recipe | None, needs: dict[Plan, int], limit: int, streams: int) -> str:
    plan = None if named is None else named.plan
    there = f"there are {gigabytes(limit)}"
    fits = next((p for p in needs if needs[p] <= limit), None)
    if plan is not None and fits is not None:
        return (
            f"Loaded {_bits(plan, named)}, the model needs {gigabytes(needs[plan], up=True)}, "
            f"and {there}. {_bits(fits).capitalize()} it needs {gigabytes(needs[fits], up=True)}: "
            f"--quantize {fits.name}."
        )
    least = min(needs, key=lambda p: needs[p])
    asked = named if least == plan else None
    fewer = "lower --max-batch, " if streams > 1 else ""
    return (
        f"The model needs at least {gigabytes(needs[least], up=True)} {_bits(least, asked)}, "
        f"and {there}. "
        f"Free some, {fewer}or say how much it may take with --memory-limit."
    )
