"""Diffusion latent beam search (Oshima et al. 2025, https://arxiv.org/abs/2501.19252).

B beams of a prompt are sampled side by side. Each step of each is proposed K times, with noise of its own, and of the
B K candidates the B go on whose lookahead has the highest reward: the end of T' deterministic DDIM steps from x_t,
which for T' = 1 is the clean prediction. With one beam it is SVDD at temperature 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_images, check_population, check_start, with_noise
from ._face import charge_looks, check_comparable, hook_batches, looks_cost, rewards_of_predictions, sampling_cost
from ._particles import Particles
from ._rollout import Rollout, check_rollout, rollout_cost


@dataclass(frozen=True)
class BeamSearch:
    """Diffusion latent beam search.

    Attributes:
        beams: B, at least as many as images are wanted.
        candidates: K, proposals per beam and step.
        lookahead: T', DDIM steps to the end; the paper's "LA" takes 6.
    """

    beams: int = 4
    candidates: int = 2
    lookahead: int = 1

    def __post_init__(self) -> None:
        check_fields(self, beams="[1, inf)", candidates="[1, inf)", lookahead="[1, inf)")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw the ``images`` best beams of each prompt, best first.

        Every step costs ``beams * candidates * lookahead`` network evaluations per prompt, and but for the first as
        many decodes and reward calls as candidates. (The released code keeps one beam.)

        Raises:
            ValueError: more images than beams; a scheduler that remembers earlier steps, or one without noise, under
                which candidates are alike; a call that ends before the samples are clean; or a mixture that cannot
                score loose images.
        """
        self._check(lidar, images)
        lidar = with_noise(lidar, copies=self.candidates > 1).with_prompts(prompts)
        together = self.beams * self.candidates

        def make(batch: Sequence[Item]) -> Beams:
            rewards = rewards_of_predictions(lidar, batch)
            ends = Rollout(lidar, batch, steps=self.lookahead) if self.lookahead > 1 else None
            return Beams(self, rewards, [item.seed for item in batch[::together]], ends)

        around, hooks = hook_batches(lidar, make)
        result = lidar.sample(prompts, together, seed, around=around, together=together)
        # The last step adds no noise, so the candidates of a beam end alike.
        first = slice(None, images * self.candidates, self.candidates)
        result = replace(result, images=result.images[:, first], latents=result.latents[:, first])
        return charge_looks(lidar, result, sum(hook.evaluations for hook in hooks))

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt, however many of the beams are wanted."""
        self._check(lidar, images)
        together = self.beams * self.candidates
        looks = self.looks(calls_of(lidar.pipe, lidar.arguments()))
        ends = rollout_cost(lidar, together, looks, steps=self.lookahead)
        return sampling_cost(lidar, together) + looks_cost(lidar, together * len(looks)) + ends

    def looks(self, steps: int) -> range:
        """Return the steps of a run of ``steps`` at which there are candidates to choose from: all but the first."""
        return range(1, steps) if self.beams * self.candidates > 1 else range(0)

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "beam search", "goes on from some of many proposals", copies=self.candidates > 1)
        check_comparable(lidar)
        if self.lookahead > 1:
            check_start(lidar, "beam search with lookahead")
            check_rollout(lidar, "beam search")
        check_images(images, self.beams, "the {} beams")


class Beams(Particles):
    """The hook that lets ``beams * candidates`` neighbours in a batch go on from the best ``beams`` of them."""

    who = "beam search"

    @property
    def copies(self) -> int:
        """The candidates of a beam."""
        return self.settings.candidates

    def choose(self, r: Tensor) -> Tensor:
        """Return the best candidates by rewards (P, k) as the next beams; each row goes on with noise of its own."""
        best = r.argsort(dim=1, descending=True, stable=True)[:, : self.settings.beams]
        return best.repeat_interleave(self.settings.candidates, 1)
