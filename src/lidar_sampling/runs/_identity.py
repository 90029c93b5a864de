"""The identity of a run: one definition of "the same run", for every command that continues a folder.

Everything that changes the samples or their scores counts: the state of the model, scheduler and precision, settings,
arguments by their contents, and the judges. Everything else is left out: paths as typed, the place of the weights,
batch size, device, number of processes, and levers that compute the same.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .._contents import OpaqueError, contents, key, pipeline_contents
from .._sampler import LiDAR
from .._values import cut
from ..rewards import name_of
from ..rewards.mixture import Mixture
from ..solvers import Solver

_log = logging.getLogger(__name__)

_TELL_NOTHING = ("tuned_for",)  # of samples; runs of versions before this one have it


def identity(lidar: LiDAR, **more: Any) -> dict[str, Any]:
    """Return, as JSON values, everything that determines what ``lidar`` draws and how it is judged.

    Every weight is read once: about a second per gigabyte on a CPU.

    Args:
        lidar: the sampler.
        **more: further values that count, such as ``images`` or ``seed``.
    """
    taken = lidar.settings_for(lidar.arguments())
    settings = {name: value for name, value in asdict(taken).items() if name not in ("source", *_TELL_NOTHING)}
    for name in ("noise", "grid"):  # absent where None, as in runs of versions that lacked them
        if settings[name] is None:
            del settings[name]
    reward = lidar.reward
    mixed = {"weights": reward.weights, "calibration": reward.calibration} if isinstance(reward, Mixture) else {}
    return _plain(
        {
            **more,
            **settings,
            "precision": str(lidar.pipe.dtype).removeprefix("torch."),
            "solver": _solver(lidar.solver),
            "call": _contents_or_why(_unusual(lidar), "call"),
            "reward": {"name": name_of(reward), **mixed},
            "judges": {name_of(judge): short(judge) for judge in (*lidar.parts, *lidar.metrics)},
            "preview": [None if lidar.preview is None else short(lidar.preview), lidar.rescore],
            "model": _model(lidar.pipe),
        }
    )


def agree(place: Path, before: Mapping[str, Any], now: Mapping[str, Any], mend: str, verb: str = "made") -> None:
    """Refuse to continue a run with another identity.

    Args:
        place: where the run is.
        before: :func:`identity` of the run there.
        now: identity of the new run.
        mend: what to do instead, for the message.
        verb: what was done there: ``made`` or ``drawn``.

    Raises:
        ValueError: the two differ; the message names the first such field and both values.
    """
    if isinstance(before, Mapping):  # a file of another version may hold anything
        before = {name: value for name, value in before.items() if name not in _TELL_NOTHING}
    if before != now:
        field, old, new = difference(before, now)
        raise ValueError(
            f"{place} was {verb} with {field or 'identity'}={_spell(old)}, now it is {_spell(new)}: {mend}"
        )


def read_json(
    path: Path, needs: Mapping[str, type] | None = None, *, mend: str = "remove it, or choose another --out"
) -> dict[str, Any]:
    """Return the object that a JSON file of a run holds.

    Args:
        path: the file.
        needs: fields that it must have -> their types, such as ``{"names": dict}``.
        mend: what to do about a file that is damaged, for the message.

    Raises:
        ValueError: it is damaged; the message names the file, what is wrong and the mend.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {mend}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds {_spell(found)}, not a JSON object): {mend}")
    for field, kind in (needs or {}).items():
        if not isinstance(found.get(field), kind):
            told = f"its {field!r} is {_spell(found[field])}" if field in found else f"it has no {field!r}"
            raise ValueError(f"{path} is damaged ({told}): {mend}")
    return found


def difference(before: Any, now: Any, field: str = "") -> tuple[str, Any, Any]:
    """Return the first field in which two JSON values differ, and its value in each; None where it is absent.

    >>> difference({"settings": {"n": 50, "scale": 6}}, {"settings": {"n": 16, "scale": 6}})
    ('settings.n', 50, 16)
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {**now, **before}:
            if before.get(name) != now.get(name) or (name in before) != (name in now):
                return difference(before.get(name), now.get(name), f"{field}.{name}" if field else name)
    return field, before, now


def _unusual(lidar: LiDAR) -> dict[str, Any]:
    """Return the arguments of the call that are neither settings nor the pipeline's own defaults."""
    defaults = {p.name: p.default for p in inspect.signature(lidar.pipe.__call__).parameters.values()}
    settings = ("num_inference_steps", "guidance_scale", "eta")
    own = {name: v for name, v in lidar.pipe_kwargs.items() if name not in settings}
    return {name: v for name, v in own.items() if not (_is_plain(v) and name in defaults and defaults[name] == v)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _solver(solver: Solver) -> dict[str, Any]:
    """Return the solver's fields; given weights count by their contents, not by their place."""
    own = {field.name: getattr(solver, field.name) for field in fields(solver)}
    weights = solver.weights
    if isinstance(weights, str | Path) and Path(weights).is_file():
        own[str(solver.kind)] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    elif solver.kind == "pipeline" and hasattr(weights, "components"):
        own["pipeline"] = _model(weights)
    return {name: _contents_or_why(value, name) for name, value in own.items()}


def _model(pipe: Any) -> dict[str, Any]:
    try:
        return pipeline_contents(pipe)
    except OpaqueError:  # offloaded weights cannot be read: use the model's name
        return {"class": type(pipe).__name__, "name": str(pipe.config.get("_name_or_path") or "")}


def _contents_or_why(value: Any, name: str) -> Any:
    try:
        return contents(value, name)
    except OpaqueError as error:
        return str(error)


def short(value: Any) -> str:
    """Return what distinguishes a judge or an autoencoder from others; for a remote one, its stated fingerprint.

    Where it cannot be read that is its class alone, and a warning says so.
    """
    if isinstance(there := getattr(value, "stands_for", None), str):
        return there
    try:
        return key(contents(value))[:32]
    except OpaqueError as error:
        name = type(value).__qualname__
        _log.warning(
            "a folder cannot tell this %s from another (%s): continue it with the same alone, or give it a text "
            "stands_for that changes when its results do",
            name,
            error,
        )
        return name


def _spell(value: Any) -> str:
    return cut(repr(value), 120)


def _plain(value: Any) -> Any:
    """Return a value as JSON would read it back, so that the two compare equal."""
    return json.loads(json.dumps(value))
