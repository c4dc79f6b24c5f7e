"""Answers in words and speech against Boson's own ``generate``: id for id, row for row.

Run from a checkout of github.com/boson-ai/higgs-audio: ``HIGGS_AUDIO=FOLDER pytest ...``.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scripted import Script, Scripted, stretch

from convert.boson_chat import Answered, Asked, BosonChat
from convert.tiny_chat import BANNED, STOPS, marks_of, write_talkative
from mlx_higgs.answer import Answering, Segment, resumed, unfinished
from mlx_higgs.loading import load_model
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.step import first_state
from mlx_higgs.types import Audio, Prompt, Text

pytest.importorskip("torch", reason="the reference gates need torch")
pytest.importorskip("transformers", reason="the reference gates need transformers")

REPO = Path(os.environ.get("HIGGS_AUDIO", ""))
pytestmark = [
    pytest.mark.skipif(
        not (REPO / "boson_multimodal").is_dir(),
        reason="$HIGGS_AUDIO is no checkout of boson-ai/higgs-audio",
    ),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def quiet():
    """transformers says at each call that Boson hands it a length twice."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


class Pair:
    """One tiny checkpoint on both sides."""

    def __init__(self, folder: Path, seed: int):
        self.widths = write_talkative(folder, seed=seed)
        first = self.widths.first_special
        self.marks = marks_of(self.widths)
        self.boson = BosonChat(
            folder, REPO, stops=[first + s for s in STOPS], banned=[first + b for b in BANNED]
        )
        self.model = load_model(folder, text_head=True)
        self.model.fuse()
        self.pattern = self.model.delay

    def prompt(self, rng: np.random.Generator, clips: int = 1) -> tuple[Prompt, Asked]:
        """Words, clips of an assistant, words."""
        words = self._words(rng)
        prompt: Prompt = [words]
        asked = Asked([*words.ids])
        for _ in range(clips):
            shape = int(rng.integers(3, 12)), self.pattern.num_codebooks
            codes = mx.array(rng.integers(0, self.pattern.codebook_size, shape))
            opened = Text([self.marks.opens])
            ending = Text([self.marks.closes, *self._words(rng).ids])
            prompt += [opened, Audio(codes), ending]
            asked.ids += [self.marks.opens, self.marks.speech, *ending.ids]
            asked.clips.append(np.array(self.pattern.apply(codes)).tolist())
        return prompt, asked

    def _words(self, rng: np.random.Generator) -> Text:
        return Text(rng.integers(0, self.widths.first_special, int(rng.integers(2, 9))).tolist())

    def ours(self, prompt, limit: int, *, begun=None, script: Script | None = None) -> Answered:
        model = self.model
        if script is not None:
            read = model.embed_prompt(prompt)[0].shape[1] + (0 if begun is None else len(begun))
            model = Scripted(model, script, read)
        params = SamplingParams(temperature=0, ras_window=0, max_frames=limit, seed=0)
        answering = Answering(model, prompt, params, self.marks, begun=begun, max_identical_rows=0)
        segments = [
            [row.tolist() for row in event] for event in answering if isinstance(event, Segment)
        ]
        return Answered(answering.ids, segments)


@pytest.fixture
def pair(tmp_path: Path, seed: int) -> Pair:
    return Pair(tmp_path / "checkpoint", seed)


@pytest.mark.parametrize("opened", [False, True])
def test_greedy_answers_are_boson_s(pair: Pair, seed: int, opened: bool):
    """Words, speech and words again, as a random model happens to take turns."""
    rng = np.random.default_rng(seed)
    kinds = []
    for clips in (0, 1, 2):
        prompt, asked = pair.prompt(rng, clips)
        if opened:  # force_audio_gen
            prompt.append(Text([pair.marks.opens]))
            asked.ids.append(pair.marks.opens)
        theirs = pair.boson.generate(asked, 150)
        assert pair.ours(prompt, 150) == theirs
        kinds.append(len(theirs.segments))
    assert any(kinds) or not opened


@pytest.mark.parametrize("limit", [1, 2, 3, 9, 30, 400])
def test_scripted_answers_are_boson_s(pair: Pair, seed: int, limit: int):
    """Several stretches with every way to end them; cut by the limit anywhere."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        prompt, asked = pair.prompt(rng)
        script = an_answer(rng, pair)
        theirs = pair.boson.generate(asked, limit, script)
        assert pair.ours(prompt, limit, script=script) == theirs


def an_answer(rng: np.random.Generator, pair: Pair) -> Script:
    script: Script = []
    for _ in range(rng.integers(1, 4)):
        script += rng.integers(0, pair.widths.first_special, int(rng.integers(0, 4))).tolist()
        script += [pair.marks.opens, None, *stretch(rng, pair.pattern)]
    return [*script, 3, int(rng.choice(sorted(pair.marks.stops))), 0]


def test_a_prompt_that_ends_in_speech_is_continued_as_boson_does(pair: Pair, seed: int):
    """Cut at any row: in the ramp-in, in the middle, and in the ramp-out."""
    rng = np.random.default_rng(seed)
    K = pair.pattern.num_codebooks
    codes = mx.array(rng.integers(0, pair.pattern.codebook_size, (6, K)))
    rows = pair.pattern.apply(codes)
    lengths = [*range(1, len(rows) + 1)]
    for length in (*rng.choice(lengths, 5, replace=False).tolist(), 7, len(rows)):
        prompt, asked = pair.prompt(rng)
        begun = rows[:length]
        prompt.append(Text([pair.marks.opens]))
        asked.ids += [pair.marks.opens, pair.marks.speech]
        asked.clips.append(np.array(begun).tolist())
        theirs = pair.boson.generate(asked, 90)
        assert pair.ours(prompt, 90, begun=begun) == theirs, length


def test_a_scripted_continuation_is_boson_s(pair: Pair, seed: int):
    rng = np.random.default_rng(seed)
    for frames in (1, 5, 20):
        prompt, asked = pair.prompt(rng)
        codes = mx.array(
            rng.integers(0, pair.pattern.codebook_size, (frames, pair.pattern.num_codebooks))
        )
        begun = unfinished(codes, pair.pattern)
        prompt.append(Text([pair.marks.opens]))
        asked.ids += [pair.marks.opens, pair.marks.speech]
        asked.clips.append(np.array(begun).tolist())
        state = resumed(pair.pattern, begun, first_state(pair.pattern, None)).delay
        script = [*stretch(rng, pair.pattern, state), *an_answer(rng, pair)]
        for limit in (4, 60, 400):
            theirs = pair.boson.generate(asked, limit, script)
            assert pair.ours(prompt, limit, begun=begun, script=script) == theirs
