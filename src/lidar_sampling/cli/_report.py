"""Tables that a finished run prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..runs._summary import summary
from ._screen import console, echo, print_json

_MOST_PROMPTS = 10


def print_table(whole: dict[str, Any]) -> None:
    """Print vanilla beside the method: a row of each for the first few prompts, and for the mean."""
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
    if (count := whole.get("count", len(whole["prompts"]))) > 1:
        table.add_section()
        for k, (name, row) in enumerate(whole["mean"].items()):
            add("" if k else f"mean of {count} prompts", name, row)
    console().print(table)
    found = [entry["reward_scale"] for entry in whole["prompts"] if entry.get("reward_scale") is not None]
    if whole.get("settings", {}).get("reward_scale") == "auto" and found:
        low, high = (f"{end(found):.3g}" for end in (min, max))
        console().print(f"reward_scale auto: {low}" + (f" to {high}, by prompt" if high != low else ""))


def print_profile(profile: dict[str, Any]) -> None:
    """Print where the time went: a row for each phase and part."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("phase", "part", "s", "%", "rows", "ms per row", "at best"):
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


def print_banks(records: Sequence[dict[str, Any]], *, json: bool) -> None:
    """Print what each bank holds, one row per reward, and its file."""
    rows = [
        {"prompt": each["prompt"], "n": each["n"], "reward": name, **values, "file": each["file"]}
        for each in records
        for name, values in each["rewards"].items()
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        echo(
            f"{row['prompt']}: n {row['n']}, {row['reward']} mean {row['mean']:.2f}, best {row['best']:.2f}, "
            f"{row['file']}"
        )
