"""The space that a latent lives in, so that a bank is never used where its numbers mean something else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_PROBES = 16  # parameters of the VAE that are looked at
_TOLERANCE = 5e-3  # relative; half precision moves a mean by about 1e-3


@dataclass(frozen=True)
class Space:
    """The latent space of a pipeline's ``scheduler.step``.

    Attributes:
        pipeline: class name of the pipeline; decides only where there is no VAE to compare.
        shape: shape of one sample as the scheduler sees it (packed, where the pipeline packs).
        fingerprint: scale of the VAE and mean magnitudes of some of its weights; empty without a VAE.
    """

    pipeline: str
    shape: tuple[int, ...]
    fingerprint: tuple[float, ...] = ()

    def difference(self, other: Space) -> str | None:
        """Return why samples of the two spaces cannot be mixed, or None if they can.

        >>> Space("A", (4, 8, 8)).difference(Space("A", (4, 16, 16)))
        'shape (4, 8, 8) against (4, 16, 16)'
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        if self.fingerprint and other.fingerprint:
            same = len(self.fingerprint) == len(other.fingerprint) and all(
                math.isclose(a, b, rel_tol=_TOLERANCE)
                for a, b in zip(self.fingerprint, other.fingerprint, strict=True)
            )
            return None if same else f"another VAE ({self.pipeline} against {other.pipeline})"
        return None if self.pipeline == other.pipeline else f"{self.pipeline} against {other.pipeline}"


def space_of(pipe: Any, shape: tuple[int, ...]) -> Space:
    """Return the space of ``pipe``'s latents of the given ``shape`` (one sample, without the batch)."""
    return Space(type(pipe).__name__, tuple(shape), fingerprint(getattr(pipe, "vae", None)))


def fingerprint(model: Any) -> tuple[float, ...]:
    """Return its configured scale and the mean magnitudes of some weights; empty if there are no weights to see."""
    if model is None:
        return ()
    parameters = list(model.parameters())
    probed = parameters[:: max(1, len(parameters) // _PROBES)]
    if any(p.device.type == "meta" for p in probed):  # sequential offload: the weights are elsewhere
        return ()
    scale = [float(model.config.get(name) or 0) for name in ("scaling_factor", "shift_factor")]
    return tuple(float(f"{number:.6g}") for number in scale) + magnitudes(probed)


def magnitudes(parameters: Iterable[Tensor]) -> tuple[float, ...]:
    """Return the mean magnitude of each, to six digits: weights are recognised by them.

    >>> import torch
    >>> magnitudes([torch.tensor([-1.0, 2.0])])
    (1.5,)
    """
    return tuple(float(f"{p.detach().float().abs().mean():.6g}") for p in parameters)
