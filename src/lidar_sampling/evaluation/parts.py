"""The rows of a comparison as tables to read: rewards, costs, gains and hacking, win rates, and the tags of a judge.

Markdown, TeX and the report show the same parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple

from .rows import PEAK, Row
from .statistics import Interval

_GIBIBYTE = 2**30
# An underscore within a word is not a mark; an ampersand is one only before the name of a letter.
_MARKS = re.compile(r"[\\|<`*~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|(?<=\])\(")
_COSTS = {
    "network_evaluations": "network evaluations",
    "backward_passes": "backward passes",
    "reward_calls": "reward calls",
    "seconds": "s",
    PEAK: "peak GiB",
}


class Part(NamedTuple):
    """A table of text: a head of N cells and rows of N cells, the method in the first; a note stands below it."""

    title: str
    caption: str
    head: list[str]
    body: list[list[str]]
    note: str = ""


def parts(rows: Sequence[Row], *, prompts: int, images: int) -> list[Part]:
    """Return the tables of Markdown, TeX and the report, each narrow enough for a page."""
    judges, base, judge = list(rows[0].mean), rows[0].method, judge_of_tags(rows)
    guide, unguided = rows[0].guide, rows[0].unguided
    others = [j for j in judges if j not in (guide, *unguided)]
    mixture = f", a mixture of {' and '.join(others)}" if others else ""
    counted = costs(rows)
    of_means = note_means(rows, judges)
    of_best = _note_best(rows, judges)
    fewer = [j for j in judges if rows[0].counted_best[j] != rows[0].counted[j]]
    found = [
        Part(
            "Rewards",
            f"{prompts} prompts, {images} images each; 95 % bootstrap intervals over prompts. Mean of the images "
            f"returned, and the best of them by the guiding reward, {guide}{mixture}.",
            ["method", *(f"{j}, mean" for j in judges), *(f"{j}, best" for j in judges)],
            [[r.method, *map(str, (*r.mean.values(), *r.best.values()))] for r in rows],
            join_notes([of_means, _note_best(rows, fewer)]),
        ),
        Part(
            "Diversity and cost",
            "Diversity of the images of a prompt, and the cost per prompt.",
            ["method", "diversity", *counted.values()],
            [[r.method, str(r.diversity), *(cost(r, key) for key in counted)] for r in rows],
            note_diversity(rows),
        ),
    ]
    if len(rows) > 1:
        found += [
            Part(
                f"Gain over {base}",
                f"Paired differences to {base}, and hacking: gain on {guide} minus gain on the other, in "
                f"deviations of {base} over prompts.",
                ["method", *(f"{j}, gain" for j in judges), *(f"{j}, hacking" for j in unguided)],
                [[r.method, *map(str, (*r.gain.values(), *r.hacking.values()))] for r in rows[1:]],
                of_means,
            ),
            Part(
                f"Best image beside {base}'s",
                f"Paired differences of the best image, by {guide}, to the best of {base}.",
                ["method", *(f"{j}, best" for j in judges)],
                [[r.method, *map(str, r.best_lead.values())] for r in rows[1:]],
                of_best,
            ),
            Part(
                "Prompts won",
                f"Share of prompts with a larger mean than {base}'s, ties half.",
                ["method", *judges],
                [[r.method, *map(str, r.win.values())] for r in rows[1:]],
                of_means,
            ),
        ]
    if len(rows[0].tags[judge]) > 1:
        found.append(
            Part(
                f"{judge} by tag",
                f"Mean of {judge} over the images returned, by tag.",
                ["method", *rows[0].tags[judge]],
                [[r.method, *map(str, r.tags[judge].values())] for r in rows],
                note_means(rows, [judge]),
            )
        )
    return found


def note_means(rows: Sequence[Row], judges: Sequence[str]) -> str:
    """Return on how many prompts the means of these judges rest, where those are not all; see :class:`Row`."""
    return join_notes(_note(j, rows[0].counted[j], [row.mean[j] for row in rows], rows[0].prompts) for j in judges)


def note_diversity(rows: Sequence[Row]) -> str:
    """Return on how many prompts the diversity rests, where those are not all."""
    return _note("diversity", rows[0].counted_diversity, [row.diversity for row in rows], rows[0].prompts)


def join_notes(notes: Iterable[str]) -> str:
    """Return the notes that are not empty as one."""
    return " ".join(filter(None, notes))


def _note_best(rows: Sequence[Row], judges: Sequence[str]) -> str:
    return join_notes(
        _note(f"{j}, best", rows[0].counted_best[j], [row.best[j] for row in rows], rows[0].prompts) for j in judges
    )


def _note(column: str, counted: int | None, cells: Sequence[Interval], prompts: int) -> str:
    """Return on how many prompts a column rests, if not on all; nothing of a column without values.

    >>> _note("ocr", 2, [Interval(0.5), Interval(0.7)], 10), _note("ocr", 10, [Interval(0.5)], 10)
    ('ocr: 2 of 10 prompts have a value by every method.', '')
    >>> _note("ocr", 2, [Interval(0.5), Interval()], 10)
    'ocr: 2 of 10 prompts have a value by every method that has any.'
    """
    if counted is None or counted == prompts:
        return ""
    known = sum(isfinite(cell.estimate) for cell in cells)
    which = " that has any" if 0 < known < len(cells) else ""
    return f"{column}: {counted} of {prompts} prompts have a value by every method{which}."


def judge_of_tags(rows: Sequence[Row]) -> str:
    """Return the judge of the tables by tag: GenEval, or else the first judge that did not guide.

    A judge without values is skipped: GenEval has none for free prompts.
    """
    judges = [*(j for j in rows[0].mean if j == "geneval"), *rows[0].unguided, rows[0].guide]
    return next((j for j in judges if any(isfinite(row.mean[j].estimate) for row in rows)), judges[0])


def costs(rows: Sequence[Row]) -> dict[str, str]:
    """Return the costs that any method has, with their titles."""
    return {key: title for key, title in _COSTS.items() if any(row.cost[key] > 0 for row in rows)}


def cost(row: Row, key: str) -> str:
    """Return a cost of a method as text; memory is in GiB."""
    value = row.cost[key]
    if value != value:
        return "-"
    return f"{value / _GIBIBYTE:.2f}" if key == PEAK else f"{value:.1f}" if key == "seconds" else f"{value:.0f}"


def markdown(tables: Sequence[Part]) -> str:
    r"""Return the parts as Markdown.

    >>> print(markdown([Part("A", "Two.", ["method", "x"], [["a|b", "1"]])]), end="")
    Two.
    <BLANKLINE>
    | method | x |
    |---|---|
    | a\|b | 1 |
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(escape_markdown, cells)) + " |\n"

    return "\n".join(
        f"{escape_markdown(caption)}\n\n{line(head)}|{'---|' * len(head)}\n{''.join(map(line, body))}"
        + (f"\n{escape_markdown(note)}\n" if note else "")
        for _, caption, head, body, note in tables
    )


def escape_markdown(text: str) -> str:
    r"""Return text in one line that Markdown shows unchanged; escape only characters that Markdown reads as marks.

    >>> print(escape_markdown("best_of|two <b> of *three*"))
    best_of\|two \<b> of \*three\*
    """
    return _MARKS.sub(r"\\\g<0>", plain(text))


def plain(text: str) -> str:
    r"""Return text without line breaks and other characters that cannot be printed.

    >>> plain("two\nlines\x00")
    'two lines'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
