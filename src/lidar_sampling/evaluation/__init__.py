"""Comparisons of methods on the same prompts and seeds, at stated cost, with intervals over prompts."""

from .comparison import compare as compare
from .publishing import publish as publish
from .rows import Row as Row
from .rows import table as table
from .statistics import Interval as Interval
