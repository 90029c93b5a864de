"""The benchmark of molecules without a mean: no sample is valid, or none is novel."""

import argparse
import json

import pytest
import torch

pytest.importorskip("rdkit")

from benchmarks.molecules import COLUMNS, FORMS, cell, draw_figure, judge, read, table
from lidar_sampling import Cost
from lidar_sampling.discrete import TokenLiDAR, TokenResult, molecules

ARGUMENTS = argparse.Namespace(samples=2, reward_scale=1.5)


def line(method, reward, seed=0):
    rest = dict.fromkeys(COLUMNS, 3) | {"reward": reward}
    return {"reward_name": "qed", "method": method, "seed": seed, **rest}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1, 2], "2 [1, 2]"),
        ([0.5, 0.25], "0.375 [0.250, 0.500]"),
        ([4, 4], "4"),
        ([None, None], "-"),
        ([0.5, None, 0.25], "0.375 [0.250, 0.500] (2 of 3)"),
    ],
)
def test_a_cell_is_the_mean_of_what_there_is(values, shown):
    assert cell(values) == shown


def test_samples_of_which_none_is_valid_are_written_as_json():
    lidar = TokenLiDAR(molecules.load_model(), reward=molecules.reward("qed"))
    tokens = torch.full((2, 32), lidar.reward.tokenizer.pad_token_id)
    result = TokenResult(tokens, lidar.score(tokens), {"sampling": Cost(network_evaluations=64)}, lidar.settings, 0)
    found = judge(lidar, result)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["valid"], found["reward"], found["reward_novel"]) == (0, None, None)
    assert found["evaluations"] == 64


def test_a_mean_of_nothing_is_shown_as_a_dash(tmp_path):
    lines = [
        line("plain", 0.5),
        line("best of 2", None),
        *(line(f"{FORMS[0]}, n = {n}", None) for n in (16, 256)),
        *(line(f"{FORMS[1]}, n = {n}", r) for n, r in ((16, 0.25), (256, None))),
        line(f"{FORMS[2]}, n = 16", None),
        line(f"{FORMS[2]}, n = 16", 0.75, seed=1),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = read(path)
    rows = [row.split(" | ") for row in table(found, ARGUMENTS).splitlines() if row.startswith("| ")]
    place = rows[0].index("reward")
    shown = {row[0].removeprefix("| "): row[place] for row in rows[1:]}
    assert shown == {
        "plain": "0.500",
        "best of 2": "-",
        f"{FORMS[0]}, n = 16": "-",
        f"{FORMS[0]}, n = 256": "-",
        f"{FORMS[1]}, n = 16": "0.250",
        f"{FORMS[1]}, n = 256": "-",
        f"{FORMS[2]}, n = 16": "0.750 (1 of 2)",
    }
    draw_figure(found, tmp_path / "figure.svg")
    assert "nan" not in (tmp_path / "figure.svg").read_text()
    assert read(tmp_path / "absent.jsonl") == []
