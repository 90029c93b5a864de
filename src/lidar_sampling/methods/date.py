"""DATE, diffusion adaptive text embedding (Na et al. 2025, https://arxiv.org/abs/2510.23974).

Not the sample but the text embedding c of the conditional branch follows the gradient of the reward (equation 7),

    c  <-  c + rho g / |g|,      g = grad_c r(decode(x0(x_t, c))),

with the clean prediction x0 after classifier-free guidance, whose unconditional branch is a constant, and the norm
over tokens and channels of each sample. The network then sees the new c, at this step and at all later ones. (The
pooled embedding that SDXL and SD3 have as well stays what it was.) All of it happens inside the call of the network,
so the pipeline around it is untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._cost import Cost
from .._draw import Item, constant_weights
from .._forecast import levels_of
from .._hooks import Hook, Step, attach
from .._levels import NoiseLevel, clean_prediction, noise_level
from .._parts import denoisers
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._face import charge_looks, check_differentiable, differentiable_rewards, looks_cost, sampling_cost


@dataclass(frozen=True)
class DATE:
    """Diffusion adaptive text embedding.

    Attributes:
        rho: length of an update; .1 in the released code for SD 1.5, and 2 in the LiDAR paper for SDXL.
        every: steps from one update to the next; 1 in the released code, 2 in the LiDAR paper.
    """

    rho: float = 0.1
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self, rho="[0, inf)", every="[1, inf)")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt.

        An update adds one network evaluation and one backward pass per sample, of the conditional branch alone,
        a decode and a reward call.

        Raises:
            ValueError: the reward says that it is not differentiable.
            TypeError: a pipeline without one network for both branches; or one that cuts its schedule at both ends.
        """
        check_differentiable(lidar, "DATE")
        module, scale = _denoiser(lidar.pipe), _guidance_scale(lidar)

        def first() -> int:
            """Return the step that the pipeline starts at: image to image leaves out those before it."""
            whole = len(lidar.pipe.scheduler.timesteps)
            told = getattr(lidar.pipe, "num_timesteps", None)
            cut_at_the_end = lidar.arguments().get("denoising_end") is not None
            return whole - told if isinstance(told, int) and not cut_at_the_end else 0

        updates: list[Embedding] = []

        @contextmanager
        def adapt(batch: Sequence[Item]) -> Iterator[None]:
            rewards = differentiable_rewards(lidar.with_prompts(prompts), batch)
            updates.append(Embedding(self, module, lidar.pipe.scheduler, rewards, len(batch), scale, first))
            with constant_weights(lidar.pipe), attach(lidar.pipe, updates[-1]), updates[-1]:
                yield

        result = lidar.sample(prompts, images, seed, around=adapt)
        looks = sum(update.evaluations for update in updates)
        return charge_looks(lidar, result, looks, backward_passes=looks)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps, and an evaluation and a look per update."""
        check_differentiable(lidar, "DATE")
        _denoiser(lidar.pipe)
        levels = levels_of(lidar.pipe, lidar.arguments())
        looks = images * sum(self.updates(step, level) for step, level in enumerate(levels))
        again = Cost(network_evaluations=looks) + looks_cost(lidar, looks, backward_passes=looks)
        return sampling_cost(lidar, images) + again

    def updates(self, step: int, level: NoiseLevel) -> bool:
        """Return whether ``step`` updates the embedding: not if nothing is noisy, or nothing is known."""
        return step % self.every == 0 and level.sigma != 0 and level.slope != 0


_ONCE = "DATE needs a pipeline that calls its network once a step, with both branches of guidance"


class Embedding(Hook):
    """The replacement of a denoiser's forward inside a with-block, which adapts the text embedding.

    As a hook it makes sure that the scheduler takes the steps that the predictions were read at.

    Args:
        settings: how.
        module: the denoiser, called once per step with ``count`` rows, or as many unconditional ones before them.
        scheduler: of the pipeline.
        rewards: from clean predictions (B, *) to rewards (B,), differentiable.
        count: B.
        guidance_scale: of classifier-free guidance.
        first: tells, when the denoiser is called first, at which of the scheduler's timesteps it stands.

    Attributes:
        shift: what was added to the embeddings so far (B, tokens, channels); 0 before the first update.
        evaluations: clean predictions that were rewarded so far.
    """

    def __init__(
        self,
        settings: DATE,
        module: nn.Module,
        scheduler: Any,
        rewards: Callable[[Tensor], Tensor],
        count: int,
        guidance_scale: float,
        first: Callable[[], int] = lambda: 0,
    ) -> None:
        self.settings, self.module, self.scheduler, self.rewards = settings, module, scheduler, rewards
        self.count, self.guidance_scale = count, guidance_scale
        self.shift: Tensor | float = 0.0
        self.evaluations = 0
        self._calls, self._again = 0, False
        self._first, self._offset = first, 0
        self._own = module.__dict__.get("forward")
        self._forward = module.forward

    def __enter__(self) -> Embedding:
        self.module.forward = self._call
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is None:
            del self.module.forward
        else:
            self.module.forward = self._own

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._again:
            return self._forward(*args, **kwargs)
        if self._calls == 0:
            self._offset = self._first()
        step, c = self._calls, kwargs["encoder_hidden_states"]
        at = step + self._offset
        self._calls += 1
        rows = len(c)
        if rows not in (self.count, 2 * self.count) or at >= len(self.scheduler.timesteps):
            raise TypeError(_ONCE)
        free, bound = slice(rows - self.count), slice(rows - self.count, None)
        level = noise_level(self.scheduler, self.scheduler.timesteps[at])
        if not self.settings.updates(step, level):
            kwargs["encoder_hidden_states"] = torch.cat([c[free], c[bound] + self.shift])
            return self._forward(*args, **kwargs)

        # The meter has counted this call: the evaluations of both branches. Evaluating one again is counted apart.
        guided = rows > self.count
        unconditional = self._forward(*_part(args, free, rows), **_part(kwargs, free, rows))[0] if guided else None
        args, kwargs = _part(args, bound, rows), _part(kwargs, bound, rows)
        x_t = (args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))) / self._input_scale(at)
        embedding = (c[bound] + self.shift).detach().requires_grad_()
        with torch.enable_grad():
            output = self._forward(*args, **{**kwargs, "encoder_hidden_states": embedding})[0]
            if unconditional is not None:
                output = unconditional + self.guidance_scale * (output - unconditional)
            output = output[:, : x_t.shape[1]]  # without a learned variance
            total = self.rewards(clean_prediction(level, output, x_t)).sum()
            (g,) = torch.autograd.grad(total, embedding)
        self.evaluations += self.count
        length = g.flatten(1).norm(dim=1, dtype=torch.promote_types(g.dtype, torch.float32)).view(-1, 1, 1)
        unit = g / length.clamp_min(torch.finfo(length.dtype).tiny)
        self.shift = self.shift + (self.settings.rho * unit).to(c.dtype)

        self._again = True
        try:
            result = self.module(*args, **{**kwargs, "encoder_hidden_states": c[bound] + self.shift})
        finally:
            self._again = False
        return result if unconditional is None else _with_sample(result, torch.cat([unconditional, result[0]]))

    def before(self, step: Step) -> Step:
        """Refuse a step at another timestep than the one that the prediction was read at."""
        at = self._calls - 1 + self._offset
        if self._calls != step.index + 1:
            raise TypeError(_ONCE)
        if not torch.as_tensor(step.timestep).eq(self.scheduler.timesteps[at].cpu()).all():
            raise TypeError("DATE needs a pipeline that leaves out steps at one end of its schedule, not at both")
        return step

    def _input_scale(self, step: int) -> float:
        """Return what the scheduler multiplied the network's input by at one of its timesteps."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return 1.0
        return float(self.scheduler.scale_model_input(torch.ones(()), self.scheduler.timesteps[step]))


def _part(value: Any, rows: slice, count: int) -> Any:
    """Return these rows of all tensors in ``value`` that have ``count``."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == count else value
    if isinstance(value, dict):
        return {name: _part(entry, rows, count) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_part(entry, rows, count) for entry in value)
    return value


def _with_sample(result: Any, sample: Tensor) -> Any:
    if isinstance(result, tuple):
        return (sample, *result[1:])
    result["sample"] = sample
    return result


def _denoiser(pipe: Any) -> nn.Module:
    modules = list(denoisers(pipe).values())
    takes = [m for m in modules if "encoder_hidden_states" in inspect.signature(m.forward).parameters]
    if len(modules) != 1 or not takes or getattr(pipe, "blocks", None) is not None:
        raise TypeError(
            f"DATE needs a classic pipeline with one network that takes text embeddings, got {type(pipe).__name__}"
        )
    return takes[0]


def _guidance_scale(lidar: LiDAR) -> float:
    parameters = inspect.signature(lidar.pipe.__call__).parameters
    default = parameters["guidance_scale"].default if "guidance_scale" in parameters else 1.0
    scale = lidar.arguments().get("guidance_scale", default)
    return 1.0 if scale is None else float(scale)
