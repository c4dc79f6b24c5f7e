"""The training loop: batches in, better weights out, and a run that can stop and go on anywhere."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..ranks import ALONE, Ranks
from ..types import GenerationError
from .batches import Batch, Schedule, collate, in_order, part_of, with_noise
from .loss import Weights, sums
from .samples import Sample

SPOILED = "lower learning_rate, or set grad_clip. What was saved before is good."
RANK_BITS = 24  # of the iteration's number below a rank's
NOISE = 1  # keeps the draws of one purpose apart from those of another


@dataclass(frozen=True)
class Score:
    """Mean cross-entropies over the targets of some batches.

    Attributes:
        loss: as it is minimised. books: each codebook's ``[K]``. text: the text's.
    """

    loss: float
    books: np.ndarray
    text: float


@dataclass
class Tally:
    """Sums of cross-entropies and how many targets they are of."""

    weights: Weights
    books: np.ndarray = field(init=False)
    counts: np.ndarray = field(init=False)
    text: float = 0.0
    text_count: int = 0
    positions: int = 0

    def __post_init__(self):
        self.books, self.counts = np.zeros((2, len(self.weights.books)))

    def add(self, batch: Batch, books: np.ndarray, text: float) -> None:
        self.books += books
        self.counts += batch.audio_counts
        self.text += text
        self.text_count += batch.text_count
        self.positions += batch.tokens

    def facts(self) -> list:
        """Everything it holds, for a file; `restore` reads it."""
        return [
            *self.books.tolist(),
            *self.counts.tolist(),
            self.text,
            self.text_count,
            self.positions,
        ]

    def restore(self, facts: list) -> None:
        K = len(self.books)
        self.books, self.counts = np.array(facts[:K]), np.array(facts[K : 2 * K])
        self.text, self.text_count, self.positions = facts[2 * K :]

    def merge(self, other: Tally) -> None:
        self.restore([a + b for a, b in zip(self.facts(), other.facts(), strict=True)])

    def score(self) -> Score:
        books = self.books / np.maximum(self.counts, 1)
        text = self.text / max(self.text_count, 1)
        return Score(self.weights.total(books, text), books, text)


class Trainer:
    """One model under training.

    Attributes:
        iteration: updates done. tally: what was scored since the last line of the log.
    """

    def __init__(
        self,
        model: Any,
        optimizer: optim.Optimizer,
        schedule: Schedule,
        weights: Weights,
        *,
        accumulate: int = 1,
        code_noise: float = 0.0,
        grad_clip: float = 1.0,
        seed: int = 0,
        masks: dict[str, mx.array] | None = None,
        ranks: Ranks = ALONE,
    ):
        """Take over ``model``, whose trainable weights are set.

        Args:
            accumulate: batches in an update.
            code_noise: share of the codes it sees that are drawn at random.
            grad_clip: largest norm of the gradient; 0 is off.
            masks: rows that may change ``[rows, 1]``, by parameter.
            ranks: each of which computes a part of every batch, from the same weights; what they
                learn is what one would, but for rounding, and for what dropout draws.
        """
        self.model, self.optimizer, self.weights = model, optimizer, weights
        self.iteration, self.tally = 0, Tally(weights)
        self._schedule, self._accumulate = schedule, accumulate
        self._noise, self._clip, self._seed = code_noise, grad_clip, seed
        self._masks, self.ranks = masks or {}, ranks
        self._value_and_grad = nn.value_and_grad(model, self._objective)

    @property
    def epoch(self) -> float:
        return self._schedule.epochs(self.iteration * self._accumulate)

    def step(self) -> tuple[Tally, float]:
        """One update.

        Returns:
            What it scored, before the update; the gradient's norm, before clipping.

        Raises:
            GenerationError: a loss or a gradient that is not a number. The weights are then
                spoiled: what was saved before is good.
        """
        first = self.iteration * self._accumulate
        samples = [self._schedule[first + i] for i in range(self._accumulate)]
        batches = [collate(chosen) for chosen in samples]
        rank = self.ranks.rank << RANK_BITS
        mx.random.seed((self._seed << 32) + rank + self.iteration)  # what dropout draws
        self.model.train()
        gradients, scored = self._gradients(samples, batches)
        norm = self._update(gradients)
        del gradients  # the unclipped ones, before anything is computed
        mx.eval(self.model.trainable_parameters(), self.optimizer.state, norm, scored)
        tally = Tally(self.weights)
        for batch, (books, text) in zip(batches, scored, strict=True):
            tally.add(batch, *self._summed(books, text))
        found = float(norm)
        if not math.isfinite(found):
            raise GenerationError(
                f"The loss or its gradient is not finite at iteration {self.iteration + 1}: "
                f"{SPOILED}"
            )
        self.iteration += 1
        self.tally.merge(tally)
        return tally, found

    def check(self) -> None:
        """Whether the weights may be saved.

        Raises:
            GenerationError: some are not finite.
        """
        trained = dict(tree_flatten(self.model.trainable_parameters())).values()
        if not mx.stack([mx.isfinite(array).all() for array in trained]).all().item():
            raise GenerationError(
                f"The weights are not finite after iteration {self.iteration}: {SPOILED}"
            )

    def _gradients(
        self, samples: Sequence[Sequence[Sample]], batches: Sequence[Batch]
    ) -> tuple[Any, list]:
        books, text = self.weights.of_targets(batches)
        books, text = books * self.ranks.size, text * self.ranks.size  # of which the mean is taken
        rng = np.random.default_rng([self._seed, NOISE, self.iteration])
        total = None
        scored: list = []
        for chosen, batch in zip(samples, batches, strict=True):
            rows = with_noise(batch, self._noise, self.model.delay.codebook_size, rng)
            part, rows = part_of(chosen, rows, self.ranks)
            if part is None:
                scored.append((mx.zeros_like(books), mx.array(0.0)))
                continue
            (_, *found), gradients = self._value_and_grad(part, rows, books, text)
            total = gradients if total is None else tree_map(mx.add, total, gradients)
            scored.append(found)
            if len(batches) > 1:
                mx.eval(total, found)
        return self._averaged(total), scored

    def _averaged(self, gradients: Any) -> Any:
        """The mean of the ranks' gradients; a rank without a sample has none."""
        if self.ranks.size == 1:
            return gradients
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        mx.eval(gradients)  # so that all ranks are left with the same sums in the same order
        return nn.average_gradients(gradients)

    def _summed(self, books: mx.array, text: mx.array) -> tuple[np.ndarray, float]:
        """What all ranks scored of a batch."""
        *by_book, by_text = self.ranks.sums([*np.array(books).tolist(), float(text)])
        return np.array(by_book), by_text

    def _objective(self, batch: Batch, rows: mx.array, books: mx.array, text: float):
        by_book, by_text = sums(self.model, batch, rows, text=text > 0)
        return mx.sum(by_book * books) + by_text * text, by_book, by_text

    def _update(self, gradients: Any) -> mx.array:
        gradients = self._masked(gradients)
        limit = self._clip or float("inf")
        gradients, norm = optim.clip_grad_norm(gradients, limit)
        old = dict(tree_flatten(self.model.trainable_parameters())) if self._masks else {}
        self.optimizer.update(self.model, gradients)
        if self._masks:  # weight decay moves rows without a gradient, too
            new = dict(tree_flatten(self.model.trainable_parameters()))
            kept = [(k, mx.where(m, new[k], old[k])) for k, m in self._masks.items() if k in new]
            self.model.update(tree_unflatten(kept))
        return norm

    def _masked(self, gradients: Any) -> Any:
        if not self._masks:
            return gradients
        flat = dict(tree_flatten(gradients))
        flat |= {k: flat[k] * m for k, m in self._masks.items() if k in flat}
        return tree_unflatten(list(flat.items()))

    def score(self, samples: Sequence[Sample], batch_size: int, limit: int = -1) -> Score:
        """Cross-entropies over samples it does not learn, without noise and dropout."""
        self.model.eval()
        tally = Tally(self.weights)
        for chosen in in_order(samples, batch_size, limit)[self.ranks.rank :: self.ranks.size]:
            batch = collate(chosen)
            books, text = sums(self.model, batch, mx.array(batch.rows), text=self.weights.text > 0)
            tally.add(batch, np.array(books), float(text))
        tally.restore(self.ranks.sums(tally.facts()))
        return tally.score()


@dataclass(frozen=True)
class Plan:
    """When a run does what, in iterations, and what it calls then."""

    iters: int
    report_every: int
    eval_every: int
    save_every: int
    report: Callable[[float, float], None]  # gradient norm, seconds since the last one
    evaluate: Callable[[], None]
    save: Callable[[], None]
    advance: Callable[[Score], None]  # after every update
    deadline: float = math.inf  # of time.monotonic()


def train(trainer: Trainer, plan: Plan) -> bool:
    """Run to the end of the plan; False when its time was up before, which saves as well.

    Raises:
        KeyboardInterrupt: asked to stop; saved before.
    """
    with stop_requests() as stopped:
        clock = Clock()
        while trainer.iteration < plan.iters:
            tally, norm = trainer.step()
            plan.advance(tally.score())
            done = trainer.iteration == plan.iters
            if done or trainer.iteration % plan.report_every == 0:
                plan.report(norm, clock.lap())
                trainer.tally = Tally(trainer.weights)
            if done or trainer.iteration % plan.eval_every == 0:
                with clock.paused():
                    plan.evaluate()
            asked = [time.monotonic() >= plan.deadline, stopped.is_set()]
            late, stop = trainer.ranks.sums(asked)  # what one is asked, all are
            if done or late or stop or trainer.iteration % plan.save_every == 0:
                with clock.paused():
                    plan.save()
            if stop and not done:
                raise KeyboardInterrupt
            if late and not done:
                return False
    return True


class Clock:
    """Seconds spent on training alone."""

    def __init__(self):
        self._started = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Set at the first SIGINT or SIGTERM; the second one interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def request(number, frame):
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
