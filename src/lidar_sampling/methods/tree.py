r"""Diffusion tree sampling and search (Jain et al. 2025, https://arxiv.org/abs/2506.20701).

A tree holds the samples of a prompt that were drawn so far, and the states that they went through at a few steps. Its
root stands before pure noise; a child is a state that the sampler came to from its parent. The value of a state is
the soft maximum of what its children are worth, and that of a leaf is the reward of the clean sample:

    v(x_t)  =  (1 / lambda) log (1 / |C(x_t)|) sum_{x' in C(x_t)} exp(lambda v(x'))        (the paper's equation 5)

the soft value as far as it is known. A rollout goes down from the root as long as a state has as many children as its
N visits allow, C N^alpha, and to the child that is

    drawn with probability  ~ exp(lambda v(x'))                 DTS, which samples from p(x_0) exp(lambda r(x_0)),
    the highest in          v(x') + c sqrt(log N / N(x'))       DTS*, which searches.

There it draws a new child and goes on to a clean sample, whose reward changes the values above it. So where a rollout
branches off late, it costs only the steps that are left. At last DTS draws samples from the tree by the same choices;
DTS* gives the best ones that it has seen.

Of the paper are the algorithm (its appendix E), C, alpha and the steps at which states branch (appendix F); lambda is
1 there unless it says otherwise, and c has no number. Its DTS* gives the leaf at the end of the choices without c;
here it is the leaf of the highest reward, as best-of-N has it.

With the published C and alpha the first 36 rollouts all start from the root, so with so few DTS* is best-of-N;
``dts-8:widening=1,power=0.5`` branches. DTS comes to its law as slowly: a child whose one rollout ended badly is
worth too little until it is visited again, and of very many children most are not. Of words of three letters
(``tests/methods/test_tree.py``) the law of draws from a tree is, in total variation, .22, .068 and .061 from the
tilted one with 4, 400 and 2,000 samples and the published settings; .30, .038 and .020 with widening 1 and power .5.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from .._cost import Cost
from .._draw import Item, items_of, seed_of
from .._forecast import calls_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_images, check_parts, check_population, with_noise
from ._face import check_comparable, in_steps, looks_cost, sampling_cost
from ._stretches import Reached, Stretch, Stretches


@dataclass(frozen=True)
class DTS:
    """Diffusion tree search; with ``sampling`` diffusion tree sampling.

    Attributes:
        n: what a tree may cost, in whole samples.
        reward_scale: lambda, in 1 / reward.
        sampling: draw from the tree in proportion to exp(lambda v), and do not search.
        exploration: c, of the search, in units of the reward.
        widening: C, children that a state may have when it was first visited; at least 1.
        power: alpha, of the visits; at least .2, below which visits are in vain for long.
        parts: equal parts of the schedule, between which states branch; what is left over belongs to the first.
        steps: denoising steps; None takes those of the sampler's call.
    """

    n: int = 16
    reward_scale: float = 1.0
    sampling: bool = False
    exploration: float = 1.0
    widening: float = 2.0
    power: float = 0.8
    parts: int = 5
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            n="[1, inf)",
            reward_scale="(0, inf)",
            exploration="[0, inf)",
            widening="[1, inf)",
            power="[0.2, 1]",
            parts="[1, inf)",
            steps="[1, inf)",
        )

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw the ``images`` best samples of each prompt's tree, best first; or so many draws from it, with repeats.

        It costs the steps of ``n`` samples, less what no rollout fits into. Each rollout costs a decode and a
        reward call.

        Raises:
            ValueError: the search is to give more images than ``n``; a scheduler that remembers earlier steps, or one
                without noise, under which children are alike; a call that ends before the samples are clean; or a
                mixture that cannot score loose images.
            TypeError: the pipeline takes no ``latents``, starts from a picture, or reads levels by number.
        """
        self._check(lidar, images)
        lidar = with_noise(lidar, copies=self.n > 1)
        ends = self.ends(calls_of(lidar.pipe, in_steps(lidar, self.steps)))
        stretches = Stretches(lidar, prompts, self.steps, ends[1:-1])
        items = items_of(prompts, self.n, seed, "target")  # a tree's samples from the root are those of vanilla
        trees = [Tree(self, ends, items[start : start + self.n]) for start in range(0, len(items), self.n)]
        while growing := [tree for tree in trees if not tree.full]:
            for tree, reached in zip(growing, stretches.draw([tree.next() for tree in growing]), strict=True):
                tree.grow(reached)
        return stretches.result(prompts, [tree.samples(images) for tree in trees], seed)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt, however many images are wanted.

        If the tree branches below its root, these are upper bounds: how many rollouts the steps are enough for
        depends on where they branch. With five parts it was a third of the stated decodes on average. Where the
        parts do not divide the steps, up to a part of them may be left that no rollout fits into.
        """
        self._check(lidar, images)
        call = in_steps(lidar, self.steps)
        ends = self.ends(calls_of(lidar.pipe, call))
        whole = next(
            (k for k in range(1, self.n) if k >= self.most_children(1 + k)), self.n
        )  # rollouts from the root
        rollouts = whole + (self.n - whole) * ends[-1] // (ends[-1] - ends[-2])
        return replace(sampling_cost(lidar, self.n, call=call), decodes=0) + looks_cost(lidar, rollouts)

    def ends(self, steps: int) -> list[int]:
        """Return the steps of a run of ``steps`` before which parts start and end, from 0 to the number of all.

        >>> DTS().ends(50), DTS().ends(23), DTS().ends(3)
        ([0, 10, 20, 30, 40, 50], [0, 7, 11, 15, 19, 23], [0, 1, 2, 3])
        """
        parts = min(self.parts, steps)
        return [0, *(steps - left * (steps // parts) for left in range(parts - 1, -1, -1))]

    def most_children(self, visits: int) -> float:
        """Return how many children a state may have, at least the next whole number above."""
        return self.widening * visits**self.power

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "tree search", "goes on from one state several times", copies=self.n > 1)
        check_comparable(lidar)
        check_parts(lidar, "tree search")
        check_images(images, None if self.sampling else self.n)


@dataclass(eq=False)
class Node:
    """A state of a tree.

    Attributes:
        depth: parts of the schedule that led to it.
        latents: (*); None of the root and of leaves.
        leaf: the clean sample.
        value: v.
        visits: N, one when it was made.
        children: states that the sampler came to from it.
    """

    depth: int
    latents: Tensor | None = None
    leaf: Reached | None = None
    value: float = 0.0
    visits: int = 1
    children: list[Node] = field(default_factory=list)


class Tree:
    """The tree of one prompt, which says what to draw next and learns where that led.

    Args:
        settings: how it grows.
        ends: the steps at which its levels stand, from 0 to the number of all.
        items: of samples from the root, in their order.

    Attributes:
        root: its state before pure noise.
        left: steps that may still be taken.
        leaves: all clean samples, in the order in which they were drawn.
    """

    def __init__(self, settings: DTS, ends: Sequence[int], items: Sequence[Item]) -> None:
        self.settings, self.ends, self.items = settings, ends, items
        self.root, self.leaves = Node(0), list[Reached]()
        self.left = len(items) * ends[-1]
        self._path: list[Node] = []
        self._random = random.Random(seed_of(items[0].seed, "tree", "", 0))

    @property
    def full(self) -> bool:
        """Whether no rollout fits into the steps that are left."""
        return self._steps(len(self.ends) - 2) > self.left

    def next(self) -> Stretch:
        """Return the rollout to draw next: from a state that may have one more child, to a clean sample."""
        while True:
            path = [self.root]
            while path[-1].leaf is None and not self._widens(path[-1]):
                path.append(self._choice(path[-1], exploring=True))
            if path[-1].leaf is None:
                break
            self._back_up(path)  # a visit to a leaf that is there already
        self._path, node = path, path[-1]
        if node.depth == 0:
            return Stretch(self.items[len(node.children)], 0, self.ends[-1])
        first = self.items[0]
        item = Item(first.prompt, seed_of(first.seed, f"rollout {len(self.leaves)}", "", 0))
        return Stretch(item, self.ends[node.depth], self.ends[-1], node.latents)

    def grow(self, reached: Reached) -> None:
        """Add the states of a rollout to the tree, and update the values above it by the reward at its end."""
        path = self._path
        self.left -= self._steps(path[-1].depth)
        for depth in range(path[-1].depth + 1, len(self.ends)):
            end = depth == len(self.ends) - 1
            node = Node(depth, None if end else reached.states[self.ends[depth]])
            path[-1].children.append(node)
            path.append(node)
        leaf = reached._replace(states={})
        path[-1].leaf, path[-1].value = leaf, reached.reward
        self.leaves.append(leaf)
        self._back_up(path)

    def samples(self, count: int) -> list[Reached]:
        """Return the best samples, best first; of a tree to sample from, so many draws."""
        if not self.settings.sampling:
            return sorted(self.leaves, key=lambda leaf: -leaf.reward)[:count]
        return [self._choose_leaf() for _ in range(count)]

    def _choose_leaf(self) -> Reached:
        node = self.root
        while node.leaf is None:
            node = self._choice(node, exploring=False)
        return node.leaf

    def _steps(self, depth: int) -> int:
        """Return the steps from a state at that depth to a clean sample."""
        return self.ends[-1] - self.ends[depth]

    def _widens(self, node: Node) -> bool:
        return self._steps(node.depth) <= self.left and len(node.children) < self.settings.most_children(node.visits)

    def _choice(self, node: Node, *, exploring: bool) -> Node:
        """Return the child to go down to."""
        how, children = self.settings, node.children
        if how.sampling:
            top = max(child.value for child in children)
            weights = [math.exp(how.reward_scale * (child.value - top)) for child in children]
            return self._random.choices(children, weights)[0]
        width = how.exploration * math.sqrt(math.log(node.visits)) if exploring else 0.0
        return max(children, key=lambda child: child.value + width / math.sqrt(child.visits))

    def _back_up(self, path: Sequence[Node]) -> None:
        """Count the visit of a path, and compute the values on it from its end on."""
        for node in reversed(path):
            node.visits += 1
            if node.children:
                node.value = soft_value([child.value for child in node.children], self.settings.reward_scale)


def soft_value(values: Sequence[float], reward_scale: float) -> float:
    """Return ``(1 / lambda) log mean exp(lambda v)``.

    >>> soft_value([0.0, 1.0], 1e-6), soft_value([0.0, 1.0], 1e6)  # from the mean to the maximum
    (0.500000..., 0.999999...)
    """
    top = max(values)
    return (
        top + math.log(sum(math.exp(reward_scale * (value - top)) for value in values) / len(values)) / reward_scale
    )
