"""Discrete diffusion: the same idea where x is a sequence of tokens, and the reward any function of it."""

from __future__ import annotations

from ._guidance import TokenMembers as TokenMembers
from ._kernels import SCHEDULES as SCHEDULES
from ._kernels import Absorbing as Absorbing
from ._kernels import Kernel as Kernel
from ._kernels import Schedule as Schedule
from ._kernels import Uniform as Uniform
from ._kernels import cosine as cosine
from ._kernels import kernel_of as kernel_of
from ._kernels import log_linear as log_linear
from ._lidar import TokenLiDAR as TokenLiDAR
from ._lidar import TokenResult as TokenResult
from ._lidar import TokenSettings as TokenSettings
from ._reward import Reward as Reward
from ._sampler import Ancestral as Ancestral
from ._sampler import Joint as Joint
from ._sampler import Network as Network
from ._sampler import SingleSite as SingleSite
from ._sampler import State as State
from ._sampler import Stepper as Stepper
from ._sampler import TokenFKSteering as TokenFKSteering
from ._sampler import TokenIndependent as TokenIndependent
from ._sampler import sample as sample
from .text import TextLiDAR as TextLiDAR
from .text import TextResult as TextResult
from .text import TextSettings as TextSettings
