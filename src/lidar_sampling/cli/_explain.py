"""``lidar explain``: what guidance did in a run, in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from .._guidance import mean_sizes, reading
from . import _options as o
from ._screen import echo, guard_printing, print_json

Place = Annotated[Path, typer.Argument(help="The folder of a run that guidance drew, or its result.json.")]

_MOVED = 0.01  # a step counts as moved above this share of the run's largest shift


def explain(run: Place, json: o.Json = False) -> None:
    """Say what guidance did in a run.

    It tells how much guidance moved the samples, whether its bank collapsed, and whether other rewards agree.

    To learn about other rewards, draw with --beside-vanilla: it adds plain samples of the same noise.
    """
    from ..runs import read_json

    file = run / "result.json" if run.is_dir() else run
    entries = [entry for entry in read_json(file).get("prompts", []) if entry.get("trace")]
    if not entries:
        raise ValueError(f"{file} holds no run that guidance drew: give one of lidar generate or lidar guide")
    said = sentences(entries)
    with guard_printing(saved=False):
        if json:
            print_json({"prompts": len(entries), "sentences": said})
        else:
            echo("\n".join(said))


def sentences(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on what guidance did, from the entries of guided prompts in a ``result.json``.

    >>> trace = [{"ess_tilted": [3.0], "shift_norm": [2.0]}, {"ess_tilted": [1.0], "shift_norm": [0.0]}]
    >>> bank, plain = {"clip": [20.0, 24.0]}, {"rewards": {"clip": [21.0], "heldout": [5.0]}}
    >>> drawn = {"methods": ["vanilla", "lidar"], "lidar": {"rewards": {"clip": [23.0], "heldout": [4.0]}}}
    >>> for sentence in sentences([{"trace": trace, "bank": bank, "vanilla": plain, **drawn}]):
    ...     print(sentence)
    It moved the prediction in 1 of 2 guided steps: in the others both weightings rest on one member.
    Guidance followed 3.0 of 2 members at its first step, and one alone from step 2 on.
    Against plain samples of the same noise clip, which guided, gained 2.00 and heldout lost 1.00: they disagree, so \
look at the pictures.
    """
    shifts = [[value for row in entry["trace"] for value in row["shift_norm"]] for entry in entries]
    counted = [sum(value > _MOVED * max(values) for value in values) / len(values) for values in shifts]
    steps = mean(len(entry["trace"]) for entry in entries)
    moved = mean(counted) * steps
    rest = "" if round(moved) == round(steps) else ": in the others both weightings rest on one member"
    columns = zip_longest(*(mean_sizes(entry["trace"]) for entry in entries))
    sizes = [mean(value for value in column if value is not None) for column in columns]
    members = round(mean(len(next(iter(entry["bank"].values()))) for entry in entries))
    return [
        f"It moved the prediction in {moved:.0f} of {steps:.0f} guided steps{rest}.",
        reading(sizes, members),
        _agreement(entries),
    ]


def _agreement(entries: Sequence[Mapping[str, Any]]) -> str:
    guides = list(entries[0]["bank"])
    drawn = [entry[entry["methods"][-1]] for entry in entries]
    if not all("vanilla" in entry for entry in entries):
        ours = mean(_mean(each, guides[0]) for each in drawn)
        banks = mean(mean(entry["bank"][guides[0]]) for entry in entries)
        best = mean(max(entry["bank"][guides[0]]) for entry in entries)
        return (
            f"By {guides[0]} its pictures have {ours:.4g}, the bank {banks:.4g} and the best of the bank {best:.4g}; "
            "draw with --beside-vanilla to learn more."
        )
    pairs = list(zip(drawn, (entry["vanilla"] for entry in entries), strict=True))
    found = {name: _gains(pairs, name) for name in drawn[0]["rewards"]}
    gains = {name: mean(values) for name, values in found.items() if values}
    told = [
        f"{name}{', which guided,' if name in guides else ''}"
        f"{'' if len(found[name]) == len(pairs) else f', on {len(found[name])} of {len(pairs)} prompts,'} "
        f"{'gained' if gain >= 0 else 'lost'} {abs(gain):.2f}"
        for name, gain in gains.items()
    ]
    if not told:
        return "No reward has a value for every picture and its plain sample, so look at the pictures."
    others = {name: gain for name, gain in gains.items() if name not in guides}
    if not others:
        missing = "was computed" if set(found) <= set(guides) else "has a value for every picture of a prompt"
        verdict = f"no other reward {missing}, so look at the pictures"
    elif min(others.values()) >= 0:
        verdict = "they agree"
    else:
        verdict = "they disagree, so look at the pictures"
    listed = " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))
    return f"Against plain samples of the same noise {listed}: {verdict}."


def _gains(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], name: str) -> list[float]:
    """Return the gain by one reward of each prompt whose pictures, guided and plain, all have a value."""
    values = [(ours["rewards"][name], plain["rewards"][name]) for ours, plain in pairs]
    return [mean(ours) - mean(plain) for ours, plain in values if None not in (*ours, *plain)]


def _mean(drawn: Mapping[str, Any], name: str) -> float:
    return mean(drawn["rewards"][name])
