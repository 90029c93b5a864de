import datetime
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

collect_ignore_glob = [
    "conftest.py",
    "*/conftest.py",
    "typing/*",
]  # the first two would have the same name as modules

signal.signal(signal.SIGINT, signal.default_int_handler)  # off in a shell's background jobs, also for children
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("house")


@pytest.fixture(scope="session")
def glyph_lidar():
    """Return the embedded model, loaded once."""
    from lidar_sampling import LiDAR

    return LiDAR.from_pretrained("glyph")


@pytest.fixture
def said(caplog):
    """Return a function that returns the warnings of this library so far; transformers has its own when it loads."""
    return lambda: [text for name, _, text in caplog.record_tuples if name.startswith("lidar_sampling")]


# Less used pipelines: a different third of their tests runs each week.
LONG_TAIL = ["wan-i2v", "chroma", "hidream", "lumina-2", "cogview-4", "ltx-2", "kandinsky-5", "mochi"]
LONG_TAIL += ["audioldm-2", "ace-step", "stable-audio-3", "kolors", "cosmos-2.5", "qwen-image-edit"]
THIRD = datetime.date.today().isocalendar().week % 3


def pytest_collection_modifyitems(config, items):
    """Mark the tests of the long tail as slow, and skip the two thirds that do not run this week."""
    run_all = os.environ.get("LIDAR_SLOW") == "all" or "slow" in (config.getoption("markexpr") or "")
    reason = f"long tail: this week runs {', '.join(LONG_TAIL[THIRD::3])}; LIDAR_SLOW=all or -m slow runs all"
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for place in [LONG_TAIL.index(value) for value in values if isinstance(value, str) and value in LONG_TAIL]:
            item.add_marker(pytest.mark.slow)
            if place % 3 != THIRD and not run_all:
                item.add_marker(pytest.mark.skip(reason=reason))
    if os.environ["HF_HUB_OFFLINE"] == "1":
        for item in items:
            if item.get_closest_marker("hub"):
                item.add_marker(pytest.mark.skip(reason="needs the model hub; set HF_HUB_OFFLINE=0"))
