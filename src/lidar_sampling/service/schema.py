"""The OpenAPI document of one server: its names and limits, and only answers that it gives."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from .catalog import Catalog


def document(app: FastAPI, catalog: Catalog) -> None:
    """Make an app's OpenAPI document list the catalog."""
    made, limits = app.openapi, catalog.limits
    images, members = {"maximum": limits.images}, {"maximum": limits.n}
    shared = {
        "prompt": {"maxLength": limits.prompt},
        "steps": {"maximum": limits.steps},
        "model": {"enum": list(catalog.models)},
        "reward": {"enum": list(catalog.rewards)},
        "method": {"enum": list(catalog.methods)},
    }
    own = {
        "Generation": {**shared, "n": images, "bank_size": members},
        "Look": {**shared, "n": members},
        "Draw": {**shared, "images": images},
    }

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = made()
            for path in found["paths"].values():
                for operation in path.values():
                    answers = operation["responses"]
                    if "HTTPValidationError" in str(answers.get("422")):  # FastAPI's default, which is a 400 here
                        del answers["422"]
            for name, changes in own.items():
                fields = found["components"]["schemas"][name]["properties"]
                for field in fields.keys() & changes.keys():
                    fields[field].get("anyOf", [fields[field]])[0].update(changes[field])
        return made()

    app.openapi = openapi  # type: ignore[method-assign]
