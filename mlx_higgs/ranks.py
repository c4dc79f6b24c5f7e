"""Processes that work together (``mlx.launch``): which one this is, and what all of them agree on.

One process alone is the usual case and costs nothing: MLX is not even imported for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .types import HiggsError, InputError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

# what launchers tell a process: its rank, and what is there if it has company
LAUNCHED = (
    ("MLX_RANK", ("MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_WORLD_SIZE")),  # ring, JACCL, NCCL
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("PMI_RANK", ("PMI_SIZE",)),  # MPICH
)
BACKENDS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]", "[distributed]")  # how their errors begin
TOKEN = ".seen-by-all"
T = TypeVar("T")


class Elsewhere(HiggsError):  # noqa: N818 - this is no error here
    """Another rank failed and says why; this one only ends, with the same exit code."""

    def __init__(self, exit_code: int):
        super().__init__()
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together. What it agrees on, all must call in one order.

    Args:
        rank: from 0, the one that speaks to the person and writes files. size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def same(self, array: mx.array) -> mx.array:
        """Rank 0's values on every rank; the shapes must be alike."""
        if self.size == 1:
            return array
        import mlx.core as mx

        return mx.distributed.all_sum(array if self.first else mx.zeros_like(array))

    def told(self, value: Any) -> Any:
        """Rank 0's ``value``, which JSON can hold."""
        if self.size == 1:
            return value
        import mlx.core as mx
        import numpy as np

        content = list(json.dumps(value).encode()) if self.first else []
        length = int(self.gathered([len(content)])[0, 0])
        shared = self.same(mx.array(content if self.first else [0] * length))
        mx.eval(shared)  # said so, it raises when a rank is lost; NumPy would get what is there
        return json.loads(bytes(np.array(shared).astype(np.uint8)))

    def gathered(self, numbers: Sequence[float]) -> np.ndarray:
        """Everybody's numbers, float64 ``[size, N]``."""
        import numpy as np

        own = np.array(numbers, np.float64)
        if self.size == 1:
            return own[None]
        import mlx.core as mx

        halves = mx.array(own.view(np.uint32))[None]  # MLX has no float64 on a GPU
        found = mx.distributed.all_gather(halves)
        mx.eval(found)  # as in ``told``
        return np.array(found).view(np.float64)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sums of everybody's numbers."""
        return self.gathered(numbers).sum(axis=0).tolist()

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gathered([0])

    @contextmanager
    def holding(
        self,
        folder: Path,
        hold: Callable[[], AbstractContextManager[T]],
        join: Callable[[], AbstractContextManager[T]],
    ) -> Iterator[T]:
        """A folder that rank 0 holds first, and the others join then.

        Raises:
            InputError: what these raise, or a folder that not all ranks see.
        """
        with ExitStack() as held:
            mine = None
            with self.together():
                if self.first:
                    mine = held.enter_context(hold())
            self.check_shared(folder)
            with self.together():
                mine = held.enter_context(join()) if mine is None else mine
            yield mine

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank fails on all, told once, by the lowest that failed.

        Nothing in the block may wait for other ranks.

        Raises:
            Elsewhere: another rank says it.
        """
        failure: HiggsError | OSError | None = None
        try:
            yield
        except (HiggsError, OSError) as error:
            failure = error
        code = 0 if failure is None else getattr(failure, "exit_code", 1)
        codes = self.gathered([code])[:, 0]
        if not codes.any():
            return
        told_by = int((codes > 0).argmax())
        if failure is None or self.rank != told_by:
            raise Elsewhere(int(codes[told_by])) from failure
        if not self.first:
            speak_up()
        raise failure

    def check_shared(self, folder: Path) -> None:
        """Raises InputError if not all ranks see ``folder``: on machines without a common disk."""
        token = folder / TOKEN
        if self.size == 1:
            return
        with self.together():
            if self.first:
                token.touch()
        try:
            with self.together():
                if not token.exists():
                    raise InputError(
                        f"Rank {self.rank} does not see what rank 0 writes to {folder}: name a "
                        "folder on a disk that all machines share."
                    )
        finally:
            if self.first:
                with suppress(OSError):
                    token.unlink()


ALONE = Ranks()


def share(sizes: Sequence[int], ranks: Ranks) -> list[int]:
    """The places of this rank's part of some work, in their order: the largest is dealt first.

    Every rank finds the same parts; none is larger than the mean by more than one piece.
    """
    loads, mine = [0] * ranks.size, []
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        least = loads.index(min(loads))
        loads[least] += max(1, sizes[place])
        if least == ranks.rank:
            mine.append(place)
    return sorted(mine)


def launched_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """The rank that a launcher gave this process; None if it is alone."""
    for name, company in LAUNCHED:
        if environ.get(name, "").isdigit() and any(_many(environ.get(c, "")) for c in company):
            return int(environ[name])
    return None


def _many(value: str) -> bool:
    """Whether a launcher's number or list, or the file that holds one, says more than one."""
    if value.isdigit():
        return int(value) > 1
    with suppress(OSError, ValueError):
        return len(json.loads(Path(value).read_text())) > 1
    return False


def processes() -> Ranks:
    """This process among those started with it; joins them when first called.

    Raises:
        InputError: it was started as one of several, and cannot reach them.
    """
    rank = launched_rank()
    if rank is None:
        return ALONE
    import mlx.core as mx

    try:
        with _killable():
            group = mx.distributed.init(strict=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"Rank {rank} could not join the others ({error}): see docs/distributed.md."
        ) from error
    return Ranks(group.rank(), group.size())


@contextmanager
def _killable() -> Iterator[None]:
    """MLX waits for the others outside Python, where no handler of signals would run."""
    try:
        before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hush() -> None:
    """Of several processes, only rank 0 speaks; what nobody expected is said all the same."""
    if not launched_rank():
        return
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    shown = sys.excepthook

    def excepthook(*error: Any) -> None:
        speak_up()
        shown(*error)

    sys.excepthook = excepthook


def speak_up() -> None:
    """Let a rank that was hushed use standard error."""
    sys.stderr = sys.__stderr__


def was_lost(error: BaseException) -> bool:
    """Whether an error of MLX says that another rank is gone."""
    return launched_rank() is not None and str(error).startswith(BACKENDS)
