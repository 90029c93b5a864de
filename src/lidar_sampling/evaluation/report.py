"""A comparison as one self-contained HTML file: no script, no network, figures and pictures inside."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ..runs._lines import Line
from .figures import NAMES
from .gallery import gallery
from .parts import Part, cost, costs, join_notes, judge_of_tags, note_diversity, note_means
from .rows import Row

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$what
$headline
$figures
$tables
$gallery
</main>
</body>
</html>
""")


def report(
    rows: Sequence[Row],
    tables: Sequence[Part],
    lines: Sequence[Line],
    *,
    folder: Path,
    figures: Mapping[str, str],
    settings: Mapping[str, Any],
    command: str | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        rows: rows of :func:`lidar_sampling.evaluation.table`.
        tables: tables made of the rows.
        lines: lines that the rows were made of; they name their pictures.
        folder: folder of the pictures.
        figures: name -> SVG.
        settings: settings of the lines, from ``run.json``.
        command: the command that drew them.
    """
    return _PAGE.substitute(
        title=f"{len(rows)} methods compared",
        style=resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8"),
        what=_what(tables[0].caption, settings, command),
        headline=f"<section><h2>In short</h2>{_table(headline(rows))}</section>",
        figures=_figures(figures),
        tables="<section><h2>All numbers</h2>" + "".join(_fold(part) for part in tables) + "</section>",
        gallery=gallery(lines, [row.method for row in rows], folder),
    )


def headline(rows: Sequence[Row]) -> Part:
    """Return the table of what matters most: gain on the judges that did not guide, diversity and cost."""
    judge = judge_of_tags(rows)
    held = [j for j in rows[0].unguided if j != judge and any(r.gain[j].estimate == r.gain[j].estimate for r in rows)]
    held = held or [judge]
    counted = costs(rows)
    head = ["method", *(f"{j}, gain" for j in held), *(f"{j}, prompts won" for j in held), judge, "diversity"]
    head += counted.values()
    body = [
        [
            row.method,
            *("baseline" if row is rows[0] else str(row.gain[j]) for j in held),
            *("" if row is rows[0] else str(row.win[j]) for j in held),
            str(row.mean[judge]),
            str(row.diversity),
            *(cost(row, key) for key in counted),
        ]
        for row in rows
    ]
    gained = f"Gains are paired differences to {rows[0].method}; {rows[0].guide} guided."
    note = join_notes([note_means(rows, list(dict.fromkeys([*held, judge]))), note_diversity(rows)])
    return Part("In short", f"{gained} In brackets 95 % intervals.", head, body, note)


def _what(caption: str, settings: Mapping[str, Any], command: str | None) -> str:
    shown = "".join(
        f"<div><dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_text(value))}</dd></div>"
        for key, value in settings.items()
    )
    typed = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return f"<section><p>{escape(caption)}</p>{typed}<dl>{shown}</dl></section>"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(part: Part) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in part.head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in part.body
    )
    return (
        f"<p>{escape(part.caption)}</p>"
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        + (f"<p>{escape(part.note)}</p>" if part.note else "")
    )


def _cell(text: str) -> str:
    """Return a cell with its interval below the estimate, which halves the width of a table."""
    estimate, bracket, rest = text.partition(" [")
    return escape(estimate) + (f"<small>[{escape(rest)}</small>" if bracket else "")


def _fold(part: Part) -> str:
    return f"<details open><summary>{escape(part.title)}</summary>{_table(part)}</details>"


def _figures(figures: Mapping[str, str]) -> str:
    if not figures:
        return ""
    shown = "".join(
        f'<figure class="plot">{inline(svg, name)}<figcaption>{escape(NAMES[name])}</figcaption></figure>'
        for name, svg in figures.items()
    )
    return f'<section><h2>Figures</h2><div class="plots">{shown}</div></section>'


def inline(svg: str, name: str) -> str:
    """Return an SVG file of ours as an element of the page, in its text colour, with unique ids and no URLs."""
    from .figures._style import INK, PAPER

    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
