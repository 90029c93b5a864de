"""What the benchmark of many pictures foretells for more pictures than it draws."""

import math

import numpy as np
import pytest

from benchmarks.many import FEW, foretell, mean_of_share


def pool_of(values):
    return {"glyph": values, "glyph-heldout": [2 * value for value in values], "geneval": [0.0] * len(values)}


@pytest.mark.parametrize(("share", "mean"), [(0.25, 4.0), (0.5, 3.5), (0.375, (4 + 3 / 2) / 1.5), (1.0, 2.5)])
def test_a_share_of_a_pool_is_its_best_and_of_one_on_the_cut_its_part(share, mean):
    found = mean_of_share(pool_of([2.0, 4.0, 1.0, 3.0]), share)
    assert found == pytest.approx({"glyph": mean, "glyph-heldout": 2 * mean, "geneval": 0.0})


def test_a_share_of_a_small_pool_is_worth_what_selection_of_64_is():
    """The mean over 4,000 small pools and over 1,000 draws of the whole selection agree within 5 standard errors."""
    chance, steps, bank = np.random.default_rng(0), 25, 500
    of = (64 * 2 * steps + bank) // (2 * steps)  # plain samples that LiDAR's evaluations for 64 pictures allow
    line = {
        "steps": steps,
        "results": {"16": {"vanilla": {"evaluations": 2 * steps}, "lidar": {"evaluations": 2 * steps + bank / 16}}},
    }
    foretold = []
    for _ in range(4000):
        pools = {"lidar": [0.0], "vanilla": chance.normal(size=26), f"vanilla@{FEW}": chance.normal(size=65)}
        foretold.append(foretell({**line, "pools": {name: pool_of(list(values)) for name, values in pools.items()}}))
    drawn = np.sort(chance.normal(size=(1000, of)), axis=1)[:, -64:].mean(1)
    means = np.array([found[64, "best M of N"]["glyph"] for found in foretold])
    error = math.hypot(means.std() / 4000**0.5, drawn.std() / 1000**0.5)
    assert abs(means.mean() - drawn.mean()) < 5 * error
    assert foretold[0][64, "best M of N"]["share"] == pytest.approx(64 / of, abs=0.01)
    assert foretold[0][math.inf, "best M of N"]["share"] == 1
    assert foretold[0][math.inf, f"best M of N@{FEW}"]["share"] == pytest.approx(FEW / steps)
    assert all(found[math.inf, "best M of N"]["glyph"] == found[64, "vanilla"]["glyph"] for found in foretold)
