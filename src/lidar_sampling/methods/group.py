"""Group inference: many candidates start, and after each look the best group goes on, until the images are left.

Several images of one prompt are worth more if they differ. So a look does not keep the candidates of the highest
rewards but the set S of a given size that maximises

    sum_{i in S} u_i  +  lambda sum_{i < j in S} d_ij,

u being the rewards of the clean predictions and d the distances of their features, ``1 - cos``. Sizes fall until as
many are left as images are wanted; so early steps are spent on many candidates and late ones on few (Parmar et al.
2025, https://arxiv.org/abs/2508.15773: its beginning was read, and its code, GaParmar/group-inference).

There lambda is 1.5, in units of CLIP's cosine and of DINOv2's distances. Of FLUX.1-dev 128 candidates are halved
after every one of the first steps of 20; of FLUX.1-schnell 64 go down to a tenth after every step of 4. Here rewards
may have any unit. So by default they are standardised over the candidates of a look, and the mean distance of a pair
has a worth of its own, the same for all sizes (:func:`lidar_sampling.rewards.select_diverse`); ``weight`` is their
lambda. They ask a solver for the best set; here it is exact where sets are few, and else found by exchanges. Their
code takes the sample after the step, less the noise before it, for a clean prediction; here it is the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from .._cost import Cost
from .._forecast import calls_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_images, check_parts, check_population, with_noise
from ._face import best, check_features, in_steps, wants_features
from ._segments import prune, pruning_cost


@dataclass(frozen=True)
class Group:
    """Group inference.

    Attributes:
        n: candidates per prompt, at least as many as images are wanted.
        keep: share of the candidates that goes on after a look; as many as images are the least.
        start: first look, as a fraction of all steps; after the first step at the earliest.
        every: fraction of all steps between two looks; 0 looks after every step.
        diverse: what an average distance of two candidates is worth, in standard deviations of the reward; 0 keeps
            those of the highest rewards.
        weight: lambda, what the distance of a pair is worth in the unit of the reward, in the place of ``diverse``.
        steps: denoising steps; None takes those of the sampler's call.
    """

    n: int = 128
    keep: float = 0.5
    start: float = 0.0
    every: float = 0.0
    diverse: float = 1.0
    weight: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        shares = {"start": "[0, 1)", "every": "[0, 1)", "diverse": "[0, inf)", "weight": "[0, inf)"}
        check_fields(self, n="[1, inf)", keep="(0, 1)", steps="[1, inf)", **shares)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt: the group that is left, by falling reward at the last look.

        It costs the steps of every candidate as far as it gets, and a decode, a reward call and one more for its
        features each time it is looked at. As many candidates as images are plain samples.

        Raises:
            ValueError: more images than candidates, fewer steps than it takes to come down to them, nothing to tell
                candidates apart by, a scheduler whose memory would stay with the dropped, or a call that ends before
                the samples are clean.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        cuts = self._check(lidar, images)
        lidar = with_noise(lidar, copies=False)
        choose = partial(best, lidar, diverse=self.diverse, weight=self.weight)
        result, cost = prune(lidar, prompts, self.alive(images), cuts, choose, steps=self.steps, seed=seed)
        return replace(result, cost={"sampling": cost})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of each as far as it gets, and looks."""
        cuts, alive = self._check(lidar, images), self.alive(images)
        features = wants_features(self.diverse, self.weight) * sum(alive[:-1])
        return pruning_cost(lidar, alive, cuts, steps=self.steps) + Cost(reward_calls=features)

    def alive(self, images: int) -> list[int]:
        """Return how many candidates there are at first, and after each look.

        >>> Group(64, keep=0.1).alive(4), Group(16).alive(3)
        ([64, 7, 4], [16, 8, 4, 3])
        """
        sizes = [self.n]
        while sizes[-1] > images:
            sizes.append(max(images, min(sizes[-1] - 1, math.ceil(sizes[-1] * self.keep))))
        return sizes

    def looks(self, steps: int, images: int) -> list[int]:
        """Return after how many of ``steps`` each look comes.

        Raises:
            ValueError: there are fewer places than looks.

        >>> Group(16).looks(10, images=4), Group(16, start=0.25, every=0.25).looks(10, images=4)
        ([1, 2], [2, 5])
        """
        at: list[int] = []
        for k in range(len(self.alive(images)) - 1):
            at.append(max(at[-1] + 1 if at else 1, round((self.start + k * self.every) * steps)))
        if at and at[-1] >= steps:
            places = sum(step < steps for step in at)
            raise ValueError(
                f"group inference comes from n={self.n} to {images} images in {len(at)} looks, and {steps} steps "
                f"have places for {places}: lower n or keep, or take more steps"
            )
        return at

    def _check(self, lidar: LiDAR, images: int) -> list[float]:
        """Refuse what cannot be drawn; return the fractions of the steps at which looks come."""
        check_population(lidar, "group inference", "goes on with some of the samples", copies=False)
        check_parts(lidar, "group inference")
        check_images(images, self.n)
        if images < self.n and wants_features(self.diverse, self.weight):
            check_features(lidar)
        steps = calls_of(lidar.pipe, in_steps(lidar, self.steps))
        return [look / steps for look in self.looks(steps, images)]
