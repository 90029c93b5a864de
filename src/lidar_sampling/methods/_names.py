"""Methods by name, for the command line and for results."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from typing import Any, get_type_hints

from .._values import check_settings, read_named
from ..solvers import load as load_solver
from ._face import Method
from .backtracking import Backtracking
from .beam_search import BeamSearch
from .best_of import BestOf
from .das import DAS
from .date import DATE
from .evolution import PUBLISHED, EvoSearch
from .fk_steering import FKSteering
from .fmrg import FMRG
from .group import Group
from .halving import Halving
from .lidar import Guided
from .noise_search import NoiseSearch
from .refine import Refine
from .reno import ReNO
from .repulsion import Repelling, SafeDenoiser, Spell
from .rollover import RBF
from .steered import Steered
from .svdd import SVDD
from .threshold import Threshold
from .tree import DTS
from .universal_guidance import UniversalGuidance
from .vanilla import Vanilla


def _fields_of_drawing(how: str | None) -> dict[str, Any]:
    """Return the fields that say how samples are drawn: in ``how`` steps, or by the solver of that name."""
    if how is None or how.isdecimal():
        return {"steps": int(how)} if how else {}
    return {"solver": load_solver(how)}


def _vanilla(how: str | None) -> Vanilla:
    """Return plain sampling in ``how`` steps, or by the solver of that name."""
    return Vanilla(**_fields_of_drawing(how))


def _number(text: str | None, field: str) -> dict[str, Any]:
    """Return the field as a keyword, or nothing where no number was given."""
    return {field: int(text)} if text else {}


_N = r"([1-9]\d*)"
_INNER: dict[str, Callable[[], Method]] = {
    "lidar": Guided,
    "fk": FKSteering,
    "fk+lidar": lambda: FKSteering(guided=True),
}
# Name, pattern with a group for each part that varies, function from the groups to the method, line for people.
_TABLE: list[tuple[str, str, Callable[..., Method], str]] = [
    (
        "vanilla",
        r"vanilla(?:@(.+))?",
        _vanilla,
        "the pipeline alone; vanilla@25 in 25 steps, vanilla@dpm:5 by a few-step solver",
    ),
    ("lidar", "(lidar)", lambda name: _INNER[name](), "LiDAR with the settings of the model; lidar:n=9,scale=3"),
    (
        "lidar-paper",
        "lidar-paper",
        lambda: Guided(n=50, scale=12.5, reward_scale=5000.0),
        "LiDAR with n, scale and reward_scale as published for SD 1.5",
    ),
    (
        "best-of-N",
        rf"best-of-{_N}(?:@(.+))?",
        lambda n, how: BestOf(_vanilla(how), int(n)),
        "the best of N vanilla samples; best-of-12@10 in 10 steps, best-of-50@dpm:5 of the bank; "
        "best-of-12:diverse=1 keeps the best set",
    ),
    (
        "lidar+best-of-N",
        rf"(lidar|fk|fk\+lidar)\+best-of-{_N}",
        lambda inner, n: BestOf(_INNER[inner](), int(n)),
        "the best of N guided samples; fk+best-of-N and fk+lidar+best-of-N of N particles",
    ),
    (
        "refine-N",
        rf"refine(?:-{_N})?",
        lambda n: Refine(**_number(n, "n")),
        "the best of N few-step samples (20), noised half way and denoised in 10 steps",
    ),
    (
        "halving-N",
        rf"halving-{_N}(?:@{_N})?",
        lambda n, steps: Halving(int(n), **_number(steps, "steps")),
        "N seeds, halved after a quarter and half of the steps (PSP); halving-16@10 in 10 steps",
    ),
    (
        "steered-N",
        rf"steered-{_N}(?:@{_N})?",
        lambda n, steps: Steered(int(n), **_number(steps, "steps")),
        "best of N samples that are resampled early, to half their number in effect; steered-12@10 in 10 steps, "
        "steered-12:islands=4 in four populations, for images that differ",
    ),
    (
        "group-N",
        rf"group-{_N}(?:@{_N})?",
        lambda n, steps: Group(int(n), **_number(steps, "steps")),
        "N candidates, of which the best set goes on after each step, half as large (group inference); group-16@10",
    ),
    (
        "threshold-N",
        rf"threshold-{_N}(?:@{_N})?",
        lambda n, steps: Threshold(int(n), **_number(steps, "steps")),
        "N samples' worth of proposals, part by part, each tried again until the reward reaches a threshold",
    ),
    ("fk", "(fk)", lambda name: _INNER[name](), "FK steering, as many particles as images"),
    ("fk+lidar", r"(fk\+lidar)", lambda name: _INNER[name](), "FK steering of LiDAR's guided sampler"),
    ("das", "das", DAS, "DAS, tempered particles with gradients, as many as images"),
    (
        "svdd-M",
        rf"svdd(?:-{_N})?",
        lambda m: SVDD(**_number(m, "m")),
        "soft value-based decoding with M proposals a step (20)",
    ),
    (
        "beam-BxK",
        rf"beam-{_N}x{_N}(?:@{_N})?",
        lambda b, k, ahead: BeamSearch(int(b), int(k), **_number(ahead, "lookahead")),
        "latent beam search, B beams of K candidates; beam-4x2@6 looks 6 steps ahead",
    ),
    (
        "evo-N",
        rf"evo(?:-{_N})?(?:@{_N})?",
        lambda n, steps: EvoSearch.of_size(int(n or PUBLISHED[0]), **_number(steps, "steps")),
        "evolutionary search (EvoSearch): N samples (42), and generations born of the best on the way; evo-12@25",
    ),
    (
        "rbf-M",
        rf"rbf(?:-{_N})?(?:@{_N})?",
        lambda m, steps: RBF(**_number(m, "m"), **_number(steps, "steps")),
        "rollover budget forcing, M proposals a step (22), of which what is left rolls over; rbf-8@10 in 10 steps",
    ),
    (
        "search-N",
        rf"search-{_N}",
        lambda n: NoiseSearch(neighbours=int(n)),
        "zero-order search over initial noise, 4 rounds of N neighbours",
    ),
    (
        "dts-N",
        rf"dts-{_N}(?:@{_N})?",
        lambda n, steps: DTS(int(n), **_number(steps, "steps")),
        "diffusion tree search at the cost of N samples; dts-8:widening=1,power=0.5 branches early, sampling=True "
        "draws from the tree",
    ),
    (
        "dfs-N",
        rf"dfs-{_N}(?:@{_N})?",
        lambda n, steps: Backtracking(int(n), **_number(steps, "steps")),
        "depth-first search, N backtracks an image, each a quarter of the steps; dfs-11:depth=3 goes back three",
    ),
    ("ug", "ug", UniversalGuidance, "universal guidance, forward, with lambda 15; ug:recurrence=2"),
    (
        "ug-backward",
        "ug-backward",
        lambda: UniversalGuidance(0.0, backward_steps=5),
        "universal guidance, backward, 5 steps on each prediction",
    ),
    (
        "fmrg",
        "fmrg",
        FMRG,
        "FMRG without a flow map: gradients as long as the velocity, in the first quarter of the steps; "
        "fmrg:rule=adam as its runs were",
    ),
    (
        "reno-N",
        rf"reno(?:-{_N})?(?:@(.+))?",
        lambda n, how: ReNO(**_number(n, "n"), **_fields_of_drawing(how)),
        "N steps of gradient descent on the noise of a few-step sample (50), the bank's or reno-50@dpm:1",
    ),
    ("date", "date", DATE, "gradients of the text embedding, every step; date:every=2"),
    ("safe-denoiser", "safe-denoiser", SafeDenoiser, "repulsion from the posterior mean of the bank's 15 worst"),
    ("spell", "spell", Spell, "sparse repulsion from the bank's 40 worst; spell:radius=20"),
]
NAMES = {name: line for name, _, _, line in _TABLE}
"""The names that :func:`load` knows, with a line on each; any field of a method can be set behind a colon."""


def load(name: str) -> Method:
    """Return the method called ``name``, with the fields that are set behind a colon.

    Raises:
        ValueError: no such method or no such field; the message names the nearest.

    Example:
        >>> load("best-of-12@10")
        BestOf(method=Vanilla(steps=10, solver=None), n=12, diverse=0.0)
        >>> load("fk:reward_scale=2,adaptive=True").adaptive
        True
        >>> load("lidar+best-of-8:scale=3.0").method.scale
        3.0
    """
    base, *settings = re.split(r"[:,](?=\w+=)", name)
    method = _find_method(base)
    try:
        changes = read_named(settings, name)
        return _with_fields(method, changes) if changes else method
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def draws_each_alone(name: str) -> bool:
    """Return whether a method draws its samples independently, so that one of them can be drawn again alone.

    >>> draws_each_alone("lidar:scale=3"), draws_each_alone("best-of-4")
    (True, False)
    """
    return isinstance(load(name), Guided | Vanilla)


def with_number(name: str, n: int) -> str:
    """Return ``name`` with ``n`` where it has a capital N for a number.

    >>> with_number("best-of-N@10", 7), with_number("vanilla", 7)
    ('best-of-7@10', 'vanilla')
    """
    return re.sub(r"\bN\b", str(n), name)


def check_name(name: str) -> str:
    """Refuse a name that is not a method's; return it, with some number that the method takes for a capital N.

    Raises:
        ValueError: the name is unknown, or no number up to 64 suits its settings.

    >>> check_name("steered-N:islands=3"), check_name("fk")
    ('steered-3:islands=3', 'fk')
    """
    return with_number(name, least_number(lambda n: load(with_number(name, n)), 64))


def least_number(take: Callable[[int], object], most: int) -> int:
    """Return the smallest number up to ``most`` that ``take`` does not refuse: some methods want multiples, or many.

    Raises:
        ValueError: it refuses them all; the message is that of the last.
    """
    for n in range(1, most):
        try:
            take(n)
        except ValueError:
            continue
        return n
    take(most)
    return most


def split(names: str) -> list[str]:
    """Split a comma-separated list of names, whose settings have commas too.

    >>> split("vanilla,lidar:n=9,scale=3,halving-8:keep_at=[0.25,0.5]")
    ['vanilla', 'lidar:n=9,scale=3', 'halving-8:keep_at=[0.25,0.5]']
    """
    return re.split(r",(?!\w+=)(?![^\[\](),]*(?:,[^\[\](),]*)*[\])])", names)


def draws_banks(method: Any) -> bool:
    """Return whether a method draws a bank for each prompt, or selects from one that does.

    >>> [draws_banks(load(name)) for name in ("lidar", "lidar+best-of-2", "spell", "fk+lidar", "fk", "best-of-2")]
    [True, True, True, True, False, False]
    """
    inner = getattr(method, "method", None)
    guided = isinstance(method, Guided | Repelling) or getattr(method, "guided", False)
    return guided or (inner is not None and draws_banks(inner))


def _with_fields(method: Any, changes: dict[str, Any]) -> Any:
    """Return ``method`` with other fields; best-of-N passes on the fields of the method that it selects from."""
    if is_dataclass(inner := getattr(method, "method", None)):
        own = {name: value for name, value in changes.items() if name == "diverse"}
        rest = {name: value for name, value in changes.items() if name not in own}
        check_settings(type(method).__name__, own, get_type_hints(type(method)))
        return replace(method, **own, **({"method": _with_fields(inner, rest)} if rest else {}))
    check_settings(type(method).__name__, changes, get_type_hints(type(method)))
    return replace(method, **changes)


def _find_method(name: str) -> Method:
    for _, pattern, make, _ in _TABLE:
        if match := re.fullmatch(pattern, name):
            return make(*match.groups())
    if name in NAMES:
        raise ValueError(f"{name} stands for many methods: give numbers in the place of its capital letters")
    near = get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown method {name!r}; {hint}known are {', '.join(NAMES)}")
