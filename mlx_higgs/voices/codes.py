"""A voice's codes, computed when it is added: the first request in it need not."""

from __future__ import annotations

from pathlib import Path

from .. import audio
from ..loading import load
from ..prefix import AUTO, ClipCodes, fingerprint, voice_folder


def keep_codes(
    clip: Path, model: str, *, codec: str | None = None, revision: str | None = None
) -> tuple[int, Path | None]:
    """Encode a clip by a checkpoint's codec and keep the codes by the clip's content.

    They go to the folder where `HiggsAudioServer` looks for them, and so `generate`, `narrate` and
    the server; who comes first computes what is not there.

    Returns:
        Frames, and that folder: None for a model so small that nothing is kept on disk.

    Raises:
        InputError: a model or a clip that cannot be used.
    """
    higgs = load(model, codec=codec, revision=revision, read_now=False)
    folder = voice_folder(AUTO, higgs.path)
    known = "" if folder is None else fingerprint(higgs.codec_folder)
    wave = audio.read_reference(clip, higgs.codec.sample_rate)
    return len(ClipCodes(higgs.codec, known, folder=folder).get(wave)), folder
