"""``generate --batch jobs.jsonl --output-dir D``: a file of requests -> a folder of sounds.

Every line is checked before the model is loaded, and what an earlier run has made is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import note
from .joblines import STDIN, Check, Job, JobFile, Make
from .ledger import Entry, Ledger, shared_ledger
from .progress import JobBar
from .ranks import Ranks, processes, share
from .types import GenerationError, HiggsError, InputError, Speech

if TYPE_CHECKING:
    from .server import HiggsAudioServer, SpeechRequest

Load = Callable[..., "HiggsAudioServer"]
TOLD_AGAIN = 20  # problems at the end; all of them were told when they came


def speak_jobs(arguments: argparse.Namespace, make: Make, load: Load) -> None:
    """Run ``--batch``.

    Args:
        make: arguments and a text -> the request. load: as ``server.opening.load_server``.

    Raises:
        InputError: nothing could be run. GenerationError: some of it could not.
    """
    check_options(arguments)
    ranks, problems = processes(), Problems()
    if ranks.size > 1 and arguments.batch == STDIN:
        raise InputError("mlx.launch does not pass on where the jobs end: name a file.")
    with ranks.together():
        lines = JobFile(arguments.batch, arguments, make, _checker(arguments))
        jobs = list(lines.read(problems.refuse))
        problems.check_any(jobs, arguments.batch)
        model = model_hash(arguments)
    model = ranks.told(model)
    with shared_ledger(Path(arguments.output_dir), ranks) as ledger:
        batch = Batch(lines, ledger, model, problems, as_json=arguments.json)
        todo = _todo(batch, jobs, arguments, ranks)
        if todo:
            _run(batch, todo, arguments, load, ranks)
    if ranks.first:
        problems.tell_again()


def _todo(batch: Batch, jobs: list[Job], arguments: argparse.Namespace, ranks: Ranks) -> list[Job]:
    """The jobs that are left, as rank 0 finds them.

    Raises:
        InputError: none can be run, or not all ranks read the same file.
    """
    content = hashlib.sha256(b"".join(job.line for job in jobs)).hexdigest()
    expected, places = ranks.told(content), []
    with ranks.together():
        if content != expected:
            raise InputError(
                f"Rank {ranks.rank} reads another {arguments.batch} than rank 0: all need the same."
            )
        if ranks.first:
            place_of = {job.number: place for place, job in enumerate(jobs)}
            todo = list(batch.todo(jobs, force=arguments.force))
            places = [place_of[job.number] for job in todo]
            if batch.done:
                note(f"{batch.done} of {len(jobs)} done already.")
            else:
                batch.problems.check_any(todo, arguments.batch)
    return [jobs[place] for place in ranks.told(places)]


def _run(
    batch: Batch, todo: list[Job], arguments: argparse.Namespace, load: Load, ranks: Ranks
) -> None:
    """This rank's part of the jobs, with a model of its own; rank 0 puts all into one ledger."""
    mine = [todo[place] for place in share([len(job.line) for job in todo], ranks)]
    with ranks.together():
        if mine:
            server = load(
                arguments,
                streams=min(arguments.max_batch, len(mine)),
                many_clips=any(job.clones for job in mine),
            )
            announce(server, todo)
    with JobBar(batch.done, batch.done + len(todo)) as progress:
        with ranks.together():
            if mine:
                batch.run(server, mine, arguments.max_batch, progress)
        batch.take_in(progress)


def check_options(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together."""
    if arguments.batch is None or arguments.output_dir is None:
        raise InputError("--batch and --output-dir need each other.")
    if arguments.play:
        raise InputError("--play is for one text, not for a --batch.")
    if arguments.shard:
        raise InputError("--shard is for one text: of a --batch, each process says its part.")
    if arguments.max_batch < 1:
        raise InputError(f"--max-batch is {arguments.max_batch}: it must be at least 1.")


def _checker(arguments: argparse.Namespace) -> Check:
    """What the model does not have, before it is loaded."""
    from .server.opening import checker
    from .sources import resolve

    return checker(resolve(arguments.model, arguments.revision))


def model_hash(arguments: argparse.Namespace) -> str:
    """Stands for all that speaks: talker, codec, adapter, tokenizer, defaults, quantisation.

    Raises:
        InputError: none of these is there. CheckpointError: not a talker.
        OSError: it cannot be read.
    """
    from .prefix import fingerprint
    from .sources import check_model, find_codec, resolve, resolve_adapter

    folder = resolve(arguments.model, arguments.revision)
    check_model(folder)
    tokenizer = resolve(arguments.tokenizer) if arguments.tokenizer else folder
    digest = hashlib.sha256(
        fingerprint(
            folder,
            arguments.quantize,
            resolve_adapter(arguments.adapter) if arguments.adapter else None,
            find_codec(folder, arguments.codec),
        ).encode()
    )
    for path in (folder / "generation_config.json", tokenizer / "tokenizer.json"):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def announce(server: HiggsAudioServer, todo: Iterable[Job]) -> None:
    """What a person should know of this checkpoint before listening."""
    defaults = server.higgs.defaults
    if defaults.notice:
        note(defaults.notice)
    if not defaults.clones and any(job.clones for job in todo):
        note("This checkpoint cannot clone: the voices asked for are left out.")


@dataclass
class Problems:
    """What went wrong with which lines, told at once and again at the end."""

    told: list[str] = field(default_factory=list)

    def refuse(self, number: int, fault: str) -> None:
        """A line that is not run."""
        self.add(number, fault)
        note(self.told[-1])

    def add(self, number: int, fault: str) -> None:
        self.told.append(f"line {number}: {fault}")

    def check_any(self, jobs: list[Job], path: str) -> None:
        """Raises InputError when there is nothing to run."""
        if not jobs and not self.told:
            raise InputError(f"The jobs {path} are empty: one JSON object a line is expected.")
        if not jobs:
            raise InputError(f"None of the lines in {path} can be run ({len(self.told)} refused).")

    def tell_again(self) -> None:
        """Raises GenerationError when there were any."""
        for line in self.told[:TOLD_AGAIN]:
            note(line)
        if len(self.told) > TOLD_AGAIN:
            note(f"and {len(self.told) - TOLD_AGAIN} more, see above")
        if self.told:
            raise GenerationError(
                f"{len(self.told)} of the lines failed. Mend them and run the same command again: "
                "what is made stays."
            )


@dataclass
class Batch:
    """The jobs of one run and what becomes of them."""

    lines: JobFile
    ledger: Ledger
    model: str  # its hash
    problems: Problems
    as_json: bool = False  # print results as they come rather than file names
    done: int = 0  # by earlier runs
    _seeds: dict[int, int] = field(default_factory=dict)  # of the jobs under way, by their place

    def todo(self, jobs: Iterable[Job], *, force: bool) -> Iterator[Job]:
        """The jobs that are not done; what would replace a file is one only with ``force``."""
        for job in jobs:
            path = self.ledger.folder / job.output
            if self.ledger.has(job.output, self._key(job)):
                self.done += 1
            elif path.is_dir():
                self.problems.refuse(job.number, f"{path} is a folder.")
            elif os.path.lexists(path) and not force and not self.ledger.lost(job.output):
                made = "made from something else" if job.output in self.ledger.made else "not ours"
                self.problems.refuse(
                    job.number, f"{path} exists and is {made}. Add --force to replace it."
                )
            else:
                yield job

    def run(
        self, server: HiggsAudioServer, todo: list[Job], max_batch: int, progress: JobBar
    ) -> None:
        """Make them; each result is on disk before the next is taken.

        Raises:
            OSError: the disk is full, or gone.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # announce says it
            try:
                results = server.generate_batch(self._requests(todo), max_batch=max_batch)
                for place, result in results:
                    self._take(todo[place], self._seeds.pop(place), result, progress)
            except (KeyboardInterrupt, OSError):
                progress.say("Stopped. The same command goes on with what is left.")
                raise

    def take_in(self, progress: JobBar) -> None:
        """What helpers have made since."""
        for entry in self.ledger.collect():
            self._tell(entry, progress)

    def _requests(self, todo: Iterable[Job]) -> Iterator[SpeechRequest]:
        """One at a time, whenever there is room for it: a hundred thousand need no more memory."""
        for place, job in enumerate(todo):
            seed = secrets.randbelow(2**32) if job.seed is None else job.seed
            self._seeds[place] = seed
            yield self.lines.request(job, seed)

    def _take(self, job: Job, seed: int, result: Speech | HiggsError, progress: JobBar) -> None:
        entry: Entry = {"line": job.number, "id": job.name, "output": job.output, "seed": seed}
        entry["hash"] = self._key(job)
        if isinstance(result, Speech):
            entry |= {"duration": result.duration, "stop_reason": result.stop_reason}
            entry["seconds"] = round(result.seconds, 3)
            self.ledger.keep(entry, result.pcm, result.sampling_rate)
        else:
            entry["error"] = " ".join(str(result).split())
            self.ledger.append(entry)
        self._tell(entry, progress)
        self.take_in(progress)

    def _tell(self, entry: Entry, progress: JobBar) -> None:
        progress.advance(entry.get("duration", 0.0))
        if error := entry.get("error"):
            self.problems.add(entry["line"], error)
            progress.say(self.problems.told[-1])
        if self.as_json:
            progress.say(json.dumps(entry), sys.stdout)
        elif not error:
            progress.say(str(self.ledger.folder / entry["output"]), sys.stdout)

    def _key(self, job: Job) -> str:
        return hashlib.sha256(f"{self.model} {job.content}".encode()).hexdigest()[:32]
