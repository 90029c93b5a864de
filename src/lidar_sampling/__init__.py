"""Test-time scaling of diffusion models by lookahead sample reward guidance (LiDAR, arXiv 2602.03211).

>>> from lidar_sampling import LiDAR, testing
>>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5)
>>> lidar("a cat", images=2).images.shape
torch.Size([1, 2, 3, 16, 16])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import discrete as discrete
    from . import glyph as glyph
    from . import methods as methods
    from . import rewards as rewards
    from . import solvers as solvers
    from . import testing as testing
    from ._accelerate import accelerate as accelerate
    from ._accelerate import largest_batch as largest_batch
    from ._bank import BankError as BankError
    from ._bank import BankStore as BankStore
    from ._bank import LookaheadBank as LookaheadBank
    from ._cost import Cost as Cost
    from ._guidance import ShiftInfo as ShiftInfo
    from ._guidance import expected_future_reward as expected_future_reward
    from ._guidance import mean_shift as mean_shift
    from ._guide import GuidanceError as GuidanceError
    from ._guide import Trace as Trace
    from ._guide import guide as guide
    from ._hooks import DivergedError as DivergedError
    from ._hooks import record as record
    from ._kernel import stochastic as stochastic
    from ._levels import NoiseLevel as NoiseLevel
    from ._levels import noise_level as noise_level
    from ._live import Glimpse as Glimpse
    from ._profile import profiled as profiled
    from ._result import Result as Result
    from ._sampler import LiDAR as LiDAR
    from ._settings import Settings as Settings
    from ._space import Space as Space
    from .methods import citation as citation
    from .rewards import RewardError as RewardError

__version__ = "0.1.0"

# torch alone takes more than a second to import; so names are loaded when they are first used.
_HOMES = {
    "BankError": "_bank",
    "BankStore": "_bank",
    "Cost": "_cost",
    "DivergedError": "_hooks",
    "Glimpse": "_live",
    "GuidanceError": "_guide",
    "LiDAR": "_sampler",
    "LookaheadBank": "_bank",
    "NoiseLevel": "_levels",
    "Result": "_result",
    "RewardError": "rewards",
    "Settings": "_settings",
    "ShiftInfo": "_guidance",
    "Space": "_space",
    "Trace": "_guide",
    "accelerate": "_accelerate",
    "citation": "methods",
    "expected_future_reward": "_guidance",
    "guide": "_guide",
    "largest_batch": "_accelerate",
    "mean_shift": "_guidance",
    "noise_level": "_levels",
    "profiled": "_profile",
    "record": "_hooks",
    "stochastic": "_kernel",
}
_ROOMS = ("discrete", "glyph", "methods", "rewards", "solvers", "testing")

__all__ = [  # in full, since type checkers read no expressions here
    "BankError",
    "BankStore",
    "Cost",
    "DivergedError",
    "Glimpse",
    "GuidanceError",
    "LiDAR",
    "LookaheadBank",
    "NoiseLevel",
    "Result",
    "RewardError",
    "Settings",
    "ShiftInfo",
    "Space",
    "Trace",
    "__version__",
    "accelerate",
    "citation",
    "discrete",
    "expected_future_reward",
    "glyph",
    "guide",
    "largest_batch",
    "mean_shift",
    "methods",
    "noise_level",
    "profiled",
    "record",
    "rewards",
    "solvers",
    "stochastic",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
