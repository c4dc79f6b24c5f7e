"""Values out of somebody's JSON: each of the right kind, or a problem that says which is not."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from .conversation import Clip

T = TypeVar("T")
KINDS = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}


@dataclass
class Line:
    """One entry of a data set while it is read: where it stands, and what is wrong with it.

    Attributes:
        folder: what its relative paths are relative to.
        source: ``file:line``.
        problems: why it cannot be used. warnings: what would be ignored.
    """

    folder: Path
    source: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def value(self, record: dict, name: str, kind: type[T], default: Any = None) -> Any:
        """A field of the wanted kind; ``default`` when it is missing, null, or of another."""
        found = record.get(name)
        if found is None:
            return default
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            return float(found)
        if isinstance(found, kind) and not isinstance(found, bool):
            return found
        self.problems.append(f"{name} is {found!r:.60}, not {KINDS[kind]}")
        return default

    def unknown(self, record: dict, known: frozenset[str] | set[str], what: str) -> None:
        """Say which fields nothing reads."""
        if extra := sorted(str(name) for name in record.keys() - known):
            self.warnings.append(f"{what} has fields that are not read: {', '.join(extra)}")

    def path(self, name: str) -> Path | None:
        """A path or ``file://`` URL of this data set."""
        parts = urlsplit(name) if "://" in name else None
        if parts is not None and parts.scheme == "file":
            return Path(unquote(parts.path))
        if parts is not None and parts.scheme:
            self.problems.append(f"{name:.80} is not a file: download it first and name the file")
            return None
        if name.startswith("data:"):
            self.problems.append("a data: URL is not read: write its base64 to raw_audio")
            return None
        if not name or "\0" in name:
            self.problems.append(f"an audio path is {name!r:.60}")
            return None
        return self.folder / Path(name).expanduser()

    def clip(self, name: str | None, record: dict) -> Clip | None:
        """A clip with what ``record`` says of it; None (and a problem) when there is none."""
        offset = self.value(record, "offset", float, 0.0)
        duration = self.value(record, "duration", float)
        if not 0 <= offset < math.inf:
            self.problems.append(f"offset is {offset}: seconds from 0 on")
            offset = 0.0
        if duration is not None and not 0 < duration < math.inf:
            self.problems.append(f"duration is {duration}: it must be above 0 s")
            duration = None
        row_id = self.value(record, "row_id", int)
        data = self._bytes(self.value(record, "raw_audio", str))
        path = self.path(name) if name and data is None else None
        if path is None and data is None:
            if not name:
                self.problems.append("an audio part has neither audio_url nor raw_audio")
            return None
        return Clip(path, offset, duration, data, row_id)

    def _bytes(self, text: str | None) -> bytes | None:
        if not text:
            return None
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            self.problems.append("raw_audio is not base64")
            return b""
