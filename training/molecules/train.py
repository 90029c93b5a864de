"""Stage ``denoiser``: cross entropy of clean tokens, noised at random times.

The network predicts each clean token from all noisy tokens but its own. Together with the token's own information,
which the kernel gives, this is the posterior, to which cross entropy is applied. UDLM's negative ELBO weighs times
differently and has the same minimiser. Noise levels of a batch are stratified. Matrices inside the blocks are trained
by Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), the rest by AdamW, and a moving average of
the weights is kept.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lidar_sampling.discrete import kernel_of, log_linear
from lidar_sampling.discrete.model import Denoiser, DenoiserConfig
from training.glyph.optim import Average, Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """The settings of training.

    Attributes:
        schedule: steps, batch and learning rate.
        decay: decay of the moving average.
        held_out: every ``held_out``-th molecule is kept from training, to measure the loss.
    """

    schedule: Schedule
    decay: float = 0.998
    held_out: int = 50
    config: DenoiserConfig = field(default_factory=DenoiserConfig)

    def smoke(self) -> Recipe:
        """Return tiny settings."""
        small = DenoiserConfig(hidden_size=16, layers=1, heads=2)
        return replace(self, schedule=replace(self.schedule, steps=3, batch=8), config=small)


RECIPE = Recipe(Schedule(steps=8000, batch=128, learning_rate=2e-3, warmup=100, floor=0.01))


def train(data: Tensor, recipe: Recipe, out: Path, *, device: torch.device) -> Denoiser:
    """Train on tokens (N, L), write weights (half precision) and ``curve.json`` to ``out``; return the average."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    schedule = recipe.schedule
    model = Denoiser(recipe.config).to(device).train()
    average = Average(model, recipe.decay)
    held = torch.arange(len(data)) % recipe.held_out == 0
    watched, rest = data[held].long().to(device), data[~held]
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2 and p.shape[1] != recipe.config.cond_dim]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    curve, start = [], time.perf_counter()
    for step in range(schedule.steps):
        x0 = rest[torch.randint(len(rest), (schedule.batch,), generator=generator)].long().to(device)
        loss = cross_entropy(model, x0, generator)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = schedule.rate(step)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.max_norm)
        for optimizer in optimizers:
            optimizer.step()
        average.update(model, step)
        if (step + 1) % schedule.log_every == 0 or step == schedule.steps - 1:
            with torch.no_grad():
                value = cross_entropy(average.model.eval(), watched[:1024], torch.Generator().manual_seed(2)).item()
            seconds = time.perf_counter() - start
            curve.append({"step": step + 1, "loss": loss.item(), "held_out": value, "seconds": seconds})
            log.info("step %d, %.0f s, loss %.4f, held out %.4f", step + 1, seconds, loss.item(), value)
    model = average.model.eval()
    model.save_pretrained(out, state_dict={k: v.half() for k, v in model.state_dict().items()})
    (out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    return model


def cross_entropy(model: Denoiser, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean over tokens (B, L), each sequence noised at its own time; the times cover [0, 1] evenly."""
    config = model.config
    kernel = kernel_of(config.noise, config.vocab_size, config.mask_id)
    t = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
    alpha = torch.tensor([log_linear(value) for value in t.tolist()])
    x_t = kernel.add_noise(x0.cpu(), alpha, generator).to(x0.device)
    with torch.autocast(x0.device.type, dtype=torch.bfloat16):
        logits = model(x_t, -alpha.log().to(x0.device)).logits
    a, b = (torch.stack(part).float().to(x0.device) for part in zip(*map(kernel.parts, alpha.tolist()), strict=True))
    own = F.one_hot(x_t, config.vocab_size) * a[:, None] + b[:, None]
    return F.cross_entropy((logits.float() + own.log()).flatten(0, 1), x0.flatten())
