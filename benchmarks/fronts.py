"""Gains, diversity and cost of a comparison side by side: what each method gains, and what it does to a set.

    python -m benchmarks.fronts docs/results/fronts/rivals
    python -m benchmarks.fronts docs/results/fronts/rivals docs/results/fronts/confirmed --figure front.svg
    python -m benchmarks.fronts docs/results/fronts/confirmed --without docs/results/fronts/rivals
    python -m benchmarks.fronts docs/results/fronts/confirmed --over steered-12@10
    python -m benchmarks.fronts docs/results/fronts/confirmed --tags color_position,two_counts,three_objects

Prints a table of the lines that ``lidar compare`` left in the folders: paired gains over vanilla or another method,
diversity and its share of vanilla's, and the held-out gain over best-of-N, with 95 % bootstrap intervals over the
prompts that all of these have. The last interval is wider: all of its column hold together with 95 %, by Bonferroni's
rule. The figure sets the held-out gain over vanilla against the share of vanilla's diversity that is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lidar_sampling.evaluation.rows import estimate
from lidar_sampling.evaluation.statistics import Interval, bootstrap, interval
from lidar_sampling.runs._lines import files_of, read

BASE, RIVAL = "vanilla", "best-of-12@10"
JUDGES = ("glyph", "glyph-heldout", "geneval")
LOWEST = -0.5  # gain of what is drawn
Lines = Mapping[str, Mapping[str, Any]]
"""Method -> prompt -> line."""


class Row(NamedTuple):
    """A method over the prompts that it shares with those that it is compared with."""

    prompts: int
    gains: list[Interval]  # over vanilla or another, by judge
    diversity: float
    share: Interval  # of vanilla's diversity
    less: Interval  # held-out, less best-of-N's
    together: Interval  # the same, so wide that those of all methods hold at once
    cost: Mapping[str, Any]


def main() -> None:
    """Print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="comparisons that have vanilla and best-of-12@10")
    parser.add_argument("--over", default=BASE, help="the method that gains are over (default vanilla)")
    parser.add_argument("--tags", help="leave out prompts of other tags; comma separated")
    parser.add_argument("--without", type=Path, help="leave out the prompts of this comparison")
    parser.add_argument("--figure", type=Path, help="an SVG")
    arguments = parser.parse_args()
    if arguments.figure and arguments.over != BASE:
        parser.error("--figure draws gains over vanilla: leave out --over")
    tags = arguments.tags and arguments.tags.split(",")
    known = {line["prompt"] for line in read(*files_of(arguments.without))} if arguments.without else set()
    runs: list[dict[str, dict[str, Any]]] = []
    for folder in arguments.folders:
        runs.append({})
        for line in read(*files_of(folder)):
            if line["prompt"] not in known and (tags is None or line["tag"] in tags):
                runs[-1].setdefault(line["method"], {})[line["prompt"]] = line
    names = list(dict.fromkeys(name for run in runs for name in run))
    if missing := {arguments.over, BASE, RIVAL} - set(names):
        parser.error(f"no lines of {', '.join(sorted(missing))} in these folders, of these tags")
    rows = {name: row_of(runs, name, arguments.over, len(names) - 1) for name in names}
    heads = (
        "method",
        "prompts",
        "guiding",
        "held-out",
        "GenEval",
        "diversity",
        f"held-out less {RIVAL}",
        "all at once",
    )
    print("| " + " | ".join([*heads, "evaluations", "reward calls"]) + " |\n" + "|---" * 10 + "|")
    for name, row in rows.items():
        back = f" and {row.cost['backward_passes']} back" if row.cost["backward_passes"] else ""
        cells = [
            f"`{name}`",
            str(row.prompts),
            *map(str, row.gains),
            f"{row.diversity:.3f} ({share(row.share)})",
            str(row.less),
        ]
        ends = "-" if name == RIVAL else f"[{row.together.low:.3f}, {row.together.high:.3f}]"
        calls = str(row.cost["reward_calls"])
        print("| " + " | ".join([*cells, ends, f"{row.cost['network_evaluations']}{back}", calls]) + " |")
    if arguments.figure:
        draw(rows, arguments.figure)


def row_of(runs: Sequence[Lines], name: str, over: str, others: int) -> Row:
    """Return what a method gains and costs; what is compared is of one run, the first that has all of a prompt.

    Args:
        runs: the comparisons.
        name: the method.
        over: the method that its gains are over.
        others: intervals that are to hold together.
    """
    of: dict[str, Lines] = {}
    for run in runs:
        for prompt in set.intersection(*(set(run.get(method, ())) for method in (name, over, BASE, RIVAL))):
            of.setdefault(prompt, run)
    prompts = sorted(of)
    strata = ["all"] * len(prompts)

    def values(method: str, judge: str) -> np.ndarray:
        return np.array([np.mean(of[prompt][method][prompt]["rewards"][judge]) for prompt in prompts])

    def diversities(method: str) -> np.ndarray:
        return np.array([of[prompt][method][prompt]["diversity"] for prompt in prompts])

    both = bootstrap(np.stack([diversities(name), diversities(BASE)], axis=1), strata)
    less = values(name, JUDGES[1]) - values(RIVAL, JUDGES[1])
    draws = bootstrap(less[:, None], strata, draws=40_000)[:, 0]
    tail = 2.5 / others
    return Row(
        len(prompts),
        [Interval() if name == over else estimate(values(name, j) - values(over, j), strata) for j in JUDGES],
        float(both[0, 0]),
        interval(both[:, 0] / both[:, 1]),
        Interval() if name == RIVAL else estimate(less, strata),
        Interval(float(draws[0]), *np.percentile(draws[1:], [tail, 100 - tail]).tolist()),
        of[prompts[0]][name][prompts[0]]["cost"],
    )


def share(part: Interval) -> str:
    """Return a share in percent, with its interval where it has one.

    >>> share(Interval(0.8, 0.7, 0.9)), share(Interval(1.0, 1.0, 1.0))
    ('80 % [70, 90]', '100 %')
    """
    bounds = f" [{100 * part.low:.0f}, {100 * part.high:.0f}]" if part.high > part.low else ""
    return f"{100 * part.estimate:.0f} %{bounds}"


def draw(rows: Mapping[str, Row], path: Path) -> None:
    """Draw the held-out gain against the share of vanilla's diversity."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fronts"
    from matplotlib import pyplot

    points = {
        name: (row.share.estimate, Interval(0.0, 0.0, 0.0) if name == BASE else row.gains[1])
        for name, row in rows.items()
    }
    figure, axes = pyplot.subplots(figsize=(4.6, 6.8), layout="constrained")
    left_out = []
    for number, (name, (share, gain)) in enumerate(sorted(points.items(), key=lambda each: each[1][0]), 1):
        x, y = share, gain.estimate
        if y < LOWEST:
            left_out.append(f"{name} ({x:.2f}, {y:.2f})")
            continue
        (dot,) = axes.plot(x, y, marker="o", ms=5, linestyle="none", label=f"{number}  {name}")
        error = [[y - gain.low], [gain.high - y]]
        axes.errorbar(x, y, yerr=error, fmt="none", ecolor=dot.get_color(), alpha=0.35)
        axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.axvline(0.8, color="0.4", linewidth=0.8, linestyle=":")
    axes.set(xlabel="share of vanilla's diversity that is left", ylabel="held-out gain over vanilla")
    title = f"not drawn: {', '.join(left_out)}" if left_out else None
    figure.legend(
        loc="outside lower left", fontsize=7.5, frameon=False, handletextpad=0.2, title=title, title_fontsize=7.5
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
