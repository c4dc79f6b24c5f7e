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
from .models.cache import buckets
from .quantization import PLANS, Plan, quantizable
from .ranks import ALONE, Ranks
from .shard import check, split_modules
from .types import FRAME_RATE, InputError
from .weights import named_arrays

AUTO = "auto"  # as a plan: the best that fits
SPEECH, REFERENCE = 60.0, 30.0  # seconds that an expected peak is for
TOKENS_PER_SECOND = 5.0  # of text, for each second of speech
# Buffers of the widest layer alive at once, as measured on the CPU.
PREFILL_BUFFERS = 14
ENCODE_BUFFERS = 16
DECODE_BUFFERS, DECODE_FRAMES = 64, 8  # so many frames go between two evaluations


@dataclass(frozen=True)
class Footprint:
    """Bytes of a checkpoint's parts under one plan.

    Attributes:
        audio: weights that a frame of speech reads, and may be quantised.
        text: those that only a prompt's text reads.
        kept: weights that are never quantised: codebook table, audio head, norms.
        cache: keys and values of 1 min of speech and a reference of 30 s, kept as a voice, too,
            for each stream.
        joining: a layer of the streams' own, a second time while a text joins or leaves them.
        prefill: what computing such a prompt needs meanwhile.
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
        size = sum(array.nbytes for array in named_arrays(module).values())
        if how := chosen.get(path):
            size = module.weight.size * how.bits // 8
            groups = module.weight.size // how.group_size
            # affine: a scale and a bias in the weights' own dtype; the float modes: a byte
            size += groups * (2 * module.weight.itemsize if how.mode == "affine" else 1)
        sizes[side] += size // (ranks.size if path in cut else 1)
    return sizes


def _prompt(model: Any, streams: int, parts: int) -> dict[str, int]:
    """The voice is computed before the text, and kept for the next request beside this one's."""
    args, item = model.args, model.norm.weight.itemsize
    voice = math.ceil(REFERENCE * (FRAME_RATE + TOKENS_PER_SECOND))
    whole = voice + math.ceil(SPEECH * (FRAME_RATE + TOKENS_PER_SECOND))
    layers = args.num_hidden_layers
    position = 2 * layers * args.num_key_value_heads * args.head_dim * item // parts
    widest = max(args.intermediate_size // parts, args.hidden_size)
    return {
        "cache": streams * (voice + buckets(whole)) * position,
        "joining": streams * buckets(whole) * position // layers if streams > 1 else 0,
        "prefill": PREFILL_BUFFERS * min(voice, PREFILL_POSITIONS) * widest * item,
    }


def _codec(config: CodecConfig) -> tuple[int, int]:
    decoder, encoder = (
        sum(array.nbytes for array in named_arrays(part(config)).values())
        for part in (CodecDecoder, CodecEncoder)
    )
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
    plan: Plan
    expected: Footprint
    peak: int
    limit: int | None
    line: str | None

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
    streams: int = 1,
    late_clips: bool = False,
    ranks: Ranks = ALONE,
) -> Choice:
    """The plan for a checkpoint: the one asked for, or the best that fits.

    Args:
        asked: as ``Plan.parse`` reads it, ``auto``, or None: nothing is quantised that need not be.
        limit: as ``parse_size`` reads it; None is the machine's.
        streams: texts spoken at once.
        late_clips: references are encoded while the talker is in memory.
        ranks: each of which holds a part of the talker, and has the same ``limit``.

    Raises:
        InputError: a plan or a limit that cannot be read, or too little memory: what would fit.
        CheckpointError: a checkpoint that cannot be used.
    """
    plan = None if asked is None or asked == AUTO else Plan.parse(asked)
    allowed = machine_limit() if limit is None else parse_size(limit)
    model = open_model(folder)
    if plan is not None or ranks.size > 1:
        open_model(folder, quantize=plan, ranks=ranks)  # raises what loading would
    looked_at: dict[Plan, int] = {}
    for candidate, expected in _sizes(model, codec_config(codec_folder), plan, streams, ranks):
        peak = expected.together if late_clips else expected.peak
        looked_at[candidate] = peak
        if allowed is None or (peak <= allowed and plan in (None, candidate)):
            break
    else:
        raise InputError(_refusal(plan, looked_at, allowed or 0, streams))
    line = f"{gigabytes(allowed)} of memory: " if allowed is not None else ""
    line += f"loading {_bits(candidate)}, expected peak {gigabytes(peak, up=True)}"
    line += f" with {streams} texts at once" if streams > 1 else ""
    line += f" on each of {ranks.size} ranks" if ranks.size > 1 else ""
    told = asked or limit or len(looked_at) > 1 or ranks.size > 1
    return Choice(folder, candidate, expected, peak, allowed, line if told else None)


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


def _bits(plan: Plan) -> str:
    return "as it is stored" if plan == Plan() else f"at {plan.name} bits"


def _refusal(plan: Plan | None, needs: dict[Plan, int], limit: int, streams: int) -> str:
    there = f"there are {gigabytes(limit)}"
    fits = next((p for p in needs if needs[p] <= limit), None)
    if plan is not None and fits is not None:
        return (
            f"Loaded {_bits(plan)}, the model needs {gigabytes(needs[plan], up=True)}, "
            f"and {there}. {_bits(fits).capitalize()} it needs {gigabytes(needs[fits], up=True)}: "
            f"--quantize {fits.name}."
        )
    least = min(needs, key=lambda p: needs[p])
    fewer = "lower --max-batch, " if streams > 1 else ""
    return (
        f"The model needs at least {gigabytes(needs[least], up=True)} {_bits(least)}, and {there}. "
        f"Free some, {fewer}or say how much it may take with --memory-limit."
    )
