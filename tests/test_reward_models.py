"""Reward models on tiny random weights, against restatements of the originals under their published names."""

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pictures import CLIP_MEAN, CLIP_STD, PROMPTS, WORDS, bert_tokenizer, by_pillow, pictures, tiny, words_tokenizer
from PIL import Image
from restated import image_reward_restated, image_reward_weights, openclip_restated, openclip_weights
from transformers import CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel

from lidar_sampling import rewards
from lidar_sampling._contents import contents
from lidar_sampling._hub import Published
from lidar_sampling.glyph import DATA
from lidar_sampling.rewards import _weights
from lidar_sampling.rewards.aesthetic import Aesthetic
from lidar_sampling.rewards.clip import CLIPReward, PickScore
from lidar_sampling.rewards.hps import HPS
from lidar_sampling.rewards.image_reward import ImageReward

# CLIP, SigLIP, PickScore


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Save a tiny SigLIP whose tokenizer does not lower the case itself."""
    path = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 2 + len(WORDS), "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    model = SiglipModel(config)
    model.logit_scale.data.fill_(math.log(20.0))
    model.logit_bias.data.fill_(-3.0)
    model.save_pretrained(path)
    words_tokenizer(["<unk>", "</s>"], pad_token="</s>", eos_token="</s>").save_pretrained(path)
    processor = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def test_siglip_is_the_logit_of_transformers(siglip):
    images = pictures(3, 40, 56)
    ids = [[2 + WORDS.index(word) for word in prompt.split()] for prompt in PROMPTS]
    ids = torch.tensor([row + [1] * (64 - len(row)) for row in ids])
    pixels = (by_pillow(images, 32, 32) - 0.5) / 0.5
    with torch.no_grad():
        logits = SiglipModel.from_pretrained(siglip).eval()(input_ids=ids, pixel_values=pixels).logits_per_image
    ours = CLIPReward(siglip)(images=images, prompts=PROMPTS)
    torch.testing.assert_close(ours, logits.diagonal(), rtol=0, atol=2e-3)  # one level of the pixels, times 20
    shouted = CLIPReward(siglip)(images=images, prompts=[prompt.upper() for prompt in PROMPTS])
    assert torch.equal(shouted, ours)


def test_pickscore_is_the_logit_of_its_clip():
    model = CLIPModel.from_pretrained(DATA / "reward-clip", dtype=torch.float32).eval()
    tokens = CLIPTokenizer.from_pretrained(DATA / "reward-clip")(PROMPTS, padding=True, return_tensors="pt")
    images = pictures()
    with torch.no_grad():
        logits = model(**tokens, pixel_values=(images - 0.5) / 0.5).logits_per_image.diagonal()
    reward = PickScore(DATA / "reward-clip")
    torch.testing.assert_close(reward(images=images, prompts=PROMPTS), logits, rtol=1e-4, atol=1e-4)
    assert reward.name == f"pickscore:{DATA / 'reward-clip'}"


def test_published_pickscore_takes_the_processor_of_the_clip_it_was_trained_from(monkeypatch):
    class LoadedError(Exception):
        pass

    def load(source, *, processor, device, dtype):
        raise LoadedError(source.repo, processor)

    monkeypatch.setattr("lidar_sampling.rewards.clip.Towers.load", load)
    with pytest.raises(LoadedError) as caught:
        rewards.load("pickscore")
    assert caught.value.args == ("yuvalkirstain/PickScore_v1", _weights.CLIP_H)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ValueError, match="siglip2 model, not CLIP or SigLIP; of SigLIP 2 the models of fixed"):
        CLIPReward(tmp_path)


def test_as_many_images_as_prompts():
    with pytest.raises(ValueError, match="must have the same length, got 2 and 1"):
        rewards.load("glyph")(images=pictures(2), prompts=["a cat"])


# Weights


def test_published_weights_load_at_their_commit_and_say_what_to_do_offline(tmp_path):
    class Hub:
        @staticmethod
        def from_pretrained(repo, *, revision):
            if repo == "someone/there":
                return revision
            raise OSError("long\nstory")

    assert _weights.load_pretrained(Hub.from_pretrained, Published("someone/there", "MIT", revision="abc")) == "abc"
    with pytest.raises(FileNotFoundError, match="'hf download someone/away --revision abc'"):
        _weights.load_pretrained(Hub.from_pretrained, Published("someone/away", "MIT", revision="abc"))
    for path in ("/nowhere", "./nowhere", "some/where/else"):
        with pytest.raises(FileNotFoundError, match=f"^no model at {path}$"):
            _weights.load_pretrained(Hub.from_pretrained, path)
    with pytest.raises(FileNotFoundError, match=r"is no complete model: long$"):
        _weights.load_pretrained(Hub.from_pretrained, tmp_path)


def test_every_published_reward_is_pinned():
    published = {name: entry.published for name, entry in rewards.REGISTRY.items() if entry.published}
    assert {"image-reward", "hpsv2", "hpsv2.1", "pickscore", "clip", "aesthetic", "vqascore"} <= published.keys()
    unconfirmed = {"edit-reward"}  # no public code names its commit
    assert {name for name, weights in published.items() if len(weights.revision or "") != 40} == unconfirmed
    assert published["clip"] == _weights.CLIP_L
    assert all(weights.commercial for weights in published.values())


# ImageReward


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory, bert):
    path = tmp_path_factory.mktemp("image-reward") / "ImageReward.pt"
    torch.save(image_reward_weights(), path)
    return ImageReward(path, tokenizer=bert)


def bert_ids(prompts):
    rows = [[1, *[4 + WORDS.index(word) for word in prompt.split()][:33], 2] for prompt in prompts]
    ids = torch.tensor([row + [3] * (35 - len(row)) for row in rows])
    return ids, (ids != 3).long()


def test_image_reward_is_the_published_model_bit_for_bit(image_reward):
    images = pictures(3, 32)
    expected = image_reward_restated(image_reward_weights(), images, *bert_ids(PROMPTS))
    scores = image_reward(images=images, prompts=PROMPTS)
    assert expected.std() > 0.01
    assert torch.equal(scores, expected)


def test_image_reward_cuts_long_prompts_and_says_so_once(image_reward, caplog):
    images, prompts = pictures(1, 32), ["a cat " * 30]
    with caplog.at_level(logging.WARNING, "lidar_sampling"):
        scores = image_reward(images=images, prompts=prompts)
        image_reward(images=images, prompts=["a dogs " * 30])
    assert torch.equal(scores, image_reward_restated(image_reward_weights(), images, *bert_ids(prompts)))
    assert [record.getMessage() for record in caplog.records] == [
        f"ImageReward reads 35 tokens and cuts the 62 of {prompts[0]!r}"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blip.visual_encoder.norm.bias"), "does not fit BlipVisionModel: 1 weights differ"),
        (lambda w: w.pop("mlp.layers.7.bias"), "a head has weights"),
        (lambda w: w.update({"blip.text_encoder.pooler.weight": torch.zeros(1)}), "does not fit BlipTextModel"),
        (lambda w: w.update({"blip.queue": torch.zeros(1)}), "unknown weight blip.queue"),
        (lambda w: w.update({"mlp.layers.8.weight": torch.zeros(1)}), "one of CycleReward: load it as cycle-reward:"),
    ],
)
def test_image_reward_takes_no_other_checkpoint(tmp_path, bert, change, message):
    weights = image_reward_weights()
    change(weights)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        ImageReward(tmp_path / "weights.pt", tokenizer=bert)


# HPS


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": openclip_weights()}, path)
    return HPS(path, tokenizer=DATA / "reward-clip")


def openclip_ids(prompts):
    """Return the embedded CLIP's tokens in OpenCLIP's layout: zeros after the end."""
    tokens = CLIPTokenizer.from_pretrained(DATA / "reward-clip")(prompts)["input_ids"]
    return torch.tensor([row + [0] * (24 - len(row)) for row in tokens])


def test_hps_is_openclip_restated(hps):
    images = pictures(3, 32)
    seen, read = openclip_restated(openclip_weights(), (images - CLIP_MEAN) / CLIP_STD, openclip_ids(PROMPTS))
    expected = (seen * read).sum(1)
    assert expected.std() > 0.01
    assert (hps(images=images, prompts=PROMPTS) - expected).abs().max() < 1e-6
    assert hps.name.startswith("hpsv2.1:")


def test_hps_pads_and_does_not_crop(hps):
    wide = pictures(1, 32, 64)
    padded = F.interpolate(wide, size=(16, 32), mode="bicubic", antialias=True)
    expected = hps(images=F.pad(padded, (0, 0, 8, 8)), prompts=PROMPTS[:1])
    assert torch.equal(hps(images=wide, prompts=PROMPTS[:1]), expected)


OPENCLIP = """
import sys, types, torch
sys.modules["transformers"] = None  # open_clip does without
class Stub(types.ModuleType):  # open_clip imports torchvision for what is not used here
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return type(name, (torch.nn.Module,), dict.fromkeys(("NEAREST", "BILINEAR", "BICUBIC")))
for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc"):
    parent, _, last = ("torchvision" + name).rpartition(".")
    sys.modules["torchvision" + name] = Stub("torchvision" + name)
    if parent: setattr(sys.modules[parent], last, sys.modules["torchvision" + name])
from open_clip.model import CLIP
weights, pixels, ids, out = torch.load(sys.argv[1])
model = CLIP(48, {"image_size": 32, "layers": 2, "width": 160, "head_width": 80, "patch_size": 8},
    {"context_length": 24, "vocab_size": 1001, "width": 128, "heads": 2, "layers": 3}).eval()
model.load_state_dict(weights)
with torch.no_grad():
    torch.save((model.encode_image(pixels, True), model.encode_text(ids, True)), out)
"""


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="needs open-clip-torch")
def test_hps_is_open_clip(hps, tmp_path):
    """In a separate process, with a stub for torchvision, which breaks transformers with torch's CPU build."""
    images = pictures(3, 32)
    given = (openclip_weights(), (images - CLIP_MEAN) / CLIP_STD, openclip_ids(PROMPTS), tmp_path / "features.pt")
    torch.save((*given[:3], str(given[3])), tmp_path / "given.pt")
    subprocess.run([sys.executable, "-c", OPENCLIP, tmp_path / "given.pt"], check=True, timeout=120)
    seen, read = torch.load(given[3])
    assert (hps(images=images, prompts=PROMPTS) - (seen * read).sum(1)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["image-reward", "hpsv2", "aesthetic"])
def test_a_checkpoint_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match=r"no weights at nowhere\.pt"):
        rewards.load(f"{name}:nowhere.pt")


def test_hps_takes_no_other_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no CLIP in the layout of OpenCLIP"):
        HPS(tmp_path / "a.pt", tokenizer=DATA / "reward-clip")
    torch.save({**openclip_weights(), "score_predictor.weight": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"1 weights differ, first score_predictor\.weight"):
        HPS(tmp_path / "b.pt", tokenizer=DATA / "reward-clip")


# Aesthetic


@pytest.fixture(scope="module")
def aesthetic(tmp_path_factory):
    random, sizes = tiny(4), (192, 32, 16, 8, 4, 1)
    weights = {}
    for index, columns, rows in zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True):
        weights[f"layers.{index}.weight"], weights[f"layers.{index}.bias"] = random(rows, columns), random(rows)
    path = tmp_path_factory.mktemp("aesthetic") / "head.pth"
    torch.save(weights, path)
    return Aesthetic(path, clip=DATA / "reward-clip")


def test_aesthetic_is_the_published_head_on_unit_features(aesthetic):
    sizes = (192, 32, 16, 8, 4, 1)
    steps = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    drop = torch.nn.Dropout
    layers = torch.nn.Sequential(steps[0], drop(0.2), steps[1], drop(0.2), steps[2], drop(0.1), *steps[3:])
    published = torch.nn.ModuleDict({"layers": layers}).eval()
    published.load_state_dict(torch.load(aesthetic.name.removeprefix("aesthetic:")))
    images = pictures()
    model = CLIPModel.from_pretrained(DATA / "reward-clip", dtype=torch.float32).eval()
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixel_values=(images - 0.5) / 0.5).pooler_output)
        expected = layers(features / features.norm(dim=1, keepdim=True)).squeeze(1)
    torch.testing.assert_close(aesthetic(images=images, prompts=PROMPTS), expected, rtol=1e-5, atol=1e-6)


def test_aesthetic_refuses_a_head_for_other_features(tmp_path):
    torch.save({"layers.0.weight": torch.zeros(1, 7), "layers.0.bias": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"takes 7 features and the CLIP .* gives 192"):
        Aesthetic(tmp_path / "head.pth", clip=DATA / "reward-clip")


# What all differentiable ones share


@pytest.fixture(params=["glyph", "siglip", "image_reward", "hps", "aesthetic"])
def differentiable(request):
    if request.param == "glyph":
        return rewards.load("glyph")
    value = request.getfixturevalue(request.param)
    return CLIPReward(value) if request.param == "siglip" else value


def test_gradients_reach_the_pixels(differentiable):
    images = pictures(2, 40, 50).requires_grad_()
    assert differentiable.differentiable
    (gradient,) = torch.autograd.grad(differentiable(images=images, prompts=PROMPTS[:2]).sum(), images)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).min() > 0


def test_the_batch_does_not_matter(differentiable):
    images = pictures(3, 60, 44)
    whole = rewards.score(differentiable, images=images, prompts=PROMPTS)
    single = rewards.score(differentiable, images=images, prompts=PROMPTS, batch_size=1)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-4)
    assert whole.shape == (3,)


def test_networks_are_what_sees_every_image(differentiable):
    seen = []

    def count(_, args, kwargs):
        seen.append(len(next(iter([*args, *kwargs.values()]))))

    handles = [network.register_forward_pre_hook(count, with_kwargs=True) for network in differentiable.networks]
    differentiable(images=pictures(3, 40), prompts=["a cat"] * 3)
    for handle in handles:
        handle.remove()
    assert seen == [3] * len(differentiable.networks) != []


def test_bfloat16_models_return_float32(tmp_path, bert):
    torch.save(image_reward_weights(), tmp_path / "weights.pt")
    precisions = (torch.bfloat16, torch.float32)
    loaded = [ImageReward(tmp_path / "weights.pt", tokenizer=bert, dtype=dtype) for dtype in precisions]
    half, full = (reward(images=pictures(3, 32), prompts=PROMPTS) for reward in loaded)
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.05 * full.abs().max()


def test_what_decides_the_scores_is_the_same_before_and_after_the_first(differentiable):
    """ImageReward warns once about a long prompt, and fast tokenizers remember their padding."""
    before = contents(differentiable)
    differentiable(images=pictures(1, 40), prompts=["a cat " * 40])
    assert contents(differentiable) == before


# With the published weights


@pytest.mark.hub
@pytest.mark.skipif("IMAGE_REWARD_IMAGES" not in os.environ, reason="IMAGE_REWARD_IMAGES names no folder")
def test_image_reward_of_the_readmes_images():
    """https://github.com/THUDM/ImageReward#example-use; the folder is its assets/images with 1.webp to 4.webp."""
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    reward, scores = rewards.load("image-reward"), []
    for number in range(1, 5):
        picture = Image.open(Path(os.environ["IMAGE_REWARD_IMAGES"]) / f"{number}.webp").convert("RGB")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
            picture.height, picture.width, 3
        )
        scores += reward(images=pixels.permute(2, 0, 1)[None] / 255, prompts=[prompt]).tolist()
    assert scores == pytest.approx([0.5811622, 0.2745276, -1.4131819, -2.0295696], abs=0.01)
