"""``evaluate quant``: a reference and its quantised candidates, compared with each other."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx

from ..calibration.passages import draw, spoken
from ..cli import note
from ..defaults import Defaults
from ..memory import on_cpu
from ..quantization import Plan
from ..server import HiggsAudioServer, SpeechRequest
from ..types import GenerationError, InputError
from .outcomes import Originals, Outcome
from .plot import check_plot
from .quant_forced import Passages, bars
from .quant_markdown import markdown, markdown_sizes
from .quant_models import (
    Entry,
    Storage,
    check_alike,
    check_room,
    check_texts,
    entries,
    storage,
)
from .quant_plot import plot_quant
from .quant_record import check_record, record
from .quant_report import LIMITS, Column, QuantReport, faults, show, verdict
from .quant_sizes import show_sizes, sizes
from .quant_spoken import Deaf, listen, speak, sum_up
from .recogniser import Recogniser, installed_pocketsphinx
from .speech import Job, build_recogniser
from .texts import read_texts
from .trials import Trial, plan
from .words import installed_jiwer, spoken_words

if TYPE_CHECKING:
    from ..loading import Higgs
    from ..train.samples import Sample

COMPUTED = "float32; quantised weights turned back into floats, because this is a CPU"


@dataclass(frozen=True)
class Contest:
    """What is to be compared, checked before anything slow begins."""

    arguments: argparse.Namespace
    reference: Entry
    candidates: list[Entry]
    storages: list[Storage]  # the reference's first
    texts: list[str]
    ears: Recogniser | None
    unheard: str  # why there is no recogniser

    @property
    def seeds(self) -> int:
        return 0 if self.arguments.only_forced else self.arguments.seeds

    @property
    def trials(self) -> list[Trial]:
        first = self.arguments.seed
        return plan(self.texts, range(first, first + self.seeds))


def run_quant(arguments: argparse.Namespace) -> None:
    """The command: check, measure, write, print.

    Raises:
        InputError: an option, file or package that is missing, or models that do not belong
            together; before anything is measured.
    """
    if arguments.shape:
        _print_sizes(arguments)
        return
    if arguments.plot:
        check_plot(arguments.plot)
    contest = prepare(arguments)
    report = measure(contest)
    if arguments.record:
        record(report, contest.candidates)
    if arguments.plot:
        plot_quant(report, arguments.plot)
    lines = markdown(report) if arguments.markdown else show(report)
    print(json.dumps(report.to_dict()) if arguments.json else "\n".join(lines), flush=True)


def _print_sizes(arguments: argparse.Namespace) -> None:
    if arguments.reference or arguments.candidate:
        raise InputError(
            "--shape has no weights to compare: leave --reference and --candidate out."
        )
    found = sizes(arguments.shape)
    lines = markdown_sizes(found) if arguments.markdown else show_sizes(found)
    text = json.dumps([asdict(size) for size in found]) if arguments.json else "\n".join(lines)
    print(text, flush=True)


def prepare(arguments: argparse.Namespace) -> Contest:
    """Open the models and read the texts.

    Raises:
        InputError: they do not fit together, or something is missing.
    """
    _check_options(arguments)
    reference, *candidates = entries([arguments.reference, *arguments.candidate])
    if arguments.record:
        check_record(candidates)
    talkers = [entry.talker() for entry in (reference, *candidates)]
    for entry, talker in zip(candidates, talkers[1:], strict=True):
        check_alike(talkers[0], entry.name, talker)
    check_room(reference.name, talkers[0])
    defaults = Defaults.from_pretrained(reference.folder, type(talkers[0]))
    SpeechRequest("words", temperature=arguments.temperature).sampling(defaults.sampling)
    texts = _texts(arguments, defaults)
    check_texts(reference, candidates, texts, arguments.tokenizer)
    ears, unheard = (None, "") if arguments.only_forced else _ears(arguments, texts, defaults)
    pairs = zip((reference, *candidates), talkers, strict=True)
    storages = [storage(entry, talker) for entry, talker in pairs]
    return Contest(arguments, reference, candidates, storages, texts, ears, unheard)


def _check_options(arguments: argparse.Namespace) -> None:
    if not arguments.reference or not arguments.candidate:
        raise InputError("Name a --reference and at least one --candidate, or a --shape.")
    for name in ("limit", "seeds", "max_batch"):
        value = getattr(arguments, name)
        if value < 1:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}: it must be at least 1.")


def _texts(arguments: argparse.Namespace, defaults: Defaults) -> list[str]:
    if arguments.texts:
        return list(dict.fromkeys(read_texts(arguments.texts)))[: arguments.limit]
    return draw(defaults, arguments.limit, arguments.seed)


def _ears(
    arguments: argparse.Namespace, texts: list[str], defaults: Defaults
) -> tuple[Recogniser | None, str]:
    """A recogniser, or why there is none."""
    try:
        installed_jiwer()
        if not arguments.whisper_model:
            installed_pocketsphinx()
    except InputError as error:
        return None, f"none: {error}"
    known = dict.fromkeys(part for word in defaults.words or [] for part in spoken_words(word))
    if arguments.vocabulary:
        known = dict.fromkeys(
            word for text in read_texts(arguments.vocabulary) for word in spoken_words(text)
        )
    job = Job(texts, len(texts), [], None, Originals([]), None, list(known))
    return build_recogniser(arguments, job), ""


def measure(contest: Contest) -> QuantReport:
    """One model in memory at a time, the reference first."""
    higgs = _load(contest, contest.reference)
    samples = _passages(contest, higgs)
    passages = Passages.of(higgs.model, samples, bars)
    heard = _hear(contest, higgs, contest.reference)
    del higgs
    _release()
    reference = _column(contest.reference, contest.storages[0])
    if heard:
        reference = replace(reference, spoken=_summed(contest, heard, None))
    candidates = [
        _candidate(contest, entry, stored, passages, heard, reference)
        for entry, stored in zip(contest.candidates, contest.storages[1:], strict=True)
    ]
    candidates.sort(key=lambda column: column.kl)
    return QuantReport(
        reference=reference,
        candidates=candidates,
        texts=len(contest.texts),
        seeds=contest.seeds,
        seed=contest.arguments.seed,
        passages=len(samples),
        computed=COMPUTED if on_cpu() else "",
        recogniser=contest.ears.name if contest.ears else contest.unheard,
        limits=LIMITS,
        verdict=verdict(reference, candidates),
    )


def _passages(contest: Contest, higgs: Higgs) -> list[Sample]:
    """What the reference says of the texts, in its own way."""
    arguments, label = contest.arguments, contest.reference.label
    try:
        return spoken(
            higgs,
            contest.texts,
            seed=arguments.seed,
            max_batch=arguments.max_batch,
            watch=lambda items, what, total: bars(items, f"{label}, {what}", total),
        )
    except GenerationError as error:
        raise GenerationError(f"The reference cannot be compared with. {error}") from error


def _candidate(
    contest: Contest,
    entry: Entry,
    stored: Storage,
    passages: Passages,
    theirs: list[Outcome] | None,
    reference: Column,
) -> Column:
    higgs = _load(contest, entry)
    forced = passages.judge(higgs.model, bars, entry.label)
    heard = _hear(contest, higgs, entry)
    spoken = _summed(contest, heard, theirs) if heard else None
    del higgs
    _release()
    column = replace(_column(entry, stored), forced=forced, spoken=spoken)
    return replace(column, faults=faults(column, reference))


def _load(contest: Contest, entry: Entry) -> Higgs:
    note(f"{entry.label} ...")
    return entry.load(contest.arguments.codec, contest.arguments.tokenizer)


def _release() -> None:
    """Before the next model comes."""
    gc.collect()  # a compiled step and its model hold each other
    mx.clear_cache()


def _hear(contest: Contest, higgs: Higgs, entry: Entry) -> list[Outcome] | None:
    """The free runs, measured; None if there are to be none."""
    trials, arguments = contest.trials, contest.arguments
    if not trials:
        return None
    server = HiggsAudioServer(higgs, voice_cache=None)
    takes = speak(server, trials, arguments.temperature, arguments.max_batch)
    return listen(bars(takes, entry.label, len(trials)), contest.ears or Deaf())


def _summed(contest: Contest, ours: Sequence[Outcome], theirs: Sequence[Outcome] | None):
    return sum_up(ours, theirs, hears=contest.ears is not None)


def _column(entry: Entry, stored: Storage) -> Column:
    recipe = entry.recipe
    words = "" if recipe.plan == Plan() else "; ".join(recipe.words())
    return Column(entry.label, entry.name, words, stored)
