"""What is trained: the prompts that generation sends, and the reference's labels on them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from toy_tokenizer import token_id, toy_tokenizer

from mlx_higgs.delay import DelayPattern
from mlx_higgs.prompts.v2 import PromptBuilder
from mlx_higgs.train.data.conversation import Clip, Conversation, Message
from mlx_higgs.train.samples import IGNORED, ROW, Sample, make_sample, row_labels
from mlx_higgs.types import Audio, InputError, Prompt, Text, Voice

K, CODES = 4, 20
DELAY = DelayPattern(K, CODES, CODES + 1, edge_frames=1)
TOKENIZER = toy_tokenizer()
PROMPTS = PromptBuilder(TOKENIZER)


class Recordings:
    """Clips that need no sound: their codes are drawn when first asked for."""

    def __init__(self, seed: int):
        self._random, self._codes = np.random.default_rng(seed), {}

    def __call__(self, clip: Clip) -> np.ndarray:
        if clip not in self._codes:
            frames = int(self._random.integers(1, 9))
            self._codes[clip] = self._random.integers(0, CODES, (frames, K)).astype(np.int16)
        return self._codes[clip]


def clip(name: str) -> Clip:
    return Clip(Path(name))


def said(role: str, *parts, recipient=None) -> Message:
    return Message(role, parts, recipient)


def sample_of(*messages: Message, recordings, train_reference=False, **fields) -> Sample:
    conversation = Conversation(messages, source="data:1", **fields)
    return make_sample(conversation, PROMPTS, DELAY, recordings, train_reference=train_reference)


def laid_out(prompt: Prompt) -> tuple[list[int], list[list[int]]]:
    """Ids with ``ROW`` for every delayed row, and the rows."""
    ids, rows = [], []
    for part in prompt:
        if isinstance(part, Text):
            ids += part.ids
        else:
            delayed = np.array(DELAY.apply(part.codes)).tolist()
            rows += delayed
            ids += [ROW] * len(delayed)
    return ids, rows


def words(sample: Sample) -> list[str]:
    """The tokens that are learnt, by name."""
    learnt = sample.text_labels[sample.text_labels != IGNORED]
    return [str(TOKENIZER.id_to_token(int(token))) for token in learnt]


# -- the prompt --------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [None, "A quiet room.\nAt night."])
@pytest.mark.parametrize("in_system_message", [False, True])
def test_a_clone_is_trained_on_the_prompt_that_generation_sends(seed, scene, in_system_message):
    recordings = Recordings(seed)
    reference = Voice(mx.array(recordings(clip("ref"))), "What it says.")
    prompt = PROMPTS.build("Read this.", voices=[reference], scene=scene)
    messages = [
        said("user", "What it says."),
        said("assistant", clip("ref")),
        said("user", "Read this."),
        said("assistant", clip("target")),
    ]
    fields = {"start_index": 2, "scene": scene}
    if in_system_message and scene:
        text = "Generate audio following instruction."
        block = f"\n\n<|scene_desc_start|>\n{scene}\n<|scene_desc_end|>"
        messages = [said("system", text + block), *messages]
        fields = {"start_index": 3}
    sample = sample_of(*messages, recordings=recordings, **fields)
    ids, rows = laid_out(prompt)
    assert sample.ids[: len(ids)].tolist() == ids
    assert sample.rows[: len(rows)].tolist() == rows
    # what follows is the answer: its rows, and the two tokens that end it
    answer = np.array(DELAY.apply(mx.array(recordings(clip("target")))))
    assert sample.rows[len(rows) :].tolist() == answer.tolist()
    ends = [token_id(TOKENIZER, name) for name in ("<|audio_eos|>", "<|eot_id|>")]
    assert sample.ids[len(ids) :].tolist() == [ROW] * len(answer) + ends


def test_control_tokens_of_a_user_are_words(seed):
    sample = sample_of(
        said("user", "end <|eot_id|> here"),
        said("assistant", clip("a")),
        recordings=Recordings(seed),
    )
    assert (sample.ids == token_id(TOKENIZER, "<|eot_id|>")).sum() == 2  # one for each turn


# -- labels ------------------------------------------------------------------------------------


def bosons_labels(codes: np.ndarray) -> np.ndarray:
    """Boson's collator, slowly: BOS and EOS columns, then the delay with both filled as ignored."""
    (T, books), L = codes.shape, len(codes) + 2 + codes.shape[1] - 1
    stream = np.full((books, T + 2), IGNORED)
    stream[:, 1:-1], stream[:, -1] = codes.T, CODES + 1
    delayed = np.full((books, L), IGNORED)
    for book in range(books):
        for t in range(T + 2):
            delayed[book, t + book] = stream[book, t]
    return delayed.T


def test_rows_have_the_references_labels(seed):
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, (random.integers(1, 12), K))
    labels = row_labels(codes, DELAY)
    np.testing.assert_array_equal(labels, bosons_labels(codes))
    rows = np.array(DELAY.apply(mx.array(codes)))
    np.testing.assert_array_equal(labels[labels >= 0], rows[labels >= 0])
    assert ((labels == CODES + 1).sum(axis=0) == 1).all(), "one EOS of each codebook"
    assert (labels != CODES).all(), "no BOS"
    assert (labels[0] == IGNORED).all(), "the first row is forced, so never learnt"


def test_rows_without_edges_learn_what_they_hold(seed):
    delay = DelayPattern(K, CODES, CODES + 1, edge_frames=0)
    codes = np.random.default_rng(seed).integers(0, CODES, (5, K))
    labels, rows = row_labels(codes, delay), np.array(delay.apply(mx.array(codes)))
    np.testing.assert_array_equal(labels[labels >= 0], rows[labels >= 0])
    assert (labels == CODES + 1).sum(axis=0).tolist() == [1] * (K - 1) + [0]
    assert labels[0, 0] == codes[0, 0]


def test_only_what_assistants_say_is_learnt(seed):
    recordings = Recordings(seed)
    sample = sample_of(
        said("system", "Be brief.", clip("ambience")),
        said("user", "Say it.", clip("question")),
        said("assistant", "one", clip("answer")),
        recordings=recordings,
    )
    assert words(sample) == ["one", "<|audio_out_bos|>", "<|audio_eos|>", "<|eot_id|>"]
    silent = sum(DELAY.num_rows(len(recordings(clip(name)))) for name in ("ambience", "question"))
    assert (sample.audio_labels[:silent] == IGNORED).all()
    frames = len(recordings(clip("answer")))
    assert (sample.audio_labels >= 0).sum() == K * (frames + 1)


@pytest.mark.parametrize("train_reference", [False, True])
def test_turns_before_start_index_are_heard_not_learnt(seed, train_reference):
    recordings = Recordings(seed)
    sample = sample_of(
        said("user", "First."),
        said("assistant", clip("first")),
        said("user", "Second."),
        said("assistant", clip("second")),
        start_index=2,
        recordings=recordings,
        train_reference=train_reference,
    )
    turns = 2 if train_reference else 1
    assert words(sample) == ["<|audio_out_bos|>", "<|audio_eos|>", "<|eot_id|>"] * turns
    frames = [len(recordings(clip(name))) for name in ("first", "second")]
    learnt = (sample.audio_labels >= 0).any(axis=1)
    assert learnt[: DELAY.num_rows(frames[0])].any() == train_reference
    assert (sample.audio_labels >= 0).sum() == K * sum(f + 1 for f in frames[-turns:])


def test_a_scene_shifts_nothing(seed):
    messages = [said("user", "A."), said("assistant", clip("a")), said("assistant", clip("b"))]
    plain, scene = (
        sample_of(*messages, start_index=2, scene=scene, recordings=Recordings(seed))
        for scene in (None, "Outside.")
    )
    assert words(plain) == words(scene) == ["<|audio_out_bos|>", "<|audio_eos|>", "<|eot_id|>"]
    np.testing.assert_array_equal(plain.audio_labels, scene.audio_labels)


def test_consecutive_turns_and_recipients_are_the_references(seed):
    sample = sample_of(
        said("user", "Both."),
        said("assistant", clip("a"), recipient="tool"),
        said("assistant", clip("b")),
        recordings=Recordings(seed),
    )
    spoken = ["<|audio_out_bos|>", "<|audio_eos|>"]
    recipient = [TOKENIZER.id_to_token(i) for i in TOKENIZER.encode("tool").ids]
    expected = [*recipient, "<|recipient|>", *spoken, "<|eom_id|>", *spoken, "<|eot_id|>"]
    assert words(sample) == expected


def test_labels_stand_where_their_tokens_stand(seed):
    sample = sample_of(
        said("user", "Hi."), said("assistant", "one", clip("a")), recordings=Recordings(seed)
    )
    learnt = sample.text_labels != IGNORED
    np.testing.assert_array_equal(sample.text_labels[learnt], sample.ids[learnt])
    assert (sample.ids == ROW).sum() == len(sample.rows) == len(sample.audio_labels)
    assert len(sample) == len(sample.text_labels)


# -- errors ------------------------------------------------------------------------------------


def test_nothing_to_learn_is_an_error_by_line(seed):
    with pytest.raises(InputError, match=r"data:1 has nothing to learn.*start_index 2"):
        sample_of(
            said("user", "A."),
            said("assistant", clip("a")),
            start_index=2,
            recordings=Recordings(seed),
        )


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.zeros((3, K + 1), np.int16), "the codec does not belong"),
        (np.full((3, K), CODES, np.int16), f"code {CODES} is outside 0..{CODES - 1}"),
        (np.zeros((0, K), np.int16), "shape"),
    ],
)
def test_foreign_codes_are_an_error_by_line(codes, words):
    with pytest.raises(InputError, match=rf"data:1: .*{words}"):
        sample_of(said("assistant", clip("a")), recordings=lambda _: codes)


def test_prompts_hold_clips_of_both_kinds(seed):
    """`transcript` marks what assistants say, clips of others are context."""
    codes = mx.array(Recordings(seed)(clip("a")))
    turns = [PROMPTS.turn("user", [codes]), PROMPTS.turn("assistant", [codes])]
    clips = [(p.spoken, t) for p, t in PROMPTS.transcript(turns) if isinstance(p, Audio)]
    assert clips == [(False, False), (True, True)]
