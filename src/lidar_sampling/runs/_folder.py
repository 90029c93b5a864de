"""The folder that ``generate`` fills, in GenEval's layout; each prompt is written whole or not at all.

DIR/run.json                  the Job, its settings and its identity: only the same run continues there
DIR/00000/metadata.jsonl      GenEval's metadata of the prompt, or the prompt alone
DIR/00000/samples/0000.png    images by the method (.webp for a video, .wav for audio); vanilla/ without guidance
DIR/00000/result.json         rewards, costs and trace of the prompt
DIR/grid.png, DIR/result.json all prompts together

With more than 10,000 prompts there is one more level, ``DIR/0012/0012345``, since folders of a million entries are
slow. Several processes may fill one folder: the first writes run.json, the others compare theirs with it.
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

from .._files import write_json, write_once
from .._media import save_sample
from ._embedded import texts_of
from ._identity import agree, read_json

if TYPE_CHECKING:
    from .._result import Result
    from .job import Job

MOST_FLAT = 10_000
"""With more prompts than this, folders get one more level."""

_PART = re.compile(r"\.[0-9]{5,}\.[0-9a-f]{8}(\.old)?\.part")  # prefix of what put is writing
_COSTS = ("network_evaluations", "reward_calls", "seconds")  # costs that reports add up
_TRIES = 3  # attempts to write a prompt, since another run may sweep its half-written folder away


def check_overwrite(job: Job, out: str | Path) -> None:
    """Refuse to delete what a Job continues.

    Raises:
        ValueError: the Job draws no pictures into a folder of its own, but lines of a comparison or banks of a store;
            or the folder holds such, or this process runs in it.
    """
    if job.task != "generate":
        what = "a comparison" if job.task == "compare" else "a folder of banks"
        raise ValueError(f"--overwrite deletes runs of pictures, and this Job goes on with {what}: remove {out}")
    _check_deletable(Path(out))


def _other_results(path: Path) -> str | None:
    """Return what a folder holds that no run of pictures leaves there."""
    if next(path.glob("results*.jsonl*"), None) is not None:
        return "lines of a comparison"
    return "banks" if next(path.glob("*/*.safetensors"), None) is not None else None


def _check_deletable(path: Path) -> None:
    """Refuse to delete a folder that holds more than a run of pictures, or in which this process runs.

    Raises:
        ValueError: it is one.
    """
    if what := _other_results(path):
        raise ValueError(f"--overwrite deletes runs of pictures, and {path} holds {what}: remove it yourself")
    if Path.cwd().is_relative_to(path.resolve()):
        raise ValueError(f"--overwrite would delete {path}, the folder that you are in: choose another --out")


class Folder:
    """An output folder of one run, which several processes may share.

    Args:
        path: the folder.
        manifest: JSON values of the run that run.json holds beside its identity.
        identity: the run's :func:`lidar_sampling.runs.identity`; None if the run cannot be resumed.
        resume: continue a run of the same identity; None if the command has no such option.
        overwrite: delete the run in the folder.
        shared: other processes of the same run may be writing to it.
        count: number of prompts.

    Raises:
        FileExistsError: the folder is not empty, and neither ``resume`` nor ``overwrite`` was asked for.
        ValueError: it holds another run, or files that are not a run.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        *,
        identity: dict[str, Any] | None = None,
        resume: bool | None,
        overwrite: bool,
        shared: bool = False,
        count: int = 0,
    ) -> None:
        self.path, self.count = path, count
        self._made = False  # made by this process alone
        file = path / "run.json"
        content = manifest if identity is None else {**manifest, "identity": identity}
        if resume and overwrite:
            raise ValueError("--resume goes on with a run, and --overwrite deletes it: give one of the two")
        if overwrite and shared:
            raise ValueError(f"--overwrite would delete what other processes draw: remove {path}, and start them all")
        # A run that failed before its first prompt left only its manifest: there is nothing to lose.
        if path.exists() and (not path.is_dir() or any(there != file for there in contents_of(path))):
            ours = file.is_file()
            if not (resume or overwrite or (shared and ours)):
                raise FileExistsError(
                    f"{path} is not empty: choose another --out"
                    + (", or --resume to finish that run" if ours and resume is not None else "")
                    + (", or --overwrite to delete it" if ours and not _other_results(path) else "")
                )
            if not ours:
                raise ValueError(f"{path} holds no run of lidar, so it is left alone: choose another --out")
            if overwrite:
                _check_deletable(path)
                place = path.resolve()  # of a link, where it leads
                shutil.rmtree(place)
                place.mkdir()
            elif identity is not None:
                self._check(identity)
                if not shared:
                    self.sweep()
        path.mkdir(parents=True, exist_ok=True)
        if overwrite or identity is None:
            write_json(file, content)
            self._made = True
        elif write_once(file, (json.dumps(content, indent=1) + "\n").encode()):
            self._made = not shared
        else:
            self._check(identity)
        self._mark = mark_of(path)

    def _check(self, identity: dict[str, Any]) -> None:
        """Refuse a folder that holds another run."""
        before = read_json(self.path / "run.json", mend="choose another --out, or --overwrite to delete the run")
        if "identity" not in before:
            raise ValueError(f"{self.path} was made by an older version of lidar-sampling: choose another --out")
        agree(self.path, before["identity"], identity, "resume with the same, or choose another --out")

    def sweep(self) -> None:
        """Remove half-written folders of killed processes."""
        sweep(self.path)

    def abandon(self) -> None:
        """Remove the manifest and the folder, if this process alone made them and nothing was kept."""
        with suppress(OSError):
            if self._made and [there.name for there in contents_of(self.path)] == ["run.json"]:
                (self.path / "run.json").unlink()
                self.path.rmdir()

    def find_record(self, index: int, prompt: str, methods: Sequence[str]) -> dict[str, Any] | None:
        """Return what :meth:`put` wrote for prompt ``index``; None if it must be drawn, or drawn again.

        Args:
            index: number of the prompt.
            prompt: the prompt that this run has there.
            methods: the methods of this run, ``vanilla`` first if it is drawn beside another.

        Raises:
            ValueError: the numbers are damaged; the message names the file.
        """
        return read_record(self.path, place_of(index, self.count), prompt, methods)

    def put(
        self,
        index: int,
        method: str,
        result: Result,
        vanilla: Result | None,
        metadata: Mapping[str, Any],
        job: Job,
    ) -> dict[str, Any]:
        """Write the images and numbers of one prompt, by ``method`` and plain; return the numbers.

        Each picture embeds the settings of ``job``, and is named by its index among the samples of the Job.

        A folder of the prompt that :meth:`find_record` refused is replaced. If another process has finished the
        prompt meanwhile, its numbers are returned, since the same seed gives the same samples.

        Raises:
            OSError: it cannot be written; FileNotFoundError if the folder of the run was removed.
        """
        drawn = {"vanilla": vanilla, method: result} if vanilla is not None else {method: result}
        for attempt in range(_TRIES):
            check_kept(self.path, self._mark)
            try:
                return self._put(index, result, drawn, metadata, job)
            except FileNotFoundError:  # swept away by another run in this folder
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError  # the last attempt returned or raised

    def _put(
        self, index: int, result: Result, drawn: Mapping[str, Result], metadata: Mapping[str, Any], job: Job
    ) -> dict[str, Any]:
        name = place_of(index, self.count)
        place, part = self.path / name, self.path / f".{index:05d}.{secrets.token_hex(4)}.part"
        entry: dict[str, Any] = {"prompt": result.prompts[0], "folder": name, "methods": list(drawn)}
        try:
            part.mkdir()
            for method, samples in drawn.items():
                folder = "samples" if samples is result else "vanilla"
                (part / folder).mkdir()
                places = job.only or range(samples.images.shape[1])
                said = texts_of(job, method, samples, metadata)
                files = [
                    save_sample(
                        sample, part / folder / f"{place:04d}", sampling_rate=samples.sampling_rate, texts=texts
                    )
                    for place, sample, texts in zip(places, samples.images[0], said, strict=True)
                ]
                entry[method] = {
                    "images": [f"{name}/{folder}/{file.name}" for file in files],
                    "rewards": {reward: _numbers(values[0]) for reward, values in samples.rewards.items()},
                    "cost": {phase: vars(cost) for phase, cost in samples.cost.items()},
                }
            entry["trace"] = result.trace.rows()
            entry["reward_scale"] = next(iter(result.trace.reward_scales), None)
            banks = result.banks[:1]  # empty if the method draws no bank
            entry["bank"] = {reward: _numbers(values) for bank in banks for reward, values in bank.rewards.items()}
            (part / "metadata.jsonl").write_text(json.dumps(dict(metadata)) + "\n")
            write_json(part / "result.json", entry)
            check_kept(self.path, self._mark)  # drawing pictures as files takes its time, too
            place.parent.mkdir(exist_ok=True)
            old = part.with_suffix(".old.part")
            if os.path.lexists(place):
                if (theirs := self._theirs(index, entry)) is not None:
                    return theirs
                os.rename(place, old)  # a folder can only replace an empty one
            try:
                os.rename(part, place)
            except OSError:
                if (theirs := self._theirs(index, entry)) is None:
                    raise
                entry = theirs
            _remove(old)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return entry

    def _theirs(self, index: int, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the numbers of a prompt that another process has finished."""
        with suppress(ValueError):  # damaged: it is replaced
            return self.find_record(index, entry["prompt"], entry["methods"])
        return None


def mark_of(path: Path) -> tuple[int, int] | None:
    """Return what tells the run.json of a folder from one that takes its place; None without a run.json."""
    try:
        found = (path / "run.json").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def check_kept(path: Path, mark: tuple[int, int] | None) -> None:
    """Refuse to write into a folder that lost its run.json during the run, or that another run has taken.

    Args:
        path: the folder.
        mark: its :func:`mark_of` when this run took it.

    Raises:
        FileNotFoundError: run.json is gone.
        FileExistsError: another one took its place.
    """
    now = mark_of(path)
    if now is None:
        raise FileNotFoundError(f"{path} was removed during the run: start it again")
    if now != mark:
        raise FileExistsError(f"another run has taken {path} during this one: start it again with another --out")


def place_of(index: int, count: int) -> str:
    """Return the folder of prompt ``index`` of ``count``, relative to that of the run.

    >>> place_of(12, 500), place_of(12345, 1_000_000)
    ('00012', '0012/0012345')
    """
    return f"{index:05d}" if count <= MOST_FLAT else f"{index // 1000:04d}/{index:07d}"


def read_record(out: Path, name: str, prompt: str, methods: Sequence[str]) -> dict[str, Any] | None:
    """Return the numbers of the prompt in the folder ``name`` of ``out``; None if they are incomplete.

    Raises:
        ValueError: the numbers are damaged; the message names the file.
    """
    path = out / name / "result.json"
    if not path.is_file():
        return None
    entry = read_entry(path)
    if (entry["prompt"], entry["folder"], entry["methods"]) != (prompt, name, list(methods)):
        return None
    files = [out / file for method in entry["methods"] for file in entry[method]["images"]]
    return entry if all(file.is_file() and file.stat().st_size > 0 for file in files) else None


def sweep(path: Path) -> None:
    """Remove half-written folders of killed processes; no other process may be writing to the run."""
    for part in [part for part in path.iterdir() if _PART.fullmatch(part.name)]:
        _remove(part)


def contents_of(path: Path) -> list[Path]:
    """Return the contents of a folder, except a manifest that another process is writing right now."""
    return [there for there in path.iterdir() if not re.match(r"\.+run\.json\.", there.name)]


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
    """Return whether ``part`` holds the names of images, a reward per image and judge, and costs by phase."""
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
    """Remove a folder or a file if possible; its name is one that is never read."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _numbers(values: Any) -> list[float | None]:
    """Return rewards as lists with None for NaN (a verdict that does not apply), which JSON lacks."""
    return [None if value != value else value for value in values.tolist()]
