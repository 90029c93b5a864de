"""Refusals, worded as on the command line: which field, what was given, what to do."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from .._values import cut
from .answers import LeftError
from .catalog import RefusedError
from .desk import Desk, FullError
from .requests import Draw, Generation, Look, Problem, refusal

_ALWAYS = (400, 401, 403, 408, 413)
_FIELDS = {
    "/v1/banks": Look.model_fields,
    "/v1/images": Draw.model_fields,
    "/v1/images/generations": Generation.model_fields,
}

_WANTED = {
    "size": "auto, or WIDTHxHEIGHT as 512x512",
    "strength": "a number of at least 0, or auto",
    "bank": "the id of a bank, as POST /v1/banks gives it",
    "bank_id": "the id of a bank, as POST /v1/banks gives it",
    "id": "an id that this server gave",
}
_OURS = (
    ("a valid string", "a text"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("a valid boolean", "true or false"),
    ("String should have at least 1 character", "a text that is not empty"),
)  # pydantic's wording -> ours


def describe(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals for OpenAPI: these, and those that any request may get."""
    found: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (*_ALWAYS, *statuses)}
    if 429 in statuses:
        found[429]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


def handle(app: FastAPI, desk: Desk) -> None:
    """Make an app answer all errors in one format."""

    def answer_refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return JSONResponse(refusal(error.status, str(error), error.field), error.status)

    def full(request: Request, error: Exception) -> JSONResponse:
        after = max(1, min(60, math.ceil(desk.pace * max(desk.waiting, 1) / 2)))
        return JSONResponse(refusal(429, str(error)), 429, {"retry-after": str(after)})

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        field, text = _words(error.errors()[0], request.url.path)
        return JSONResponse(refusal(400, text, field), 400)

    def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path, headers = request.url.path, error.headers
        text = str(error.detail)
        if error.status_code == 404:
            text = f"no page {path}; see /openapi.json"
        elif error.status_code == 405:  # starlette names the methods of only one route
            routes = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
            allowed = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
            text, headers = f"no {request.method} of {path}: it takes {allowed}", {"allow": allowed}
        return JSONResponse(refusal(error.status_code, text), error.status_code, headers)

    def answer_removed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(refusal(404, "it is no longer kept: ask for it again"), 404)

    def answer_gone(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({}, 499)  # the client is gone

    app.add_exception_handler(RefusedError, answer_refused)
    app.add_exception_handler(FullError, full)
    app.add_exception_handler(LeftError, answer_gone)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(FileNotFoundError, answer_removed)


def _words(error: dict[str, Any], path: str) -> tuple[str | None, str]:
    """Return the field at fault and a message, from an error of pydantic."""
    place = [str(part) for part in error["loc"][1:] if not str(part).startswith(("function-", "constrained-"))]
    field, given = (place[0] if place else None), cut(repr(error.get("input")))
    kind, message = error["type"], str(error["msg"])
    if kind == "json_invalid":
        return None, f"a request must be JSON ({error.get('ctx', {}).get('error', message)})"
    if field is None:
        return None, f"a request must be a JSON object, got {given}: send it with Content-Type: application/json"
    if kind == "extra_forbidden":
        known = list(_FIELDS.get(path, {}))
        near = get_close_matches(field, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
        return field, f"a request here has no field {field!r}; {mend}"
    if kind == "missing":
        return field, f"a request here needs {field}: give it"
    wanted = _WANTED.get(field) or message.removeprefix("Input should be ")
    for said, ours in _OURS:
        wanted = wanted.replace(said, ours)
    return field, f"{field} must be {wanted[:1].lower() + wanted[1:]}, got {given}"
