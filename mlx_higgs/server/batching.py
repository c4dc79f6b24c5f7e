"""Many requests through one batch, a chunk of each in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ..batch import Batch
from ..longform import LongJob
from ..types import HiggsError, Speech
from .job import SpeechJob
from .request import SpeechRequest

AHEAD = 2  # requests that wait, so that a place is never empty


def run_together(
    start: Callable[..., SpeechJob | LongJob], batch: Batch, requests: Iterable[SpeechRequest]
) -> Iterator[tuple[int, Speech | HiggsError]]:
    """The place of each request, and its speech or why there is none, as they end."""
    coming = enumerate(requests)
    running: dict[int, Iterator[Speech | None]] = {}
    try:
        while True:
            for index, request in islice(coming, batch.max_rows + AHEAD - len(running)):
                try:
                    running[index] = start(request, batch=batch).steps()
                except HiggsError as error:
                    yield index, error
            if not running:
                return
            for index in list(running)[: batch.max_rows]:
                try:
                    result = next(running[index])
                except HiggsError as error:
                    result = error
                if result is not None:
                    del running[index]
                    yield index, result
    finally:
        batch.close()
