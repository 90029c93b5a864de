"""The task ``look``: a bank of every prompt, in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._bank import BankStore
from .._cost import Cost
from .._sampler import LiDAR
from .job import Job

Record = dict[str, Any]


class Banks:
    """The task ``look``: a unit is the number of a prompt, its record a description of its bank."""

    helps = indexed = False
    together = 1

    def __init__(self, job: Job, out: Path) -> None:
        self.job, self.out = job, out
        self.units: Sequence[int] = range(len(job))
        self._files: list[Path] = []

    def begin(self, lidar: LiDAR, *, shared: bool = False, resume: bool = False, overwrite: bool = False) -> None:
        """Make the sampler ready; runs may share a store, whose files are named by their contents."""
        texts = self.job.texts()
        lidar.check_prompts(texts)
        self.lidar = lidar.with_prompts(texts)
        self.store = self.lidar.store = BankStore(self.out)

    def index(self, unit: int) -> int:
        """Return the number of the unit's prompt."""
        return unit

    def find_record(self, unit: int) -> Record | None:
        """Return None: the file of a bank is known only on drawing, which takes a stored bank as it is."""
        return None

    def fits(self, group: Sequence[int], unit: int) -> bool:
        """Return whether a bank can be drawn together with others: it cannot, since each fills its own batches."""
        return not group

    def draw(self, group: Sequence[int], lidar: LiDAR) -> list[Record]:
        """Draw and keep the bank of one prompt, or find it in the store."""
        (unit,) = group
        prompt = self.job.text(unit)
        (bank,), cost = lidar.draw_banks([prompt], self.job.seeds[0])
        file = self.store.path(prompt, bank.key)
        self._files += [file] if file.exists() else []  # some banks cannot be kept; a warning has said so
        rewards = {
            name: {"mean": values.mean().item(), "best": values.max().item()} for name, values in bank.rewards.items()
        }
        return [{"prompt": prompt, "n": len(bank), "rewards": rewards, "file": str(file), "cost": vars(cost)}]

    def cost(self, record: Record) -> Cost:
        """Return what a record cost."""
        return Cost(**record["cost"])

    def evaluations(self, unit: int, lidar: LiDAR) -> float:
        """Return the network evaluations that a unit will cost; none if the store has it."""
        return 1.0

    def describe(self, unit: int) -> str:
        """Return the name of a unit, for messages."""
        return self.job.text(unit)

    def complete(self, rank: int, number: int) -> bool:
        """Return True: each process answers only for its own banks."""
        return True

    def abandon(self) -> None:
        """Leave the store as it is."""

    def collect(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the result, with nothing to write: a store needs no index.

        Raises:
            FileNotFoundError: a bank was removed during the run.
        """
        if gone := [file for file in self._files if not file.exists()]:
            raise FileNotFoundError(f"{gone[0]} was removed during the run: start it again")
        return dict(extra or {})
