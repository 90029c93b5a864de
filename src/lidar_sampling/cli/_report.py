"""What a run reports: ``result.json`` and the table on the screen."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ._screen import console

if TYPE_CHECKING:
    from .._sampler import LiDAR

_PACKAGES = ("lidar-sampling", "torch", "diffusers", "transformers")
_MOST_PROMPTS = 10


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is drawn."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def report(lidar: LiDAR, arguments: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``result.json``: how the run was made, each prompt, and the means."""
    return {
        "versions": versions(),
        "arguments": arguments,
        "settings": asdict(lidar.settings),
        "mean": {name: summary([entry[name] for entry in entries]) for name in entries[0]["methods"]},
        "prompts": entries,
    }


def summary(parts: list[dict[str, Any]]) -> dict[str, float | None]:
    """Means of one method over prompts: each reward over all images, costs a prompt."""
    row: dict[str, float | None] = {}
    for reward in parts[0]["rewards"]:
        values = [v for part in parts for v in part["rewards"][reward] if v is not None]
        row[reward] = sum(values) / len(values) if values else None
    for cost in ("network_evaluations", "reward_calls", "seconds"):
        row[cost] = sum(phase[cost] for part in parts for phase in part["cost"].values()) / len(parts)
    return row


def print_table(whole: dict[str, Any]) -> None:
    """Print vanilla beside the method: a row of each per prompt (the first few), and for the mean."""
    from rich.table import Table

    first = whole["prompts"][0]
    rewards = list(first[first["methods"][-1]]["rewards"])
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("prompt", ratio=1, no_wrap=True)
    table.add_column("method", min_width=7)
    for name in (*rewards, "network evals", "reward calls", "s"):
        title = name.replace("-", " ").replace(" ", "\n")
        table.add_column(title, justify="right", min_width=max(map(len, title.split("\n"))))

    def add(title: str, name: str, row: dict[str, float | None]) -> None:
        cells = []
        for key, value in row.items():
            digits = 0 if key in ("network_evaluations", "reward_calls") else 1 if key == "seconds" else 2
            cells.append("-" if value is None else f"{value:.{digits}f}")
        table.add_row(title, name, *cells)

    for entry in whole["prompts"][:_MOST_PROMPTS]:
        for k, name in enumerate(whole["mean"]):
            add("" if k else " ".join(entry["prompt"].split()), name, summary([entry[name]]))
    if len(whole["prompts"]) > 1:
        table.add_section()
        for k, (name, row) in enumerate(whole["mean"].items()):
            add("" if k else f"mean of {len(whole['prompts'])} prompts", name, row)
    console().print(table)


def print_profile(profile: dict[str, Any]) -> None:
    """Print where the time went: a row for each phase and part."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("phase", "part", "s", "%", "rows", "ms a row", "at best"):
        table.add_column(name, justify="left" if name in ("phase", "part") else "right")
    for part in profile["parts"]:
        seconds, rows, best = part["seconds"], part["rows"], part["best"]
        table.add_row(
            part["phase"],
            part["part"],
            f"{seconds:.2f}",
            f"{100 * seconds / profile['seconds']:.1f}",
            str(rows) if rows else "",
            f"{1000 * seconds / rows:.2f}" if rows else "",
            f"{1000 * best:.2f}" if best is not None else "",
        )
    console().print(table)
    console().print(
        f"{profile['seconds']:.2f} s; the same work at its best, measured now: {profile['ideal']:.2f} s, "
        f"ratio {profile['ratio']:.2f}"
    )
