"""The objective of the CLIPs, and their measures.

The objective is CLIP's (https://arxiv.org/abs/2103.00020), with each image's own hard negatives beside the captions
of the batch as in NegCLIP (https://arxiv.org/abs/2210.01936), and one more term on the hard negatives alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from .captions import TAGS
from .draws import Draws
from .negatives import hard_negatives
from .pool import Batch, Pictures

_NEVER = -1e4  # logit of a caption that must not count as wrong


def similarities(model: CLIPModel, batch: Batch, negatives: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of each image with every caption of the batch (B, B), and with its own negatives (B, K).

    Equal captions of other images, and negatives equal to the image's own caption, are excluded.
    """
    captions = batch.attributes.captions()
    n = len(captions)
    images = model.vision_model(pixel_values=(batch.images - 0.5) / 0.5).pooler_output
    images = F.normalize(model.visual_projection(images).float(), dim=-1)
    every = torch.cat([captions, negatives.flatten()])
    texts = model.text_model(input_ids=tokens[every].long()).pooler_output
    texts = F.normalize(model.text_projection(texts).float(), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100)
    among = scale * images @ texts[:n].t()
    beside = scale * torch.einsum("bd,bkd->bk", images, texts[n:].view(n, -1, texts.shape[-1]))
    same = (captions[:, None] == captions) & ~torch.eye(n, dtype=torch.bool, device=captions.device)
    return among.masked_fill(same, _NEVER), beside.masked_fill(negatives == captions[:, None], _NEVER)


def contrastive_loss(among: Tensor, beside: Tensor) -> Tensor:
    """Sum image to text with hard negatives, half of text to image, and half of the hard negatives alone."""
    own = torch.arange(len(among), device=among.device)
    hard = torch.cat([among.diagonal()[:, None], beside], 1)
    image_to_text = F.cross_entropy(torch.cat([among, beside], 1), own)
    return image_to_text + 0.5 * F.cross_entropy(among.t(), own) + 0.5 * F.cross_entropy(hard, torch.zeros_like(own))


def beats(among: Tensor, beside: Tensor) -> Tensor:
    """Return (B,) bool: whether the image is nearer to its caption than to any of its hard negatives."""
    return beside.amax(1) < among.diagonal()


@torch.no_grad()
def hard_negative_accuracy(
    model: CLIPModel, pictures: Pictures, draws: Draws, tokens: Tensor
) -> dict[str, float | None]:
    """Return the share of pictures per tag whose caption beats eight hard negatives; None without pictures."""
    tags, won = [], []
    for batch in pictures.batches():
        negatives = hard_negatives(batch.attributes, draws, 8)
        won.append(beats(*similarities(model, batch, negatives, tokens)).float())
        tags.append(batch.attributes.tag)
    tag, right = torch.cat(tags), torch.cat(won)
    shares = {name: right[tag == i] for i, name in enumerate(TAGS)}
    return {name: round(float(share.mean()), 4) if len(share) else None for name, share in shares.items()}
