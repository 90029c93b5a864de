"""Diversity and choice of sets, against enumeration of all sets."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import pictures

from lidar_sampling import LiDAR, methods, rewards, testing
from lidar_sampling.rewards import RewardError, _diversity, diversity, features_of, select_diverse
from lidar_sampling.rewards.mixture import Ensemble

SEEDS = st.integers(0, 10_000)


def candidates(m, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(m, 4, generator=generator), dim=1)
    return torch.randn(m, generator=generator), features


def worth(values, features, chosen, diverse):
    """Return the objective of one set, in plain Python."""
    z = ((values - values.mean()) / values.std(correction=0)).tolist()
    apart = (1 - features @ features.T).tolist()
    pairs, inside = list(combinations(range(len(values)), 2)), list(combinations(sorted(chosen), 2))
    usual = sum(apart[i][j] for i, j in pairs) / len(pairs)
    between = sum(apart[i][j] for i, j in inside) / len(inside) if inside else 0.0
    return sum(z[i] for i in chosen) / len(chosen) + diverse * between / usual


@given(st.integers(2, 6), SEEDS)
def test_diversity_lies_between_copies_and_opposites(m, seed):
    _, features = candidates(m, seed)
    assert diversity(features[:1].expand(m, 4)) == pytest.approx(0, abs=1e-6)
    assert 0 <= diversity(features) <= 2
    assert diversity(features.flip(0)) == pytest.approx(diversity(features), abs=1e-5)


@settings(deadline=None)
@given(st.integers(2, 8), SEEDS, st.sampled_from([0.0, 0.3, 1.0, 5.0]), st.data())
def test_the_chosen_set_is_the_best_of_all(m, seed, diverse, data):
    count = data.draw(st.integers(1, m))
    values, features = candidates(m, seed)
    best = max(worth(values, features, some, diverse) for some in combinations(range(m), count))
    chosen = select_diverse(values, features, count, diverse)
    assert len(set(chosen)) == count
    assert worth(values, features, chosen, diverse) == pytest.approx(best, abs=1e-6)
    assert values[chosen].tolist() == sorted(values[chosen].tolist(), reverse=True)


@settings(deadline=None)
@given(st.integers(3, 9), SEEDS, st.floats(-50, 50), st.floats(1e-3, 1e3))
def test_the_unit_of_the_reward_does_not_matter(m, seed, shift, unit):
    values, features = candidates(m, seed)
    chosen = select_diverse(values, features, 3, 1.0)
    again = select_diverse(values.double() * unit + shift, features, 3, 1.0)
    assert worth(values, features, again, 1.0) == pytest.approx(worth(values, features, chosen, 1.0), abs=1e-6)


@settings(deadline=None)
@given(st.integers(2, 8), SEEDS, st.sampled_from([0.0, 0.1, 0.5, 1.5]), st.data())
def test_by_weight_the_chosen_set_has_the_largest_sum(m, seed, weight, data):
    """Checked with the published objective, in the units of reward and distance, over all sets."""
    count = data.draw(st.integers(1, m))
    values, features = candidates(m, seed)
    apart = (1 - features @ features.T).tolist()

    def total(some):
        return sum(values[i].item() for i in some) + weight * sum(apart[i][j] for i, j in combinations(some, 2))

    best = max(map(total, combinations(range(m), count)))
    chosen = select_diverse(values, features, count, 7.0, weight=weight)  # in the place of the 7
    assert len(set(chosen)) == count
    assert total(sorted(chosen)) == pytest.approx(best, abs=1e-5)


def test_without_diversity_the_best_are_kept_and_ties_stay_in_order():
    values, features = torch.tensor([1.0, 3.0, 2.0, 3.0]), torch.eye(4)
    assert select_diverse(values, features, 3, 0.0) == [1, 3, 2]


def test_equal_rewards_leave_diversity_alone_and_copies_leave_rewards():
    features = torch.eye(3)[[0, 0, 1, 2]]
    assert set(select_diverse(torch.ones(4), features, 3, 1.0)) in ({0, 2, 3}, {1, 2, 3})
    assert select_diverse(torch.tensor([1.0, 2.0, 3.0]), torch.eye(2)[[0, 0, 0]], 2, 1.0) == [2, 1]


def test_exchanges_come_near_the_optimum(monkeypatch):
    """In 200 random choices of 4 of 10, the result is nearly always the optimum, and never far from it."""
    exact = {}
    for how in ("exact", "exchange"):
        monkeypatch.setattr(_diversity, "EXHAUSTIVE", 10**9 if how == "exact" else 0)
        exact[how] = []
        for seed in range(200):
            values, features = candidates(10, seed)
            exact[how].append(worth(values, features, select_diverse(values, features, 4, 1.0), 1.0))
    lost = torch.tensor(exact["exact"]) - torch.tensor(exact["exchange"])
    assert lost.min() > -1e-6
    assert (lost < 1e-6).float().mean() > 0.9
    assert lost.max() < 0.2


def test_a_count_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="count must be 1 to 3, the number of candidates, got 4"):
        select_diverse(torch.ones(3), torch.eye(3), 4, 1.0)


def test_features_are_those_of_the_first_judge_that_has_some():
    images = pictures(3)
    glyph, heldout = rewards.load("glyph"), rewards.load("glyph-heldout")
    found = features_of([rewards.load("brightness"), glyph, heldout], images)
    torch.testing.assert_close(found, glyph.features(images), rtol=0, atol=1e-6)
    assert features_of([rewards.load("brightness")], images) is None
    ensemble = Ensemble([rewards.load("brightness"), glyph])
    assert torch.equal(features_of([ensemble], images), found)


class Eyes:
    """A judge whose features are given."""

    name = "eyes"

    def __init__(self, found):
        self.found = found

    def features(self, images):
        return self.found

    def __call__(self, *, images, prompts):
        return images.flatten(1).mean(1)


def test_features_count_by_their_direction_alone():
    long = torch.tensor([[10.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    found = features_of([Eyes(long)], pictures(3))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert 0 <= diversity(found) <= 2


@pytest.mark.parametrize("found", [torch.eye(3)[:1], torch.full((3, 2), torch.nan), torch.zeros(3, 2, 2)])
def test_features_that_are_none_are_refused(found):
    with pytest.raises(RewardError, match=r"features of eyes must be finite, \(3, d\), got "):
        features_of([Eyes(found)], pictures(3))


@pytest.mark.parametrize(
    ("values", "features", "count", "worth", "words"),
    [
        (torch.tensor([1.0, torch.nan, 3.0]), torch.eye(3), 2, 0.0, "rewards must be finite, got"),
        (torch.ones(3), torch.eye(2), 2, 0.0, "3 candidates need as many features, got 2"),
        (torch.ones(3), torch.eye(3), 1.5, 0.0, "count must be 1 to 3"),
        (torch.ones(3), torch.eye(3), 2, -5.0, "diverse must be finite and at least 0, got -5"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(values, features, count, worth, words):
    with pytest.raises(ValueError, match=words):
        select_diverse(values, features, count, worth)


def test_features_of_a_video_are_the_mean_of_its_frames():
    glyph, still = rewards.load("glyph"), pictures(2)
    video = still[:, None].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(features_of([glyph], video), glyph.features(still))
    assert features_of([glyph], pictures(12).unflatten(0, (1, 12))).norm(dim=1).item() == pytest.approx(1)


class TestBestOf:
    @pytest.fixture
    def lidar(self):
        return LiDAR(testing.tiny_stable_diffusion(), reward="glyph", metrics=["brightness"], n=4, steps=2)

    def test_it_keeps_the_best_set(self, lidar):
        method = methods.load("best-of-6:diverse=2")
        assert method.diverse == 2
        result = method.draw(lidar, ["a cat", "a dog"], images=3, seed=0)
        every = methods.load("vanilla").draw(lidar, ["a cat", "a dog"], images=6, seed=0)
        scores = lidar.scores(every, lidar.parts)[0]["glyph"]
        for row in range(2):
            chosen = select_diverse(scores[row], features_of(lidar.parts, every.images[row]), 3, 2.0)
            torch.testing.assert_close(result.images[row], every.images[row, chosen])

    def test_its_cost_is_what_was_promised(self, lidar):
        method = methods.load("best-of-6:diverse=0.5")
        drawn = method.draw(lidar, ["a cat"], images=3, seed=0)
        counted = sum((part.reward_calls for part in drawn.cost.values()), 0)
        assert counted == method.cost(lidar, images=3).reward_calls == 12

    def test_settings_go_to_whom_they_belong(self):
        method = methods.load("lidar+best-of-8:diverse=1,scale=3.0")
        assert (method.diverse, method.method.scale) == (1, 3.0)

    @pytest.mark.parametrize("draw", [True, False])
    def test_without_features_it_is_refused_before_anything_is_drawn(self, draw):
        lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=2)
        method = methods.load("best-of-6:diverse=1")
        with pytest.raises(ValueError, match="diverse needs features that tell samples apart"):
            method.draw(lidar, ["a cat"], images=3, seed=0) if draw else method.cost(lidar, images=3)

    @pytest.mark.parametrize("value", ["-1", "much", "inf"])
    def test_other_values_are_refused(self, value):
        with pytest.raises(ValueError, match="diverse"):
            methods.load(f"best-of-6:diverse={value}")
