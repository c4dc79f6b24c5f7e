"""The voices there are, and the folder to which one may add more."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..audio import read_reference
from ..text import is_blank
from ..types import InputError
from .changes import Change, holding, recover
from .clip import read_bytes, read_clip
from .folders import (
    NAME,
    PRESETS,
    Reference,
    UnknownVoice,
    find_voice,
    known_names,
    own_folder,
    presets,
    reference,
    voice_folders,
    voices_in,
)
from .prepare import prepare

MAX_VOICES = 1000
MAX_WORDS = 2000  # characters of a transcript: a minute of fast speech has 1,500
MAX_ABOUT = 16 << 10  # bytes
RESERVED = Path(PRESETS).stem  # its description would take the place of the folder's presets


class LibraryFull(InputError):  # noqa: N818
    """The folder holds as many voices as it may."""


class VoiceExists(InputError):  # noqa: N818
    """The name is taken."""


@dataclass(frozen=True)
class StoredVoice:
    """A voice on disk.

    Attributes:
        about: ``sha256`` (of the clip), ``source_sha256``, ``seconds``, ``done`` (what was done to
            the clip), ``created`` (ISO 8601), ``description`` and what else was said; empty for
            voices that nobody added.
    """

    name: str
    clip: Path
    transcript: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> Reference:
        return Reference(self.clip, self.transcript, self.name)


@dataclass(frozen=True)
class NewVoice:
    """What `VoiceLibrary.add_all` takes."""

    name: str
    audio: Path | bytes
    transcript: str
    about: Mapping[str, Any] = field(default_factory=dict)


class VoiceLibrary:
    """Voices by name. Safe to use from several threads and processes at once.

    Args:
        folder: where `add` writes, made when needed; it comes first in every search. None: the
            first folder of ``$MLX_HIGGS_VOICES``, or the user's own.
        others: folders that are only read; None: all that `voice_folders` names.
        limit: voices in ``folder``.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        others: Iterable[Path] | None = None,
        limit: int = MAX_VOICES,
    ):
        self.folder = own_folder() if folder is None else Path(folder)
        self.others = list(voice_folders() if others is None else others)
        self.limit = limit

    def names(self) -> list[str]:
        """All names there are, sorted."""
        recover(self.folder)
        return sorted(self._names())

    def all(self) -> list[StoredVoice]:
        """All voices that have words, by name: quicker than one by one."""
        recover(self.folder)
        found = {}
        for folder in reversed(self._folders):
            listed = presets(folder)
            for name, clip in voices_in(folder).items():
                words = listed[name][1] if name in listed else None
                with suppress(InputError):
                    found[name] = _stored(reference(clip, words, name=name))
        return [found[name] for name in sorted(found)]

    def get(self, name: str) -> StoredVoice:
        """A voice by name.

        Raises:
            UnknownVoice: the message lists the known ones. InputError: it has no words.
        """
        recover(self.folder)
        return _stored(find_voice(name, self._folders))

    def reference(self, name: str) -> Reference:
        """As `get`, for a request."""
        return self.get(name).reference

    def heard(self, name: str) -> Reference:
        """As `reference`, with the clip's samples: these are its words, whoever replaces it.

        Raises:
            InputError: as `get`; a clip that cannot be used.
        """
        voice = self.reference(name)
        while True:
            failure, wave, stamp = None, None, _stamp(voice.path)
            try:
                wave = read_reference(voice.path)
            except InputError as error:
                failure = error
            now = self.reference(name)  # once a change that is under way is done
            if now == voice and _stamp(now.path) == stamp:
                break
            voice = now
        if failure is not None:
            raise failure
        return dataclasses.replace(voice, wave=wave)

    def add(
        self,
        name: str,
        audio: Path | bytes,
        transcript: str,
        *,
        replace: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> StoredVoice:
        """Prepare a clip and keep it: there whole or not at all, whenever the process is killed.

        Args:
            name: 1 to 64 of ``A-Z a-z 0-9 _ . -``, the first no dot.
            audio: a WAV, FLAC, MP3 or OGG file, or what one holds.
            transcript: the clip's exact words.
            replace: a voice of that name.
            about: what else to keep of it, such as its ``description``.

        Raises:
            InputError: a name, a clip or words that cannot be used, a folder that cannot be written
                to. VoiceExists, LibraryFull. OSError: a full disk.
        """
        (voice,) = self.add_all([NewVoice(name, audio, transcript, about or {})], replace=replace)
        return voice

    def add_all(self, voices: Iterable[NewVoice], *, replace: bool = False) -> list[StoredVoice]:
        """As `add`, for many: all of them or none. One clip at a time is in memory."""
        change = Change(self.folder)
        try:
            self._check_room((), replace)
            for voice in voices:
                if voice.name in change.names:
                    raise InputError(f"The voice {voice.name!r} comes twice.")
                self._check_room({*change.names, checked_name(voice.name)}, replace)
                change.put(voice.name, files(voice))
            if change.names:
                with holding(self.folder):
                    self._check_room(change.names, replace)
                    change.commit()
        finally:
            change.discard()
        clips = [self.folder / f"{name}.wav" for name in sorted(change.names)]
        return [_stored(reference(clip)) for clip in clips]

    def remove(self, name: str) -> None:
        """Delete a voice of the folder.

        Raises:
            UnknownVoice: there is none of that name. InputError: it is not for us to delete.
        """
        recover(self.folder)
        self._check_own(name)
        change = Change(self.folder)
        try:
            change.drop(name)
            with holding(self.folder):
                self._check_own(name)
                change.commit()
        finally:
            change.discard()

    @property
    def _folders(self) -> list[Path]:
        return [self.folder, *self.others]

    def _names(self) -> set[str]:
        """Without waiting for the folder's lock, which we may hold."""
        return {name for folder in self._folders for name in voices_in(folder)}

    def _check_room(self, new: Collection[str], replace: bool) -> None:
        """Raises VoiceExists or LibraryFull."""
        here = voices_in(self.folder)
        taken = set() if replace else self._names()
        capitals = {name.casefold(): name for name in here}
        listed = presets(self.folder)
        for name in sorted(new):
            if name in listed:  # and would stay the one that is found
                raise VoiceExists(f"The voice {name!r} is listed in {self.folder / PRESETS}.")
            if name in taken:
                raise VoiceExists(f"There is a voice {name!r}: use another name, or --replace.")
            if (other := capitals.setdefault(name.casefold(), name)) != name:
                raise VoiceExists(f"The voice {name!r} is {other!r} in other capitals: rename it.")
        if len(here.keys() | set(new)) > max(self.limit, len(here)):
            raise LibraryFull(
                f"{self.folder} holds {len(here)} voices, and {self.limit} are the most: remove "
                "some first."
            )

    def _check_own(self, name: str) -> None:
        """Raises InputError for a voice that is not ours to delete."""
        here = voices_in(self.folder)
        if name not in here:
            if name not in (names := self._names()):
                raise UnknownVoice(f"There is no voice {name[:70]!r}. {known_names(names)}")
            place = find_voice(name, self._folders).path.parent
            raise InputError(
                f"The voice {name!r} is not in {self.folder} but in {place}: it stays."
            )
        if not (self.folder / f"{name}.txt").is_file():
            raise InputError(
                f"The voice {name!r} is listed in {self.folder / PRESETS}: delete it there."
            )


def _stamp(clip: Path) -> tuple[int, int] | None:
    """Another file of that name has another."""
    with suppress(OSError):
        written = clip.stat()
        return written.st_mtime_ns, written.st_ino
    return None


def _stored(found: Reference) -> StoredVoice:
    return StoredVoice(found.name, found.path, found.transcript, read_about(found.path))


def files(voice: NewVoice) -> dict[str, bytes]:
    """What a voice consists of on disk, by suffix.

    Raises:
        InputError: a clip, words or a description that cannot be used.
    """
    words = checked_words(voice.transcript)
    data = read_bytes(voice.audio)
    clip = prepare(*read_clip(data))
    wav = clip.wav()
    about = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source_sha256": hashlib.sha256(data).hexdigest(),
        **voice.about,
        "seconds": round(clip.seconds, 3),
        "done": [*_listed(voice.about.get("done")), *clip.done],
        "sha256": hashlib.sha256(wav).hexdigest(),
    }
    return {".wav": wav, ".json": _encoded(about), ".txt": f"{words}\n".encode()}


def checked_name(name: str) -> str:
    """The name; InputError if it is none."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"The voice name {name!r:.70} cannot be used: 1 to 64 of the letters A-Z and a-z, "
            "digits, _ . and - make a name, and the first is no dot."
        )
    if name.lower() == RESERVED:
        raise InputError(f"The voice name {name!r} is that of a folder's {PRESETS}: use another.")
    return name


def checked_words(transcript: str) -> str:
    """A transcript in one line; InputError if it is none."""
    words = " ".join(transcript.split())
    if is_blank(words):
        raise InputError("The clip has no transcript: give its exact words.")
    if len(words) > MAX_WORDS:
        raise InputError(
            f"The transcript has {len(words)} characters: {MAX_WORDS} are the most, and more than "
            "a minute of speech has."
        )
    strange = next((char for char in words if unicodedata.category(char) in ("Cc", "Cs")), None)
    if strange is not None:
        raise InputError(f"The transcript holds the character {strange!r}: give plain text.")
    return words


def read_about(clip: Path) -> dict[str, Any]:
    """What ``NAME.json`` beside a clip says; nothing if it is not there or of another kind."""
    try:
        with clip.with_suffix(".json").open("rb") as file:
            about = json.loads(file.read(MAX_ABOUT + 1))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and clip.stem != RESERVED else {}


def _encoded(about: Mapping[str, Any]) -> bytes:
    try:
        data = json.dumps(about, ensure_ascii=True, allow_nan=False, indent=1).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The voice's description cannot be kept ({error}).") from error
    if len(data) > MAX_ABOUT:
        raise InputError(f"The voice's description takes over {MAX_ABOUT:,} bytes: shorten it.")
    return data


def _listed(value: object) -> list:
    return value if isinstance(value, list) else []
