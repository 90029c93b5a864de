"""Methods by name, for the command line and for results."""

from __future__ import annotations

import re
from difflib import get_close_matches

from ..solvers import load as load_solver
from ._face import Method
from .beam_search import BeamSearch
from .best_of import BestOf
from .das import DAS
from .date import DATE
from .fk_steering import FKSteering
from .halving import Halving
from .lidar import Guided
from .noise_search import NoiseSearch
from .refine import Refine
from .repulsion import SafeDenoiser, Spell
from .svdd import SVDD
from .universal_guidance import UniversalGuidance
from .vanilla import Vanilla

NAMES = {
    "vanilla": "the pipeline alone; vanilla@25 in 25 steps, vanilla@dpm:5 by a few-step solver",
    "lidar": "LiDAR with the settings of the model",
    "best-of-N": "the best of N vanilla samples; best-of-12@10 in 10 steps, best-of-50@dpm:5 of the bank",
    "lidar+best-of-N": "the best of N guided samples",
    "refine": "the best of 20 few-step samples, noised half way and denoised in 10 steps; refine-50 of 50",
    "halving-N": "N seeds, halved at a quarter and at half of the steps; halving-16@10 in 10 steps",
    "fk": "FK steering, as many particles as images; fk+best-of-N keeps the best of N particles",
    "fk+lidar": "FK steering of LiDAR's guided sampler; fk+lidar+best-of-N",
    "das": "DAS, tempered particles with gradients, as many as images",
    "search-N": "zero-order search over initial noise, 4 rounds of N neighbours; search-4@8 of 8 rounds",
    "beam-BxK": "latent beam search, B beams of K candidates; beam-4x2@6 looks 6 steps ahead",
    "svdd": "soft value-based decoding with 20 proposals a step; svdd-4 with 4",
    "safe-denoiser": "repulsion from the posterior mean of the bank's 15 worst; safe-denoiser-5 of 5",
    "spell": "sparse repulsion from the bank's 40 worst; spell-10 from 10",
    "date": "gradients of the text embedding, every step; date@2 every second",
    "ug": "universal guidance with lambda 15; ug-3 with 3",
    "ug-backward": "universal guidance backward, 5 steps on each prediction; ug-backward-10 of 10",
}
"""The names that :func:`load` knows, with a line on each."""


def load(name: str) -> Method:
    """The method called ``name``.

    Raises:
        ValueError: no such method; the message names the nearest.

    Example:
        >>> load("best-of-12@10")
        BestOf(method=Vanilla(steps=10, solver=None), n=12)
        >>> load("lidar+best-of-8")
        BestOf(method=Guided(), n=8)
    """
    if match := re.fullmatch(r"(?:(lidar|fk|fk\+lidar)\+)?best-of-([1-9]\d*)(?:@(.+))?", name):
        inner, n, how = match.groups()
        if inner is None:
            return BestOf(_vanilla(how), int(n))
        if how is None:
            return BestOf(load(inner), int(n))
    if match := re.fullmatch(r"vanilla(?:@(.+))?", name):
        return _vanilla(match[1])
    if match := re.fullmatch(r"refine(?:-([1-9]\d*))?", name):
        return Refine(n=int(match[1])) if match[1] else Refine()
    if match := re.fullmatch(r"halving-([1-9]\d*)(?:@([1-9]\d*))?", name):
        return Halving(n=int(match[1]), steps=int(match[2]) if match[2] else None)
    if match := re.fullmatch(r"search-([1-9]\d*)(?:@([1-9]\d*))?", name):
        return NoiseSearch(rounds=int(match[2] or 4), neighbours=int(match[1]))
    if match := re.fullmatch(r"safe-denoiser(?:-([1-9]\d*))?", name):
        return SafeDenoiser(worst=int(match[1] or 15))
    if match := re.fullmatch(r"spell(?:-([1-9]\d*))?", name):
        return Spell(worst=int(match[1] or 40))
    if match := re.fullmatch(r"date(?:@([1-9]\d*))?", name):
        return DATE(every=int(match[1] or 1))
    if match := re.fullmatch(r"beam-([1-9]\d*)x([1-9]\d*)(?:@([1-9]\d*))?", name):
        return BeamSearch(*(int(number or 1) for number in match.groups()))
    if match := re.fullmatch(r"svdd(?:-([1-9]\d*))?", name):
        return SVDD(m=int(match[1])) if match[1] else SVDD()
    if match := re.fullmatch(r"ug-backward(?:-([1-9]\d*))?", name):
        return UniversalGuidance(0.0, backward_steps=int(match[1] or 5))
    if match := re.fullmatch(r"ug(?:-(\d+(?:\.\d+)?))?", name):
        return UniversalGuidance(float(match[1])) if match[1] else UniversalGuidance()
    if name == "das":
        return DAS()
    if name == "lidar":
        return Guided()
    if name in ("fk", "fk+lidar"):
        return FKSteering(guided=name == "fk+lidar")
    near = get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown method {name!r}; {hint}known are {', '.join(NAMES)}")


def _vanilla(how: str | None) -> Vanilla:
    """Plain sampling in ``how`` steps, or by the solver of that name."""
    if how is None or how.isdecimal():
        return Vanilla(steps=int(how) if how else None)
    return Vanilla(solver=load_solver(how))
