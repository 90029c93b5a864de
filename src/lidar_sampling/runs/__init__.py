"""Runs: what makes two of them the same, and which process draws what."""

from ._identity import agree as agree
from ._identity import identity as identity
from ._identity import read_json as read_json
from ._shards import check_shard as check_shard
from ._shards import from_environment as from_environment
from ._shards import order as order
