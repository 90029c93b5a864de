"""The Gaussian mixture of ``benchmarks/gaussian_mixture.py``: the error falls with n, but not the gradient's.

The floor is 0.001 to 0.023 over targets of this size, and 0.006 for the one here (its table is in docs); seeds are
fixed.
"""

import torch

from benchmarks.gaussian_mixture import POINTS, draw, draw_tilted, energy_distance, error_of_banks


def mean(errors):
    return sum(errors) / len(errors)


def test_error_falls_with_n_and_gradient_guidance_stays_biased():
    g = torch.Generator().manual_seed(1)
    target = draw_tilted(POINTS, g)
    vanilla = energy_distance(draw(), target)
    gradient = min(energy_distance(draw(tweedie=scale), target) for scale in (0.5, 1.0))
    few, some, many = (mean(error_of_banks(n, count, target, g)) for n, count in ((10, 6), (50, 4), (2000, 1)))
    assert few > some > many
    assert vanilla > some
    assert many < 0.015
    assert gradient > 2 * many
    assert gradient > 0.02
