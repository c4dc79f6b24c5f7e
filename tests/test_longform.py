"""Laws of long texts: a seed a piece, what failed is tried again and told, joints, contexts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from tiny_model import tiny_model

from mlx_higgs import HiggsAudioServer
from mlx_higgs.delivery import EXACT, WHOLE
from mlx_higgs.frames import prefill
from mlx_higgs.joints import Joint, faded
from mlx_higgs.longform import LongJob, speak
from mlx_higgs.pieces import Chunking, piece_seed
from mlx_higgs.prefix import PrefixCache, split
from mlx_higgs.server import SpeechRequest
from mlx_higgs.takes import Context, Doubtful
from mlx_higgs.types import Audio, GenerationError, InputError, SpeechChunk, Text

RATE = 24_000
CHUNKING = Chunking("sentence", limit=6, context=0, gap_ms=10)
TEXT = "one. two. three."


@dataclass
class Studio:
    """Jobs without a model: every piece a level of its own, ended as ``ends`` says, in turn."""

    ends: dict[str, list[str | None]] = field(default_factory=dict)
    requests: list[SpeechRequest] = field(default_factory=list)
    frames: int = 3

    def start(self, request: SpeechRequest) -> FakeJob:
        self.requests.append(request)
        ends = self.ends.get(request.target_text, [])
        return FakeJob(request, ends.pop(0) if ends else "eos", self.frames)

    def job(self, text: str = TEXT, chunking: Chunking = CHUNKING, **options) -> LongJob:
        request = SpeechRequest(text, **{"seed": 5, **options.pop("request", {})})
        job = speak(self.start, request, chunking, **options)
        assert isinstance(job, LongJob)
        return job

    @property
    def seeds(self) -> list[int | None]:
        return [request.seed for request in self.requests]


class FakeJob:
    """Three chunks of one level, which tells the piece and the seed."""

    num_edge_rows = 8

    def __init__(self, request: SpeechRequest, end: str | None, frames: int):
        self.request, self.seed, self._end, self._frames = request, request.seed, end, frames
        self.stop_reason, self.closed, self._told = None, False, None
        name = f"{request.target_text}{request.seed}".encode()
        self.level = 0.1 + hashlib.sha256(name).digest()[0] / 500
        codes = np.full((frames, 2), len(request.target_text), np.int32)
        self.stream = SimpleNamespace(codes=codes, num_rows=0)

    def on_row(self, callback: Callable[[int], None]) -> None:
        self._told = callback

    def close(self) -> None:
        self.closed = True

    def __iter__(self):
        for _ in range(self._frames):
            if self.closed:
                return
            self.stream.num_rows += 1
            if self._told:
                self._told(self.stream.num_rows)
            level = 0.0 if self._end is None else self.level
            yield SpeechChunk(np.full(960, level, np.float32), RATE, self.stream.num_rows)
        if self.closed:
            return
        self.stop_reason = self._end or "silence"
        if self._end is None:
            raise GenerationError("no sound")


def together(job) -> np.ndarray:
    return np.concatenate([chunk.pcm for chunk in job])


# -- seeds ----------------------------------------------------------------------------------------


def test_the_formula_of_seeds_is_the_documented_one():
    digest = hashlib.sha256(b"5/2/7/1").hexdigest()
    assert piece_seed(5, 2, 7, 1) == int(digest[:8], 16)
    assert piece_seed(5, 0, 0, 0) == 5
    seeds = {
        piece_seed(s, c, p, a)
        for s in range(3)
        for c in range(3)
        for p in range(9)
        for a in range(3)
    }
    assert len(seeds) == 3 * 3 * 9 * 3


def test_a_retry_changes_no_other_seed():
    calm, eventful = Studio(), Studio({"two.": ["length", "repetition"]})
    calm.job().run()
    eventful.job().run()
    assert calm.seeds == [piece_seed(5, 0, place, 0) for place in range(3)]
    assert eventful.seeds == [
        *calm.seeds[:2],
        piece_seed(5, 0, 1, 1),
        piece_seed(5, 0, 1, 2),
        calm.seeds[2],
    ]


def test_a_seed_is_drawn_and_told():
    studio = Studio()
    job = studio.job(request={"seed": None})
    assert studio.seeds == [job.seed]
    assert job.run().seed == job.seed


# -- what fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["length", "repetition", "silence", None])
def test_what_failed_is_said_again_and_then_told(end: str | None):
    mended = Studio({"two.": [end, "eos"]}).job()
    assert mended.run().stop_reason == "eos"
    assert [piece.attempts for piece in mended.said] == [1, 2, 1]
    assert not mended.faults
    failed = Studio({"two.": [end] * 3}).job()
    assert failed.run().stop_reason == (end or "silence")
    assert [piece.text for piece in failed.faults] == ["two."]
    assert failed.faults[0].attempts == 3
    assert failed.faults[0].fault


def test_the_best_attempt_is_kept():
    job = Studio({"two.": ["repetition", "silence", "length"]}).job()
    job.run()
    assert job.said[1].stop_reason == "silence"
    assert job.said[1].seed == piece_seed(5, 0, 1, 1)
    assert job.said[1].attempts == 3


def test_a_cap_that_was_asked_for_is_not_tried_again():
    studio = Studio({"two.": ["length"]})
    job = studio.job(request={"max_new_frames": 9})
    job.run()
    assert [piece.attempts for piece in job.said] == [1, 1, 1]
    assert [piece.text for piece in job.faults] == ["two."]


def test_a_piece_without_sound_leaves_its_place_and_the_first_raises():
    job = Studio({"two.": [None] * 3}).job()
    speech = job.run()
    assert [piece.stop - piece.start for piece in job.said] == [2880, 0, 2880]
    assert job.said[2].start == len(speech.pcm) - 2880
    with pytest.raises(GenerationError, match="no sound"):
        Studio({"one.": [None] * 3}).job().run()


def test_what_was_heard_is_not_said_again_but_silence_was_not_heard():
    studio = Studio({"two.": ["length"], "three.": [None, "eos"]})
    job = studio.job()
    wave = together(job)
    assert [piece.attempts for piece in job.said] == [1, 1, 2]
    assert [piece.text for piece in job.faults] == ["two."]
    assert len(wave) == job.said[-1].stop
    held = Studio({"two.": ["length", "eos"]}).job(live=False)
    assert len(together(held))
    assert not held.faults


def test_doubts_have_an_exit_code():
    assert Doubtful(2, 9).exit_code == 3
    assert "2 of 9" in str(Doubtful(2, 9))


# -- one speech -----------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_a_stream_is_the_whole_and_its_places_are_exact(live: bool):
    job, whole = Studio().job(live=live), Studio().job()
    wave, speech = together(job), whole.run()
    assert np.array_equal(wave, speech.pcm)
    assert job.said == whole.said
    gap, fade = 240, 120
    for before, after in zip(job.said, job.said[1:], strict=False):
        assert after.start - before.stop == gap
        assert not np.any(wave[before.stop : after.start])
        assert np.all(wave[before.start + fade : before.stop - fade] > 0.09)
    assert speech.num_frames_aligned == 9
    assert job.first_audio is not None


def test_no_joint_clicks(seed: int):
    wave = np.random.default_rng(seed).uniform(0.5, 1.0, 5000).astype(np.float32)
    whole = faded(wave, 120, 120)
    assert whole[0] == whole[-1] == 0.0
    assert np.max(np.abs(np.diff(np.abs(whole[:120]) / np.maximum(wave[:120], 1e-9)))) < 0.01
    assert np.array_equal(whole[120:-120], wave[120:-120])
    for size in (1, 50, 119, 120, 121, 4999):
        joint = Joint(120, 120)
        parts = [joint.push(wave[at : at + size]) for at in range(0, 5000, size)]
        assert np.array_equal(np.concatenate([*parts, joint.finish()]), whole)


def test_closing_ends_it_and_its_job():
    studio = Studio()
    job = studio.job()
    chunks = iter(job)
    next(chunks)
    job.close()
    assert list(chunks) == []
    assert job.stop_reason is None
    assert len(studio.requests) == 1
    with pytest.raises(GenerationError, match="given up"):
        job.speech(np.zeros(0, np.float32))
    with pytest.raises(RuntimeError, match="once"):
        list(job)


def test_leaving_the_iteration_closes_the_job():
    job = Studio().job()
    chunks = iter(job)
    next(chunks)
    chunks.close()
    assert job._job.closed


def test_rows_are_counted_through():
    rows: list[int] = []
    job = Studio().job()
    job.on_row(rows.append)
    job.run()
    assert rows == list(range(1, 10))


def test_one_piece_is_simply_started():
    studio = Studio()
    request = SpeechRequest("one two.", seed=3)
    assert isinstance(speak(studio.start, request, Chunking()), FakeJob)
    assert studio.requests == [request]


# -- context --------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_each_piece_knows_the_last_few_and_whose_voice_it_is(size: int, anchor: bool):
    studio, text = Studio({"c.": ["length"] * 3}), "a. b. c. d. e."
    studio.job(text, Chunking("word", limit=1, context=size, retries=0), anchor=anchor).run()
    known = [[said for said, _ in request.history] for request in studio.requests]
    last = [[], ["a."], ["a.", "b."], ["a.", "b."], ["a.", "b.", "d."]]  # c. went wrong
    first = ["a."] if anchor and size else []
    for found, said in zip(known, last, strict=True):
        window = said[len(said) - size :] if size else []
        assert found == [one for one in first if one in said and one not in window] + window


def test_the_first_of_a_context_outlives_chapters():
    context: Context[str] = Context(1, anchor=True)
    for text in ("a", "b"):
        context.keep(text, text * 2)
    context.new_chapter()
    assert context.history() == [("a", "aa")]


def test_speakers_of_the_whole_text_are_told_to_each_piece():
    studio = Studio()
    studio.job("[SPEAKER0] One. [SPEAKER1] Two.", Chunking("speaker", context=0)).run()
    assert [request.speakers for request in studio.requests] == [["SPEAKER0", "SPEAKER1"]] * 2


def test_history_is_no_part_of_the_voice(seed: int, tmp_path):
    """What was said before is prefilled with the text: a voice has one file, whatever is said."""
    model = tiny_model(seed)
    rng = np.random.default_rng(seed)

    def clip() -> Audio:
        return Audio(mx.array(rng.integers(0, 20, (5, 4)), dtype=mx.int32))

    voice, kept = [Text([1, 2]), clip()], PrefixCache(model, "", folder=tmp_path)
    for said in range(3):
        history = [part for n in range(said) for part in (Text([3, n]), clip())]
        prompt = [*voice, *history, Text([7, 8])]
        assert split(prompt, said) == 2
        prefix = kept.get(prompt, said)
        known, whole = prefill(model, prompt, prefix), prefill(model, prompt)
        for one, other in zip(known, whole, strict=True):
            assert one.offset == other.offset
            assert one.keys is not None
            assert other.keys is not None
            assert mx.allclose(
                one.keys[..., : one.offset, :], other.keys[..., : one.offset, :], atol=1e-4
            )
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert kept.get([Text([1]), *history, Text([2])], 2) is None


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "verse"},
        {"limit": 0},
        {"context": -1},
        {"context": 99},
        {"gap_ms": -1},
        {"retries": -1},
        {"fade_ms": float("nan")},
    ],
)
def test_what_is_refused(options: dict):
    with pytest.raises(InputError):
        Chunking(**options)


def test_short_texts_are_one_piece_and_long_ones_are_cut_by_what_they_are():
    auto = Chunking(limit=20)
    assert auto.cut("One. Two.\n\nThree.") == ["One. Two.\n\nThree."]
    assert auto.cut("One two. Three four. Five six.") == ["One two. Three four.", "Five six."]
    tagged = "[SPEAKER0] One two. [SPEAKER1] Three four."
    assert auto.cut(tagged) == ["[SPEAKER0] One two.", "[SPEAKER1] Three four."]
    assert Chunking("none", limit=1).cut(tagged) == [tagged]
    assert Chunking("word").settled(40, 0).limit is None
    assert Chunking().settled(40, 2) == Chunking(limit=40, context=2)
    assert Chunking(limit=7, context=0).settled(40, 2) == Chunking(limit=7, context=0)


# -- the demo -------------------------------------------------------------------------------------


def test_the_server_says_the_pieces_it_would_say_alone(server: HiggsAudioServer):
    request = SpeechRequest("one. two.", seed=4, max_new_frames=24)
    chunking = Chunking("sentence", limit=5, context=0, gap_ms=0, fade_ms=0)
    job = server.start_long(request, EXACT, chunking=chunking)
    wave = together(job)
    alone = [
        server.generate(text, seed=piece_seed(4, 0, place, 0), max_new_frames=24).pcm
        for place, text in enumerate(["one.", "two."])
    ]
    assert np.array_equal(wave, np.concatenate(alone))
    held = server.start_long(request, WHOLE, chunking=chunking)
    assert np.array_equal(together(held), wave)
    assert np.array_equal(server.start_long(request, chunking=chunking).run().pcm, wave)


def test_a_context_changes_what_follows(server: HiggsAudioServer):
    request = SpeechRequest("one. two.", seed=4, temperature=2.0, max_new_frames=60)
    alone, told = (
        server.start_long(request, chunking=Chunking("sentence", limit=5, context=size))
        for size in (0, 1)
    )
    before, after = alone.run().pcm, told.run().pcm
    if not told.said[0].fault:  # only what ended well is told
        place = told.said[0].stop
        assert np.array_equal(before[:place], after[:place])
        assert not np.array_equal(before[place:], after[place:])


def test_a_text_of_one_piece_is_as_generate_says_it(server: HiggsAudioServer):
    request = SpeechRequest("one two", seed=3, max_new_frames=24)
    assert np.array_equal(server.start_long(request).run().pcm, server.start(request).run().pcm)
