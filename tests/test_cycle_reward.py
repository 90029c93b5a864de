"""CycleReward on tiny random weights, against a restatement under the names of its published weights."""

import logging

import pytest
import torch
import torch.nn.functional as F
from pictures import PROMPTS, WORDS, bert_tokenizer, pictures, tiny
from restated import image_reward_restated

from benchmarks.peers.shapes import image_reward_shapes
from lidar_sampling import rewards
from lidar_sampling._contents import contents
from lidar_sampling._hub import Published
from lidar_sampling.rewards._pixels import crop_to_square
from lidar_sampling.rewards.cycle_reward import CONTEXT, CycleReward

TEXT, HEAD = 64, (32, 16, 8, 4)
SIZES = {"width": 128, "layers": 2, "text": TEXT, "text_layers": 2, "vocabulary": 15, "patch": 8, "side": 32}
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of ImageReward, which the restatement of its encoders applies


def cycle_weights():
    """Return a small checkpoint in the layout of CycleReward-Combo.pth, with unused weights."""
    random = tiny(9)
    shapes = image_reward_shapes(**SIZES, positions=140, head=HEAD)
    shapes["blip.vision_proj.weight"], shapes["blip.text_proj.weight"] = (16, 128), (16, TEXT)
    for part in ("weight", "bias"):
        shapes[f"mlp.layers.8.{part}"] = shapes.pop(f"mlp.layers.7.{part}")
    scales = {name: "norm" in name.lower() and name.endswith("weight") for name in shapes}
    weights = {name: random(*shape) + scales[name] for name, shape in shapes.items()}
    weights |= {name: 2 * value for name, value in weights.items() if name.startswith("mlp.")}  # GELU shrinks
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(140)[None]
    return weights


def first_token(weights, image, ids, mask):
    """Return the first token of BLIP's BERT, one channel at a time, by an ImageReward head that passes it through."""
    weights = {name: value for name, value in weights.items() if not name.startswith("mlp.")}
    for number in (0, 2, 4, 6):
        weights[f"mlp.layers.{number}.weight"], weights[f"mlp.layers.{number}.bias"] = (
            torch.eye(TEXT),
            torch.zeros(TEXT),
        )
    weights["mlp.layers.7.bias"] = torch.zeros(1)
    channels = []
    for channel in torch.eye(TEXT):
        weights["mlp.layers.7.weight"] = channel[None]
        channels.append(image_reward_restated(weights, image, ids, mask) * STD + MEAN)
    return torch.stack(channels, 1)


def cycle_restated(weights, image, prompt):
    ids = [1, *[4 + WORDS.index(word) for word in prompt.split()][: 128 - 2], 2]
    ids = torch.tensor([ids + [3] * (128 - len(ids))])
    x = first_token(weights, image[None], ids, (ids != 3).long())
    for number in (0, 2, 4, 6, 8):
        x = F.linear(x, weights[f"mlp.layers.{number}.weight"], weights[f"mlp.layers.{number}.bias"])
        x = x * 0.5 * (1 + torch.erf(x * 0.5**0.5)) if number < 8 else x
    return x.item()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("cycle-reward") / "CycleReward-Combo.pth"
    torch.save(cycle_weights(), path)
    return path


@pytest.fixture(scope="module")
def cycle_reward(checkpoint, bert):
    return CycleReward(checkpoint, tokenizer=bert)


def test_cycle_reward_is_the_published_model_one_image_at_a_time(cycle_reward):
    images = pictures(3, 32)
    expected = [cycle_restated(cycle_weights(), *pair) for pair in zip(images, PROMPTS, strict=True)]
    scores = cycle_reward(images=images, prompts=PROMPTS)
    assert scores.std() > 0.01
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_pictures_are_resized_by_their_short_side_and_cut(cycle_reward):
    """``test_pixels.py`` compares this with Pillow."""
    wide = pictures(1, 64, 96)
    scores = [cycle_reward(images=images, prompts=PROMPTS[:1]) for images in (wide, crop_to_square(wide, 32))]
    assert torch.equal(*scores)


def test_the_batch_does_not_matter(cycle_reward):
    images = pictures(3, 60, 44)
    whole = rewards.score(cycle_reward, images=images, prompts=PROMPTS)
    single = rewards.score(cycle_reward, images=images, prompts=PROMPTS, batch_size=1)
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_pixels(cycle_reward):
    images = pictures(2, 40, 50).requires_grad_()
    assert cycle_reward.differentiable
    (gradient,) = torch.autograd.grad(cycle_reward(images=images, prompts=PROMPTS[:2]).sum(), images)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).min() > 0


def test_long_prompts_are_read_to_128_tokens_and_the_first_is_logged(checkpoint, bert, caplog):
    reward, image, prompt = CycleReward(checkpoint, tokenizer=bert), pictures(1, 32), "a red cup " * 60
    before = contents(reward)
    with caplog.at_level(logging.WARNING, "lidar_sampling"):
        scores = reward(images=image, prompts=[prompt])
        reward(images=image, prompts=["two dogs " * 90])
    assert scores.item() == pytest.approx(cycle_restated(cycle_weights(), image[0], prompt), rel=1e-5, abs=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        f"CycleReward reads {CONTEXT} tokens and cuts the 182 of {prompt!r}"
    ]
    assert contents(reward) == before


def test_bfloat16_models_return_float32(checkpoint, bert):
    half, full = (
        CycleReward(checkpoint, tokenizer=bert, dtype=dtype)(images=pictures(3, 32), prompts=PROMPTS)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.2 * full.abs().max()


def of_image_reward(weights):
    for part in ("weight", "bias"):
        weights[f"mlp.layers.7.{part}"] = weights.pop(f"mlp.layers.8.{part}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_image_reward, r"every other layer from 0, got \[0, 2, 4, 6, 7\]; is it ImageReward's"),
        (lambda w: w.pop("blip.visual_encoder.norm.bias"), "does not fit BlipVisionModel: 1 weights differ"),
        (lambda w: w.pop("blip.visual_encoder.pos_embed"), "it lacks 'pos_embed'"),
        (lambda w: w.pop("mlp.layers.8.bias"), "a head has weights"),
        (lambda w: w.update({"blip.text_encoder.pooler.weight": torch.zeros(1)}), "does not fit BlipTextModel"),
        (lambda w: w.update({"blip.itm_head.weight": torch.zeros(1)}), r"unknown weight blip\.itm_head\.weight"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("mlp.")], r"it has no mlp\.\*"),
    ],
)
def test_another_checkpoint_is_refused_by_name(tmp_path, bert, change, message):
    weights = cycle_weights()
    change(weights)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"^.*other\.pth is no CycleReward checkpoint: .*{message}") as caught:
        CycleReward(tmp_path / "other.pth", tokenizer=bert)
    assert "\n" not in str(caught.value)


def test_no_checkpoint_and_a_missing_one_say_what_to_do(bert):
    with pytest.raises(
        ValueError, match=r"got no checkpoint: download https://github\.com/hjbahng/cyclereward/.*pth"
    ):
        CycleReward(None, tokenizer=bert)
    with pytest.raises(FileNotFoundError, match=r"no weights at nowhere\.pth"):
        CycleReward("nowhere.pth", tokenizer=bert)


@pytest.mark.parametrize(("variant", "name"), [("Combo", ""), ("I2T", "-i2t"), ("T2I", "-t2i")])
def test_published_variants_have_names_of_their_own(checkpoint, bert, monkeypatch, variant, name):
    monkeypatch.setattr(Published, "download", lambda self: checkpoint)
    published = Published(f"carolineec/CycleReward-{variant}", "MIT", "weights.pth")
    assert CycleReward(published, tokenizer=bert).name == f"cycle-reward{name}"


def test_as_many_images_as_prompts(cycle_reward):
    assert cycle_reward.name.startswith("cycle-reward:")
    with pytest.raises(ValueError, match="must have the same length, got 2 and 1"):
        cycle_reward(images=pictures(2), prompts=["a cat"])
