"""``lidar cite``: prints what to cite."""

from __future__ import annotations

from typing import Annotated

import typer

from . import _options as o
from ._screen import echo, guard_printing, print_json

Names = Annotated[list[str] | None, typer.Argument(help="Methods of 'lidar methods'.", metavar="METHOD")]


def cite(methods: Names = None, json: o.Json = False) -> None:
    """Print BibTeX of LiDAR's paper, and of those that the methods come from."""
    from ..methods import citation, papers

    names = methods or []
    with guard_printing(saved=False):
        if json:
            print_json([paper._asdict() for paper in papers(*names)])
        else:
            echo(citation(*names))
