"""The banks of a desk: found by id, shown as pictures, and kept while there is room.

``banks/XX/ID.safetensors``  the bank, in a :class:`lidar_sampling.BankStore`
``banks/XX/ID.json``         the Job that drew it first
``galleries/ID/``            a picture of each member
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from .._bank import BankStore, LookaheadBank
from .._decode import pictures
from .._files import write_json
from .._media import save_sample
from .._sampler import LiDAR
from ..rewards import name_of
from ..runs import Job
from .order import Bank

_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")


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
        """Return the Job that drew a bank; None if there is no such bank."""
        if (file := self.file(name)) is None:
            return None
        with suppress(OSError, ValueError):
            return Job.read(file.with_suffix(".json"))
        return None

    def recall(self, name: str) -> Bank | None:
        """Return a bank of an earlier order with its gallery; None if it is no longer kept."""
        file = self.file(name)
        if file is None or not (gallery := self.galleries / name).is_dir():
            return None
        try:
            bank = LookaheadBank.load(file)
        except (OSError, ValueError):  # removed meanwhile, or damaged: draw it again
            return None
        job = self.job(name)
        guiding = job.reward if job is not None and isinstance(job.reward, str) else ""
        names = sorted(bank.rewards, key=lambda reward: reward != guiding)
        rewards = {reward: bank.rewards[reward].tolist() for reward in names}
        return Bank(file, sorted(gallery.iterdir()), rewards, drawn=False)

    def keep(self, lidar: LiDAR, bank: LookaheadBank, members: Tensor | None, job: Job) -> Bank:
        """Keep a drawn or found bank, with a picture of each member.

        Args:
            lidar: the sampler that drew it.
            bank: a bank in its store.
            members: (n, 3, H, W) if they were decoded on drawing; None decodes the missing pictures.
            job: the Job that asked for it.
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
        if file.is_file() and not (told := file.with_suffix(".json")).is_file():  # a bank without a key is not kept
            write_json(told, job.to_json())
        self.use(file.stem)
        guide = name_of(lidar.reward)
        guiding = {guide: lidar.with_guide(bank).reward(guide).tolist()}
        rewards = {**guiding, **{name: values.tolist() for name, values in bank.rewards.items()}}
        return Bank(file, sorted(gallery.iterdir()), rewards, drawn=members is not None)

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
