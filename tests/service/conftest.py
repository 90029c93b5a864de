"""Fixtures: a tiny pipeline, and a server of it."""

import pytest
from live_server import serving

from lidar_sampling import testing
from lidar_sampling.runs import Job


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return the folder of a tiny pipeline that draws 16 x 16 pictures."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    testing.tiny_stable_diffusion().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def base():
    return Job(prompts=["a cat"], images=1, settings={"n": 4, "steps": 3, "lookahead": "dpm:2"})


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny, base):
    with serving(tmp_path_factory.mktemp("desk"), tiny, base) as found:
        yield found


@pytest.fixture
def url(served):
    return served[0]
