"""The folder that ``lidar generate`` fills, in GenEval's layout: a prompt lands in it whole, or not at all.

DIR/run.json                  the arguments, and what decides the samples: a run is resumed only with the same
DIR/00000/metadata.jsonl      GenEval's metadata of the prompt, or the prompt alone
DIR/00000/samples/0000.png    images by the method (.webp for a video, .wav for audio); vanilla/ without guidance
DIR/00000/result.json         rewards, costs and trace of the prompt
DIR/grid.png, DIR/result.json all of it together
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_atomically
from .._media import save_sample
from ..runs import agree, read_json

if TYPE_CHECKING:
    from .._result import Result

_PART = re.compile(r"\.[0-9]{5,}\.[0-9a-f]{8}(\.old)?\.part")  # what put writes before it is whole
_COSTS = ("network_evaluations", "reward_calls", "seconds")  # that reports add up


class Folder:
    """An output folder that one run owns.

    Args:
        path: the folder.
        arguments: what the run was asked, JSON values.
        identity: what decides its samples, of :func:`lidar_sampling.runs.identity`; None where it cannot be resumed.
        resume: go on with a run of the same identity; None where the command cannot.
        overwrite: delete a run that is there.

    Raises:
        FileExistsError: the folder holds something and neither was asked.
        ValueError: it holds a run that draws otherwise, or no run.
    """

    def __init__(
        self,
        path: Path,
        arguments: dict[str, Any],
        *,
        identity: dict[str, Any] | None = None,
        resume: bool | None,
        overwrite: bool,
    ) -> None:
        self.path = path
        manifest = path / "run.json"
        # A run that failed before its first prompt left its manifest alone, and nothing to lose.
        if path.exists() and (not path.is_dir() or any(file != manifest for file in path.iterdir())):
            ours = manifest.is_file()
            if not (resume or overwrite):
                raise FileExistsError(
                    f"{path} is not empty: choose another --out"
                    + (", or --resume to finish that run" if ours and resume is not None else "")
                    + (", or --overwrite to delete it" if ours else "")
                )
            if not ours:
                raise ValueError(f"{path} holds no run of lidar, so it is left alone: choose another --out")
            if overwrite:
                shutil.rmtree(path)
            elif identity is not None:
                before = read_json(manifest, mend="choose another --out, or --overwrite to delete the run")
                if "identity" not in before:
                    raise ValueError(f"{path} was made by an older version of lidar-sampling: choose another --out")
                agree(path, before["identity"], identity, "resume with the same, or choose another --out")
                for part in [part for part in path.iterdir() if _PART.fullmatch(part.name)]:
                    _remove(part)  # of a run that was killed
        path.mkdir(parents=True, exist_ok=True)
        write_json(manifest, arguments if identity is None else {**arguments, "identity": identity})

    def finished(self, index: int, prompt: str, methods: Sequence[str]) -> dict[str, Any] | None:
        """Return what :meth:`put` wrote for prompt ``index``; None if it is to be drawn, or drawn again.

        Args:
            index: number of the prompt.
            prompt: that this run has there.
            methods: that this run draws it by, ``vanilla`` first where it is drawn beside another.

        Raises:
            ValueError: the numbers are damaged; the message names the file.
        """
        path = self.path / f"{index:05d}" / "result.json"
        if not path.is_file():
            return None
        entry = read_entry(path)
        if (entry["prompt"], entry["folder"], entry["methods"]) != (prompt, path.parent.name, list(methods)):
            return None
        files = [self.path / file for name in entry["methods"] for file in entry[name]["images"]]
        return entry if all(file.is_file() and file.stat().st_size > 0 for file in files) else None

    def put(
        self, index: int, method: str, result: Result, vanilla: Result | None, metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the images and numbers of one prompt by ``method``, and plain ones; returns the numbers.

        What is in the prompt's folder, which :meth:`finished` refused, is replaced.
        """
        prompt = result.prompts[0]
        drawn = {"vanilla": vanilla, method: result} if vanilla is not None else {method: result}
        entry: dict[str, Any] = {"prompt": prompt, "folder": f"{index:05d}", "methods": list(drawn)}
        part = self.path / f".{index:05d}.{secrets.token_hex(4)}.part"
        try:
            for name, samples in drawn.items():
                folder = "samples" if samples is result else "vanilla"
                (part / folder).mkdir(parents=True)
                files = [
                    save_sample(sample, part / folder / f"{k:04d}", sampling_rate=samples.sampling_rate)
                    for k, sample in enumerate(samples.images[0])
                ]
                entry[name] = {
                    "images": [f"{index:05d}/{folder}/{file.name}" for file in files],
                    "rewards": {reward: _numbers(values[0]) for reward, values in samples.rewards.items()},
                    "cost": {phase: vars(cost) for phase, cost in samples.cost.items()},
                }
            entry["trace"] = result.trace.rows()
            banks = result.banks[:1]  # none, where the method draws none
            entry["bank"] = {reward: _numbers(values) for bank in banks for reward, values in bank.rewards.items()}
            (part / "metadata.jsonl").write_text(json.dumps(dict(metadata)) + "\n")
            write_json(part / "result.json", entry)
            place, old = self.path / f"{index:05d}", part.with_suffix(".old.part")
            if os.path.lexists(place):
                os.rename(place, old)  # a folder can only take the place of an empty one
            os.rename(part, place)
            _remove(old)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return entry


def read_entry(path: Path) -> dict[str, Any]:
    """Return the numbers of one prompt from its ``result.json``.

    Raises:
        ValueError: they are not what :meth:`Folder.put` writes; the message names the file.
    """
    mend = "remove it, and the prompt is drawn again"
    entry = read_json(path, {"prompt": str, "folder": str, "methods": list}, mend=mend)
    names = entry["methods"]
    if not names or not all(isinstance(name, str) and _is_drawn(entry.get(name)) for name in names):
        raise ValueError(f"{path} is damaged (it lacks images, rewards or costs of its methods): {mend}")
    return entry


def _is_drawn(part: Any) -> bool:
    """Whether ``part`` holds the names of images, a reward of each by each judge, and costs by phases."""
    if not isinstance(part, dict) or not all(isinstance(part.get(name), dict) for name in ("rewards", "cost")):
        return False
    images, rewards, costs = part.get("images"), part["rewards"].values(), part["cost"].values()
    if not isinstance(images, list) or not images or not all(isinstance(file, str) for file in images):
        return False
    scored = all(isinstance(row, list) and len(row) == len(images) for row in rewards)
    counted = all(isinstance(cost, dict) and all(_is_number(cost.get(name)) for name in _COSTS) for cost in costs)
    return scored and counted and all(each is None or _is_number(each) for row in rewards for each in row)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _remove(path: Path) -> None:
    """Remove a folder or a file, if that is possible: what is left has a name that is never read."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _numbers(values: Any) -> list[float | None]:
    """JSON has no NaN: a verdict that does not apply is null."""
    return [None if value != value else value for value in values.tolist()]
