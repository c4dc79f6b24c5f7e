"""Laws of the delay pattern, and the two state machines against recordings of the references."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_higgs.delay import DelayPattern, RowReverter, codes_from_rows
from mlx_higgs.types import InputError

CASES = json.loads((Path(__file__).parent / "golden" / "delay_cases.json").read_text())


def random_codes(rng: np.random.Generator, T: int, K: int, size: int) -> np.ndarray:
    return rng.integers(0, size, (T, K)).astype(np.int32)


@pytest.mark.parametrize("edge_frames", [0, 1])
def test_revert_undoes_apply(seed: int, edge_frames: int):
    rng = np.random.default_rng(seed)
    for T, K in ((1, 1), (1, 8), (2, 3), (7, 8), (30, 8)):
        pattern = DelayPattern(K, 50, 51, edge_frames)
        codes = random_codes(rng, T, K, 50)
        rows = pattern.apply(mx.array(codes))
        assert rows.shape == (T + 2 * edge_frames + K - 1, K)
        assert np.array_equal(pattern.revert(rows), codes)


def test_apply_draws_the_picture_of_the_docstring():
    codes = mx.array([[0] * 3, [1] * 3, [2] * 3, [3] * 3])
    rows = DelayPattern(3, 8, 9, edge_frames=1).apply(codes)
    picture = ["...", "0..", "10.", "210", "321", "#32", "##3", "###"]
    marks = {8: ".", 9: "#"}
    drawn = ["".join(marks.get(int(v), str(v)) for v in row) for row in np.array(rows)]
    assert drawn == picture


def test_apply_refuses_another_number_of_codebooks():
    with pytest.raises(InputError, match=r"\[T, 8\]"):
        DelayPattern().apply(mx.zeros((4, 7), dtype=mx.int32))


def run_machine(pattern: DelayPattern, sampled: list[list[int]]) -> np.ndarray:
    """The rows that enter the stream, the all-BOS row first."""
    state = pattern.start()
    rows = [np.full(pattern.num_codebooks, pattern.bos_id)]
    for row in sampled:
        entered, state = pattern.advance(mx.array([row], dtype=mx.int32), state)
        rows.append(np.array(entered)[0])
        if state.done.item():
            break
    return np.stack(rows)


@pytest.mark.parametrize("machine", ["boson", "transformers"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_machine_makes_the_rows_of_the_reference(case: dict, machine):
    pattern = DelayPattern(
        case["num_codebooks"], case["bos"], case["eos"], edge_frames=1, machine=machine
    )
    rows = run_machine(pattern, case["sampled"])
    assert rows.tolist() == case[f"{machine}_rows"]


@pytest.mark.parametrize("machine", ["boson", "transformers"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_sound_columns_are_those_of_the_reference(case: dict, machine):
    """Where the reference clips a leftover BOS or EOS to a code, ours is cut or concealed."""
    pattern = DelayPattern(case["num_codebooks"], case["bos"], case["eos"], edge_frames=1)
    rows = np.array(case[f"{machine}_rows"])
    ours = codes_from_rows(rows, pattern)
    raw = np.array(
        DelayPattern(case["num_codebooks"], case["bos"], case["eos"]).revert(mx.array(rows[1:]))
    )
    sound = (raw < pattern.codebook_size).all(axis=1)
    last = int(np.flatnonzero(sound)[-1]) + 1 if sound.any() else 0
    assert len(ours) == last
    assert (ours < pattern.codebook_size).all()
    assert np.array_equal(ours[sound[:last]], raw[:last][sound[:last]])
    theirs = np.array(case[f"{machine}_columns"], dtype=np.int32).reshape(-1, len(rows[0]))
    both = min(last, len(theirs))
    assert np.array_equal(ours[:both][sound[:both]], theirs[:both][sound[:both]])


def test_the_textbook_end_loses_nothing(seed: int):
    pattern = DelayPattern(8, 50, 51, edge_frames=1)
    codes = random_codes(np.random.default_rng(seed), 20, 8, 50)
    rows = np.array(pattern.apply(mx.array(codes)))
    assert np.array_equal(codes_from_rows(rows, pattern), codes)
    for cut in range(len(rows)):  # a stream cut anywhere keeps every complete column
        complete = min(max(cut - 8, 0), 20)
        assert np.array_equal(codes_from_rows(rows[:cut], pattern), codes[:complete])


def test_a_column_with_a_special_id_is_concealed_inside_and_cut_at_the_end():
    pattern = DelayPattern(2, 8, 9)
    columns = np.array([[1, 2], [8, 3], [4, 5], [6, 9]], dtype=np.int32)
    rows = np.array([[columns[t][0], columns[t - 1][1] if t else 8] for t in range(4)] + [[9, 9]])
    assert codes_from_rows(rows, pattern).tolist() == [[1, 2], [1, 3], [4, 5]]
    reverter = RowReverter(pattern)
    assert [len(reverter.push(row)) for row in rows] == [0, 1, 0, 2, 0]
