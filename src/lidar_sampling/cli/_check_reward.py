"""``lidar check-reward``: test a reward on known pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from . import _options as o
from ._screen import echo, guard_printing, print_json

Name = Annotated[
    str, typer.Argument(help="A reward of 'lidar rewards', or package.module:function.", show_default=False)
]


def check_reward(name: Name, device: o.Device = None, dtype: o.Dtype = "float32", json: o.Json = False) -> None:
    """Check a reward on known pictures.

    It checks order, batches, precision, files, prompts and speed. The exit status is 1 if a check fails.
    """
    from .._quiet import quieten
    from ..rewards import examine
    from ..rewards import load as load_reward
    from ..runs import device_of, dtype_of

    quieten()
    reward = load_reward(name, device=device_of(device), dtype=dtype_of(dtype))
    findings = []
    with guard_printing(saved=False):
        for finding in examine(reward):
            findings.append(finding)
            if not json:
                echo(f"{finding.verdict:5} {finding.question}: {finding.answer}")
        if json:
            print_json([finding._asdict() for finding in findings])
    if any(finding.verdict == "FAIL" for finding in findings):
        raise typer.Exit(1)
