"""Checks of methods before anything is drawn: they refuse wrong settings, and samplers that do not fit."""

from __future__ import annotations

import inspect
import math
from typing import Any

from .._call import parameters_of
from .._hooks import check_memoryless
from .._kernel import DEFAULT, GLASS, check_kernel, read_noise
from .._levels import family, prediction_type
from .._sampler import LiDAR
from .._settings import takes_eta
from .._values import check_integer


def check_population(lidar: LiDAR, who: str, what: str, *, copies: bool = True) -> None:
    """Refuse a sampler that cannot continue copies of samples to a clean end.

    Args:
        lidar: draws.
        who: the method, for the message.
        what: it does to the samples, for the message.
        copies: whether several samples go on from one.

    Raises:
        ValueError: a scheduler that remembers earlier steps, a call that ends before the sample is clean, or copies
            that no noise parts.
    """
    check_whole(lidar, who)
    noise = lidar.settings.noise
    if takes_own_steps(lidar):
        check_memoryless(lidar.pipe.scheduler, f"{who} {what}")
        if copies:
            check_noise(lidar, who)
        return
    check_kernel(lidar.pipe.scheduler)
    if noise is not None and copies and read_noise(noise)[1] == 0:
        raise ValueError(f"{who} needs a sampler with noise, and noise={noise} has none")


def check_own_noise(lidar: LiDAR, who: str, what: str) -> None:
    """Refuse, for the method ``who``, a noise setting that is not drawn anew at every step.

    Raises:
        ValueError: it is such a noise; the message says ``what`` the method does.
    """
    noise = lidar.settings.noise
    if noise is not None and read_noise(noise)[0] == GLASS:
        raise ValueError(f"{who} {what}, and noise={noise} draws noise once for several steps: use noise=ddpm")


def check_images(images: Any, most: int | None = None, spelt: str = "n = {}") -> None:
    """Refuse a number of images that a method cannot return.

    Args:
        images: of a prompt.
        most: as many as there are to choose from; None sets no limit.
        spelt: what these are, for the message.

    Raises:
        ValueError: it is no whole number from 1 to ``most``.
    """
    check_integer("images", images)
    if images < 1 or (most is not None and images > most):
        end = "at least 1" if most is None else f"1 to {spelt.format(most)}"
        raise ValueError(f"images must be {end}, got {images}")


def check_ddim(scheduler: Any, what: str) -> None:
    """Refuse any scheduler but DDIM.

    Raises:
        ValueError: it is another; the message says ``what`` the caller does.
    """
    if type(scheduler).__name__ != "DDIMScheduler":
        raise ValueError(f"{what} with DDIMScheduler alone, got {type(scheduler).__name__}")


def with_noise(lidar: LiDAR, *, copies: bool = True) -> LiDAR:
    """Return the sampler with the noise that a population needs, or the sampler itself if its own steps will do.

    Flow models step without noise, so theirs are replaced by stochastic ones, or where no copies are made by
    deterministic ones, which remember nothing. A noise that the settings name stays as it is.
    """
    if lidar.settings.noise is not None or not is_flow(lidar.pipe.scheduler):
        return lidar
    return lidar.with_settings(noise=DEFAULT if copies else "ddpm:0")


def takes_own_steps(lidar: LiDAR) -> bool:
    """Return whether a method that needs noise takes the scheduler's own steps, and not a kernel's."""
    return lidar.settings.noise is None and not is_flow(lidar.pipe.scheduler)


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler steps a flow model, such as SD3's or Wan's."""
    try:
        return prediction_type(scheduler) == "flow_prediction" and "flow_prediction" in family(scheduler).outputs
    except ValueError:  # an unknown family is refused elsewhere
        return False


def check_whole(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a call that ends before the sample is clean.

    Raises:
        ValueError: it does.
    """
    end = lidar.arguments().get("denoising_end")
    if end is not None and not end >= 1:
        raise ValueError(
            f"{who} chooses by samples that end clean, and denoising_end={end} stops before: leave it out"
        )


def check_noise(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a scheduler whose steps add no noise.

    Raises:
        ValueError: it is one.
    """
    if step_eta(lidar) == 0:
        raise ValueError(
            f"{who} needs a sampler with noise, and {type(lidar.pipe.scheduler).__name__} with eta=0 has none: "
            "set eta above 0"
        )


_FOR_A_CALLBACK = "callback_on_step_end(self, i, self.scheduler.sigmas[i]"
_FOR_A_CACHE = '"sigma": float(self.scheduler.sigmas[i])'


def check_level_by_step(pipe: Any, who: str, *, cache: bool) -> None:
    """Refuse, for the method ``who``, a pipeline that looks up the noise level of step i by the number i.

    Such a pipeline uses a wrong level where a call takes a part of the schedule, or a step twice.

    Args:
        pipe: the pipeline.
        who: the method, for the message.
        cache: whether a level that is read for a cache alone, and changes no sample, is refused too.

    Raises:
        TypeError: it does.
    """
    try:
        source = inspect.getsource(type(pipe).__call__)
    except (OSError, TypeError):  # no file holds it
        return
    source = source.replace(_FOR_A_CALLBACK, "")
    if not cache:
        source = source.replace(_FOR_A_CACHE, "")
    if "scheduler.sigmas[i]" in source:
        raise TypeError(
            f"{who} changes which steps a call takes, and {type(pipe).__name__} reads noise levels by the number of "
            "the step: it would read wrong ones"
        )
    if cache and "deepcopy(self.scheduler)" in source:
        raise TypeError(f"{who} takes steps twice, and {type(pipe).__name__} steps a copy of its scheduler once")


def step_eta(lidar: LiDAR) -> float:
    """Return the eta that reaches the scheduler's step; NaN where its steps take none.

    It is that of the call, or else the pipeline's default, or else the step's own.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from lidar_sampling import testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        >>> step_eta(LiDAR(pipe, reward="brightness", eta=0.5))
        0.5
    """
    if not takes_eta(lidar.pipe.scheduler):
        return math.nan
    own = inspect.signature(type(lidar.pipe.scheduler).step).parameters["eta"].default
    eta = lidar.arguments().get("eta", parameters_of(lidar.pipe).get("eta", own))
    return float(own if eta is None else eta)


def check_start(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a pipeline that does not start from the latents that it is given.

    Raises:
        TypeError: it takes none, or starts from a picture.
    """
    pipe, known = lidar.pipe, parameters_of(lidar.pipe)
    if type(pipe).__name__.startswith("Flux2"):
        raise TypeError(f"{who} gives the pipeline latents to start from, and FLUX.2 takes them in another shape")
    if "latents" not in known:
        raise TypeError(f"{who} gives the pipeline latents to start from, and {type(pipe).__name__} takes no latents")
    if "strength" in known and "image" in lidar.arguments():
        raise TypeError(
            f"{who} gives the pipeline latents to start from, and {type(pipe).__name__} starts from a picture: use a "
            "pipeline from text alone"
        )


def check_middle(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a pipeline that cannot take a step of its schedule from given samples.

    Raises:
        TypeError: it takes no latents, starts from a picture, or reads noise levels by the number of the step.
    """
    check_start(lidar, who)
    check_level_by_step(lidar.pipe, who, cache=False)


def check_parts(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a pipeline that cannot go on in the middle of its schedule.

    Raises:
        TypeError: as :func:`check_middle`, or it takes all of its timesteps but the last.
    """
    check_middle(lidar, who)
    if type(lidar.pipe.scheduler).__name__ == "SCMScheduler":
        raise TypeError(
            f"{who} takes parts of the schedule, and {type(lidar.pipe).__name__} leaves out the last step of each "
            "and returns a prediction: use a method that draws whole samples"
        )
