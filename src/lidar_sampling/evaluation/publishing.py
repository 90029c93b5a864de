"""The files that a comparison writes beside its lines: tables, figures and a report, all from the same rows.

OUT/results-RANK.jsonl, OUT/run.json      the lines and their settings, by :func:`compare`
OUT/pictures/INDEX/METHOD/0000.png        samples of the first prompts, by :func:`compare`
OUT/table.md, .tex, .csv, .json           the tables, and their numbers
OUT/figures/NAME.svg, .png                with matplotlib
OUT/report.html                           all of it in one file
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._files import write_atomically
from ..runs._lines import Line
from . import figures
from .data import records, tidy
from .parts import markdown, parts
from .report import report
from .rows import Row, find_shared, table
from .tex import tex

_log = logging.getLogger(__name__)


def publish(
    lines: Sequence[Line], out: Path, *, baseline: str | None = None, command: str | None = None
) -> list[Row]:
    """Write tables, figures and the report of ``lines`` into ``out``, replacing earlier ones atomically.

    The tables come first. Each figure and the report is then made on its own: if one fails, it is logged and left
    out. Without matplotlib there are no figures.

    Args:
        lines: lines of :func:`lidar_sampling.evaluation.compare`.
        out: their folder, with ``run.json`` and the pictures if there are any.
        baseline: as in :func:`lidar_sampling.evaluation.table`.
        command: shown in the report.

    Raises:
        ValueError: as :func:`lidar_sampling.evaluation.table` does.
        OSError: a table cannot be written.
    """
    rows = table(lines, baseline=baseline)
    tables = parts(rows, prompts=len({prompt for prompt, _ in find_shared(lines)}), images=lines[0]["images"])
    _write(out / "table.json", json.dumps(records(rows), indent=1) + "\n")
    _write(out / "table.csv", tidy(rows))
    _write(out / "table.md", markdown(tables))
    _write(out / "table.tex", tex(tables))
    drawn: dict[str, str] = {}
    if figures.available():
        for name in figures.NAMES:
            with _without(out / "figures", f"{name}.svg", f"{name}.png"):
                files = figures.draw_one(name, rows)
                if files is not None:
                    for suffix, content in files.items():
                        write_atomically(out / "figures" / f"{name}.{suffix}", content)
                    drawn[name] = files["svg"].decode()
    with _without(out, "report.html"):
        settings = _settings(out / "run.json")
        page = report(rows, tables, lines, folder=out, figures=drawn, settings=settings, command=command)
        _write(out / "report.html", page)
    return rows


@contextmanager
def _without(folder: Path, *names: str) -> Iterator[None]:
    """Go on without these files if this block fails to make them; the failure is logged.

    Files of an earlier run with these names are deleted first, since they would contradict the tables.
    """
    try:
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).unlink(missing_ok=True)
        yield
    except Exception as error:
        what = " and ".join(str(folder / name) for name in names)
        _log.warning("left out %s: %s", what, " ".join(f"{type(error).__name__}: {error}".split()))
        _log.debug("the failure in full", exc_info=True)


def _settings(manifest: Path) -> dict[str, Any]:
    """Return the settings with which the lines were drawn; empty if the folder does not say.

    Raises:
        ValueError: the file is damaged.
    """
    if not manifest.exists():
        return {}
    try:
        settings = json.loads(manifest.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the encoding, or of JSON
        raise ValueError(
            f"{manifest} is damaged ({error}): restore it, or delete it if the lines are right"
        ) from None
    if not isinstance(settings, dict):
        raise ValueError(f"{manifest} holds no settings: restore it, or delete it if the lines are right")
    return settings


def _write(path: Path, text: str) -> None:
    """Write text as UTF-8; lone surrogates, as in file names that are not text, become escapes."""
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
