"""``evaluate speech``: speak texts, or take recordings, and measure what can be heard of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import audio
from ..cli import note
from ..defaults import Defaults
from ..server import SpeechRequest
from ..server.opening import load_server
from ..server.request import check_clips, references
from ..sources import DEFAULT_MODEL, resolve
from ..types import InputError
from ..vocabulary import draw_texts
from ..voices import Reference
from .cloning import Voices, cloning_report
from .outcomes import Originals, Outcome, judge
from .plot import check_plot, plot
from .recogniser import PocketSphinx, Recogniser, Whisper, choose_grammar
from .report import References, SpeechReport, speech_report
from .show import show
from .texts import SENTENCES, Recording, read_recordings, read_texts, recording
from .trials import Take, perform, plan, play_back
from .words import installed_jiwer, spoken_words

DRAWN = 40  # texts, when nothing says how many


@dataclass(frozen=True)
class Job:
    """What is to be measured, checked before anything slow begins."""

    texts: list[str]
    takes: int
    recordings: list[Recording]
    reference: Recording | None
    originals: Originals
    voices: Voices | None
    vocabulary: list[str]


def run_speech(arguments: argparse.Namespace) -> None:
    """The command: check, load, speak, listen, print.

    Raises:
        InputError: a file, option or package that is missing; before any speech is made.
    """
    installed_jiwer()
    if arguments.plot:
        check_plot(arguments.plot)
    if arguments.save_wavs:
        check_folder(arguments.save_wavs)
    job = prepare(arguments)
    recogniser = build_recogniser(arguments, job)
    report = measure(job, recogniser, _takes(arguments, job), noise=not arguments.no_noise)
    if arguments.plot:
        plot(report, arguments.plot)
    print(json.dumps(asdict(report)) if arguments.json else "\n".join(show(report)), flush=True)


def prepare(arguments: argparse.Namespace) -> Job:
    """Read everything the options name.

    Raises:
        InputError: they do not fit together, or something is missing.
    """
    _check_options(arguments)
    recordings = read_recordings(arguments.recordings) if arguments.recordings else []
    recordings = recordings[: arguments.limit]
    known = _vocabulary(arguments)
    texts = [clip.text for clip in recordings] or _texts(arguments, known)
    voices = Voices(arguments.references) if arguments.references else None
    speakers = len(voices.clips) if voices else 1
    return Job(
        texts=texts,
        takes=len(recordings) or len(texts) * arguments.seeds * speakers,
        recordings=recordings,
        reference=_reference(arguments),
        originals=Originals(read_recordings(arguments.original) if arguments.original else []),
        voices=voices,
        vocabulary=known,
    )


def _check_options(arguments: argparse.Namespace) -> None:
    for name in ("seeds", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}: it must be at least 1.")
    if arguments.ref_text and not arguments.ref_audio:
        raise InputError("--ref-text needs --ref-audio, the clip that says it.")
    named = [
        arguments.ref_audio,
        arguments.voice,
        None if arguments.recordings else arguments.references,
    ]
    if sum(map(bool, named)) > 1:
        raise InputError("Name one of --ref-audio, --voice and --references: who is to speak?")
    if arguments.recordings and (arguments.texts or arguments.save_wavs):
        raise InputError("--recordings are there already: --texts and --save-wavs do not apply.")
    if arguments.whisper_model and arguments.grammar != "auto":
        raise InputError(f"whisper.cpp knows no grammar {arguments.grammar}: leave it out.")


def _vocabulary(arguments: argparse.Namespace) -> list[str]:
    """Words of ``--vocabulary``, or those the checkpoint says it can say (none if it does not)."""
    if arguments.vocabulary:
        words = [word for text in read_texts(arguments.vocabulary) for word in spoken_words(text)]
        return list(dict.fromkeys(words))
    if arguments.recordings and arguments.model is None:
        return []
    folder = resolve(arguments.model or DEFAULT_MODEL, arguments.revision)
    words = Defaults.from_pretrained(folder).words or []
    return list(dict.fromkeys(part for word in words for part in spoken_words(word)))


def _texts(arguments: argparse.Namespace, known: Sequence[str]) -> list[str]:
    if arguments.texts:
        return read_texts(arguments.texts)[: arguments.limit]
    if known:
        return draw_texts(known, arguments.limit or DRAWN, arguments.seed)
    return list(SENTENCES[: arguments.limit])


def _reference(arguments: argparse.Namespace) -> Recording | None:
    """The clip that ``--ref-audio`` or ``--voice`` names; a described voice has none."""
    request = SpeechRequest("words", **_voice_options(arguments))
    named = references(request)
    check_clips(named)
    clip = next((voice for voice in named if isinstance(voice, Reference)), None)
    return recording(clip.path, clip.transcript) if clip else None


def _voice_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The voice as fields of SpeechRequest."""
    return {
        "reference_audio_path": arguments.ref_audio,
        "reference_text": arguments.ref_text,
        "voice": arguments.voice,
    }


def build_recogniser(arguments: argparse.Namespace, job: Job) -> Recogniser:
    """The recogniser asked for, told what it may hear.

    Raises:
        InputError: not installed, or a word of the texts is not in its dictionary.
    """
    if arguments.whisper_model:
        return Whisper(arguments.whisper_model)
    said = {word for text in job.texts for word in spoken_words(text)}
    grammar = arguments.grammar
    if grammar == "auto":
        grammar = choose_grammar(said, job.vocabulary)
    recogniser = PocketSphinx(grammar, said | set(job.vocabulary), arguments.pronunciations)
    _check_words(recogniser, grammar, said)
    return recogniser


def _check_words(recogniser: PocketSphinx, grammar: str, said: set[str]) -> None:
    strange = (
        sorted(said - set(recogniser.words)) if grammar == "digits" else recogniser.unknown(said)
    )
    if not strange:
        return
    names = ", ".join(strange[:10]) + (f" and {len(strange) - 10} more" if strange[10:] else "")
    if grammar == "full":
        note(f"pocketsphinx cannot hear {names}: counted as wrong (see --pronunciations).")
        return
    raise InputError(
        f"The {grammar} grammar of pocketsphinx cannot hear {names}: add them with "
        "--pronunciations FILE (a line each: higgs HH IH G Z), or change --grammar or the texts."
    )


def _takes(arguments: argparse.Namespace, job: Job) -> Iterator[Take]:
    if job.recordings:
        return play_back(job.recordings)
    arguments.model = arguments.model or DEFAULT_MODEL
    server = load_server(arguments, many_clips=bool(job.voices))
    if not server.higgs.defaults.clones and (job.voices or arguments.voice or arguments.ref_audio):
        raise InputError("This checkpoint cannot clone: leave the voice out.")
    options = {"scene": arguments.scene, "temperature": arguments.temperature}
    SpeechRequest("words", **options).sampling(server.higgs.defaults.sampling)  # refused early
    if not job.voices:
        options |= _voice_options(arguments)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    trials = plan(job.texts, seeds, job.voices.clips if job.voices else None)
    return _saved(perform(server, trials, options), arguments.save_wavs)


def _saved(takes: Iterable[Take], folder: Path | None) -> Iterator[Take]:
    """Write each take as VOICE_001.wav and .txt: what ``--recordings`` reads."""
    for index, take in enumerate(takes, 1):
        if folder and not take.failure:
            path = folder / f"{take.voice or 'speech'}_{index:03d}.wav"
            audio.write(path, take.pcm, take.rate)
            path.with_suffix(".txt").write_text(take.text + "\n", encoding="utf-8")
        yield take


def check_folder(folder: Path) -> None:
    """Make the folder for ``--save-wavs``.

    Raises:
        InputError: something is in it already, or it cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already: name a new folder for --save-wavs.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}).") from error


def measure(
    job: Job, recogniser: Recogniser, takes: Iterable[Take], *, noise: bool = True
) -> SpeechReport:
    """Listen to the takes, under a progress bar, and sum up."""
    from tqdm import tqdm

    bar = tqdm(takes, total=job.takes, unit="run", disable=None)
    outcomes: list[Outcome] = [judge(take, recogniser, job.originals, noise=noise) for take in bar]
    cloning = cloning_report(outcomes, job.voices) if job.voices else None
    return speech_report(outcomes, recogniser, References(job.reference), cloning)
