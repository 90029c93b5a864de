"""Drawing for waiting clients: Jobs are accepted, drawn one after another, watched, and kept by an id.

The page (:mod:`lidar_sampling.app`) and the service over HTTP are faces of one :class:`Desk`.
"""

from .desk import Desk as Desk
from .desk import FullError as FullError
from .order import Bank as Bank
from .order import Order as Order
