"""Verifier threshold: a sample goes on only where the reward of its clean prediction reaches a threshold.

Greedy searches spend as much on a step that went well as on one that did not. Here the steps are parts of equal
length. A part is proposed, from noise or from what the part before came to, each time with noise of its own, and
rewarded by its clean prediction at its last step. Where the reward reaches the threshold the sample goes on to the
next part; elsewhere the part is proposed again.

The idea is that of Sundaresha et al. (2025, https://arxiv.org/abs/2512.08985). Only its abstract and the beginning of
its introduction could be read, which name no threshold and no budget, and its code was not found; the rest is the
natural form of the idea, ours and not theirs:

- The budget is fixed: N proposals of every part, so N whole samples, whichever parts they are spent on. What a sample
  needs to reach the end is never spent on trying again; when nothing else is left, the best proposal goes on.
- After a finished sample that reaches the threshold another is begun with what is left of the budget; where that is
  too little, the last part is proposed again. The best finished sample is returned.
- Without a threshold of your own it is the best reward of the first N proposals of the first part: a sample goes on
  as long as it looks as good as what was chosen then.

A proposal is judged at its last step, before that step's own noise; so parts have two steps at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .._cost import Cost
from .._draw import items_of, seed_of
from .._forecast import calls_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_images, check_parts, check_population, with_noise
from ._face import check_comparable, guiding_scores, in_steps, looks_cost, sampling_cost
from ._segments import predictions, run_part


@dataclass(frozen=True)
class Threshold:
    """Proposals of parts, tried again until their reward reaches a threshold.

    Attributes:
        n: proposals of every part per image, on average; their steps are those of ``n`` samples.
        threshold: reward that a proposal must reach; None takes the best of the first ``n`` proposals of an image.
        parts: of the schedule, which divide its steps into two or more each.
        steps: denoising steps; None takes those of the sampler's call.
    """

    n: int = 4
    threshold: float | None = None
    parts: int = 5
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", threshold="(-inf, inf)", parts="[1, inf)", steps="[1, inf)")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt, each the best that its own search finished.

        An image costs the steps of ``n`` samples, and a decode and a reward call for each of ``n * parts`` proposals.

        Raises:
            ValueError: parts that do not divide the steps, a scheduler whose memory would stay with the dropped, one
                without noise, under which proposals are alike, a call that ends before the samples are clean, or a
                mixture that cannot score loose images.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        self._check(lidar, images)
        lidar = with_noise(lidar, copies=self._copies)
        of = [prompt for prompt in prompts for _ in range(images)]
        walks = [Walk(self.n, self.parts, self.threshold) for _ in of]
        cost, last = Cost(), None
        for turn in range(self.n * self.parts):
            by_part: dict[int, list[int]] = {}
            for place, walk in enumerate(walks):
                by_part.setdefault(walk.part, []).append(place)
            for part, places in sorted(by_part.items()):
                noise = seed if turn == 0 else seed_of(seed, f"proposal {turn} of part {part}", "", 0)
                starts = torch.stack([walks[place].start[0] for place in places]) if part else None
                result, scores, spent = self._propose(lidar, prompts, [of[p] for p in places], noise, part, starts)
                cost, last = cost + spent, result
                for row, place in enumerate(places):
                    proposal = result.latents[row], result.images[row] if part == self.parts - 1 else None
                    walks[place].take(float(scores[row]), proposal)
        if last is None:
            raise ValueError("prompts must hold at least one prompt")
        shape = (len(prompts), images)
        latents, pictures = (torch.cat([walk.best[kind] for walk in walks]).unflatten(0, shape) for kind in (0, 1))
        best = replace(last, prompts=list(prompts), images=pictures, latents=latents)
        return replace(best, cost={"sampling": cost}, seed=seed)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt, whatever the rewards."""
        self._check(lidar, images)
        network = sampling_cost(lidar, self.n * images, call=in_steps(lidar, self.steps))
        return replace(network, decodes=0) + looks_cost(lidar, self.n * self.parts * images)

    def _propose(
        self, lidar: LiDAR, prompts: Sequence[str], of: list[str], seed: int, part: int, starts: Any
    ) -> tuple[Result, torch.Tensor, Cost]:
        """Return one proposal of a part for each of the prompts ``of``, their rewards (B,), and what that cost."""
        cuts = [k / self.parts for k in range(1, self.parts)]
        bound = lidar.with_prompts(prompts)
        result, hooks = run_part(bound, of, 1, seed, cuts, part, steps=self.steps, latents=starts)
        cost, shown = result.cost["sampling"], result
        if part < self.parts - 1:
            shown, looking = predictions(bound, result, hooks, items_of(of, 1, seed, "target"))
            cost = cost + looking
        scores, selection = guiding_scores(lidar, shown)
        return result, scores[:, 0], cost + selection

    @property
    def _copies(self) -> bool:
        """Whether several proposals go on from one sample."""
        return self.n > 1 and self.parts > 1

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_images(images)
        what = "goes on from one of several proposals"
        check_population(lidar, "verifier threshold", what, copies=self._copies)
        check_parts(lidar, "verifier threshold")
        check_comparable(lidar)
        steps = calls_of(lidar.pipe, in_steps(lidar, self.steps))
        if steps % self.parts or (self.parts > 1 and steps < 2 * self.parts):
            raise ValueError(
                f"parts must divide the {steps} steps into two or more each, got {self.parts}: set parts or steps"
            )


@dataclass
class Walk:
    """The search of one image: its place in the schedule, and its best sample so far.

    Attributes:
        n: proposals of every part, on average.
        parts: of the schedule.
        threshold: reward that a proposal must reach; None until the first ``n`` are there.
        part: that is proposed next, from 0.
        start: what it starts from; None for the first part.
        best: the finished sample of the highest reward.
        left: proposals that are left.

    Example:
        >>> walk = Walk(2, 2, threshold=1.0)
        >>> for reward, name in zip((0.0, 3.0, 0.5, 2.0), "abcd"):
        ...     walk.take(reward, name)
        >>> walk.best, walk.left  # b went on, as it reached 1, and d is better than c
        ('d', 0)
    """

    n: int
    parts: int
    threshold: float | None
    part: int = 0
    start: Any = None
    best: Any = None
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.n * self.parts
        self._best_reward = -math.inf
        self._tried: list[tuple[float, Any]] = []  # proposals of the part where the walk stands

    def take(self, reward: float, proposal: Any) -> None:
        """See the next proposal and its reward, and decide what is proposed next."""
        self.left -= 1
        self._tried.append((reward, proposal))
        ended = self.part == self.parts - 1
        if ended and reward > self._best_reward:
            self._best_reward, self.best = reward, proposal
        if self.threshold is None and len(self._tried) == self.n:
            self.threshold = max(reward for reward, _ in self._tried)
        needed = self.parts if ended else self.parts - 1 - self.part  # to reach the end once more
        reaches = self.threshold is not None and max(r for r, _ in self._tried) >= self.threshold
        if ended and self.left < needed:
            return  # nothing can be begun: the last part again
        if reaches or (self.left <= needed and not ended):
            chosen = max(self._tried, key=lambda tried: tried[0])[1]
            self.part, self.start = (0, None) if ended else (self.part + 1, chosen)
            self._tried = []
