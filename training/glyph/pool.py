"""Pools of training data: drawn once, refreshed a little while training goes on, sampled at random.

The pictures for training judges are not only rendered. Most have gone through the autoencoder, with noise on their
latents, because judges will see pictures from its decoder; some have a little noise on their pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .captions import Attributes
from .draws import Draws
from .render import Renderer
from .world import World

_CHUNK = 256  # pictures drawn at a time


class Ring:
    """A ring buffer of rows of several tensors; new rows replace the oldest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._columns: list[Tensor] = []
        self._next = 0

    def write(self, *columns: Tensor) -> None:
        """Write n rows, (n, *) each."""
        if not self._columns:
            self._columns = [column.new_empty(self.size, *column.shape[1:]) for column in columns]
        rows = (self._next + torch.arange(len(columns[0]), device=columns[0].device)) % self.size
        for mine, new in zip(self._columns, columns, strict=True):
            mine[rows] = new
        self._next = (self._next + len(rows)) % self.size

    def rows(self, indices: Tensor | slice) -> list[Tensor]:
        """Return the rows of each column."""
        return [column[indices] for column in self._columns]


class Batch(NamedTuple):
    """Pictures and what they show."""

    images: Tensor
    """(B, 3, 128, 128) in [0, 1]."""
    attributes: Attributes
    classes: Tensor
    """(B, 4), and the others as in Scenes."""
    colors: Tensor
    present: Tensor
    boxes: Tensor
    """(B, 4, 4) x1 y1 x2 y2 in pixels."""


class Pictures:
    """A pool of ``size`` pictures.

    Args:
        world: source of the scenes.
        renderer: draws them.
        vae: the trained autoencoder.
        draws: randomness of everything but the scenes.
        size: number of pictures, stored in 8 bits.
        reconstructed: share that goes through the autoencoder.
        latent_noise: largest noise on their latents, in standard deviations.
        uncaptioned: share of scenes without caption.
    """

    def __init__(
        self,
        world: World,
        renderer: Renderer,
        vae: AutoencoderKL,
        draws: Draws,
        *,
        size: int,
        reconstructed: float = 0.6,
        latent_noise: float = 0.35,
        uncaptioned: float = 0.0,
    ) -> None:
        self._world, self._renderer, self._vae, self._draws = world, renderer, vae, draws
        self._reconstructed, self._latent_noise = reconstructed, latent_noise
        self._uncaptioned = uncaptioned
        self._ring = Ring(size)
        for start in range(0, size, _CHUNK):
            self.refresh(min(_CHUNK, size - start))

    def __len__(self) -> int:
        return self._ring.size

    @torch.no_grad()
    def refresh(self, n: int) -> None:
        """Replace the oldest ``n`` pictures."""
        scenes = self._world.scenes(n, uncaptioned=self._uncaptioned)
        images, boxes = self._renderer(scenes)
        if k := int(n * self._reconstructed):
            images[:k] = self._through_autoencoder(images[:k])
        draws = self._draws
        level = draws.uniform(n, 1, 1, 1) * 0.05 * (draws.uniform(n, 1, 1, 1) < 0.3)
        images = (images + level * draws.normal(*images.shape)).clamp(0, 1)
        self._ring.write(
            (images * 255).round().to(torch.uint8),
            torch.stack(scenes.attributes, 1),
            scenes.classes,
            scenes.colors,
            scenes.present,
            boxes,
        )

    def sample(self, n: int) -> Batch:
        """Return ``n`` random pictures."""
        return self._batch(self._draws.integers(len(self), n))

    def batches(self, n: int = 256) -> list[Batch]:
        """Yield all pictures in order, ``n`` at a time."""
        return [self._batch(slice(start, start + n)) for start in range(0, len(self), n)]

    def _batch(self, indices: Tensor | slice) -> Batch:
        images, attributes, *scenes = self._ring.rows(indices)
        return Batch(images.float() / 255, Attributes(*attributes.unbind(1)), *scenes)

    def _through_autoencoder(self, images: Tensor) -> Tensor:
        """Return reconstructions (K, 3, 128, 128); the noise on the latents is fine-grained, smooth or absent."""
        vae, draws, k = self._vae, self._draws, len(images)
        posterior = vae.encode((images * 2 - 1).to(vae.dtype)).latent_dist
        latents = posterior.sample(generator=draws.generator).float()
        noisy = draws.uniform(k, 1, 1, 1) * self._latent_noise * (draws.uniform(k, 1, 1, 1) < 0.6)
        fine = draws.normal(*latents.shape)
        smooth = F.interpolate(draws.normal(k, 4, 4, 4), size=16, mode="bilinear") * 1.2
        noise = torch.where(draws.uniform(k, 1, 1, 1) < 0.5, fine, smooth)
        latents = latents + noise * noisy / vae.config.scaling_factor
        return (vae.decode(latents.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)
