"""The codec against the reference: the same codes from a waveform, the same waveform back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import numpy as np

from ..loading import load_codec
from ..sources import codec_beside, resolve
from .golden import read_golden

if TYPE_CHECKING:
    from ..codec.codec import LengthMode


@dataclass(frozen=True)
class CodecReport:
    """How far a codec is from its golden file.

    Attributes:
        frames: frames in the golden codes; frames_ours: frames of our encoding.
        code_agreement: share of equal codes; frames one side lacks count as different.
        decode_max_abs: largest difference of a sample of the decoded golden codes.
        lag_samples: by how much our waveform is late, from the cross-correlation.
    """

    frames: int
    frames_ours: int
    code_agreement: float
    decode_max_abs: float
    lag_samples: int


def codec_parity(checkpoint: str | Path, golden_path: Path) -> CodecReport:
    """Compare a codec (or the one beside a model) with ``convert/dump_golden.py codec``.

    Raises:
        InputError: the two do not fit together. CheckpointError: the checkpoint is unusable.
    """
    golden, metadata = read_golden(golden_path, ("wave", "codes", "audio"))
    folder = resolve(checkpoint)
    codec = load_codec(codec_beside(folder) or folder)
    mode = cast("LengthMode", metadata.get("length_mode", "boson"))  # encode checks it
    codes = np.array(codec.encode(golden["wave"], length_mode=mode))
    audio = np.array(codec.decode(mx.array(golden["codes"].astype(np.int32))))
    shared = min(len(codes), len(golden["codes"]))
    equal = (codes[:shared] == golden["codes"][:shared]).sum()
    length = min(len(audio), len(golden["audio"]))
    return CodecReport(
        frames=len(golden["codes"]),
        frames_ours=len(codes),
        code_agreement=float(equal / max(codes.size, golden["codes"].size)),
        decode_max_abs=float(np.abs(audio[:length] - golden["audio"][:length]).max()),
        lag_samples=lag(audio[:length], golden["audio"][:length]),
    )


def lag(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Samples by which ``ours`` is late: the peak of the cross-correlation."""
    size = 2 * max(len(ours), len(theirs))
    spectrum = np.fft.rfft(ours, size) * np.conj(np.fft.rfft(theirs, size))
    peak = int(np.argmax(np.fft.irfft(spectrum, size)))
    return peak - size if peak > size // 2 else peak
