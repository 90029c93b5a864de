"""Previews of samples during drawing."""

import pytest
import torch

from lidar_sampling import LiDAR, testing
from lidar_sampling._decode import decode

HOW = {"reward": "brightness", "n": 4, "steps": 6, "scale": 1.0, "reward_scale": 5.0}


@pytest.fixture
def lidar():
    return LiDAR(testing.tiny_stable_diffusion(), batch_size=2, **HOW)


def test_showing_changes_nothing(lidar):
    seen = []
    shown = lidar.with_live_preview(seen.append, every=2)(["a cat", "a dog"], images=2)
    assert torch.equal(shown.images, lidar(["a cat", "a dog"], images=2).images)
    assert [(g.phase, g.prompts[0], g.step, g.total) for g in seen if g.phase == "lookahead"] == [
        ("lookahead", "a cat", 2, 8),
        ("lookahead", "a cat", 4, 8),
        ("lookahead", "a dog", 6, 8),
        ("lookahead", "a dog", 8, 8),
    ]
    assert [g.step for g in seen if g.phase == "sampling"] == [2, 4, 6, 2, 4, 6]  # PNDM takes seven


def test_what_is_shown_is_the_guided_prediction(lidar):
    """At the first step x_t is the same with and without guidance, so the difference is the guidance."""

    def first(scale):
        seen = []
        lidar.with_settings(scale=scale).with_live_preview(seen.append, every=1)("a cat", images=2)
        return next(g for g in seen if g.phase == "sampling").images

    plain = []
    lidar.with_live_preview(plain.append, every=1).vanilla("a cat", images=2)
    assert torch.equal(first(0.0), plain[0].images)
    assert (first(30.0) - plain[0].images).abs().max() > 1e-4


def test_a_method_of_its_own_is_shown_too(lidar):
    from lidar_sampling import methods

    seen = []
    methods.load("best-of-4").draw(lidar.with_live_preview(seen.append, every=3), ["a cat"], images=1, seed=0)
    assert [len(g.images) for g in seen] == [2, 2, 2, 2]


def test_packed_latents_are_decoded():
    seen = []
    lidar = LiDAR(testing.tiny_flux(), **HOW).with_live_preview(seen.append, every=3)
    result = lidar.sample(["a cat"], 2, 0)
    assert [g.images.shape for g in seen] == [result.images[0].shape]
    assert torch.equal(result.images[0], decode(lidar.pipe, result.latents[0], lidar.arguments()))


def test_a_pipeline_that_cannot_be_decoded_apart_is_drawn_all_the_same(lidar, monkeypatch):
    def refuse(*_):
        raise TypeError("cannot")

    monkeypatch.setattr("lidar_sampling._live.Decoder", refuse)
    seen = []
    result = lidar.with_live_preview(seen.append).vanilla("a cat", images=2)
    assert torch.equal(result.images, lidar.vanilla("a cat", images=2).images)
    assert seen == []


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_steps_between_two_must_be_whole(lidar, every):
    with pytest.raises(ValueError, match="every must be"):
        lidar.with_live_preview(print, every=every)
