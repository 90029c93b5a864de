"""Checks of pictures at the entrance: the range that rewards expect, and one reader of files."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lidar_sampling._media import check_pictures, read_picture, read_sample

RANDOM = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "images",
    [
        RANDOM,
        RANDOM.half(),
        RANDOM.bfloat16(),
        RANDOM.double(),
        RANDOM[:, None].expand(2, 5, 3, 8, 6),
        RANDOM[:0],
        RANDOM + 5e-4,
        torch.tensor([[[-1.0, 1.0, 0.5]] * 2]),
    ],
)
def test_what_rewards_are_written_for(images):
    check_pictures(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((RANDOM * 255).byte(), r"must be floats in \[0, 1\], got torch\.uint8: give images\.float\(\) / 255"),
        (RANDOM.long(), r"got torch\.int64"),
        (RANDOM * 255, r"must lie in \[0, 1\], got values from .* to 25\d(\.\d+)?: give images / 255"),
        (RANDOM * 2 - 1, r"got values from -0\.9\d+ to 0\.9\d+: give \(images \+ 1\) / 2"),
        (RANDOM + 0.1, r"give images\.clamp\(0, 1\)"),
        (RANDOM - 1.5, r"give images\.clamp\(0, 1\)"),
        (RANDOM[:, :1], r"got \(2, 1, 8, 6\): repeat the one channel, images\.repeat_interleave\(3, dim=1\)"),
        (RANDOM[:, [0, 1, 2, 0]], r"got \(2, 4, 8, 6\): lay the pictures over white"),
        (RANDOM.movedim(1, -1), r"got \(2, 8, 6, 3\): move the channels, images\.movedim\(-1, -3\)"),
        (RANDOM[:, :, None].expand(2, 3, 5, 8, 6), r"move the channels, images\.movedim\(1, 2\)"),
        (torch.rand(3, 9, 9), r"got \(3, 9, 9\): give images\[None\], a batch of one"),
        (torch.rand(9, 9), r"got \(9, 9\)$"),
        (RANDOM / 0, "NaN or infinity: the decoder overflowed"),
        (RANDOM * float("nan"), "NaN or infinity: the decoder overflowed"),
        (torch.full((1, 2, 4), 20_000.0), r"audio must lie in \[-1, 1\], .*: give audio / 32768"),
        (torch.full((1, 2, 4), -1.5), r"give audio\.clamp\(-1, 1\)"),
    ],
)
def test_other_tensors_are_refused_with_the_mend(images, message):
    with pytest.raises(ValueError, match=message):
        check_pictures(images)


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match="images must be a tensor, got ndarray"):
        check_pictures(RANDOM.numpy())


def written(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def transparent(mode, color):
    return Image.new(mode, (4, 2), color)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (transparent("RGBA", (0, 0, 0, 0)), 1.0),
        (transparent("LA", (0, 0)), 1.0),
        (transparent("RGBA", (0, 0, 0, 128)), 127 / 255),
        (transparent("L", 51), 0.2),
        (transparent("1", 1), 1.0),
        (transparent("RGB", (51, 51, 51)).convert("P"), 0.2),
    ],
)
def test_a_file_and_its_bytes_are_the_same_picture(tmp_path, image, expected):
    content = written(image)
    (tmp_path / "a.png").write_bytes(content)
    picture = read_picture(content)
    assert picture.shape == (3, 2, 4)
    torch.testing.assert_close(picture, torch.full((3, 2, 4), expected), rtol=0, atol=1e-6)
    assert torch.equal(read_picture(tmp_path / "a.png"), picture)
    assert torch.equal(read_sample(tmp_path / "a.png"), picture)


def test_a_colour_that_is_transparent_is_white():
    picture = read_picture(written(Image.new("RGB", (2, 2), (0, 255, 0)), transparency=(0, 255, 0)))
    assert picture.min() == 1


def test_a_picture_that_moves_is_no_picture_but_a_sample(tmp_path):
    first, *others = (Image.new("RGB", (4, 4), (value,) * 3) for value in (0, 255, 0))
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, lossless=True)
    with pytest.raises(ValueError, match=r"a\.webp holds 3 pictures, not one"):
        read_picture(tmp_path / "a.webp")
    assert read_sample(tmp_path / "a.webp").mean((1, 2, 3)).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            written(Image.fromarray(np.zeros((4, 4), np.uint16))),
            {},
            "has pixels of mode I(;16)?: save it with 8 bits",
        ),
        (written(Image.effect_noise((64, 64), 50))[:900], {}, "cannot be read: "),
        (b"no picture", {}, "is not a picture"),
        (b"", {}, "is not a picture"),
        (written(Image.new("RGB", (4, 4)), "JPEG"), {"formats": ("PNG",)}, "is not a PNG"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path, content, options, message):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_picture(tmp_path / "x.png", **options)
    assert "x.png" in str(refused.value)
    with pytest.raises(ValueError, match=f"^image 3 {message}"):
        read_picture(content, name="image 3", **options)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"x\.png cannot be read: .*decompression bomb"):
        read_picture(tmp_path / "x.png")


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        read_picture("nowhere.png")


def png_of(depth, kind, row, transparent=b""):
    """Write a PNG of one pixel by hand, for kinds that Pillow does not write."""

    def chunk(name, content):
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, kind, 0, 0, 0)),
            chunk(b"tRNS", transparent) if transparent else b"",
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused_in_any_mode(kind, channels):
    with pytest.raises(ValueError, match=r"^x (has 16 bits a channel|has pixels of mode I).*: save it with 8"):
        read_picture(png_of(16, kind, b"\x12\x34" * channels), name="x")
    if kind in (0, 2):
        with pytest.raises(ValueError, match=r"save it with 8"):
            read_picture(png_of(16, kind, b"\x12\x34" * channels, b"\x12\x34" * channels), name="x")


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_level_that_is_transparent_is_white_at_any_depth(depth):
    most = 2**depth - 1
    for level in range(most + 1):
        pixel = bytes([level << (8 - depth)])
        for clear in {0, level, most}:
            picture = read_picture(png_of(depth, 0, pixel, struct.pack(">H", clear)))
            expected = 1.0 if level == clear else level / most
            torch.testing.assert_close(picture, torch.full((3, 1, 1), expected), rtol=0, atol=1e-6)
