"""Runs: one engine behind everything that draws pictures, banks and comparisons.

A :class:`Job` says what to draw; :func:`run` carries it out on this machine, alone or as one of several processes,
and :mod:`lidar_sampling.runs.ray` on many.
"""

from ._identity import agree as agree
from ._identity import identity as identity
from ._identity import read_json as read_json
from ._machine import device_of as device_of
from ._machine import dtype_of as dtype_of
from ._shards import check_shard as check_shard
from ._shards import from_environment as from_environment
from ._shards import order as order
from ._shards import shard_variables as shard_variables
from .job import Job as Job
from .local import Outcome as Outcome
from .local import Progress as Progress
from .local import run as run
from .local import share as share
from .local import task_of as task_of
from .local import work as work
from .worker import load_sampler as load_sampler
