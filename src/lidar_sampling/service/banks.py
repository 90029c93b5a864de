"""The banks of a desk: found by id, shown as pictures, and kept while there is room.

``banks/XX/ID.safetensors``  the bank, in a :class:`lidar_sampling.BankStore`
``banks/XX/ID.json``         the Job that draws it, without a reward; and which rewards have scored it
``galleries/ID/``            a picture of each member
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._bank import BankStore, LookaheadBank
from .._decode import pictures
from .._files import write_json
from .._media import save_sample
from .._sampler import LiDAR
from ..rewards import name_of
from ..runs import Job, read_json
from .order import Bank

_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")
_DRAW_IT = ("n", "lookahead", "guidance_scale")  # settings that decide the members of a bank


class Banks:
    """A folder of banks and their galleries.

    Args:
        folder: folder of the desk.
        most_bytes: most bytes to keep; the least recently used banks are removed first.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.store, self.galleries, self.most_bytes = BankStore(folder / "banks"), folder / "galleries", most_bytes
        self._bytes: OrderedDict[str, int] = OrderedDict()  # most recently used last
        self._lock = threading.Lock()
        for file in sorted(self.store.directory.glob("*/*.safetensors"), key=lambda file: file.stat().st_mtime):
            self._bytes[file.stem] = self._size(file)

    @property
    def bytes(self) -> int:
        """How much all of them take."""
        with self._lock:
            return sum(self._bytes.values())

    def file(self, name: str) -> Path | None:
        """Return the file of the bank with an id; None if it is not kept."""
        if not _ID.fullmatch(name):
            return None
        file = self.store.directory / name[:2] / f"{name}.safetensors"
        return file if file.is_file() else None

    def job(self, name: str) -> Job | None:
        """Return the Job that draws a bank, with only what decides its members; None if there is no such bank."""
        if (file := self.file(name)) is None:
            return None
        with suppress(OSError, ValueError):
            told = Job.read(file.with_suffix(".json"))
            return _bank_job(told, told.settings)  # an older version wrote the whole Job of the first client
        return None

    def scored_by(self, name: str) -> dict[str, str | None]:
        """Return the rewards that have scored a bank: their names in the bank -> their names in Jobs."""
        if (file := self.file(name)) is None:
            return {}
        with suppress(OSError, ValueError):
            return read_json(file.with_suffix(".json")).get("rewards", {})
        return {}

    def holds(self, name: str, lidar: LiDAR, job: Job) -> bool:
        """Return whether the reward of a Job has scored a bank; a mixture has if all its parts have.

        Args:
            name: id of the bank.
            lidar: the sampler of the Job.
            job: the Job.
        """
        return _rewards_of(lidar, job).items() <= self.scored_by(name).items()

    def recall(self, name: str, reward: str | Mapping[str, float] | None) -> Bank | None:
        """Return a bank of an earlier order with its gallery; None if it is no longer kept.

        Args:
            name: id of the bank.
            reward: the guiding reward as in a Job; its scores come first.
        """
        file = self.file(name)
        if file is None or not (gallery := self.galleries / name).is_dir():
            return None
        try:
            bank = LookaheadBank.load(file)
        except (OSError, ValueError):  # removed meanwhile, or damaged: draw it again
            return None
        rewards = {**_guiding(bank, self.scored_by(name), reward), **bank.rewards}
        scores = {each: values.tolist() for each, values in rewards.items()}
        return Bank(file, sorted(gallery.iterdir()), scores, drawn=False)

    def keep(self, lidar: LiDAR, bank: LookaheadBank, members: Tensor | None, job: Job) -> Bank:
        """Keep a drawn or found bank, with a picture of each member.

        Args:
            lidar: the sampler that drew it.
            bank: a bank in its store.
            members: (n, 3, H, W) if they were decoded on drawing; None decodes the missing pictures.
            job: the Job that asked for it, and whose reward has scored it.
        """
        file = self.store.path(bank.prompt, bank.key)
        gallery = self.galleries / file.stem
        if not gallery.is_dir():
            images = pictures(lidar.pipe, bank.samples, lidar.batch_size) if members is None else members
            part = gallery.with_name(f".{gallery.name}.{secrets.token_hex(4)}.part")
            part.mkdir(parents=True)
            for k, image in enumerate(images):
                save_sample(image, part / f"{k:04d}")
            part.rename(gallery)
        if file.is_file():  # a bank without a key is not kept
            scored_by = {**self.scored_by(file.stem), **_rewards_of(lidar, job)}
            settings = dict(vars(lidar.settings))
            if lidar.solver.guidance_scale is not None:  # the members are drawn with that one, whoever asks
                del settings["guidance_scale"]
            drawn_by = _bank_job(job, settings).to_json(brief=True)
            write_json(file.with_suffix(".json"), {"job": drawn_by, "rewards": scored_by})
        self.use(file.stem)
        guide = name_of(lidar.reward)
        rewards = {guide: lidar.with_guide(bank).reward(guide), **bank.rewards}
        scores = {name: values.tolist() for name, values in rewards.items()}
        return Bank(file, sorted(gallery.iterdir()), scores, drawn=members is not None)

    def use(self, name: str) -> None:
        """Count a bank as used now."""
        if (file := self.file(name)) is None:
            return
        with self._lock, suppress(OSError):
            os.utime(file)  # a restart reads this time
            self._bytes[name] = self._size(file)
            self._bytes.move_to_end(name)

    def trim(self, needed: Collection[str] = ()) -> None:
        """Remove the least recently used banks until the rest fits, but none of those in ``needed``."""
        with self._lock:
            excess = sum(self._bytes.values()) - self.most_bytes
            for name in [*self._bytes]:
                if excess <= 0:
                    return
                if name in needed:
                    continue
                excess -= self._bytes.pop(name)
                if (file := self.file(name)) is not None:
                    file.unlink(missing_ok=True)
                    file.with_suffix(".json").unlink(missing_ok=True)
                shutil.rmtree(self.galleries / name, ignore_errors=True)

    def _size(self, file: Path) -> int:
        gallery = self.galleries / file.stem
        files = [file, *(gallery.iterdir() if gallery.is_dir() else ())]
        return sum(each.stat().st_size for each in files)


def members_of(shown: list[tuple[list[str], Tensor]], prompt: str) -> Tensor | None:
    """Return the members of one prompt's bank from pictures shown while several were drawn; None if not shown."""
    rows = [images[k] for prompts, images in shown for k, text in enumerate(prompts) if text == prompt]
    return torch.stack(rows) if rows else None


def _bank_job(job: Job, settings: Mapping[str, Any]) -> Job:
    """Return the Job that draws the bank of another Job: without its reward, and without settings of the target.

    Args:
        job: the other Job.
        settings: the settings that it was drawn with.
    """
    drawn_with = {name: settings[name] for name in _DRAW_IT if name in settings}
    seed = job.seeds[0] if job.bank_seed is None else job.bank_seed
    return Job([job.text(0)], "look", job.model, settings=drawn_with, seeds=[seed], call=job.call)


def _rewards_of(lidar: LiDAR, job: Job) -> dict[str, str | None]:
    """Return the rewards that score banks of a Job: their names in banks -> their names in Jobs."""
    names = [name_of(part) for part in lidar.parts]
    if isinstance(job.reward, Mapping):
        return dict(zip(names, job.reward, strict=True))
    return dict.fromkeys(names, job.reward)


def _guiding(
    bank: LookaheadBank, scored_by: Mapping[str, str | None], reward: str | Mapping[str, float] | None
) -> dict[str, Tensor]:
    """Return the scores of a bank by the reward of a Job, under its name; none if it has not scored the bank.

    Args:
        bank: the bank.
        scored_by: the rewards that have scored it, as :meth:`Banks.scored_by` returns them.
        reward: the reward as in a Job.
    """
    names = {known: name for name, known in scored_by.items() if name in bank.rewards}
    if isinstance(reward, Mapping):
        if not names.keys() >= reward.keys():
            return {}
        weights = {names[part]: weight for part, weight in reward.items()}
        return dict(bank.combine(weights, name="mixture").rewards)
    return {names[reward]: bank.rewards[names[reward]]} if reward in names else {}
