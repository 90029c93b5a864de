"""The Gaussian mixture of ``benchmarks/mixture.py``: the error falls with n to its floor, the gradient's does not.

Bounds leave room for the scatter of an energy distance at 1,000 points, about 0.003 (its table is in docs); seeds
are fixed.
"""

import torch

from benchmarks.mixture import POINTS, draw, energy_distance, error_of_banks, exact_tilted


def mean(errors):
    return sum(errors) / len(errors)


def test_error_falls_with_n_and_gradient_guidance_stays_biased():
    g = torch.Generator().manual_seed(1)
    target = exact_tilted(POINTS, g)
    vanilla = energy_distance(draw(), target)
    gradient = min(energy_distance(draw(tweedie=scale), target) for scale in (0.5, 1.0))
    few, some, many = (mean(error_of_banks(n, count, target, g)) for n, count in ((10, 6), (50, 4), (2000, 1)))
    assert few > some > many
    assert vanilla > some
    assert many < 0.015
    assert gradient > 2 * many
    assert gradient > 0.02
