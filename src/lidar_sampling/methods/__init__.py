"""Test-time methods with one interface, so that they can be compared at equal cost.

A method draws samples with the pipeline, reward and settings of a :class:`lidar_sampling.LiDAR`, and counts what it
spends; judging is left to :meth:`lidar_sampling.LiDAR.judge`, which scores every method's samples alike.

>>> from lidar_sampling import LiDAR, testing
>>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=4)
>>> best = lidar.judge(BestOf(Vanilla(), 3).draw(lidar, ["a cat"], images=1, seed=0))
>>> best.images.shape, best.cost["selection"].reward_calls
(torch.Size([1, 1, 3, 16, 16]), 3)
"""

from .._forecast import Rates as Rates
from ._citations import citation as citation
from ._citations import papers as papers
from ._face import Method as Method
from ._names import NAMES as NAMES
from ._names import check_name as check_name
from ._names import draws_banks as draws_banks
from ._names import draws_each_alone as draws_each_alone
from ._names import least_number as least_number
from ._names import load as load
from ._names import split as split
from ._names import with_number as with_number
from .backtracking import Backtracking as Backtracking
from .beam_search import BeamSearch as BeamSearch
from .best_of import BestOf as BestOf
from .das import DAS as DAS
from .date import DATE as DATE
from .evolution import EvoSearch as EvoSearch
from .fk_steering import FKSteering as FKSteering
from .fmrg import FMRG as FMRG
from .group import Group as Group
from .halving import Halving as Halving
from .lidar import Guided as Guided
from .noise_search import NoiseSearch as NoiseSearch
from .refine import Refine as Refine
from .reno import ReNO as ReNO
from .repulsion import SafeDenoiser as SafeDenoiser
from .repulsion import Spell as Spell
from .rollover import RBF as RBF
from .steered import Steered as Steered
from .svdd import SVDD as SVDD
from .threshold import Threshold as Threshold
from .tree import DTS as DTS
from .universal_guidance import UniversalGuidance as UniversalGuidance
from .vanilla import Vanilla as Vanilla
