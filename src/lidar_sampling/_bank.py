"""Banks of lookahead samples, with their rewards and their origin, in memory and on disk.

A file is safetensors with JSON metadata: ``samples`` (n, *), one tensor ``reward.NAME`` (n,) a reward, and a header
(prompt, space, provenance) with a digest over everything. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from ._files import write_atomically
from ._hub import why_no_weights
from ._space import Space

_log = logging.getLogger(__name__)

_FORMAT = "lidar-sampling.bank"
_VERSION = 1


class BankError(ValueError):
    """A bank, or a file that should hold one, cannot be used; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class LookaheadBank:
    """Samples of one prompt with their rewards and provenance; immutable.

    Attributes:
        samples: (n, *) clean: floating point and finite, in the space in which the scheduler steps, or tokens (n, L),
            integers.
        rewards: name -> (n,), finite. Several rewards may share the samples.
        prompt: the prompt that the samples answer.
        space: the latent space; None skips the check of model identity (the shape is always checked).
        provenance: how the samples were drawn (model, solver, n, seed, ...), JSON values only.

    Raises:
        BankError: the parts do not fit each other, or a number is not finite.

    Example:
        >>> import torch
        >>> bank = LookaheadBank(torch.zeros(3, 2), {"r": torch.tensor([0.0, 2.0, 1.0])}, prompt="a cat")
        >>> bank.best(2).reward()
        tensor([2., 1.])
    """

    samples: Tensor
    rewards: Mapping[str, Tensor]
    prompt: str
    space: Space | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt:
            raise BankError(f"prompt must be a string that is not empty, got {self.prompt!r}")
        if not isinstance(self.samples, Tensor) or self.samples.is_complex() or self.samples.dtype == torch.bool:
            raise BankError("samples must be a tensor (n, *) of floating point numbers, or of tokens")
        if self.samples.dim() < 2 or len(self.samples) == 0:
            raise BankError(f"samples must be (n, *) with n at least 1, got {tuple(self.samples.shape)}")
        if not self.samples.isfinite().all():
            raise BankError("samples hold NaN or infinity: the lookahead sampler diverged")
        if self.space is not None and self.space.shape != tuple(self.samples.shape[1:]):
            raise BankError(f"samples {tuple(self.samples.shape)} do not lie in a space {self.space.shape}")
        for name, reward in self.rewards.items():
            if not isinstance(reward, Tensor):
                raise BankError(f"reward {name!r} must be a tensor, got {type(reward).__name__}")
            if reward.shape != (len(self),):
                raise BankError(f"reward {name!r} must be ({len(self)},), got {tuple(reward.shape)}")
            if not reward.isfinite().all():
                bad = (~reward.isfinite()).nonzero().flatten().tolist()
                raise BankError(f"reward {name!r} is not finite for samples {bad}")

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        shape, names = tuple(self.samples.shape[1:]), ", ".join(self.rewards) or "none"
        return f"LookaheadBank({self.prompt!r}, n={len(self)}, shape={shape}, rewards: {names})"

    @property
    def key(self) -> str:
        """Content address, 64 hexadecimal digits: of the prompt and the provenance, not of the rewards."""
        return bank_key(self.prompt, self.provenance)

    def reward(self, name: str | None = None) -> Tensor:
        """Return the rewards (n,) called ``name``; without a name, the only ones.

        Raises:
            BankError: there is no such reward, or no name was given and there is not exactly one.
        """
        known = ", ".join(map(repr, self.rewards)) or "none"
        if name is None and len(self.rewards) == 1:
            return next(iter(self.rewards.values()))
        if name is None:
            raise BankError(f"name one of the bank's rewards: {known}")
        if name not in self.rewards:
            raise BankError(f"the bank has no reward {name!r}; it has {known}")
        return self.rewards[name]

    def with_rewards(self, rewards: Mapping[str, Tensor]) -> LookaheadBank:
        """Return the same samples with ``rewards`` added; they replace those of the same name."""
        return replace(self, rewards={**self.rewards, **rewards})

    def combine(
        self,
        weights: Mapping[str, float],
        *,
        standardize: bool = True,
        calibration: Mapping[str, tuple[float, float]] | None = None,
        name: str = "combined",
    ) -> LookaheadBank:
        """Return the same samples under one reward: the weighted sum of several.

        Args:
            weights: reward name -> weight.
            standardize: bring each reward to mean 0 and standard deviation 1 over the bank first, so that weights
                compare; ``reward_scale`` then counts standard deviations.
            calibration: reward name -> (mean, standard deviation) to standardise by instead of the bank's own.
            name: what to call the sum.

        Example:
            >>> import torch
            >>> bank = LookaheadBank(
            ...     torch.zeros(2, 1), {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.0, 99.0])}, prompt="x"
            ... )
            >>> bank.combine({"a": 0.5, "b": 0.5}, standardize=False).reward()
            tensor([ 0., 50.])
        """
        if not weights:
            raise BankError("weights must name at least one reward")
        if calibration is not None and (missing := [key for key in weights if key not in calibration]):
            raise BankError(f"calibration lacks {', '.join(map(repr, missing))}")
        parts = []
        for reward_name, weight in weights.items():
            reward = self.reward(reward_name).float()
            if calibration is not None:
                mean, std = calibration[reward_name]
                reward = (reward - mean) / std
            elif standardize:
                reward = reward - reward.mean()
                spread = reward.std(correction=0)
                reward = reward / torch.where(spread > 0, spread, 1.0)
            parts.append(weight * reward)
        return replace(self, rewards={name: torch.stack(parts).sum(0)})

    def subset(self, indices: Sequence[int] | Tensor) -> LookaheadBank:
        """Return the members at ``indices``, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.long).cpu()
        if chosen.dim() != 1 or len(chosen) == 0 or not ((chosen >= 0) & (chosen < len(self))).all():
            raise BankError(f"indices must be one or more of 0 .. {len(self) - 1}, got {chosen.tolist()}")
        return replace(
            self,
            samples=self.samples[chosen.to(self.samples.device)],
            rewards={name: reward[chosen.to(reward.device)] for name, reward in self.rewards.items()},
            provenance={"subset": chosen.tolist(), "of": dict(self.provenance)},
        )

    def best(self, k: int, *, reward: str | None = None) -> LookaheadBank:
        """Return the ``k`` members of highest reward, best first."""
        if not 1 <= k <= len(self):
            raise BankError(f"k must be 1 to {len(self)}, got {k}")
        return self.subset(self.reward(reward).argsort(descending=True, stable=True)[:k])

    def merge(self, other: LookaheadBank) -> LookaheadBank:
        """Return a bank with the members of both.

        Raises:
            BankError: the banks have other prompts, spaces or reward names.
        """
        if self.prompt != other.prompt:
            raise BankError(f"banks of two prompts cannot be merged: {self.prompt!r} and {other.prompt!r}")
        if self.space and other.space and (why := self.space.difference(other.space)):
            raise BankError(f"banks of two spaces cannot be merged: {why}")
        if self.samples.shape[1:] != other.samples.shape[1:] or set(self.rewards) != set(other.rewards):
            raise BankError(f"banks must agree in shape and rewards to be merged: {self} and {other}")
        return replace(
            self,
            samples=torch.cat([self.samples, other.samples.to(self.samples)]),
            rewards={name: torch.cat([r, other.rewards[name].to(r)]) for name, r in self.rewards.items()},
            provenance={"merged": [dict(self.provenance), dict(other.provenance)]},
        )

    def to(self, device: torch.device | str) -> LookaheadBank:
        """Return the same bank on ``device``."""
        rewards = {name: reward.to(device) for name, reward in self.rewards.items()}
        return replace(self, samples=self.samples.to(device), rewards=rewards)

    def save(self, path: str | Path) -> Path:
        """Write the bank to ``path``: whole or not at all, replacing a bank that is there."""
        tensors = {"samples": self.samples, **{f"reward.{k}": v for k, v in self.rewards.items()}}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = json.dumps(
            {
                "prompt": self.prompt,
                "space": asdict(self.space) if self.space else None,
                "provenance": dict(self.provenance),
            },
            sort_keys=True,
        )
        metadata = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "header": header,
            "digest": _digest(header, tensors),
        }
        return write_atomically(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> LookaheadBank:
        """Read what :meth:`save` wrote.

        Raises:
            BankError: the file is truncated, of another kind, of a newer version, or was changed.
            OSError: it cannot be read.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no bank at {path}")
        if why := why_no_weights(Path(path)):  # whose permission error says more than safetensors would
            raise BankError(f"{path} {why}")
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise BankError(f"{path} is truncated or not a safetensors file ({error})") from None
        if metadata.get("format") != _FORMAT:
            raise BankError(f"{path} is a safetensors file but not a bank")
        if metadata.get("version") != str(_VERSION):
            raise BankError(
                f"{path} has bank format {metadata.get('version')}, this version reads {_VERSION}: "
                f"upgrade lidar-sampling or draw the bank again"
            )
        if metadata.get("digest") != _digest(metadata.get("header", ""), tensors):
            raise BankError(f"{path} was changed after it was written (its digest does not match): draw it again")
        header = json.loads(metadata["header"])
        space = header["space"]
        return cls(
            samples=tensors.pop("samples"),
            rewards={name.removeprefix("reward."): reward for name, reward in sorted(tensors.items())},
            prompt=header["prompt"],
            space=space and Space(space["pipeline"], tuple(space["shape"]), tuple(space["fingerprint"])),
            provenance=header["provenance"],
        )


class BankStore:
    """A directory of banks, addressed by content; safe for several processes at once.

    Example:
        >>> import tempfile, torch
        >>> bank = LookaheadBank(torch.zeros(1, 2), {"r": torch.zeros(1)}, prompt="a cat")
        >>> store = BankStore(tempfile.mkdtemp())
        >>> path = store.put(bank)
        >>> store.get(bank.prompt, bank.key).prompt, len(store.find("a cat")), len(store.find("a dog"))
        ('a cat', 1, 0)
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def path(self, prompt: str, key: str) -> Path:
        """Return where the bank of ``prompt`` with content address ``key`` lies or would lie.

        That is in one of 256 folders, since those of a million files are slow. A bank that an older version wrote
        lies beside them.
        """
        name = f"{_sha256(prompt)[:16]}-{key[:32]}.safetensors"
        old = self.directory / name
        return old if old.exists() else self.directory / name[:2] / name

    def put(self, bank: LookaheadBank) -> Path:
        """Write ``bank``; of two processes that write the same key, the later one's file stays, whole."""
        path = self.path(bank.prompt, bank.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return bank.save(path)

    def get(self, prompt: str, key: str) -> LookaheadBank | None:
        """Return the bank of ``prompt`` with content address ``key``, or None.

        Raises:
            BankError: the file is there but does not hold that bank.
        """
        path = self.path(prompt, key)
        if not path.exists():
            return None
        bank = LookaheadBank.load(path)
        if bank.key != key or bank.prompt != prompt:
            raise BankError(f"{path} holds the bank of {bank.prompt!r}, not of {prompt!r}: remove it")
        return bank

    def find(self, prompt: str) -> list[Path]:
        """Return the files of all banks of ``prompt``, sorted by name."""
        name = f"{_sha256(prompt)[:16]}-*.safetensors"
        return sorted([*self.directory.glob(name), *self.directory.glob(f"{name[:2]}/{name}")])


def as_banks(banks: LookaheadBank | Sequence[LookaheadBank]) -> list[LookaheadBank]:
    """Return one bank or several as a list.

    Raises:
        TypeError: something in it is not a bank.
        ValueError: there is no bank.
    """
    listed = [banks] if isinstance(banks, LookaheadBank) else list(banks)
    for bank in listed:
        if not isinstance(bank, LookaheadBank):
            raise TypeError(
                f"banks must be LookaheadBanks, got {type(bank).__name__}: load files with LookaheadBank.load"
            )
        if not bank.samples.is_floating_point():
            raise BankError(f"{bank} holds tokens, which guide TokenLiDAR alone")
    if not listed:
        raise ValueError("banks must hold at least one bank")
    return listed


def warn_of_another(bank: LookaheadBank, reward: str) -> None:
    """Warn that a bank guides by another reward than ``reward``, that of the sampler."""
    if len(bank.rewards) == 1 and reward not in bank.rewards:
        own = next(iter(bank.rewards))
        _log.warning(
            "the bank of %r guides by the reward that it was scored by, %s, and not by %s", bank.prompt, own, reward
        )


def warn_of_equal(bank: LookaheadBank, reward: str, chosen: str | None = None) -> None:
    """Warn that a bank cannot guide, since all of its members have the same value of ``reward``.

    Args:
        bank: that guides.
        reward: its name, for the message.
        chosen: its name in the bank; None if the bank has one reward.
    """
    values = bank.reward(chosen)
    if len(values) > 1 and bool((values == values[0]).all()):
        _log.warning(
            "constant reward: %s gives all %d members of the bank of %r the same %g, so guidance does nothing there: "
            "give a reward that tells them apart",
            reward,
            len(values),
            bank.prompt,
            float(values[0]),
        )


def bank_key(prompt: str, provenance: Mapping[str, Any]) -> str:
    """Return the content address of a bank of ``prompt``, drawn or to be drawn as ``provenance`` says.

    Its entries ``model``, where the weights were loaded from, and ``rewards`` do not count: they do not decide the
    samples.
    """
    decides = {name: value for name, value in provenance.items() if name not in ("model", "rewards")}
    return _sha256(json.dumps([prompt, decides], sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
