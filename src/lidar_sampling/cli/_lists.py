"""``lidar models`` and ``lidar rewards``: what is known, with its source."""

from __future__ import annotations

import json as _json
from dataclasses import asdict

import typer

from . import _options as o


def models(json: o.Json = False) -> None:
    """List the models with defaults of their own; any other diffusers pipeline works with cautious ones."""
    from .._settings import DEFAULTS, GLYPH

    rows = {"glyph": asdict(GLYPH), **{name: asdict(row) for name, row in DEFAULTS.items()}}
    if json:
        typer.echo(_json.dumps(rows))
        return
    for name, row in rows.items():
        source = row.pop("source")
        typer.echo(f"{name}\n  {', '.join(f'{key} {value}' for key, value in row.items())}\n  from {source}")


def rewards(json: o.Json = False) -> None:
    """List the rewards known by name; in Python any function is a reward."""
    from .. import rewards as registry

    if json:
        typer.echo(_json.dumps(registry.names()))
        return
    for name, description in registry.names().items():
        typer.echo(f"{name:14s} {description}")
