"""Rewards without weights of their own: the size of a JPEG, and the text in a picture."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from lidar_sampling import rewards
from lidar_sampling.rewards.jpeg import JPEGSize
from lidar_sampling.rewards.ocr import OCR, edit_distance, read_quote

WORDS = st.text("ab", max_size=6)


def test_the_size_is_that_of_the_file():
    image = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    pixels = (image[0] * 255).round().byte().movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    for name, sign in (("jpeg-incompressibility", 1), ("jpeg-compressibility", -1)):
        reward = rewards.load(name)
        assert reward.name == name
        value = reward(images=image, prompts=["x"]).item()
        assert value == pytest.approx(sign * len(file.getvalue()) / 1000)
    assert JPEGSize(1)(images=torch.full((1, 3, 8, 8), 1.01), prompts=["x"]) == JPEGSize(1)(
        images=torch.ones(1, 3, 8, 8), prompts=["x"]
    )  # white, not wrapped to black
    with pytest.raises(ValueError, match="quality must be 1 to 95, got 0"):
        JPEGSize(1, quality=0)


def written(text, size=40):
    picture = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(picture).text((12, 40), text, fill="black", font=ImageFont.load_default(size=size))
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def test_text_is_read():
    pytest.importorskip("rapidocr", reason="needs the extra ocr")
    reward = rewards.load("ocr")
    images = torch.stack([written("Hello World"), written("Hello"), written("")])
    right = reward(images=images, prompts=['a page that says "Hello World"'] * 3)
    assert right[0] == 1
    assert right[1] == pytest.approx(0.5)  # five of ten letters
    assert right[2] == 0
    assert reward(images=images[:1], prompts=['a page that says "Goodbye"']) < 0.5


def test_a_reader_of_ones_own():
    seen = []

    def reader(image):
        seen.append((image.shape, image.dtype))
        return ["GRAND", "opening"]

    reward = OCR(reader=reader)
    assert reward(images=torch.zeros(1, 3, 4, 6), prompts=["“Grand Opening” on a door"]) == 1
    assert seen == [((4, 6, 3), np.uint8)]


def test_a_reader_that_fails_is_an_error():
    def broken(image):
        raise OSError("no camera")

    with pytest.raises(rewards.RewardError, match="reward 'ocr' raised OSError: no camera"):
        rewards.score(OCR(reader=broken), images=torch.zeros(1, 3, 4, 4), prompts=['"x"'])


@pytest.mark.parametrize("prompt", ["a cat", 'says "', 'says ""', 'says "  "'])
def test_a_prompt_that_quotes_nothing(prompt):
    with pytest.raises(ValueError, match="must quote the text to read"):
        read_quote(prompt)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r"pip install 'lidar-sampling\[ocr\]'"):
        OCR()


@given(a=WORDS, b=WORDS, c=WORDS)
def test_the_edit_distance_is_a_metric(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(a, a + b) == len(b)


@given(read=st.text("abc ", max_size=8), target=st.text("abc", min_size=1, max_size=8))
def test_the_reward_lies_between_0_and_1(read, target):
    value = OCR(reader=lambda image: [read])(images=torch.zeros(1, 3, 2, 2), prompts=[f'says "{target}"']).item()
    assert 0 <= value <= 1
    assert (value == 1) == (target in read.replace(" ", ""))


def test_a_prompt_that_quotes_nothing_is_refused_before_anything_is_drawn():
    reward = OCR(reader=lambda image: [])
    rewards.check_prompts(reward, ['a sign that says "OPEN"', {"prompt": "a bus with “42”"}])
    with pytest.raises(
        ValueError, match="reward 'ocr' cannot read the prompt 'a cat': the prompt must quote the text"
    ):
        rewards.check_prompts(reward, ['a sign that says "OPEN"', "a cat"])


def test_what_tells_a_reader_apart():
    """The engine is identified by its version and settings, which are plain values; a user's reader by its code."""
    assert not hasattr(OCR(reader=lambda image: []), "fingerprint")
    pytest.importorskip("rapidocr", reason="needs the extra ocr")
    found = rewards.load("ocr").fingerprint
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["rapidocr"]
