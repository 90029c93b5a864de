"""Which process draws what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling.runs import from_environment, order


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "1"},
        {"WORLD_SIZE": "4"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "1.0", "WORLD_SIZE": "2"},
    ],
)
def test_what_does_not_fit_is_refused_by_name(environment):
    with pytest.raises(ValueError, match=r"RANK.*WORLD_SIZE"):
        from_environment(environment)


def test_without_either_there_is_one_process():
    assert from_environment({"HOME": "/"}) == (0, 1)


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 20))
def test_every_process_sees_all_and_its_own_first(shape, count):
    number, rank = shape
    seen = order(range(count), rank, number)
    assert sorted(seen) == list(range(count))
    own = list(range(count))[rank::number]
    assert seen[: len(own)] == own
