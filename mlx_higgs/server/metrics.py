"""What ``/metrics`` tells: how much was asked, made and refused, how fast. Never what was said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..types import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ticket import Ticket

Outcome = Literal["finished", "cancelled", "failed", "timeout"]
OUTCOMES: tuple[Outcome, ...] = ("finished", "cancelled", "failed", "timeout")
SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)  # to the first audio
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2, 3, 5, 10)


class Metrics:
    """Counters in a registry of their own; each may be told from any thread.

    Labels hold outcomes, routes as they are declared, and status codes: no text, name or address.

    Raises:
        InputError: prometheus_client is not installed.
    """

    def __init__(self):
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise InputError("Metrics need: pip install 'mlx_higgs[server]'.") from error
        self.registry = registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"mlx_higgs_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"mlx_higgs_{name}", help, registry=registry)

        self._requests = counter("requests", "Requests that ended, by outcome.", "outcome")
        self._refused = counter("refused", "Requests refused because the queue was full.")
        self._cancelled = counter("cancelled", "Requests whose client left.")
        self._audio = counter("audio_seconds", "Seconds of audio made.")
        self._responses = counter("responses", "Answers sent.", "method", "route", "status")
        self._waiting = gauge("waiting", "Requests in the queue.")
        self._running = gauge("running", "Requests under way.")
        self._ready = gauge("ready", "1 once the model is loaded.")
        self._first = Histogram(
            "mlx_higgs_first_audio_seconds",
            "From the request to its first audio.",
            buckets=SECONDS,
            registry=registry,
        )
        self._factor = Histogram(
            "mlx_higgs_real_time_factor",
            "Seconds of work per second of audio, of one request in the company it had.",
            buckets=FACTORS,
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)  # 0 from the start

    def watch(self, *, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Ask these when the gauges are read."""
        self._waiting.set_function(waiting)
        self._running.set_function(running)

    def loaded(self) -> None:
        """The model is ready."""
        self._ready.set(1)

    def refused(self) -> None:
        """The queue was full."""
        self._refused.inc()

    def request(self, ticket: Ticket) -> None:
        """A request is over."""
        assert ticket.outcome is not None
        self._requests.labels(ticket.outcome).inc()
        if ticket.outcome == "cancelled":
            self._cancelled.inc()
        self._audio.inc(ticket.audio)
        if ticket.first_audio is not None:
            self._first.observe(ticket.first_audio)
        if ticket.spent is not None and ticket.audio:
            self._factor.observe(ticket.spent / ticket.audio)

    def response(self, method: str, route: str, status: int) -> None:
        """An answer was sent; ``route`` is the declared path, never the one that was asked."""
        self._responses.labels(method, route, str(status)).inc()

    def render(self) -> tuple[bytes, str]:
        """The text format and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
