"""A recording of a user or the system turn -> the stretches that a checkpoint hears, each alone.

Source: Boson's collator (``_process_and_duplicate_audio_tokens``) and, for what each stretch holds,
``merge_input_ids_with_audio_features``: features first, then codes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..types import (
    FRAME_RATE,
    HEARING_RATE,
    STRETCH,
    Audio,
    Heard,
    Hearing,
    InputError,
    Prompt,
    Recording,
)

STRETCH_FRAMES = round(STRETCH / HEARING_RATE * FRAME_RATE)  # 750 frames of codes


def stretches(recording: Recording, hearing: Hearing) -> Iterator[Prompt]:
    """What stands between the tokens of each clip that a recording is made into.

    Where there is a tower, a recording of more than 30 s is cut; its codes are cut with it, which
    the reference leaves undone: it fails there. Without a tower a clip has any length.

    Raises:
        InputError: the recording lacks what this checkpoint reads, or it reads none.
    """
    codes, wave = recording.codes, recording.wave
    if not hearing.features and not hearing.codes:
        raise InputError(
            "This checkpoint hears no recordings: give it text, and voices that speak in a turn of "
            "their own (not in the system turn)."
        )
    if hearing.codes and (codes is None or not len(codes)):
        raise InputError("This checkpoint hears a recording's codes: encode it first.")
    if not hearing.features:
        assert codes is not None
        yield [Audio(codes, spoken=False)]
        return
    if wave is None or not len(wave):
        raise InputError(
            "This checkpoint listens to recordings, and of one it has the codes alone: give the "
            "clip itself (a file, or a voice made from it by this checkpoint)."
        )
    count = -(-len(wave) // STRETCH)
    for index in range(count):
        heard: Prompt = [Heard(wave[index * STRETCH : (index + 1) * STRETCH])]
        if hearing.codes:
            assert codes is not None
            first = index * STRETCH_FRAMES
            last = None if index == count - 1 else first + STRETCH_FRAMES
            some = codes[first:last]
            heard += [Audio(some, spoken=False)] if len(some) else []
        yield heard
