"""A manuscript said piece by piece: what is on the shelf already is not said again."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..pieces import Chunking, Piece, piece_seed
from ..ranks import Ranks, share
from ..takes import Attempts, Context, is_final
from ..types import GenerationError
from .binding import Part
from .shelf import Kept, Shelf

if TYPE_CHECKING:
    from ..server import HiggsAudioServer, SpeechRequest

FORMAT = "mlx_higgs pieces, version 1"
Chain = tuple[int, str, int]  # chapter, whose context, and the place where there is none


@dataclass(frozen=True)
class Role:
    """How a speaker speaks.

    Attributes:
        request: its ``target_text`` and ``seed`` are each piece's.
        content: hash of the voice and of everything else that is asked for.
        cloned: whether a clip says whose voice it is.
    """

    request: SpeechRequest
    content: str
    cloned: bool


class Narration:
    """Says pieces in their order, each with what was said before it in the same voice.

    What a piece sounds like depends on the model, its role, its text, its seed and those before it
    in its context, and on nothing else: its key is their hash, so that a run that was killed goes
    on as if it had not been, and a text that was changed is said anew from there to the end of its
    chapter at most.

    Args:
        load: the server, called when the first piece is missing.
        roles: by speaker; "" is the narrator, and whoever is not in it.
        chunking: with all that it leaves to the checkpoint settled.
        model: hash of what speaks.
        shared: the context is what anybody said, rather than the speaker alone.
    """

    def __init__(
        self,
        load: Callable[[], HiggsAudioServer],
        roles: Mapping[str, Role],
        shelf: Shelf,
        chunking: Chunking,
        seed: int,
        *,
        model: str,
        shared: bool = False,
    ):
        self._load, self._roles, self._shelf, self._chunking = load, roles, shelf, chunking
        self._seed, self._model, self._shared = seed, model, shared
        self._server: HiggsAudioServer | None = None
        self._contexts: dict[str, Context[str]] = {}
        self._sound = False  # something has been heard of the book

    def parts(self, pieces: Sequence[Piece]) -> Iterator[tuple[Part, bool]]:
        """Each piece on the shelf, and whether it was made now.

        Raises:
            GenerationError: the first piece made no sound, whatever its seed.
            InputError: a piece that cannot be met. OSError: a full disk.
        """
        for piece, place in self._placed(pieces):
            yield self._part(piece, place)

    def help(self, pieces: Sequence[Piece], ranks: Ranks) -> Iterator[tuple[Part, bool]]:
        """As ``parts``, of what this rank is to put on a shelf that all share.

        What belongs together by its context is one rank's, and every rank finds the first piece of
        each voice by itself. Nobody but ``parts`` can tell what a model without a voice means: if
        the first piece here makes no sound, the rest is left to it.
        """
        mine = self._mine(pieces, ranks)
        for piece, place in self._placed(pieces):
            role = self._roles.get(piece.speaker, self._roles[""])
            lacking = self._context(piece.speaker, role).lacks_first
            if lacking or self._chain(piece, place) in mine:
                try:
                    yield self._part(piece, place)
                except GenerationError:
                    return

    def _placed(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int]]:
        """Each piece with its place in its chapter, before which chapters are forgotten."""
        places: Counter[int] = Counter()
        chapter = 0
        for piece in pieces:
            if piece.chapter != chapter:
                chapter = piece.chapter
                for context in self._contexts.values():
                    context.new_chapter()
            yield piece, places[chapter]
            places[chapter] += 1

    def _mine(self, pieces: Sequence[Piece], ranks: Ranks) -> set[Chain]:
        """A rank's part of the book."""
        letters: Counter[Chain] = Counter()
        places: Counter[int] = Counter()
        for piece in pieces:
            letters[self._chain(piece, places[piece.chapter])] += len(piece.text)
            places[piece.chapter] += 1
        chains = list(letters)
        return {chains[place] for place in share(list(letters.values()), ranks)}

    def _chain(self, piece: Piece, place: int) -> Chain:
        """What a piece is told of something in, or is told of: one voice's part of a chapter."""
        alone = not self._chunking.context
        return piece.chapter, "" if self._shared else piece.speaker, place if alone else 0

    def _part(self, piece: Piece, place: int) -> tuple[Part, bool]:
        role = self._roles.get(piece.speaker, self._roles[""])
        context = self._context(piece.speaker, role)
        seeds = [
            piece_seed(self._seed, piece.chapter, place, attempt)
            for attempt in range(self._chunking.attempts)
        ]
        history = context.history()
        key = digest(FORMAT, self._model, role.content, piece.text, seeds[0], history)
        kept = self._shelf.find(key)
        made = kept is None or self._can_be_better(kept, role)
        if kept is None or made:
            kept = self._make(key, piece, role, seeds, history)
        self._sound = self._sound or kept.samples > 0
        if kept.good:
            context.keep(piece.text, key)
        return Part(piece, key, kept), made

    def _can_be_better(self, kept: Kept, role: Role) -> bool:
        """Whether it failed with fewer attempts than it has now."""
        tried = kept.attempts >= self._chunking.attempts
        return not tried and not is_final(kept.stop_reason, role.request)

    def _make(
        self, key: str, piece: Piece, role: Role, seeds: Sequence[int], history: list
    ) -> Kept:
        import mlx.core as mx

        said = [(text, mx.array(self._shelf.codes(other))) for text, other in history]
        request = replace(role.request, target_text=piece.text, history=said)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the command says it once
            take = Attempts(self._start, request, seeds).run()
        assert take is not None  # nobody closes it
        if not len(take.pcm) and not self._sound:
            raise GenerationError(take.error)
        return self._shelf.keep(key, take)

    def _start(self, request: SpeechRequest) -> Any:
        from ..delivery import WHOLE

        if self._server is None:
            self._server = self._load()
        return self._server.start(request, WHOLE)

    def _context(self, speaker: str, role: Role) -> Context[str]:
        who = "" if self._shared else speaker
        if who not in self._contexts:
            size = self._chunking.context or 0
            anchor = not role.cloned and not self._shared
            self._contexts[who] = Context(size, anchor=anchor)
        return self._contexts[who]


def digest(*parts: Any) -> str:
    """64 hex digits of the JSON of ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
