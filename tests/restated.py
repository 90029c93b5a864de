"""ImageReward and OpenCLIP restated under the names of their published weights, from the architecture alone."""

import math

import torch
import torch.nn.functional as F
from pictures import CLIP_MEAN, CLIP_STD, tiny

from benchmarks.peers.shapes import image_reward_shapes


def image_reward_weights():
    """Return a small checkpoint in the layout of ImageReward.pt, including weights that the reward does not read."""
    random = tiny(9)  # it keeps scores far from 0, so that relative errors are meaningful
    shapes = image_reward_shapes(
        width=128,
        layers=2,
        text=64,
        text_layers=2,
        vocabulary=15,
        patch=8,
        side=32,
        positions=40,
        head=(32, 16, 8, 4),
    )
    shapes |= {"blip.vision_proj.weight": (16, 128), "blip.text_proj.weight": (16, 64)}
    scales = {name: "norm" in name.lower() and name.endswith("weight") for name in shapes}
    weights = {name: random(*shape) + scales[name] for name, shape in shapes.items()}
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return weights


def image_reward_restated(weights, images, ids, mask):
    """Compute ImageReward in plain functions of its published weights: BLIP's two encoders and the head."""

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


def openclip_weights(width=160, text=128, projection=48, layers=2, patch=8, grid=4, vocabulary=1001, context=24):
    """Return a small checkpoint in OpenCLIP's layout of ViT-H-14: heads of 80 and of 64 channels."""
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
    """Compute unit features of OpenCLIP's two towers, in plain functions of its weights."""

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
