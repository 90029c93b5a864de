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
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_atomically
from .._geneval import parse
from .._media import save_sample
from ..runs import agree, read_json

if TYPE_CHECKING:
    from .._result import Result


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
                before, mend = read_json(manifest), "resume with the same, or choose another --out"
                if "identity" not in before:
                    raise ValueError(f"{path} was made by an older version of lidar-sampling: choose another --out")
                agree(path, before["identity"], identity, mend)
        path.mkdir(parents=True, exist_ok=True)
        write_json(manifest, arguments if identity is None else {**arguments, "identity": identity})

    def finished(self, index: int) -> dict[str, Any] | None:
        """What :meth:`put` wrote for prompt ``index``, if it did."""
        path = self.path / f"{index:05d}" / "result.json"
        return read_json(path) if path.is_file() else None

    def put(
        self, index: int, method: str, result: Result, vanilla: Result | None, metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the images and numbers of one prompt by ``method``, and plain ones; returns the numbers."""
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
            (part / "metadata.jsonl").write_text(json.dumps({**(parse(prompt) or {}), **metadata}) + "\n")
            write_json(part / "result.json", entry)
            os.rename(part, self.path / f"{index:05d}")
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return entry


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _numbers(values: Any) -> list[float | None]:
    """JSON has no NaN: a verdict that does not apply is null."""
    return [None if value != value else value for value in values.tolist()]
