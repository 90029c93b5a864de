"""Best of N: draw more samples than wanted, and keep those that the guiding reward likes best.

The samples may be of any method: whole, few-step (the best of a bank, with a few-step solver), or guided. For
independent samples the kept reward is the maximum of N draws, and the law of the kept sample lies
``log N - (N - 1) / N`` nats from the method's own at most (Beirami et al. 2024, https://arxiv.org/abs/2401.01879).
With ``diverse`` the kept samples are the best set instead, by their rewards and by their distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .._cost import Cost
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_images, check_whole
from ._face import Method, best, best_cost, check_features, wants_features


@dataclass(frozen=True)
class BestOf:
    """The best samples of another method.

    Attributes:
        method: draws the candidates.
        n: candidates per prompt, at least as many as images are wanted.
        diverse: what an average distance of two candidates is worth, in standard deviations of the reward
            (:func:`lidar_sampling.rewards.select_diverse`); 0 keeps those of the highest rewards.
    """

    method: Method
    n: int
    diverse: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", diverse="[0, inf)")
        if not callable(getattr(self.method, "draw", None)):
            raise TypeError(f"method must be a method such as Vanilla(), got {self.method!r}")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Return the ``images`` best of ``n`` samples per prompt, best first.

        It costs ``n`` reward calls per prompt more, and as many again for the features with ``diverse``.

        Raises:
            ValueError: more images than candidates, or nothing that measures how candidates differ.
        """
        self._check(lidar, images)
        many = self.method.draw(lidar, prompts, images=self.n, seed=seed)
        kept, selection = best(lidar, many, images, self.diverse)
        return replace(kept, cost={**many.cost, "selection": selection})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: ``n`` samples of the method, and their rewards."""
        self._check(lidar, images)
        return self.method.cost(lidar, images=self.n) + best_cost(lidar, self.n, self.diverse)

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_images(images, self.n)
        check_whole(lidar, "best-of-N")
        if wants_features(self.diverse):
            check_features(lidar)
