"""``lidar models``, ``lidar rewards`` and ``lidar solvers``: lists of what the library knows, with sources."""

from __future__ import annotations

from dataclasses import asdict

import typer

from . import _options as o
from ._screen import guard_printing, print_json


def models(json: o.Json = False) -> None:
    """List models with their defaults, and presets.

    Other pipelines get cautious defaults.
    """
    from .._settings import DEFAULTS, GLYPH, PRESETS

    rows = {name: asdict(row) for name, row in {"glyph": GLYPH, **DEFAULTS, **PRESETS}.items()}
    with guard_printing(saved=False):
        if json:
            print_json(rows)
            return
        for name, row in rows.items():
            source = row.pop("source")
            typer.echo(f"{name}\n  {', '.join(f'{key} {value}' for key, value in row.items())}\n  from {source}")


def rewards(json: o.Json = False) -> None:
    """List the rewards known by name.

    Your own function is a reward, too: give it as package.module:function.
    """
    from ..rewards import REGISTRY

    with guard_printing(saved=False):
        if json:
            rows = {
                name: {"description": entry.description, "weights": entry.published and asdict(entry.published)}
                for name, entry in REGISTRY.items()
            }
            print_json(rows)
            return
        for name, entry in REGISTRY.items():
            typer.echo(f"{name}\n  {entry.description}")
            if entry.published is not None:
                typer.echo(f"  {entry.published}")


def solvers(json: o.Json = False) -> None:
    """List few-step solvers, with licences.

    They draw the lookahead samples of phase 1; the list has their weights and licences.
    """
    from ..solvers import PRESETS

    rows = [
        {
            "name": preset.name,
            "for": list(preset.bases),
            "steps": preset.steps,
            "timesteps": list(preset.timesteps or ()),
            "guidance_scale": preset.guidance_scale,
            "scheduler": preset.scheduler,
            "settings": dict(preset.settings),
            "weights": asdict(preset.weights),
            "kind": preset.kind,
            "note": preset.note,
        }
        for preset in PRESETS
    ]
    with guard_printing(saved=False):
        if json:
            print_json([*_NO_DOWNLOAD, *rows])
            return
        for row in _NO_DOWNLOAD:
            typer.echo(f"{row['name']}\n  {row['note']}")
        for preset in PRESETS:
            bases = ", ".join(preset.bases)
            typer.echo(f"{preset.name} for {bases}\n  {preset.kind} {preset.weights}\n  {preset.note}")


_NO_DOWNLOAD = [
    {
        "name": "dpm:N",
        "note": "DPM-Solver++ in N steps with the model's own weights; not for SANA Sprint, Mochi, Cosmos 2",
    },
    {"name": "dpm:N-karras", "note": "the same on Karras's noise levels, for SD and SDXL"},
    {"name": "own:N", "note": "the model's own scheduler in N steps"},
]
