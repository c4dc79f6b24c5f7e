"""What a server is told when it starts: where it listens, whom it trusts, how much it takes."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ...types import InputError

MIB = 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """The choices of one server; every limit is a number a person can raise.

    Args:
        host, port: where it listens; other machines reach it only with ``api_key``.
        api_key: what ``Authorization: Bearer`` must hold; None asks for none.
        allowed_hosts: names it answers to beside the loopback ones; without any, and not bound to
            loopback, it answers to all.
        allowed_origins: web pages of other origins that may call it, ``https://example.org``; ``*``
            is all of them.
        open_listings: models and voices are listed without the key (Open WebUI sends none there).
        max_body_bytes: of a request, counted while it is read.
        max_input_chars, max_instructions_chars: of a text.
        max_reference_seconds, max_voices: of a clip, and in the library.
        allowed_local_media_path: a folder whose clips a request may name.
        allow_urls: a request may name a clip by an https URL.
        request_timeout, body_timeout: seconds for all of a request, and for its body to come.
        drain_seconds: what requests under way get when the server is told to stop.
        model_id: what the model is called.
        voice_aliases: a name that clients send -> a voice of the library.
        default_voice: for requests that name none; None takes the first.
        log_text: put texts and the messages of unforeseen errors into the log.
        created: when the model was loaded, in Unix seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    open_listings: bool = False
    max_body_bytes: int = 16 * MIB
    max_input_chars: int = 4096
    max_instructions_chars: int = 4096
    max_reference_seconds: float = 30.0
    max_voices: int = 1000
    allowed_local_media_path: Path | None = None
    allow_urls: bool = False
    request_timeout: float = 600.0
    body_timeout: float = 60.0
    drain_seconds: float = 5.0
    model_id: str = "higgs-audio"
    voice_aliases: Mapping[str, str] = field(default_factory=dict)
    default_voice: str | None = None
    log_text: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self):
        for name in ("max_body_bytes", "max_input_chars", "max_instructions_chars", "max_voices"):
            _check(name, getattr(self, name), 1)
        for name in ("max_reference_seconds", "request_timeout", "body_timeout"):
            _check(name, getattr(self, name), 0.001)
        _check("drain_seconds", self.drain_seconds, 0)
        if not 0 <= self.port <= 65535:
            raise InputError(f"The port {self.port} is none: it must be from 0 to 65535.")
        self._check_key()
        self._check_origins()
        folder = self.allowed_local_media_path
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"The folder {folder} (--allowed-local-media-path) does not exist.")

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def _check_key(self) -> None:
        if self.api_key is None:
            if not self.loopback:
                raise InputError(
                    f"Anybody who reaches {self.host} could use the server: give it an --api-key "
                    "(or $MLX_HIGGS_API_KEY), or bind it to 127.0.0.1."
                )
        elif not self.api_key or not all("!" <= char <= "~" for char in self.api_key):
            raise InputError("The API key must be letters, digits and marks, without blanks.")

    def _check_origins(self) -> None:
        for origin in self.allowed_origins:
            if origin == "*":
                if self.api_key is None:
                    raise InputError(
                        "Every web page could use the server: --allowed-origins '*' needs an "
                        "--api-key."
                    )
            elif not is_origin(origin):
                raise InputError(
                    f"{origin!r} is no origin: write scheme and host, as https://example.org ."
                )


def is_origin(text: str) -> bool:
    """``https://example.org:8443``: a scheme, a host, perhaps a port, nothing after."""
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and text == f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        return False


def _check(name: str, value: float, least: float) -> None:
    if not least <= value < 1e15:
        raise InputError(f"{name} is {value}: it must be at least {least}, and finite.")
