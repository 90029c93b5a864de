"""Figures of comparisons: their contents are right, complete and legible."""

import io
import math
import re
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import line

from lidar_sampling.evaluation import figures, table
from lidar_sampling.evaluation.comparison import read
from lidar_sampling.evaluation.families import families
from lidar_sampling.evaluation.pareto import front

pytest.importorskip("matplotlib")
from lidar_sampling.evaluation.figures import _style
from lidar_sampling.evaluation.figures._labels import break_lines, spread
from lidar_sampling.evaluation.report import inline

NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 1))
RUN = Path(__file__).parent.parent / "docs/results/comparison/results-0.jsonl"  # packed


def rendered(figure):
    """Draw at few pixels without a warning; return whether each panel has contents and finite limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=20)
    return [
        any(len(drawn.get_xdata()) for drawn in ax.lines) and all(map(math.isfinite, ax.get_ylim()))
        for ax in figure.axes
    ]


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


class TestFront:
    @pytest.mark.parametrize(
        ("points", "expected"),
        [
            ([], []),
            ([(1, 1)], [0]),
            ([(1, 1), (2, 2)], [0, 1]),
            ([(1, 2), (2, 1)], [0]),
            ([(2, 1), (2, 2), (1, 0)], [2, 1]),  # at equal cost the better
            ([(1, 1), (2, 1)], [0]),  # at equal quality the cheaper
            ([(1, 1), (1, 1)], [0, 1]),  # copies
            ([(1, float("nan")), (2, 1)], [1]),
        ],
    )
    def test_by_hand(self, points, expected):
        assert front(points) == expected

    @given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
    def test_is_exactly_what_nothing_dominates(self, points):
        expected = {k for k, p in enumerate(points) if not any(dominates(q, p) for q in points)}
        found = front(points)
        assert set(found) == expected
        assert [points[k][0] for k in found] == sorted(points[k][0] for k in found)


class TestFamilies:
    def test_settings_have_no_order(self):
        (series,) = families(["lidar:n=27,scale=3", "lidar:scale=3,n=9"])
        assert series == ("lidar:n=*,scale=3", "n", [(9.0, "lidar:scale=3,n=9"), (27.0, "lidar:n=27,scale=3")])

    def test_numbers_are_read_as_settings_are(self):
        (series,) = families(["lidar:scale=.5", "lidar:scale=2", "lidar:scale=1E-1"])
        assert [x for x, _ in series.points] == [0.1, 0.5, 2.0]
        (series,) = families(["halving-8:keep_at=[.25,.5],steps=4", "halving-8:keep_at=[.25,.5],steps=8"])
        assert (series.key, [x for x, _ in series.points]) == ("steps", [4.0, 8.0])

    def test_a_grid_is_a_series_each_way(self):
        names = [f"lidar:n={n},scale={scale}" for n in (3, 9) for scale in (1.5, 6)]
        assert [series.name for series in families(names)] == [
            "lidar:n=*,scale=1.5",
            "lidar:n=3,scale=*",
            "lidar:n=*,scale=6",
            "lidar:n=9,scale=*",
        ]

    def test_solvers_are_numbers_of_steps(self):
        (series,) = families(["vanilla@dpm:5", "vanilla@dpm:25", "vanilla", "lidar"])
        assert (series.name, series.key) == ("vanilla@dpm:*", "steps")

    def test_those_that_differ_in_two_numbers_are_none(self):
        assert families(["best-of-4@10", "best-of-8@25", "svdd", "svdd-4"]) == []


class TestLabels:
    @given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(0.01, 0.12)), min_size=1, max_size=8))
    def test_do_not_overlap_and_stay_within(self, labels):
        wanted, sizes = [w for w, _ in labels], [size for _, size in labels]
        found = spread(wanted, sizes, 0.0, 1.0)
        order = sorted(range(len(labels)), key=lambda k: found[k])
        for a, b in pairwise(order):
            assert found[b] - found[a] >= (sizes[a] + sizes[b]) / 2 - 1e-9
            assert wanted[a] <= wanted[b]
        assert all(size / 2 - 1e-9 <= x <= 1 - size / 2 + 1e-9 for x, size in zip(found, sizes, strict=True))

    def test_stay_where_there_is_room(self):
        assert spread([0.2, 0.8], [0.1, 0.1], 0.0, 1.0) == pytest.approx([0.2, 0.8])

    def test_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match="do not fit"):
            spread([0.5, 0.5], [0.6, 0.6], 0.0, 1.0)


class TestFigures:
    def test_of_a_run(self):
        found = figures.draw(table(read(RUN)))
        assert list(found) == ["quality-cost", "hacking", "diversity", "tags"]
        for files in found.values():
            assert files["png"].startswith(b"\x89PNG")
            assert b"</svg>" in files["svg"]

    def test_scaling_appears_with_a_family(self):
        lines = [line(p, m, [v], [v]) for p in "pq" for m, v in (("a", 1.0), ("b:n=3", 2.0), ("b:n=27", 3.0))]
        assert "scaling" in figures.draw(table(lines))

    def test_are_the_same_for_the_same_rows(self):
        rows = table([line(p, m, [1.0], [2.0]) for p in "pq" for m in "ab"])
        assert figures.draw(rows) == figures.draw(rows)

    def test_of_as_little_as_there_can_be(self):
        """There is one method, one prompt, one judge without a verdict, no cost and no diversity."""
        only = line("p", "a", [None], [None])
        del only["rewards"]["other"]
        only |= {"diversity": None, "cost": {**only["cost"], "network_evaluations": 0}}
        assert figures.draw(table([only])) == {}

    SCARCE: ClassVar = {
        "a judge without a verdict": [([1.0], [None]), ([2.0], [None])],
        "a guide without a verdict": [([None], [1.0]), ([None], [2.0])],
        "a baseline without a verdict": [([None], [None]), ([2.0], [2.0])],
        "a method without a verdict": [([1.0], [1.0]), ([None], [None]), ([2.0], [0.0])],
        "a judge of one method each": [([1.0], [None]), ([None], [2.0])],
        "nothing": [([None], [None]), ([None], [None])],
        "no difference": [([0.1], [0.1]), ([0.1], [0.1])],
        "a huge range": [([1e-30], [-1e30]), ([1e30], [1e30]), ([0.0], [1e-30])],
        "one method": [([1.0], [None])],
    }

    @pytest.mark.parametrize("prompts", ["p", "pqr"])
    @pytest.mark.parametrize("values", SCARCE.values(), ids=SCARCE)
    def test_of_what_is_known_are_drawn(self, values, prompts, monkeypatch):
        monkeypatch.setattr(_style, "files", rendered)
        names = ["a", "b:n=1", "b:n=3"]
        lines = [line(p, m, *rewards, tag=p) for p in prompts for m, rewards in zip(names, values, strict=False)]
        lines[-1]["cost"] = {**lines[-1]["cost"], "network_evaluations": 10**12 if len(values) > 2 else 1}
        found = figures.draw(table(lines))
        gains = any(v[k] != [None] and values[0][k] != [None] for v in values for k in (0, 1))
        assert ("quality-cost" in found) == gains
        assert ("diversity" in found) == any(other != [None] for _, other in values)
        assert all(panel for panels in found.values() for panel in panels)

    def test_of_a_judge_without_a_verdict_have_no_panel_for_it(self, monkeypatch):
        monkeypatch.setattr(_style, "files", lambda figure: [ax.get_title(loc="left") for ax in figure.axes])
        rows = table([line(p, m, [1.0], [None]) for p in "pq" for m in "ab"])
        assert figures.draw(rows) == {"quality-cost": ["guide (guides)"]}

    def test_names_are_text_and_no_formulas(self):
        r"""``$\frac{$`` is not a formula, and drawing would fail if it were read as one."""
        evil = r"_a$\frac{$ <b> & -- \x00 []" + "\n\x00\udcff🐱"
        lines = [
            line(p, m, [1.0], [2.0], tag=f"{p}{evil}") for p in "pq" for m in (f"m{evil}", f"n{evil}:n=1", "n:n=2")
        ]
        for one in lines:
            one["rewards"] = {f"{judge}{evil}": values for judge, values in one["rewards"].items()}
        found = figures.draw(table(lines))
        assert set(found) == {"quality-cost", "hacking", "diversity", "tags"}
        for files in found.values():
            ElementTree.fromstring(files["svg"])  # XML, whatever the names hold
        page = inline(found["tags"]["svg"].decode(), "tags")
        assert "<!--" not in page

    def test_of_a_mixture_say_what_guided(self, monkeypatch):
        monkeypatch.setattr(_style, "files", lambda figure: [ax.get_title(loc="left") for ax in figure.axes])
        lines = [line(p, m, [k, 1.0], [1.0, k]) for p in "pq" for k, m in enumerate("ab", 2)]
        for one in lines:
            one["rewards"]["held-out"] = [1.0, 2.0]
            one["guide"] = {"name": "mix", "weights": {"guide": 1.0, "other": 1.0}}
        assert figures.draw(table(lines)) == {
            "quality-cost": ["mix (guides)", "guide (part of mix)", "other (part of mix)", "held-out"],
            "hacking": ["held-out"],
            "diversity": ["held-out"],
        }

    def test_of_many_long_names_fit(self):
        names = [f"lidar+best-of-{k}:n={k},scale=12.5,reward_scale=100" for k in range(30)]
        found = figures.draw(table([line(p, m, [1.0], [2.0]) for p in "pq" for m in names]))
        assert set(found) >= {"quality-cost", "hacking", "diversity"}

    @pytest.mark.parametrize("letters", [60, 200, 5000])
    def test_of_names_without_a_break_are_drawn(self, letters):
        """The names are of methods, judges and tags; a name in the margin stays within its space."""
        lines = [
            line(p, m + "x" * letters + n, [1.0], [2.0], tag=p * letters)
            for p in "pq"
            for m, n in (("a", ""), ("b", ":n=1"), ("b", ":n=2"))
        ]
        for one in lines:
            one["rewards"] = {f"{judge}{'y' * letters}": values for judge, values in one["rewards"].items()}
            one["guide"] = {"name": "z" * letters, "weights": dict.fromkeys(list(one["rewards"])[:1], 1.0)}
        rows = table(lines)
        assert {"quality-cost", "hacking", "diversity", "tags"} <= set(figures.draw(rows))
        for row in rows:
            written = break_lines(row.method).split("\n")
            assert max(map(len, written)) <= 16
            assert len(written) <= 8

    def test_a_title_keeps_what_guided(self, monkeypatch):
        monkeypatch.setattr(_style, "files", lambda figure: [ax.get_title(loc="left") for ax in figure.axes])
        lines = [line(p, m, [1.0], [None]) for p in "pq" for m in "ab"]
        for one in lines:
            one["rewards"] = {"first" + 60 * "x" + "last": one["rewards"]["guide"]}
        (title,) = figures.draw(table(lines))["quality-cost"]
        assert re.fullmatch(r"first.*\u2026.*last \(guides\)", title)
        assert len(title) <= 48

    def test_matplotlib_is_imported_when_drawing(self):
        code = "import lidar_sampling.evaluation, sys; sys.exit('matplotlib' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
