"""The outcome of a reproduction: the paper's figures beside ours, and whether each of its claims holds.

Our figure is the mean over prompts, with a 95 % bootstrap interval over them; for GenEval it is the mean over its
tags, as GenEval defines it. A claim that one row is above another is decided by the interval of their paired
difference:

    holds            the interval lies above 0
    does not hold    it lies below 0
    cannot be told   it contains 0, or there are fewer than :data:`LEAST` prompts, for which a bootstrap
                     interval is too narrow

A claim about several judges holds if it holds for all of them, and does not if it fails for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..runs._lines import Line
from .parts import Part
from .published import GENEVAL, SECONDS, UNITS, Claim, Row, Run, Study
from .reproduce import LIDAR, choose_rows
from .rows import best_reward, estimate, find_shared, mean_reward
from .statistics import Interval

HOLDS, FAILS, UNTOLD, NOT_DRAWN = "holds", "does not hold", "cannot be told at this size", "not drawn"
LEAST = 10
"""With fewer prompts than this, nothing is decided."""

_Values = dict[str, tuple[float, str]]  # prompt -> value, tag


class Cell(NamedTuple):
    """A figure of the paper (None if it has none), our figure, and the number of prompts."""

    paper: float | None
    here: Interval
    prompts: int

    @property
    def outside(self) -> bool:
        """Whether the paper's figure lies outside our interval, if that is reliable."""
        low, high = self.here.low, self.here.high
        relied = self.prompts >= LEAST and high > low
        return relied and self.paper is not None and not low <= self.paper <= high


@dataclass(frozen=True)
class Figures:
    """A row with its figures.

    Attributes:
        run: name of its run.
        row: the row, the paper's or ours.
        method: the method that drew it; None if it was not drawn.
        cells: judge -> figures.
    """

    run: str
    row: Row
    method: str | None
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim in one run.

    Attributes:
        claim: the claim.
        run: name of the run; for a claim across runs, both names.
        ours: whether we ask this, and the paper does not claim it.
        cells: judge -> difference of the rows, in the paper and here.
        answers: judge -> holds, does not hold, cannot be told.
        answer: answer for all judges together.
    """

    claim: Claim
    run: str
    ours: bool
    cells: dict[str, Cell]
    answers: dict[str, str]
    answer: str


@dataclass(frozen=True)
class Findings:
    """The outcome of a study.

    Attributes:
        prompts: run -> how many prompts all of its rows have.
        rows: rows by run, the paper's before ours.
        verdicts: verdicts on the paper's claims, then on our questions.
    """

    prompts: dict[str, int]
    rows: list[Figures]
    verdicts: list[Verdict]

    @property
    def judges(self) -> list[str]:
        """The judges with any known figure; seconds count as one."""
        return [judge for judge in UNITS if any(judge in row.cells for row in self.rows)]


def findings(study: Study, methods: Mapping[str, Mapping[str, str]], lines: Mapping[str, Sequence[Line]]) -> Findings:
    """Return the outcome of a study from the lines of its runs.

    Args:
        study: rows and claims of the paper.
        methods: run -> key of a row -> the method that drew it.
        lines: run -> its lines; only prompts with all methods of the run count.
    """
    drawn: dict[tuple[str, str], dict[str, _Values]] = {}
    prompts: dict[str, int] = {}
    rows: list[Figures] = []
    for run in study.runs:
        here = _whole(lines.get(run.name, ()))
        prompts[run.name] = len({line["prompt"] for line in here})
        for row in choose_rows(run, ()):
            method = methods.get(run.name, {}).get(row.key)
            of_row = [line for line in here if line["method"] == method]
            values = {judge: _values(of_row, row, judge) for judge in _judges(of_row)}
            if row.figures or of_row:
                known = [judge for judge in UNITS if judge in values or judge in row.figures]
                cells = {judge: _cell(row.figures.get(judge), values.get(judge, {}), judge) for judge in known}
                rows.append(Figures(run.name, row, method if of_row else None, cells))
            drawn[run.name, row.key] = values
    verdicts = [_verdict(claim, pair, drawn, study) for claim in study.claims for pair in _pairs(claim, study)]
    for run in study.runs:
        for row in run.ours:
            if drawn[run.name, row.key] and drawn.get((run.name, LIDAR)):
                claim = Claim(f"{row.label} is above LiDAR", row.key, LIDAR, tuple(_find_judges(run)))
                verdicts.append(_verdict(claim, ((run.name, row.key), (run.name, LIDAR)), drawn, study, ours=True))
    return Findings(prompts, rows, verdicts)


def decide(difference: Interval, prompts: int) -> str:
    """Return whether a difference is above 0, as claimed.

    >>> [decide(Interval(0.1, *bounds), 20) for bounds in ((0.05, 0.2), (-0.2, -0.1), (-0.1, 0.3))]
    ['holds', 'does not hold', 'cannot be told at this size']
    """
    if prompts < LEAST:
        return UNTOLD
    return HOLDS if difference.low > 0 else FAILS if difference.high < 0 else UNTOLD


def tables(found: Findings, *, study: Study, of: int) -> list[Part]:
    """Return the findings as tables of text: one per run, one of the claims, and one of our questions.

    Args:
        found: the outcome of the study.
        study: the study.
        of: number of prompts in the file.
    """
    parts = []
    for run in study.runs:
        rows = [row for row in found.rows if row.run == run.name]
        judges = [judge for judge in found.judges if any(judge in row.cells for row in rows)]
        head = ["method", *(f"{UNITS[judge].title}, {whose}" for judge in judges for whose in ("paper", "here"))]
        body = [[row.row.label, *(text for judge in judges for text in _texts(row, judge))] for row in rows]
        parts.append(Part(run.name, _caption(run, found.prompts[run.name], of), head, body))
    for ours in (False, True):
        verdicts = [each for each in found.verdicts if each.ours is ours]
        judges = [judge for judge in UNITS if any(judge in each.cells for each in verdicts)]
        if verdicts:
            head = ["claim", "run", "verdict", *(UNITS[judge].title for judge in judges)]
            body = [
                [each.claim.text, each.run, each.answer, *(_difference(each, judge) for judge in judges)]
                for each in verdicts
            ]
            parts.append(Part("Ours" if ours else "Claims", _OURS if ours else _CLAIMS, head, body))
    return parts


_CLAIMS = (
    "The claims: paired differences here with their 95 % intervals, beside those of the paper's figures. Each "
    "judge is decided on its own: without any true difference, one in forty would be found above 0, and one in "
    "forty below. A claim holds if all of its judges agree, and does not if one is below 0: by chance alone, a "
    "claim of four judges fails in up to one of ten cases, and hardly ever holds."
)
_OURS = (
    "What the paper does not tabulate: the best of LiDAR's own bank, and selection that costs as many network "
    "evaluations as LiDAR does, beside LiDAR."
)


def _caption(run: Run, prompts: int, of: int) -> str:
    note = f" Our reading: {run.note}." if run.note else ""
    return (
        f"{run.name}: {prompts} of {of} prompts, {run.images} {'image' if run.images == 1 else 'images'} each; 95 % "
        "bootstrap intervals over prompts. A star marks a figure of the paper outside our interval; it has an "
        "error of its own, which the paper does not give. Seconds are per prompt; the paper's are on an "
        f"A100.{note}"
    )


def to_json(found: Findings) -> dict[str, Any]:
    """Return the findings as JSON values."""
    return {
        "runs": {
            name: {
                "prompts": count,
                "rows": [
                    {"row": row.row.label, "key": row.row.key, "method": row.method, "figures": _cells(row.cells)}
                    for row in found.rows
                    if row.run == name
                ],
            }
            for name, count in found.prompts.items()
        },
        "claims": [
            {
                "claim": each.claim.text,
                "run": each.run,
                "ours": each.ours,
                "verdict": each.answer,
                "by": {judge: {"verdict": each.answers[judge], **cell} for judge, cell in _cells(each.cells).items()},
            }
            for each in found.verdicts
        ],
    }


def _cells(cells: Mapping[str, Cell]) -> dict[str, dict[str, Any]]:
    return {
        judge: {
            "paper": cell.paper,
            **{name: None if value != value else value for name, value in cell.here._asdict().items()},
        }
        for judge, cell in cells.items()
    }


def _texts(row: Figures, judge: str) -> tuple[str, str]:
    """Return the paper's figure and ours as text; seconds come from two machines and get no star."""
    cell = row.cells.get(judge)
    if cell is None:
        return "-", "-"
    star = " *" if cell.outside and judge != SECONDS else ""
    return "-" if cell.paper is None else f"{cell.paper:.3f}", f"{cell.here}{star}"


def _difference(verdict: Verdict, judge: str) -> str:
    """Return a difference here, the paper's difference, and the answer, as text."""
    cell = verdict.cells.get(judge)
    if cell is None:
        return ""
    paper = "" if cell.paper is None else f", paper {cell.paper:.3f}"
    mark = {HOLDS: "yes: ", FAILS: "no: "}.get(verdict.answers[judge], "")
    return f"{mark}{cell.here}{paper}"


def _whole(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of prompts that all methods have."""
    both = set(find_shared(lines))
    return [line for line in lines if (line["prompt"], line["seed"]) in both]


def _judges(lines: Sequence[Line]) -> list[str]:
    return [judge for judge in UNITS if judge == SECONDS or judge in lines[0]["rewards"]] if lines else []


def _find_judges(run: Run) -> list[str]:
    return [judge for judge in UNITS if judge != SECONDS and any(judge in row.figures for row in run.rows)]


def _values(lines: Sequence[Line], row: Row, judge: str) -> _Values:
    """Return one number per prompt, the mean over seeds, in the paper's unit."""
    found: dict[str, list[float]] = {}
    tags: dict[str, str] = {}
    for line in lines:
        if judge == SECONDS:
            value = float(line["cost"]["seconds"])
        elif row.best:
            value = best_reward(line["guide"]["name"], judge, line)
        else:
            value = mean_reward(judge, line)
        if np.isfinite(value):
            found.setdefault(line["prompt"], []).append(value * UNITS[judge].scale)
            tags[line["prompt"]] = line["tag"]
    return {prompt: (float(np.mean(values)), tags[prompt]) for prompt, values in found.items()}


def _cell(paper: float | None, values: _Values, judge: str) -> Cell:
    """Return the mean over prompts (for GenEval over its tags) beside the paper's figure."""
    numbers = np.array([value for value, _ in values.values()])
    tags = [tag if judge == GENEVAL else "" for _, tag in values.values()]
    return Cell(paper, estimate(numbers, tags), len(numbers))


def _pairs(claim: Claim, study: Study) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Yield (run, key) of the upper row and of the lower: in every run that has both, or as the claim says."""
    if "/" in claim.above:
        (one, above), (other, below) = claim.above.split("/"), claim.below.split("/")
        yield (one, above), (other, below)
        return
    for run in study.runs:
        keys = {row.key for row in run.rows}
        if {claim.above, claim.below} <= keys:
            yield (run.name, claim.above), (run.name, claim.below)


def _verdict(
    claim: Claim,
    pair: tuple[tuple[str, str], tuple[str, str]],
    drawn: Mapping[tuple[str, str], Mapping[str, _Values]],
    study: Study,
    *,
    ours: bool = False,
) -> Verdict:
    above, below = pair
    figures = {(run.name, row.key): row.figures for run in study.runs for row in run.rows}
    high, low = figures.get(above, {}), figures.get(below, {})
    cells, answers = {}, {}
    for judge in claim.judges:
        a, b = drawn[above].get(judge, {}), drawn[below].get(judge, {})
        gains = {prompt: (a[prompt][0] - b[prompt][0], a[prompt][1]) for prompt in a if prompt in b}
        paper = high[judge] - low[judge] if judge in high and judge in low else None
        cells[judge] = _cell(paper, gains, judge)
        answers[judge] = decide(cells[judge].here, len(gains))
    together = set(answers.values())
    answer = FAILS if FAILS in together else HOLDS if together == {HOLDS} else UNTOLD
    if not (drawn[above] and drawn[below]):
        answer = NOT_DRAWN
    runs = dict.fromkeys(run for run, _ in pair)
    return Verdict(claim, " and ".join(runs), ours, cells, answers, answer)
