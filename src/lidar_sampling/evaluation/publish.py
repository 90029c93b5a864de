"""What a comparison leaves in its folder beside its lines: tables, figures and a report, all from the same rows.

OUT/results-RANK.jsonl, OUT/run.json      the lines and how they were drawn, by :func:`compare`
OUT/pictures/INDEX/METHOD/0000.png        samples of the first prompts, by :func:`compare`
OUT/table.md, .tex, .csv, .json           the tables to read, and their numbers
OUT/figures/NAME.svg, .png                with matplotlib
OUT/report.html                           all of it in one file
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .._bank import write_atomically
from . import figures
from .comparison import Line
from .data import records, tidy
from .parts import markdown, parts
from .report import report
from .table import Row, shared, table
from .tex import tex


def publish(
    lines: Sequence[Line], out: Path, *, baseline: str | None = None, command: str | None = None
) -> list[Row]:
    """Write tables, figures and the report of ``lines`` to ``out``; each file whole, over what was there.

    Without matplotlib there are no figures.

    Args:
        lines: of :func:`lidar_sampling.evaluation.compare`.
        out: their folder, with ``run.json`` and the pictures if there are any.
        baseline: as in :func:`lidar_sampling.evaluation.table`.
        command: shown in the report.

    Raises:
        ValueError: as :func:`lidar_sampling.evaluation.table` does.
    """
    rows = table(lines, baseline=baseline)
    tables = parts(rows, prompts=len({prompt for prompt, _ in shared(lines)}), images=lines[0]["images"])
    drawn = figures.draw(rows) if figures.available() else {}
    manifest = out / "run.json"
    settings = json.loads(manifest.read_text()) if manifest.exists() else {}
    files = {
        "table.md": markdown(tables),
        "table.tex": tex(tables),
        "table.csv": tidy(rows),
        "table.json": json.dumps(records(rows), indent=1) + "\n",
        "report.html": report(
            rows,
            tables,
            lines,
            folder=out,
            figures={name: figure["svg"].decode() for name, figure in drawn.items()},
            settings=settings,
            command=command,
        ),
    }
    (out / "figures").mkdir(exist_ok=True)
    if drawn:  # a figure of an earlier run that these rows do not make would contradict the tables
        for name in figures.NAMES:
            for suffix in ("svg", "png"):
                (out / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
    for name, figure in drawn.items():
        for suffix, content in figure.items():
            write_atomically(out / "figures" / f"{name}.{suffix}", content)
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return rows
