"""Speech recognisers behind one small interface: what was heard in a waveform."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ..resample import resample
from ..text import read_text
from ..types import InputError
from .words import DIGITS, spoken_words

if TYPE_CHECKING:
    from types import ModuleType

RATE = 16_000  # Hz; both recognisers were trained with it
PADDING = 0.3  # seconds of quiet around the speech, which pocketsphinx needs to settle
NOISE = 2.0  # of 32767: digital silence has no logarithm
PEAK = 0.6  # of full scale
SHORTEST = 1.2  # seconds; whisper.cpp hears nothing in less than one
LARGEST_VOCABULARY = 20_000  # of a word loop, which has to tell each word from all the others

Grammar = Literal["digits", "words", "full"]


class Recogniser(Protocol):
    """Something that writes down speech; ``name`` says what it is and what it may answer."""

    name: str

    def transcribe(self, pcm: np.ndarray, rate: int) -> str:
        """Mono float ``[N]`` at ``rate`` Hz -> what was said; "" for nothing."""
        ...

    def unknown(self, words: Iterable[str]) -> list[str]:
        """Those of ``words`` it can never answer, sorted."""
        ...


def choose_grammar(words: Iterable[str], vocabulary: Iterable[str]) -> Grammar:
    """``digits`` if nothing else is said, ``words`` inside a known vocabulary, else ``full``."""
    said, known = set(words), set(vocabulary)
    if said <= set(DIGITS):
        return "digits"
    return "words" if said <= known else "full"


class PocketSphinx:
    """CMU Sphinx' small recogniser with its own English acoustic model; repeatable.

    Args:
        grammar: ``digits`` a loop over ten words, ``words`` a loop over ``vocabulary`` with equal
            chances, ``full`` its English trigram model.
        pronunciations: a file of lines ``word PH OH N EH M Z`` (CMUdict's), for unknown words.

    Raises:
        InputError: not installed, no vocabulary, or a bad line in ``pronunciations``.
    """

    def __init__(
        self,
        grammar: Grammar = "full",
        vocabulary: Iterable[str] = (),
        pronunciations: Path | None = None,
    ):
        library = installed_pocketsphinx()
        model = Path(library.get_model_path("en-us"))
        extra = read_pronunciations(pronunciations) if pronunciations else {}
        words = sorted(set(DIGITS) if grammar == "digits" else set(vocabulary))
        self._known = set(read_dictionary(model / "cmudict-en-us.dict")) | extra.keys()
        self.left_out = self.unknown(words)
        words = [word for word in words if word in self._known]
        with _files(model, grammar, words, extra) as options:
            config = library.Config(loglevel="FATAL", cmn="batch", **options)
            self._decoder: Any = library.Decoder(config)
        self.words = words  # of a loop
        self.name = f"pocketsphinx, {self._describe(grammar, words)}"

    def _describe(self, grammar: Grammar, words: Sequence[str]) -> str:
        if grammar == "full":
            return f"its full English model ({len(self._known)} words)"
        return f"{grammar.removesuffix('s')} loop ({len(words)} words)"

    def transcribe(self, pcm: np.ndarray, rate: int) -> str:
        self._decoder.reinit_feat()  # or it hears the last recording's noise in this one
        self._decoder.start_utt()
        self._decoder.process_raw(prepared(pcm, rate).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return re.sub(r"\(\d+\)", "", found.hypstr) if found else ""  # read(2): a variant

    def unknown(self, words: Iterable[str]) -> list[str]:
        return sorted(set(words) - self._known)


def prepared(pcm: np.ndarray, rate: int) -> np.ndarray:
    """Speech as pocketsphinx wants it: int16 at 16 kHz, quiet at both ends, one loudness."""
    wave = np.pad(resample(pcm, rate, RATE), round(PADDING * RATE)).astype(np.float64)
    wave *= PEAK * 32767 / max(np.max(np.abs(wave)), 1e-9)
    wave += np.random.default_rng(0).normal(0, NOISE, len(wave))
    return wave.astype(np.int16)


@contextmanager
def _files(model: Path, grammar: Grammar, words: Sequence[str], extra: dict[str, str]):
    """The decoder's options; what it reads from files goes when it has read them."""
    if grammar != "full" and not 0 < len(words) <= LARGEST_VOCABULARY:
        raise InputError(
            f"A word loop over {len(words)} words is no good: 1 to {LARGEST_VOCABULARY} are. "
            "Give a vocabulary, or use --grammar full."
        )
    with tempfile.TemporaryDirectory(prefix="mlx_higgs") as temporary:
        folder = Path(temporary)
        entries = (model / "cmudict-en-us.dict").read_text(encoding="utf-8").splitlines()
        if grammar != "full":  # a loop over a small dictionary is built in no time
            wanted = set(words)
            entries = [line for line in entries if _entry(line) in wanted]
        entries += [f"{word} {phones}" for word, phones in extra.items()]
        dictionary = _write(folder / "dict", *entries)
        options = {"dict": str(dictionary), "hmm": str(model / "en-us")}
        if grammar == "digits":  # a loop in JSGF is exact, but too slow for hundreds of words
            loop = f"public <said> = ({' | '.join(words)})+ ;"
            options["jsgf"] = str(_write(folder / "jsgf", "#JSGF V1.0;", "grammar said;", loop))
        elif grammar == "words":
            options["lm"] = str(_write(folder / "arpa", *unigram_arpa(words)))
        else:
            options["lm"] = str(model / "en-us.lm.bin")
        yield options


def unigram_arpa(words: Sequence[str]) -> list[str]:
    """A language model in which every word, and the end, is equally likely."""
    chance = f"{math.log10(1 / (len(words) + 1)):.4f}"
    entries = [f"{chance} </s>", "-99 <s> 0", *(f"{chance} {word}" for word in words)]
    return ["\\data\\", f"ngram 1={len(entries)}", "", "\\1-grams:", *entries, "", "\\end\\"]


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_dictionary(path: Path) -> list[str]:
    """The words of a CMUdict file, a variant's number removed."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_entry(line) for line in lines if line.strip()]


def _entry(line: str) -> str:
    return line.partition(" ")[0].partition("(")[0]


def read_pronunciations(path: Path) -> dict[str, str]:
    """Words a person adds: ``higgs HH IH G Z`` a line, blank lines and ``#`` comments skipped.

    Raises:
        InputError: unreadable, or a line that is no word with phonemes.
    """
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        word, *phones = line.partition("#")[0].split() or [""]
        if not word:
            continue
        if spoken_words(word) != [word] or not phones or not all(map(_PHONE.fullmatch, phones)):
            raise InputError(f"{path}:{number}: {line.strip()!r} is not like: higgs HH IH G Z")
        found[word] = " ".join(phones)
    return found


_PHONE = re.compile(
    "AA|AE|AH|AO|AW|AY|B|CH|D|DH|EH|ER|EY|F|G|HH|IH|IY|JH|K|L|M|N|NG|OW|OY|P|R|S|SH|T|TH|UH|UW|V|W"
    "|Y|Z|ZH"
)  # what the acoustic model knows


def installed_pocketsphinx() -> ModuleType:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pocketsphinx
    except ImportError as error:
        raise InputError(
            "Listening needs pocketsphinx: pip install 'mlx_higgs[eval]' first, or give "
            "--whisper-model."
        ) from error
    return pocketsphinx


class Whisper:
    """whisper.cpp through pywhispercpp, with a ggml model file that is on this machine. English.

    Raises:
        InputError: not installed, or no such file (nothing is downloaded).
    """

    def __init__(self, path: Path):
        if not path.is_file():  # a bare name would be fetched from the network
            raise InputError(f"There is no whisper.cpp model file {path} (ggml-*.bin).")
        try:
            from pywhispercpp.model import Model  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "--whisper-model needs whisper.cpp's bindings: pip install pywhispercpp first."
            ) from error
        self._model = Model(
            str(path),
            redirect_whispercpp_logs_to=None,
            language="en",
            print_progress=False,
            print_timestamps=False,
        )
        self.name = f"whisper.cpp, {path.name}"

    def transcribe(self, pcm: np.ndarray, rate: int) -> str:
        wave = resample(pcm, rate, RATE)
        missing = max(0, round(SHORTEST * RATE) - len(wave))
        segments = self._model.transcribe(np.pad(wave, (0, missing)))
        return " ".join(segment.text.strip() for segment in segments)

    def unknown(self, words: Iterable[str]) -> list[str]:
        return []  # it spells
