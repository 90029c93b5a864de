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
    reasons = {"hub": os.environ["HF_HUB_OFFLINE"] == "1" and "HF_HUB_OFFLINE=1", "gpu": no_gpu()}
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"needs the {mark}: {reason}"))


def no_gpu():
    return "" if torch.cuda.is_available() else "no CUDA device"
