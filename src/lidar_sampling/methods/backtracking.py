r"""Depth-first search with backtracking (Zhang et al. 2025, https://arxiv.org/abs/2505.23614).

A sample is looked at after every part of the schedule, by the reward of its clean prediction. Where that is below a
threshold, the sample is noised back some steps, by the forward process from the level (alpha, sigma) to the earlier
one (alpha', sigma'),

    x'  =  (alpha' / alpha) x  +  sqrt(sigma'^2 - (alpha' / alpha)^2 sigma^2) z,

or replaced by new noise where that leads to the start, and denoised again. Where the budget of such backtracks is
spent, the best sample that was seen at that look goes on.

The form and the defaults are those of the released code, which plans ways through mazes
(XiangchengZhang/Diffusion-inference-scaling); of the paper only the abstract and the project page were read. For one
maze the code goes back 12 of 16 steps, which is ``depth=3`` here, and not 4. It scales its threshold from step to
step, for costs that are positive; here it is the same everywhere.

Two things are ours. Rewards differ in their units, so by default the threshold is the median of what was seen at the
same look, and the first sample to come there always goes back. And a look at the clean sample has no threshold: while
budget is left it goes back from there too, and the best clean sample is kept. So the budget is always spent, and how
often the network is asked is known beforehand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .._cost import Cost
from .._draw import Item, items_of, seed_of
from .._forecast import calls_of, rows_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_parts, check_population, with_noise
from ._face import check_comparable, in_steps, looks_cost, sampling_cost
from ._stretches import Reached, Stretch, Stretches, back


@dataclass(frozen=True)
class Backtracking:
    """Depth-first search with backtracking, one search per image.

    Attributes:
        n: backtracks per search.
        threshold: the reward below which a sample goes back; None takes the median of those seen at the same look.
        parts: equal parts of the schedule, each of which ends with a look; where the steps are not a multiple of
            them, another part or a piece of one is at the start.
        depth: parts that a sample goes back; there are no looks before.
        steps: denoising steps; None takes those of the sampler's call.
    """

    n: int = 4
    threshold: float | None = None
    parts: int = 4
    depth: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self, n="[0, inf)", threshold="(-inf, inf]", parts="[1, inf)", depth="[1, inf)", steps="[1, inf)"
        )
        if self.depth > self.parts:
            raise ValueError(f"depth must be at most the {self.parts} parts of the schedule, got {self.depth}")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt, the best of a search each.

        A search costs a sample and ``n`` times the steps of ``depth`` parts, and a decode and a reward call per look.

        Raises:
            ValueError: a scheduler that remembers earlier steps, ``depth`` parts that are more than all steps, a call
                that ends before the samples are clean, or a mixture that cannot score loose images.
            TypeError: the pipeline takes no ``latents``, starts from a picture, or reads levels by number.
        """
        steps = self._check(lidar)
        lidar = with_noise(lidar, copies=False)
        stretches = Stretches(lidar, prompts, self.steps, self._turns(steps))
        searches = [Search(self, steps, item) for item in items_of(prompts, images, seed, "target")]
        while going := [search for search in searches if search.found is None]:
            for search, reached in zip(going, stretches.draw([search.next for search in going]), strict=True):
                search.arrive(reached, stretches.levels)
        found = [search.found for search in searches if search.found is not None]
        rows = [found[start : start + images] for start in range(0, len(found), images)]
        return stretches.result(prompts, rows, seed)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt.

        With ``depth`` above 1 decodes and reward calls are at most so many: the looks on the way back to where a
        sample failed depend on where that was.
        """
        steps = self._check(lidar)
        back_by, looks = self.depth * self.part(steps), len(self.looks(steps)) + self.n * self.depth
        taken = sampling_cost(lidar, images, call=in_steps(lidar, self.steps)).network_evaluations
        again = images * self.n * back_by * rows_of(lidar.pipe, in_steps(lidar, self.steps))
        return Cost(network_evaluations=taken + again) + looks_cost(lidar, images * looks)

    def part(self, steps: int) -> int:
        """Return the steps of a part, in a run of ``steps``."""
        return max(1, steps // self.parts)

    def looks(self, steps: int) -> list[int]:
        """Return the steps of a run of ``steps`` before which there are looks, and last the number of all.

        >>> Backtracking().looks(16), Backtracking().looks(10), Backtracking(parts=8, depth=4).looks(16)
        ([4, 8, 12, 16], [2, 4, 6, 8, 10], [8, 10, 12, 14, 16])
        """
        return [turn for turn in self._turns(steps) if turn >= self.depth * self.part(steps)]

    def _turns(self, steps: int) -> list[int]:
        """Return the steps before which parts start and end."""
        return [*range(steps, -1, -self.part(steps))][::-1]

    def _check(self, lidar: LiDAR) -> int:
        """Return the steps of a run."""
        check_population(lidar, "backtracking", "goes back with a sample and on again", copies=False)
        check_comparable(lidar)
        check_parts(lidar, "backtracking")
        steps = calls_of(lidar.pipe, in_steps(lidar, self.steps))
        if self.depth * self.part(steps) > steps:
            raise ValueError(f"depth must be at most the {steps} steps that the pipeline takes, got {self.depth}")
        return steps


class Search:
    """The search for one image, which says what to draw next and learns where that led.

    Args:
        settings: how it goes.
        steps: of the schedule.
        item: its prompt, and its seed; the first noise is that of vanilla.

    Attributes:
        next: what to draw next.
        left: backtracks that may still be taken.
        found: the clean sample that it ended with, once it did.
    """

    def __init__(self, settings: Backtracking, steps: int, item: Item) -> None:
        self.settings, self.item, self.left = settings, item, settings.n
        self.looks, self._back_by = settings.looks(steps), settings.depth * settings.part(steps)
        self.next = Stretch(item, 0, self.looks[0])
        self.found: Reached | None = None
        self._seen: defaultdict[int, list[Reached]] = defaultdict(list)
        self._taken = 0

    def arrive(self, reached: Reached, levels: Mapping[int, tuple[float, float]]) -> None:
        """Learn where the stretch led, and choose the next one.

        Args:
            reached: the state, and the reward of its clean prediction.
            levels: step -> (alpha, sigma), of all states so far.
        """
        here, seen = self.next.last, self._seen[self.next.last]
        seen.append(reached)
        fails = here == self.looks[-1] or self._fails(reached, seen)
        if fails and self.left:
            self.left -= 1
            self._go_back(reached, here, levels)
            return
        kept = max(seen, key=lambda each: each.reward) if fails else reached
        if here == self.looks[-1]:
            self.found = kept
        else:
            self._go_on(here, kept)

    def _fails(self, reached: Reached, seen: Sequence[Reached]) -> bool:
        threshold = self.settings.threshold
        if threshold is not None:
            return reached.reward < threshold
        return len(seen) == 1 or reached.reward < median(each.reward for each in seen)

    def _go_back(self, reached: Reached, here: int, levels: Mapping[int, tuple[float, float]]) -> None:
        there = here - self._back_by
        if there == 0:
            self._go_on(0, None)
            return
        seed = seed_of(self.item.seed, f"back {self._taken}", "", 0)
        self._go_on(there, reached._replace(latents=back(reached.latents, levels[here], levels[there], seed)))

    def _go_on(self, first: int, reached: Reached | None) -> None:
        """Go on from a state to the next look; None is new noise."""
        self._taken += 1
        item = Item(self.item.prompt, seed_of(self.item.seed, f"stretch {self._taken}", "", 0))
        last = next(look for look in self.looks if look > first)
        self.next = Stretch(item, first, last, None if reached is None else reached.latents)
