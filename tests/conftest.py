import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("house")


@pytest.fixture(scope="session")
def glyph_lidar():
    """The embedded model, loaded once."""
    from lidar_sampling import LiDAR

    return LiDAR.from_pretrained("glyph")


def pytest_collection_modifyitems(items):
    if os.environ["HF_HUB_OFFLINE"] == "1":
        for item in items:
            if item.get_closest_marker("hub"):
                item.add_marker(pytest.mark.skip(reason="needs the model hub; set HF_HUB_OFFLINE=0"))
