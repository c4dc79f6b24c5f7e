"""Speech over HTTP, in the shape of OpenAI's API: ``python -m mlx_higgs.server``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import Parser, add_model_options, run
from ..types import InputError

if TYPE_CHECKING:
    from .http.settings import Settings

KEY = "MLX_HIGGS_API_KEY"
MIB = 1024 * 1024


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.server",
        description="Serve a model on http://127.0.0.1:8000/v1, as OpenAI's speech API; its page "
        "is at /.",
    )
    add_model_options(parser.add_argument_group("model"), "demo")
    model = parser.add_argument_group("conversations")
    model.add_argument(
        "--chat",
        action="store_true",
        help="load the text head, too, for /v1/chat/completions (788 MB more of the 3B model)",
    )
    _add_address(parser.add_argument_group("address"))
    _add_access(parser.add_argument_group("who may use it"))
    _add_voices(parser.add_argument_group("voices"))
    _add_limits(parser.add_argument_group("limits"))
    log = parser.add_argument_group("log")
    log.add_argument("--quiet", action="store_true", help="no line for every request")
    log.add_argument("--log-text", action="store_true", help="errors may show what a request said")
    return parser


def _add_address(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host", default="127.0.0.1", help="default: %(default)s, this machine only"
    )
    group.add_argument("--port", type=int, default=8000, help="%(default)s; 0 takes any")
    group.add_argument(
        "--served-model-name", metavar="NAME", help="what the model is called (default: as given)"
    )


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"what clients must know (better: ${KEY}, which no list of processes shows)",
    )
    group.add_argument(
        "--open-listings",
        action="store_true",
        help="list models and voices without the key: Open WebUI sends none there",
    )
    group.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names it answers to beside localhost",
    )
    group.add_argument(
        "--allowed-origins",
        nargs="+",
        default=[],
        metavar="URL",
        help="other sites whose pages may use it, as https://example.org",
    )
    group.add_argument(
        "--allowed-local-media-path",
        type=Path,
        metavar="FOLDER",
        help="requests may name clips in it (default: none)",
    )
    group.add_argument(
        "--allow-urls", action="store_true", help="requests may name clips by https addresses"
    )


def _add_voices(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--voices",
        type=Path,
        metavar="FOLDER",
        help="where voices are added (default: $MLX_HIGGS_VOICES, or this user's own)",
    )
    group.add_argument("--default-voice", metavar="NAME", help="for requests that name none")
    group.add_argument(
        "--voice-alias",
        action="append",
        default=[],
        metavar="NAME=VOICE",
        help="a name clients send, as alloy, for a voice; repeat for more",
    )
    group.add_argument("--max-voices", type=int, default=1000, metavar="N", help="%(default)s")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="spoken at once (%(default)s)"
    )
    group.add_argument(
        "--queue", type=int, default=8, metavar="N", help="waiting; more get 429 (%(default)s)"
    )
    group.add_argument("--max-input-chars", type=int, default=4096, metavar="N", help="%(default)s")
    group.add_argument(
        "--max-body-mb", type=float, default=16, metavar="N", help="of a request (%(default)s)"
    )
    group.add_argument(
        "--max-reference-seconds", type=float, default=30, metavar="S", help="%(default)s"
    )
    group.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="of a request (%(default)s)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), serve, argv)


def serve(arguments: argparse.Namespace) -> None:
    """Open the socket, load the model beside it, and serve until told to stop.

    Raises:
        InputError: options that cannot be met, a port in use, packages that are missing.
        CheckpointError: the model cannot be used.
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401  (starlette asks for it when it is late)
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise InputError("The server needs: pip install 'mlx_higgs[server]'.") from error
    from .http.serving import open_socket, serve_until_stopped

    settings = settings_of(arguments)
    with open_socket(settings.host, settings.port) as opened:
        serve_until_stopped(_app(arguments, settings), settings, opened, quiet=arguments.quiet)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Raises InputError for choices that do not go together."""
    from .http.settings import Settings

    return Settings(
        host=arguments.host,
        port=arguments.port,
        api_key=arguments.api_key or os.environ.get(KEY) or None,
        allowed_hosts=tuple(arguments.allowed_hosts),
        allowed_origins=tuple(arguments.allowed_origins),
        open_listings=arguments.open_listings,
        max_body_bytes=round(arguments.max_body_mb * MIB),
        max_input_chars=arguments.max_input_chars,
        max_reference_seconds=arguments.max_reference_seconds,
        max_voices=arguments.max_voices,
        allowed_local_media_path=arguments.allowed_local_media_path,
        allow_urls=arguments.allow_urls,
        request_timeout=arguments.timeout,
        model_id=arguments.served_model_name or _called(arguments.model),
        voice_aliases=dict(map(_alias, arguments.voice_alias)),
        default_voice=arguments.default_voice,
        log_text=arguments.log_text,
    )


def _app(arguments: argparse.Namespace, settings: Settings):
    from ..voices.library import VoiceLibrary
    from .http.app import create_app
    from .metrics import Metrics
    from .opening import load_server
    from .worker import Worker

    library = VoiceLibrary(arguments.voices, limit=settings.max_voices)
    _check_names(library.names(), settings)
    metrics = Metrics()
    worker = Worker(
        lambda: load_server(arguments, streams=arguments.max_batch, many_clips=True),
        max_batch=arguments.max_batch,
        max_waiting=arguments.queue,
        timeout=settings.request_timeout,
        metrics=metrics,
        log_text=settings.log_text,
    )
    return create_app(worker, library, settings, metrics)


def _check_names(known: Sequence[str], settings: Settings) -> None:
    """Raises InputError for a voice that is not there, before the model is loaded."""
    for name in (settings.default_voice, *settings.voice_aliases.values()):
        if name is not None and name not in known:
            listed = ", ".join(known[:20]) or "none"
            raise InputError(f"There is no voice {name!r}. Known voices: {listed}.")


def _called(model: str) -> str:
    return Path(model).resolve().name if Path(model).is_dir() else model


def _alias(text: str) -> tuple[str, str]:
    name, equals, voice = text.partition("=")
    if not (name and equals and voice):
        raise InputError(f"{text!r} is no alias: write NAME=VOICE.")
    return name, voice


if __name__ == "__main__":
    raise SystemExit(main())
