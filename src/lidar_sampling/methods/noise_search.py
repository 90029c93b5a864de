"""Zero-order search over the initial noise (Ma et al. 2025, https://arxiv.org/abs/2501.09732).

The reward of the completed sample is a function of its initial noise. From a pivot x, N neighbours of its norm and at
cosine c to it are tried,

    x' = |x| (c u + sqrt(1 - c^2) w),      u = x / |x|, and w a random direction orthogonal to it,

and if the best of their samples beats the pivot's, it is the next pivot. Every image has a search of its own,
from its own pivot. (The neighbours and the defaults are those of the re-implementation sayakpaul/tt-scale-flux, which
keeps one image. There a search without a better neighbour starts from a new pivot; here the old one stays.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._call import parameters_of
from .._cost import Cost
from .._draw import items_of
from .._hooks import Hook, Step
from .._levels import start_scale
from .._result import Result
from .._sampler import LiDAR
from .._settings import takes_eta
from .._values import check_fields
from ._checks import check_start, check_whole, takes_own_steps
from ._face import check_comparable, guiding_scores, hook_batches, sampling_cost, selection_cost, where_better


@dataclass(frozen=True)
class NoiseSearch:
    """Zero-order search over initial noise.

    Attributes:
        rounds: of neighbours.
        neighbours: N, tried per round.
        cosine: c, between a neighbour and its pivot.
        eta: noise of a DDIM scheduler on the way; 0 makes the sample a function of the noise that is searched. None
            takes that of the settings.
    """

    rounds: int = 4
    neighbours: int = 4
    cosine: float = 0.95
    eta: float | None = 0.0

    def __post_init__(self) -> None:
        check_fields(self, rounds="[0, inf)", neighbours="[1, inf)", cosine="[-1, 1]", eta="[0, 1]")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw the best samples of ``images`` searches per prompt; each costs ``1 + rounds * neighbours`` samples.

        Each sample costs a reward call.

        Raises:
            ValueError: a mixture that is standardised over a bank.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        self._check(lidar)
        call = lidar.arguments()
        if self.eta is not None and _reads_eta(lidar):
            call["eta"] = self.eta
        around, starts = hook_batches(lidar, lambda batch: Start(), whole=True)
        best = lidar.sample(prompts, images, seed, call=call, around=around)
        scores, selection = guiding_scores(lidar, best)  # (P, m)
        cost, pivots = best.cost["sampling"] + selection, torch.cat([start.noise.cpu() for start in starts])
        pivots = pivots.unflatten(0, scores.shape)
        for k in range(self.rounds):
            seeds = [item.seed for item in items_of(prompts, images, seed, f"search {k}")]
            near = neighbours(pivots.flatten(0, 1), self.neighbours, self.cosine, seeds).flatten(0, 1)
            tried = lidar.sample(prompts, images * self.neighbours, seed, call=call, rows={"latents": near})
            found, selection = guiding_scores(lidar, tried)
            found, where = found.view(*scores.shape, -1).max(2)
            rows = (torch.arange(scores.numel()) * self.neighbours).view_as(where) + where
            better = found > scores
            pivots = where_better(better, near[rows], pivots)
            best = replace(
                best,
                images=where_better(better, tried.images.flatten(0, 1)[rows], best.images),
                latents=where_better(better, tried.latents.flatten(0, 1)[rows], best.latents),
            )
            scores, cost = torch.where(better, found, scores), cost + tried.cost["sampling"] + selection
        return replace(best, cost={"sampling": cost})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the samples that are tried, and their rewards."""
        self._check(lidar)
        tried = images * (1 + self.rounds * self.neighbours)
        return sampling_cost(lidar, tried) + selection_cost(lidar, tried)

    def _check(self, lidar: LiDAR) -> None:
        check_comparable(lidar)
        check_whole(lidar, "noise search")
        check_start(lidar, "noise search")
        if self.eta and not _reads_eta(lidar):
            raise ValueError(f"eta={self.eta} of noise search has no effect: the steps of the sampler take none")


def _reads_eta(lidar: LiDAR) -> bool:
    """Return whether eta reaches the steps of a sampler."""
    return takes_own_steps(lidar) and takes_eta(lidar.pipe.scheduler) and "eta" in parameters_of(lidar.pipe)


def neighbours(pivots: Tensor, count: int, cosine: float, seeds: Sequence[int]) -> Tensor:
    """Return ``count`` neighbours (B, count, *) of each pivot (B, *), one per seed: of its norm, at that cosine.

    Example:
        >>> import torch
        >>> around = neighbours(torch.tensor([[3.0, 4.0]]), 2, 0.0, seeds=[0])
        >>> around.norm(dim=2)
        tensor([[5., 5.]])
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    flat = pivots.flatten(1).double()[:, None]  # (B, 1, D)
    norm = flat.norm(dim=2, keepdim=True)
    u = flat / norm
    v = torch.stack([torch.randn(count, flat.shape[2], generator=g, dtype=torch.float64) for g in generators])
    w = v - (v * u).sum(2, keepdim=True) * u
    w = w / w.norm(dim=2, keepdim=True)
    around = norm * (cosine * u + (1 - cosine**2) ** 0.5 * w)
    return around.view(len(pivots), count, *pivots.shape[1:]).to(pivots.dtype)


class Start(Hook):
    """The hook that keeps the noise that a run started from, as the pipeline's ``latents`` would give it.

    Attributes:
        noise: (B, *); empty before the first step.
    """

    def __init__(self) -> None:
        self.noise = torch.empty(0)

    def before(self, step: Step) -> Step:
        """Keep the sample of the first step, in units of the noise that the pipeline was given."""
        if step.index == 0:
            self.noise = step.x_t / start_scale(step.scheduler)
        return step
