"""The codec's share: time per decoded frame, streamed and at once, and mlx-audio's beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..codec.checkpoint import Tensors, TensorSource
from ..codec.codec import HiggsCodec
from ..codec.config import CodecConfig
from ..codec.model import CodecDecoder, CodecEncoder
from ..loading import load_codec
from ..sources import codec_beside, resolve
from .peer import peer_module
from .rounds import Contender, ratio, take_turns

CODEC = "mlx_audio.codec.models.higgs_audio"
CHUNK = 25  # frames a push, as the server streams by default
LEAST = 2 * CHUNK  # frames, or there is nothing to join


@dataclass(frozen=True)
class CodecSpeed:
    """Attributes:
    cpu_ms_per_frame, ms_per_frame: of decoding in pieces, as a stream is.
    streamed_over_whole: CPU time of that over the same frames in one piece, same round.
    peer_over_ours: CPU time of mlx-audio's decode over ours; ``peer_over_ours_wall`` by the clock.
    """

    weights: str
    frames: int
    ms_per_frame: float
    cpu_ms_per_frame: float
    streamed_over_whole: float
    peer: str | None = None
    peer_cpu_ms_per_frame: float | None = None
    peer_over_ours: float | None = None
    peer_over_ours_wall: float | None = None


def random_codec(seed: int, config: CodecConfig | None = None) -> tuple[HiggsCodec, TensorSource]:
    """A codec with random decoder weights (the published widths by default), and their source.

    The encoder's are drawn only if somebody asks for them.
    """
    config = config or CodecConfig()
    shapes = _stored_shapes(CodecDecoder(config)) | _stored_shapes(CodecEncoder(config))
    order = {name: index for index, name in enumerate(sorted(shapes))}

    def read(names: Iterable[str]) -> Tensors:
        rng = {name: np.random.default_rng([seed, order[name]]) for name in names}
        return {name: _drawn(name, shapes[name], own) for name, own in rng.items()}

    source = TensorSource(shapes, read)
    return HiggsCodec(config, source), source


def _stored_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names are transformers' already, axes become its ``[out, in, taps]``."""
    shapes = {}
    for name, array in tree_flatten(module.parameters()):
        shape = array.shape  # type: ignore[union-attr]
        if len(shape) == 3:
            out, taps, wide = shape
            shape = (wide, out, taps) if ".conv_t1." in name else (out, wide, taps)
        shapes[name] = (1, *shape, 1) if name.endswith(".alpha") else shape
    return shapes


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> mx.array:
    if name.endswith(".alpha"):
        return mx.ones(shape)
    if len(shape) == 1:
        return mx.zeros(shape)
    bound = (1 / np.prod(shape[1:])) ** 0.5  # half of what keeps a signal's size
    return mx.array(rng.uniform(-bound, bound, shape).astype(np.float32))


def open_codec(name: str, seed: int) -> tuple[HiggsCodec, TensorSource | None]:
    """``random``, or a codec's folder (or the one beside a model).

    Raises:
        InputError: no such folder. CheckpointError: it is no codec.
    """
    if name == "random":
        return random_codec(seed)
    folder = resolve(Path(name) if Path(name).is_dir() else name)
    return load_codec(codec_beside(folder) or folder), None


def measure_codec(
    codec: HiggsCodec,
    source: TensorSource | None,
    *,
    frames: int,
    rounds: int,
    seed: int,
    peer: str | None = None,
) -> CodecSpeed:
    """Decode random codes in turn: in pieces, in one piece, and by mlx-audio.

    Args:
        source: the weights, for the peer; it only knows the published widths.
    """
    codes = _random_codes(codec, max(frames, LEAST), seed)
    pieces = [
        Contender("streamed", _whole_runs(lambda: _streamed(codec, codes))),
        Contender("whole", _whole_runs(lambda: codec.decode(codes))),
    ]
    timings = take_turns(pieces, len(codes), rounds)
    ours = timings["streamed"]
    return CodecSpeed(
        weights="random" if source else "a checkpoint's",
        frames=len(codes),
        ms_per_frame=ours.ms,
        cpu_ms_per_frame=ours.cpu_ms,
        streamed_over_whole=ratio(ours.cpu, timings["whole"].cpu),
        **(_against_peer(codec, source, codes[:frames], rounds, peer) if peer and source else {}),
    )


def _random_codes(codec: HiggsCodec, frames: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, codec.codebook_size, (frames, codec.num_codebooks), dtype=np.int32)


def _against_peer(
    codec: HiggsCodec, source: TensorSource, codes: np.ndarray, rounds: int, peer: str
) -> dict[str, Any]:
    """As many frames as were asked for: it takes ten times as long on a CPU."""
    decoder, same = peer_codec(source), mx.array(codes)
    pair = [
        Contender("ours", _whole_runs(lambda: codec.decode(codes))),
        Contender("peer", _whole_runs(lambda: decoder.decode(same))),
    ]
    timings = take_turns(pair, len(codes), rounds)
    ours, theirs = timings["ours"], timings["peer"]
    return {
        "peer": peer,
        "peer_cpu_ms_per_frame": theirs.cpu_ms,
        "peer_over_ours": ratio(theirs.cpu, ours.cpu),
        "peer_over_ours_wall": ratio(theirs.wall, ours.wall),
    }


def _whole_runs(decode: Callable[[], Any]) -> Callable[[int], None]:
    """A clip is decoded as a whole: ``frames`` of a turn are all of its frames."""

    def work(frames: int) -> None:
        mx.eval(decode())

    return work


def _streamed(codec: HiggsCodec, codes: np.ndarray) -> list[mx.array]:
    decoder = codec.decoder()
    waves = [decoder.push(codes[at : at + CHUNK]) for at in range(0, len(codes), CHUNK)]
    return [*waves, decoder.finish()]


def peer_codec(source: TensorSource) -> Any:
    """mlx-audio's codec with the same decoder weights."""
    config = peer_module(f"{CODEC}.config").HiggsAudioConfig()
    theirs = peer_module(f"{CODEC}.higgs_audio").HiggsAudioTokenizer(config)
    names = _stored_shapes(CodecDecoder(CodecConfig())).keys()
    tensors = theirs.sanitize(source.read(names))
    known = {name for name, _ in tree_flatten(theirs.parameters())}
    assert tensors.keys() <= known, sorted(tensors.keys() - known)[:3]
    theirs.load_weights(list(tensors.items()), strict=False)
    mx.eval(theirs.acoustic_decoder.parameters(), theirs.quantizer.parameters())
    return theirs
