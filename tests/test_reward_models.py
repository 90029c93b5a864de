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
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from lidar_sampling import rewards
from lidar_sampling._hub import Published
from lidar_sampling.glyph import DATA
from lidar_sampling.rewards import _pixels, _weights
from lidar_sampling.rewards.aesthetic import Aesthetic
from lidar_sampling.rewards.clip import CLIPReward, PickScore
from lidar_sampling.rewards.hps import HPS
from lidar_sampling.rewards.image_reward import ImageReward
from lidar_sampling.rewards.vqascore import QUESTION, VQAScore, answer_tokens

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
WORDS = ["a", "photo", "of", "cat", "two", "dogs", "red", "cup", "clock"]
PROMPTS = ["a photo of a cat", "two dogs", "a red cup"]


def pictures(n=3, height=128, width=None, seed=0):
    """Smooth pictures on the grid of 8 bits."""
    noise = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, size=(height, width or height), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def tiny(seed):
    """Random weights of a given shape, one generator for all of them."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.2


def words_tokenizer(special, *, words=WORDS, **options):
    vocabulary = [*special, *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=special[0]))
    backend.normalizer = options.pop("normalizer", None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = options.pop("post_processor", None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=special[0], **options)


# Pixels


def by_pillow(images, height, width, resample=Image.Resampling.BICUBIC):
    rows = []
    for image in (images * 255).round().to(torch.uint8):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), resample)
        rows.append(torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, 3))
    return torch.stack(rows).permute(0, 3, 1, 2).float() / 255


def rough(height, width):
    """Noise: what resizing differs on most."""
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1)) / 255


SHAPES = [(200, 260, 128), (260, 200, 96), (512, 384, 224), (48, 64, 96), (100, 31, 64), (131, 128, 128)]


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_crop_is_pillows_but_for_ties(height, width, size):
    """At most one value in 500 rounds to the other side of a tie, by one grey level; all others are the same byte."""
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


# CLIP, SigLIP, PickScore


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A tiny SigLIP with a tokenizer that does not lower the case itself."""
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
    torch.testing.assert_close(ours, logits.diagonal(), rtol=0, atol=2e-3)  # a byte of the pixels, times 20
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
    with pytest.raises(ValueError, match="as many, got 2 and 1"):
        rewards.load("glyph")(images=pictures(2), prompts=["a cat"])


# Weights


def test_published_weights_load_at_their_commit_and_say_what_to_do_offline(tmp_path):
    class Hub:
        @staticmethod
        def from_pretrained(repo, *, revision):
            if repo == "someone/there":
                return revision
            raise OSError("long\nstory")

    assert _weights.load(Hub.from_pretrained, Published("someone/there", "MIT", revision="abc")) == "abc"
    with pytest.raises(FileNotFoundError, match="'hf download someone/away --revision abc'"):
        _weights.load(Hub.from_pretrained, Published("someone/away", "MIT", revision="abc"))
    for path in ("/nowhere", "./nowhere", "some/where/else"):
        with pytest.raises(FileNotFoundError, match=f"^no model at {path}$"):
            _weights.load(Hub.from_pretrained, path)
    with pytest.raises(FileNotFoundError, match=r"is no complete model: long$"):
        _weights.load(Hub.from_pretrained, tmp_path)


def test_every_published_reward_is_pinned():
    published = {name: entry.published for name, entry in rewards.REGISTRY.items() if entry.published}
    assert {"image-reward", "hpsv2", "hpsv2.1", "pickscore", "clip", "aesthetic", "vqascore"} <= published.keys()
    assert all(len(weights.revision or "") == 40 for weights in published.values())
    assert published["clip"] == _weights.CLIP_L
    assert all(weights.commercial for weights in published.values())


# ImageReward


def image_reward_weights(width=128, text=64, layers=2, patch=8, grid=4, vocabulary=15):
    """A checkpoint in the layout of ImageReward.pt, small."""
    random, weights = tiny(2), {}

    def linear(name, rows, columns):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = random(rows, columns), random(rows)

    def norm(name, size):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + random(size), random(size)

    see = "blip.visual_encoder"
    weights[f"{see}.cls_token"] = random(1, 1, width)
    weights[f"{see}.pos_embed"] = random(1, grid**2 + 1, width)
    weights[f"{see}.patch_embed.proj.weight"] = random(width, 3, patch, patch)
    weights[f"{see}.patch_embed.proj.bias"] = random(width)
    norm(f"{see}.norm", width)
    for block in (f"{see}.blocks.{i}" for i in range(layers)):
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
    read = "blip.text_encoder"
    weights[f"{read}.embeddings.position_ids"] = torch.arange(40)[None]
    weights[f"{read}.embeddings.word_embeddings.weight"] = random(vocabulary, text)
    weights[f"{read}.embeddings.position_embeddings.weight"] = random(40, text)
    norm(f"{read}.embeddings.LayerNorm", text)
    for layer in (f"{read}.encoder.layer.{i}" for i in range(layers)):
        for kind, source in (("attention", text), ("crossattention", width)):
            linear(f"{layer}.{kind}.self.query", text, text)
            linear(f"{layer}.{kind}.self.key", text, source)
            linear(f"{layer}.{kind}.self.value", text, source)
            linear(f"{layer}.{kind}.output.dense", text, text)
            norm(f"{layer}.{kind}.output.LayerNorm", text)
        linear(f"{layer}.intermediate.dense", 2 * text, text)
        linear(f"{layer}.output.dense", text, 2 * text)
        norm(f"{layer}.output.LayerNorm", text)
    linear("blip.vision_proj", 16, width)
    linear("blip.text_proj", 16, text)
    for index, (rows, columns) in zip((0, 2, 4, 6, 7), ((32, text), (16, 32), (8, 16), (4, 8), (1, 4)), strict=True):
        linear(f"mlp.layers.{index}", rows, columns)
    return weights


def image_reward_restated(weights, images, ids, mask):
    """ImageReward in plain functions of its published weights: BLIP's two encoders and the head."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def heads(x):
        return x.unflatten(-1, (-1, 64)).transpose(1, 2)

    def merge(x):
        return x.transpose(1, 2).flatten(2)

    see = "blip.visual_encoder"
    kernel = weights[f"{see}.patch_embed.proj.weight"]
    x = F.conv2d((images - CLIP_MEAN) / CLIP_STD, kernel, weights[f"{see}.patch_embed.proj.bias"], kernel.shape[-1])
    x = torch.cat([weights[f"{see}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + weights[f"{see}.pos_embed"]
    for block in (f"{see}.blocks.{i}" for i in range(2)):
        q, k, v = (heads(part) for part in linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1))
        x = x + linear(merge(((q @ k.mT) * 64**-0.5).softmax(-1) @ v), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2")
    seen = norm(x, f"{see}.norm", 1e-6)

    read = "blip.text_encoder"
    x = weights[f"{read}.embeddings.word_embeddings.weight"][ids]
    x = x + weights[f"{read}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, f"{read}.embeddings.LayerNorm", 1e-12)
    hidden_tokens = (1.0 - mask[:, None, None].float()) * -10000.0
    for layer in (f"{read}.encoder.layer.{i}" for i in range(2)):
        for kind, source, masked in (("attention", None, hidden_tokens), ("crossattention", seen, 0.0)):
            source = x if source is None else source
            q = heads(linear(x, f"{layer}.{kind}.self.query"))
            k, v = (heads(linear(source, f"{layer}.{kind}.self.{part}")) for part in ("key", "value"))
            attended = merge((q @ k.mT / 8 + masked).softmax(-1) @ v)
            x = norm(linear(attended, f"{layer}.{kind}.output.dense") + x, f"{layer}.{kind}.output.LayerNorm", 1e-12)
        hidden = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(linear(hidden, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm", 1e-12)
    score = x[:, 0].float()
    for index in (0, 2, 4, 6, 7):
        score = linear(score, f"mlp.layers.{index}")
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    words_tokenizer(
        special,
        normalizer=normalizers.BertNormalizer(),
        post_processor=processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    ).save_pretrained(path)
    return path


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
    ],
)
def test_image_reward_takes_no_other_checkpoint(tmp_path, bert, change, message):
    weights = image_reward_weights()
    change(weights)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        ImageReward(tmp_path / "weights.pt", tokenizer=bert)


# HPS


def openclip_weights(width=160, text=128, projection=48, layers=2, patch=8, grid=4, vocabulary=1001, context=24):
    """A checkpoint in OpenCLIP's layout of ViT-H-14, small: heads of 80 and of 64 channels."""
    random, weights = tiny(3), {}
    for prefix, size, count in (("visual.", width, layers), ("", text, layers + 1)):
        for block in (f"{prefix}transformer.resblocks.{i}" for i in range(count)):
            for name, shape in (("attn.in_proj_", (3 * size, size)), ("attn.out_proj.", (size, size))):
                weights[f"{block}.{name}weight"], weights[f"{block}.{name}bias"] = random(*shape), random(shape[0])
            for name, shape in (("mlp.c_fc", (4 * size, size)), ("mlp.c_proj", (size, 4 * size))):
                weights[f"{block}.{name}.weight"], weights[f"{block}.{name}.bias"] = random(*shape), random(shape[0])
            for name in ("ln_1", "ln_2"):
                weights[f"{block}.{name}.weight"], weights[f"{block}.{name}.bias"] = 1 + random(size), random(size)
    for name, size in (("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text)):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + random(size), random(size)
    weights["visual.class_embedding"] = random(width)
    weights["visual.positional_embedding"] = random(grid**2 + 1, width)
    weights["visual.conv1.weight"] = random(width, 3, patch, patch)
    weights["visual.proj"] = random(width, projection)
    weights["token_embedding.weight"] = random(vocabulary, text)
    weights["positional_embedding"] = random(context, text)
    weights["text_projection"] = random(text, projection)
    weights["logit_scale"] = torch.tensor(4.6)
    return weights


def openclip_restated(weights, pixels, ids):
    """Unit features of OpenCLIP's two towers, in plain functions of its weights."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def tower(x, prefix, head, causal):
        count = len(
            {
                name.split("resblocks.")[1].split(".")[0]
                for name in weights
                if name.startswith(f"{prefix}transformer.")
            }
        )
        for block in (f"{prefix}transformer.resblocks.{i}" for i in range(count)):
            joint = F.linear(
                norm(x, f"{block}.ln_1"),
                weights[f"{block}.attn.in_proj_weight"],
                weights[f"{block}.attn.in_proj_bias"],
            )
            q, k, v = (part.unflatten(-1, (-1, head)).transpose(1, 2) for part in joint.chunk(3, -1))
            scores = q @ k.mT / math.sqrt(head)
            if causal:
                scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
            x = x + F.linear(
                (scores.softmax(-1) @ v).transpose(1, 2).flatten(2),
                weights[f"{block}.attn.out_proj.weight"],
                weights[f"{block}.attn.out_proj.bias"],
            )
            hidden = F.linear(
                norm(x, f"{block}.ln_2"), weights[f"{block}.mlp.c_fc.weight"], weights[f"{block}.mlp.c_fc.bias"]
            )
            x = x + F.linear(
                F.gelu(hidden), weights[f"{block}.mlp.c_proj.weight"], weights[f"{block}.mlp.c_proj.bias"]
            )
        return x

    kernel = weights["visual.conv1.weight"]
    x = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = tower(norm(x + weights["visual.positional_embedding"], "visual.ln_pre"), "visual.", 80, False)
    seen = F.normalize(norm(x[:, 0], "visual.ln_post") @ weights["visual.proj"], dim=-1)
    x = tower(weights["token_embedding.weight"][ids] + weights["positional_embedding"], "", 64, True)
    read = norm(x, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)] @ weights["text_projection"]
    return seen, F.normalize(read, dim=-1)


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": openclip_weights()}, path)
    return HPS(path, tokenizer=DATA / "reward-clip")


def openclip_ids(prompts):
    """The embedded CLIP's tokens as OpenCLIP lays them out: zeros after the end."""
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
    """In a process of its own, with a stub for torchvision, which breaks transformers beside a CPU build of torch."""
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


def test_bfloat16_models_return_float32(tmp_path, bert):
    torch.save(image_reward_weights(), tmp_path / "weights.pt")
    precisions = (torch.bfloat16, torch.float32)
    loaded = [ImageReward(tmp_path / "weights.pt", tokenizer=bert, dtype=dtype) for dtype in precisions]
    half, full = (reward(images=pictures(3, 32), prompts=PROMPTS) for reward in loaded)
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.05 * full.abs().max()


# VQAScore

QUESTION_WORDS = ["Does", "this", "figure", "show", "Please", "answer", "yes", "or", "no", ".", "?", '"']
ASKING = [*WORDS, *QUESTION_WORDS, "user", "assistant", "Yes", "No", "YES"]
TEMPLATE = (
    "{% for m in messages %}<|turn|> {{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %} {{ c.text }}{% endif %}{% endfor %} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|turn|> assistant {% endif %}"
)
TEXT_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}


def save_vlm(path, model, special, image, preprocessor):
    """A folder as the hub has it: model, tokenizer, preprocessing, chat template."""
    model.save_pretrained(path)
    words_tokenizer(
        special, words=ASKING, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=special[2:]
    ).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (path / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", image))
    return path


def save_llava(path):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    special = ["[UNK]", "<pad>", "<|turn|>", "<|end|>", "<image>"]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **TEXT_TOWER, "vocab_size": len(special) + len(ASKING)},
        image_token_index=4,
    )
    side = {"height": 32, "width": 32}
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": side,
    }
    path = save_vlm(path, LlavaForConditionalGeneration(config), special, "<image>", preprocessor)
    extra = {"processor_class": "LlavaProcessor", "patch_size": 8, "vision_feature_select_strategy": "default"}
    (path / "processor_config.json").write_text(json.dumps({**extra, "num_additional_image_tokens": 1}))
    return path


def save_qwen(path):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    special = ["[UNK]", "<pad>", "<|turn|>", "<|end|>", *marks]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT_TOWER, "vocab_size": len(special) + len(ASKING), "rope_parameters": rope},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.3,
        },
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 256, "longest_edge": 4096},
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return save_vlm(path, Qwen3VLForConditionalGeneration(config), special, image, preprocessor)


@pytest.fixture(scope="module", params=[save_llava, save_qwen])
def vlm(request, tmp_path_factory):
    torch.manual_seed(5)
    return request.param(tmp_path_factory.mktemp("vlm"))


def test_vqascore_is_the_softmax_of_one_image_at_a_time_in_any_batch(vlm):
    """Prompts differ in length, so that batches are padded; answers of one image alone are computed from scratch."""
    from transformers import AutoModelForImageTextToText

    reward = VQAScore(vlm)
    images, prompts = pictures(3, 40, 56, seed=2), ["a cat", "two dogs of a red cup a photo of a clock", "a red cup"]
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32).eval()
    vocabulary = reward._processor.tokenizer.get_vocab()
    mark = (vlm / "chat_template.jinja").read_text().split("'image' %}")[1].split("{% else")[0]
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        question = f'Does this figure show "{prompt}"? Please answer yes or no.'
        text = f"<|turn|> user {mark} {question} <|end|> <|turn|> assistant "
        inputs = reward._processor(text=[text], images=[picture], return_tensors="pt")
        with torch.no_grad():
            p = model(**inputs).logits[0, -1].softmax(0)
        yes = sum(p[vocabulary[word]] for word in ("yes", "Yes", "YES"))
        no = sum(p[vocabulary[word]] for word in ("no", "No"))
        expected.append(yes / (yes + no))
    expected = torch.stack(expected)
    assert expected.std() > 0.01
    for batch_size in (3, 2, 1):
        scores = rewards.score(reward, images=images, prompts=prompts, batch_size=batch_size)
        torch.testing.assert_close(scores, expected, rtol=0, atol=2e-6)
    assert expected.min() >= 0
    assert expected.max() <= 1


def test_vqascore_refusals(vlm):
    with pytest.raises(ValueError, match=r"must have \{text\}"):
        VQAScore(vlm, question="Is it good?")
    mute = words_tokenizer(["[UNK]"])
    with pytest.raises(ValueError, match="no single token for 'yes'"):
        answer_tokens(mute, "yes")
    assert QUESTION.replace("{text}", "a cat") == 'Does this figure show "a cat"? Please answer yes or no.'


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
