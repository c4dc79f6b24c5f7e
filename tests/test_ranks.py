"""Who is who among processes that work together; one alone is spared all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_higgs.footprint import footprint
from mlx_higgs.loading import load, open_model
from mlx_higgs.quantization import Plan, Quantization, quantizable
from mlx_higgs.ranks import ALONE, Ranks, launched_rank, share
from mlx_higgs.shard import check, split_modules, working_sizes
from mlx_higgs.sources import DEMO
from mlx_higgs.types import InputError


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_of_it_once_and_alike(size: int, seed: int):
    sizes = np.random.default_rng(seed).integers(0, 50, 40).tolist()
    shares = [share(sizes, Ranks(rank, size)) for rank in range(size)]
    assert sorted(place for mine in shares for place in mine) == list(range(len(sizes)))
    assert all(mine == sorted(mine) for mine in shares)
    loads = [sum(sizes[place] for place in mine) for mine in shares]
    assert max(loads) - min(loads) <= max(sizes) + len(sizes)  # nothing weighs one


def test_a_launcher_is_known_by_what_it_says(tmp_path: Path):
    hosts, one = tmp_path / "hosts", tmp_path / "one"
    hosts.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"]]))
    one.write_text("\n")  # as mlx.launch -n 1 has it
    assert launched_rank({"MLX_RANK": "1", "MLX_HOSTFILE": str(hosts)}) == 1
    assert launched_rank({"MLX_RANK": "0", "MLX_IBV_DEVICES": str(hosts)}) == 0
    assert launched_rank({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}) == 1
    assert launched_rank({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}) == 3
    for alone in (
        {},
        {"MLX_RANK": "0", "MLX_HOSTFILE": str(one)},
        {"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "none")},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ):
        assert launched_rank(alone) is None


def test_alone_nothing_is_asked_of_mlx():
    program = (
        "import sys; from mlx_higgs import ranks, cli; cli.Parser(); ranks.hush()\n"
        "with ranks.processes().together(): assert ranks.processes() == ranks.ALONE\n"
        "assert ranks.ALONE.told([1]) == [1]\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'mlx'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_fails_alone_is_raised_as_it_is():
    with pytest.raises(InputError, match="so it is"), ALONE.together():
        raise InputError("so it is")


def test_one_process_cannot_shard():
    with pytest.raises(InputError, match=r"mlx\.launch"):
        load(shard=True)


def test_every_matrix_of_a_layer_is_cut_and_no_other():
    model = open_model(DEMO)
    cut = split_modules(model)
    matrices = {
        p
        for p, m in model.named_modules()
        if p.startswith("layers.") and hasattr(m, "to_quantized")
    }
    assert cut.keys() == matrices


def test_sizes_that_work_divide_heads_columns_and_groups():
    model = open_model(DEMO)  # 6 heads, 2 of keys and values; 384 columns
    assert working_sizes(model, {}) == [1, 2]
    plan = Plan.of(Quantization.of(4, 64))  # a rank's heads are 96 wide
    chosen = quantizable(model, plan)
    assert working_sizes(model, chosen) == [1]
    with pytest.raises(InputError, match=r"4 ranks cannot share 6 heads .* 2 can"):
        check(model, Ranks(0, 4), {})
    with pytest.raises(InputError, match=r"groups of 64, .* no number can, more in smaller"):
        check(model, Ranks(0, 2), chosen)


def test_a_rank_is_expected_to_take_its_part():
    model = open_model(DEMO)
    whole, half = (footprint(model, Plan(), ranks=Ranks(0, size)) for size in (1, 2))
    modules = dict(model.named_modules())
    cut = sum(modules[path].weight.nbytes for path in split_modules(model))
    assert half.weights == whole.weights - cut // 2
    assert half.cache * 2 == whole.cache
