"""mlx-audio's talker of the same generation as ours, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..models import v2, v3
from ..models.base import SpeechModel
from ..quantization import Quantization
from ..types import InputError, Prompt
from . import peer_v2, peer_v3
from .reads import Reading

Work = Callable[[int], None]


class Kind(NamedTuple):
    """How a generation of its talkers is built and driven; ``batch_work`` None: one at a time."""

    talker: Callable[..., Any]
    work: Callable[..., Work]
    readings: Callable[[Any], list[Reading]]
    batch_work: Callable[..., Work] | None = None


KINDS: dict[type, Kind] = {
    v2.ModelArgs: Kind(peer_v2.talker, peer_v2.work, peer_v2.readings),
    v3.ModelArgs: Kind(peer_v3.talker, peer_v3.work, peer_v3.readings, peer_v3.batch_work),
}


class Peer:
    """mlx-audio's talker, quantised by its own rule, holding the very arrays of ``model``.

    Make it before ``model`` joins its projections.
    """

    def __init__(self, model: SpeechModel, quantization: Quantization | None):
        """Build it.

        Raises:
            InputError: it has no such talker, or stores it in another way.
        """
        if type(model.args) not in KINDS:
            raise InputError("mlx-audio has no talker like this one: leave --peer out.")
        self._kind, self._model = KINDS[type(model.args)], model
        self.talker = self._kind.talker(model, quantization)

    def work(self, prompt: Prompt) -> Work:
        """Its own loop, unmodified, on the same prompt, with the sampling that it defaults to."""
        return self._kind.work(self.talker, self._model, prompt)

    @property
    def batches(self) -> bool:
        """Whether it speaks several texts at once."""
        return self._kind.batch_work is not None

    def batch_work(self, prompt: Prompt, streams: int) -> Work:
        """The same for several texts at once."""
        assert self._kind.batch_work is not None
        return self._kind.batch_work(self.talker, self._model, prompt, streams)

    def readings(self) -> list[Reading]:
        """What one audio frame of it reads."""
        return self._kind.readings(self.talker)
