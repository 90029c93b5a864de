"""Comparisons of methods on the same prompts and seeds, at stated cost, with intervals over prompts."""

from .comparison import compare as compare
from .publish import publish as publish
from .statistics import Interval as Interval
from .table import Row as Row
from .table import table as table
