"""Guidance as a patch of a MODEL: it adds ``scale * Delta`` to the prediction after classifier-free guidance."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from lidar_sampling import BankError, LookaheadBank
from lidar_sampling._guidance import Members, reading

from .bank import check_space

_log = logging.getLogger(__name__)


def noise_level(model_sampling: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma (B,) of a model's input ``x = alpha x0 + sigma noise`` at ComfyUI's sigma (B,).

    They come from the model's own ``noise_scaling``, so that this works for every kind of model: (1, sigma) for
    epsilon, v and EDM, (1 - sigma, sigma) for flow.
    """
    sigma = sigma.detach().flatten().float()
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    signal = model_sampling.noise_scaling(sigma, zero.clone(), one.clone())
    return signal, model_sampling.noise_scaling(sigma, one.clone(), zero.clone())


class Guide:
    """The patch of a model: the bank and, while a sampler runs, its members on the samples' device.

    Args:
        bank: the bank; its samples are LATENTs, before ``process_latent_in``.
        rewards: rewards (n,) of its members.
        scale: s, at least 0.
        strength: lambda, at least 0.
        start: share of the sampling at which guidance begins, as ``percent_to_sigma`` counts.
        end: share at which guidance ends.
    """

    def __init__(
        self, bank: LookaheadBank, rewards: Tensor, *, scale: float, strength: float, start: float, end: float
    ) -> None:
        self.bank, self.rewards = bank, rewards
        self.scale, self.strength, self.start, self.end = scale, strength, start, end
        self._members: Members | None = None
        self._seen, self._sizes = 0, list[float]()

    def patch(self, model: Any) -> Any:
        """Return a guided copy of a MODEL; the given one stays as it is.

        Raises:
            BankError: the bank is from another latent space.
        """
        patched = model.clone()
        if self.scale == 0 or self.strength == 0:
            return patched
        check_space(self.bank, model)
        patched.set_model_sampler_post_cfg_function(self.shift)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "lidar", self.around)
        return patched

    def around(
        self,
        sample: Callable[..., Tensor],
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        """Run a sampler; first refuse what the bank cannot guide, and afterwards report what guidance did.

        Raises:
            ValueError: the latents are masked.
            BankError: they have another size than the bank's.
        """
        if denoise_mask is not None:
            raise ValueError(
                "LiDAR does not guide masked latents, since the members of a bank fill the whole picture: remove the "
                "mask, or the LiDAR Guide node"
            )
        self._check_size(noise)
        self._seen, self._sizes = 0, []
        try:
            result = sample(noise, latent_image, sampler, sigmas, denoise_mask, *rest, **options)
        finally:
            self._members = None  # ComfyUI does not know of this memory
        if self._sizes:
            _log.info("LiDAR: %s", reading(self._sizes, len(self.bank)))
        elif self._seen:
            _log.warning(
                "LiDAR: no step was guided: none of %d fell between start_percent %g and end_percent %g",
                self._seen,
                self.start,
                self.end,
            )
        return result

    def shift(self, args: dict[str, Any]) -> Tensor:
        """Return the shifted clean prediction of a step; ComfyUI calls this after classifier-free guidance."""
        x, denoised, model = args["input"], args["denoised"], args["model"]
        sampling, sigma = model.model_sampling, args["sigma"]
        self._seen += 1
        here = float(sigma.max())
        if not sampling.percent_to_sigma(self.start) >= here > sampling.percent_to_sigma(self.end):
            return denoised
        if self._members is None:
            self._check_size(x)
            clean = model.process_latent_in(self.bank.samples.to(x.device, torch.float32))
            self._members = Members(clean, self.rewards.to(x.device), reward_scale=self.strength, resident=True)
        alpha, deviation = noise_level(sampling, sigma.to(x.device))
        delta, info = self._members.shift(x.float(), alpha=_each(alpha, x), sigma=_each(deviation, x))
        self._sizes.append(float(info.ess_tilted.mean()))
        return denoised + self.scale * delta.to(denoised)

    def _check_size(self, latents: Tensor) -> None:
        if latents.shape[1:] != self.bank.samples.shape[1:]:
            raise BankError(
                f"the bank holds latents {tuple(self.bank.samples.shape[1:])} and these are "
                f"{tuple(latents.shape[1:])}: draw the bank with a latent of the same size"
            )


def _each(level: Tensor, x: Tensor) -> Tensor:
    """Return one level per row of ``x``, also if a single one is given for all."""
    return level.expand(len(x)) if len(level) == 1 else level
