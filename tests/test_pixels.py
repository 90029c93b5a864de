"""Preprocessing on tensors against Pillow's on the same pictures."""

import pytest
import torch
from pictures import by_pillow
from PIL import Image

from lidar_sampling.rewards import _pixels


def rough(height, width):
    """Return noise, for which resizing differs most."""
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1)) / 255


SHAPES = [(200, 260, 128), (260, 200, 96), (512, 384, 224), (48, 64, 96), (100, 31, 64), (131, 128, 128)]


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_crop_is_pillows_but_for_ties(height, width, size):
    """At most one value in 500 is a tie that rounds to the other side, by one grey level; all others are equal."""
    images = rough(height, width)
    short = min(height, width)
    new_height, new_width = int(size * height / short), int(size * width / short)
    expected = by_pillow(images, new_height, new_width)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    expected = expected[:, :, top : top + size, left : left + size]
    levels = (_pixels.crop_to_square(images, size) - expected).abs() * 255
    assert levels.max() < 1.001
    assert (levels > 0.001).double().mean() < 2e-3


@pytest.mark.parametrize(("name", "resample"), [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize(("height", "width", "size"), SHAPES[:4])
def test_stretch_is_pillows_but_for_ties(height, width, size, name, resample):
    images = rough(height, width)
    expected = by_pillow(images, size, size, Image.Resampling(resample))
    levels = (_pixels.stretch_to_square(images, size, name) - expected).abs() * 255
    assert levels.max() < 1.001
    assert (levels > 0.001).double().mean() < (5e-3 if name == "bicubic" else 0.1)  # bilinear ties are common


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_pad_is_pillow_on_floats_within_2e5(height, width, size):
    images = rough(height, width)
    scale = size / max(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    expected = torch.zeros(2, 3, size, size)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    for i in range(2):
        for channel in range(3):
            plane = Image.fromarray(images[i, channel].numpy(), mode="F").resize((new_width, new_height), 3)
            plane = torch.frombuffer(bytearray(plane.tobytes()), dtype=torch.float32).view(new_height, new_width)
            expected[i, channel, top : top + new_height, left : left + new_width] = plane
    assert (_pixels.pad_to_square(images, size) - expected).abs().max() < 2e-5


def test_pictures_of_the_right_size_are_not_touched():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for fit in (_pixels.crop_to_square, _pixels.stretch_to_square, _pixels.pad_to_square):
        assert torch.equal(fit(images, 32), images)


def test_preprocessing_follows_the_configuration_of_transformers():
    colours = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    crop = {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}, **colours}
    assert _pixels.Preprocessing.from_config(crop).fit is _pixels.crop_to_square
    assert _pixels.Preprocessing.from_config({**crop, "size": 8, "crop_size": 8}).size == 8
    square = _pixels.Preprocessing.from_config({"size": {"height": 8, "width": 8}, "resample": 2, **colours})
    assert (square.fit, square.filter, square.std) == (_pixels.stretch_to_square, "bilinear", (0.25,) * 3)
    for wrong in ({"crop_size": 6}, {"resample": 1}):
        with pytest.raises(ValueError, match="unknown preprocessing"):
            _pixels.Preprocessing.from_config({**crop, **wrong})
    with pytest.raises(ValueError, match=r"got shape \(3, 8, 8\)"):
        square(torch.rand(3, 8, 8))
