"""The noise level of a diffusers scheduler call, and what its model output means: one table, one row per family.

``scheduler.step(model_output, t, sample)`` speaks of a ``sample = alpha x_0 + sigma eps`` in coordinates that
differ from family to family, and of a model output that is one of six affine functions of x_0:

    epsilon  (x - alpha x_0) / sigma          v  (alpha x - x_0) / sigma       [alpha^2 + sigma^2 = 1]
    sample   x_0                              flow velocity  (x - x_0) / sigma [alpha + sigma = 1]
    EDM      (x_0 - c_skip x) / c_out         (Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1)
    TrigFlow (cos t x - x_0) / sin t          (Lu and Song 2024, https://arxiv.org/abs/2410.11081, section 3)

So ``model_output = slope x_0 + tilt x``. The slope turns a shift of x_0 into a shift of the model output, and stays
finite at alpha = 0, the first step of every flow model; slope and tilt together turn a model output back into x_0.

Two flow schedulers walk other levels than 1 to 0. With ``invert_sigmas`` (Mochi, OmniGen) sigma counts the signal:
alpha = sigma, the noise is 1 - sigma, and the velocity is reversed, ``(x_0 - x) / noise``. Where levels exceed 1
(Cosmos 2 steps its EDM model so, from 80 to .002) ``sample = x_0 + sigma eps``, and the output is
``(x - x_0) / sigma``. MiniMax-H3's velocity points to the data: ``(x_0 - x) / sigma``.

The levels mirror what each ``step`` does in diffusers 0.42; ``tests/test_levels.py`` checks every row, with every
flag of ``_flags.py`` set, against the scheduler's own ``add_noise`` and against where guided samples end up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._flags import check_flags, flag


class NoiseLevel(NamedTuple):
    """The place of a ``scheduler.step`` call in the diffusion.

    Attributes:
        alpha: signal level of ``sample``, in its own coordinates (1 for schedulers in sigma space).
        sigma: noise level of ``sample``, in the same coordinates.
        slope: ``d model_output / d x_0``; infinite at sigma = 0 unless the model predicts x_0.
        tilt: ``d model_output / d sample`` at a fixed x_0.
        time: 1 at pure noise, 0 at the clean sample: the training timestep over their number, the flow time,
            or for EDM schedulers the place on Karras's ramp.
    """

    alpha: float
    sigma: float
    slope: float
    tilt: float
    time: float


def noise_level(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return the noise level of the next ``scheduler.step(model_output, timestep, sample)``.

    Args:
        scheduler: a diffusers scheduler of a known family, after ``set_timesteps``.
        timestep: the value passed to ``step``.

    Raises:
        ValueError: the family or the prediction type is not known.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> scheduler = FlowMatchEulerDiscreteScheduler()
        >>> scheduler.set_timesteps(4)
        >>> noise_level(scheduler, scheduler.timesteps[0])
        NoiseLevel(alpha=0.0, sigma=1.0, slope=-1.0, tilt=1.0, time=1.0)
    """
    level, outputs = family(scheduler)
    alpha, sigma, time = level(scheduler, timestep)
    slope, tilt = outputs[prediction_type(scheduler)](scheduler, alpha, sigma)
    return NoiseLevel(alpha, sigma, slope, tilt, min(max(time, 0.0), 1.0))


def clean_prediction(level: NoiseLevel, model_output: Tensor, sample: Tensor) -> Tensor:
    """Return the x_0 that ``model_output`` (B, *) means for ``sample`` (B, *), in units of clean latents.

    Raises:
        ValueError: the output says nothing about x_0: epsilon at alpha = 0.

    Example:
        >>> import torch
        >>> level = NoiseLevel(alpha=0.6, sigma=0.8, slope=-0.75, tilt=1.25, time=0.5)  # epsilon
        >>> clean_prediction(level, torch.tensor([[1.0]]), torch.tensor([[0.6 * 2.0 + 0.8]]))
        tensor([[2.]])
    """
    if model_output.shape[1] == 2 * sample.shape[1]:  # learned variance: its half is left out
        model_output = model_output[:, : sample.shape[1]]
    if level.slope == 0:
        raise ValueError("a noise prediction at alpha = 0 says nothing about the clean sample")
    return (model_output - level.tilt * sample) / level.slope


def family(scheduler: Any) -> _Family:
    """Return the row of the table that ``scheduler`` belongs to, by the names of its classes.

    Raises:
        ValueError: it belongs to none; the message names the nearest that are known, and what to load instead.
    """
    for cls in type(scheduler).__mro__:
        if cls.__name__ in _FAMILIES:
            return _FAMILIES[cls.__name__]
    name = type(scheduler).__name__
    near = get_close_matches(name, _FAMILIES, n=3, cutoff=0.5)
    hint = f"; near it are {', '.join(near)}" if near else ""
    raise ValueError(f"{name} is not a scheduler whose noise levels are known{hint}. {_mend(name, scheduler.config)}")


def _mend(name: str, config: Any) -> str:
    """Say what to do instead of stepping by a scheduler of no known family."""
    load = "Load another: pipe.scheduler = {}.from_config(pipe.scheduler.config)"
    if name.startswith("BlockRefinement"):
        return "Its model writes text: lidar_sampling.discrete.TextLiDAR guides it"
    if name.startswith(_DISCRETE):
        return "Its model is discrete: such models are in lidar_sampling.discrete"
    if "shift" in config or "Flow" in name:
        return load.format("FlowMatchEulerDiscreteScheduler")
    if "beta_schedule" in config:
        return load.format("DDIMScheduler")
    return "No scheduler of a known family takes its configuration: load a pipeline that has one"


def check(scheduler: Any) -> None:
    """Refuse, before any sampling, a scheduler that cannot be guided right.

    Raises:
        ValueError: unknown family, prediction type or flag; clipping or thresholding of the clean prediction, which
            would cut the shift away; a noise prediction at zero terminal SNR; flags that do not go together.
    """
    _, outputs = family(scheduler)
    prediction = prediction_type(scheduler)
    if prediction not in outputs:
        raise ValueError(
            f"{type(scheduler).__name__} with prediction_type {prediction!r} is not supported; "
            f"known are {', '.join(map(repr, outputs))}"
        )
    check_flags(scheduler, prediction)


def prediction_type(scheduler: Any) -> str:
    """Return what the model predicts: ``prediction_type``, with the names that diffusers leaves implicit."""
    # Flow schedulers have no such flag; one that another class left still says what the model was trained for.
    prediction = scheduler.config.get("prediction_type", next(iter(family(scheduler).outputs)))
    return "sample" if prediction == "original_sample" else prediction


def data_scale(scheduler: Any) -> float:
    """Return what ``scheduler`` multiplies clean latents by: sigma_data if it samples in units of it, else 1."""
    return float(scheduler.config.sigma_data) if type(scheduler).__name__ == "SCMScheduler" else 1.0


def start_scale(scheduler: Any) -> float:
    """Return the factor by which pipelines multiply the ``latents`` that they start from.

    Args:
        scheduler: of the pipeline, after ``set_timesteps``.

    Example:
        >>> from diffusers import DDIMScheduler, EulerDiscreteScheduler
        >>> euler = EulerDiscreteScheduler()
        >>> euler.set_timesteps(4)
        >>> start_scale(DDIMScheduler()), start_scale(euler) > 100
        (1.0, True)
    """
    return data_scale(scheduler) * float(getattr(scheduler, "init_noise_sigma", 1.0))


# Levels: (scheduler, timestep) -> (alpha, sigma, time).


def _from_alphas_cumprod(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    t = int(timestep)
    signal = float(scheduler.alphas_cumprod[t])
    return signal**0.5, (1 - signal) ** 0.5, _trained_time(scheduler, t)


def _sigma_space(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    sigma = float(scheduler.sigmas[index_of(scheduler, timestep)])
    # Two settings of Euler part the timesteps from the levels: the ones are no places in training, the others lag.
    if flag(scheduler, "timestep_type") == "continuous" or flag(scheduler, "interpolation_type") == "log_linear":
        return 1.0, sigma, _time_of_sigma(scheduler, sigma)
    return 1.0, sigma, _trained_time(scheduler, timestep)


def _k_dpm_2(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    i = index_of(scheduler, timestep)
    sigmas = scheduler.sigmas if scheduler.state_in_first_order else scheduler.sigmas_interpol
    return 1.0, float(sigmas[i]), _trained_time(scheduler, timestep)


def _k_dpm_2_ancestral(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    i = index_of(scheduler, timestep)
    first = scheduler.state_in_first_order
    sigma = scheduler.sigmas[i] if first else scheduler.sigmas_interpol[i - 1]
    return 1.0, float(sigma), _trained_time(scheduler, timestep)


def _dpm_solver_sde(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    i = index_of(scheduler, timestep)
    sigma = scheduler.sigmas[i] if scheduler.state_in_first_order else scheduler.mid_point_sigma
    return 1.0, float(sigma), _trained_time(scheduler, timestep)


def _variance_preserving(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    sigma = float(scheduler.sigmas[index_of(scheduler, timestep)])
    if flag(scheduler, "use_flow_sigmas"):
        return max(1 - sigma, 0.0), sigma, sigma
    alpha = 1 / math.hypot(1, sigma)
    return alpha, alpha * sigma, _trained_time(scheduler, timestep)


def _flow(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    first, sigma = scheduler.sigmas[[0, index_of(scheduler, timestep)]].tolist()  # together: the device waits once
    if flag(scheduler, "invert_sigmas"):
        return max(sigma, 0.0), 1 - sigma, 1 - sigma
    if first > 1 + _ROUNDING:
        return 1.0, sigma, sigma / (1 + sigma)
    return max(1 - sigma, 0.0), sigma, sigma


def _flow_map(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    # A step starts where its timestep says, on the schedule or off it.
    index = scheduler.index_for_timestep(timestep)
    here = float(scheduler.sigmas[index]) if index is not None else _trained_time(scheduler, timestep)
    return 1 - here, here, here


def _wuerstchen(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    t = torch.as_tensor(timestep).flatten()[:1].cpu()  # its step wants one for each sample, all alike
    signal = float(scheduler._alpha_cumprod(t, t.device))
    return signal**0.5, (1 - signal) ** 0.5, float(t)


def _edm(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    sigma = float(scheduler.sigmas[index_of(scheduler, timestep)])
    config = scheduler.config
    low, here, high = (s ** (1 / config.rho) for s in (config.sigma_min, sigma, config.sigma_max))
    return 1.0, sigma, (here - low) / (high - low)


def _trig_flow(scheduler: Any, timestep: float | Tensor) -> tuple[float, float, float]:
    angle, data = float(scheduler.timesteps[index_of(scheduler, timestep)]), data_scale(scheduler)
    # Its first angle is pi/2 rounded up, where the cosine is just below 0.
    return data * max(math.cos(angle), 0.0), data * math.sin(angle), 2 * angle / math.pi


def index_of(scheduler: Any, timestep: float | Tensor) -> int:
    """Return the number of the step that ``scheduler`` takes next, at ``timestep``."""
    # step() does the same when it finds None, so this changes nothing.
    if scheduler.step_index is None and hasattr(scheduler, "_init_step_index"):
        scheduler._init_step_index(timestep)
    if scheduler.step_index is None:  # MiniMax-H3 looks up its first step, and keeps no index before
        begin = scheduler.begin_index
        return scheduler.index_for_timestep(timestep) if begin is None else begin
    return scheduler.step_index


def _trained_time(scheduler: Any, timestep: float | Tensor) -> float:
    return float(timestep) / scheduler.config.num_train_timesteps


def _time_of_sigma(scheduler: Any, sigma: float) -> float:
    """Return the training timestep whose noise level is ``sigma``, over their number."""
    signal = scheduler.alphas_cumprod.cpu().double().numpy()
    trained = np.log((1 - signal) / signal) / 2
    return float(np.interp(math.log(sigma), trained, np.arange(len(trained)))) / len(trained)


_ROUNDING = 1e-3  # a shifted schedule of float32 may start just above 1

# Outputs: (scheduler, alpha, sigma) -> (slope, tilt).

_Line = tuple[float, float]
_Outputs = dict[str, Callable[[Any, float, float], _Line]]
_CLEAN: _Line = (-math.inf, math.inf)  # at sigma = 0 every output but x_0 itself is undetermined


def _epsilon(_: Any, alpha: float, sigma: float) -> _Line:
    return (-alpha / sigma, 1 / sigma) if sigma else _CLEAN


def _v(_: Any, alpha: float, sigma: float) -> _Line:
    # In sigma space the network sees x / hypot(1, sigma), and v belongs to those coordinates.
    length = math.hypot(alpha, sigma)
    return (-length / sigma, alpha / (length * sigma)) if sigma else _CLEAN


def _sample(_: Any, alpha: float, sigma: float) -> _Line:
    return 1.0, 0.0


def _velocity(_: Any, alpha: float, sigma: float) -> _Line:
    return (-1 / sigma, 1 / sigma) if sigma else _CLEAN


def _flow_velocity(scheduler: Any, alpha: float, sigma: float) -> _Line:
    slope, tilt = _velocity(scheduler, alpha, sigma)
    return (-slope, -tilt) if flag(scheduler, "invert_sigmas") else (slope, tilt)


def _velocity_to_data(scheduler: Any, alpha: float, sigma: float) -> _Line:
    slope, tilt = _velocity(scheduler, alpha, sigma)
    return -slope, -tilt


def _edm_output(sign: int) -> Callable[[Any, float, float], _Line]:
    def line(scheduler: Any, alpha: float, sigma: float) -> _Line:
        data = scheduler.config.sigma_data
        length = math.hypot(sigma, data)
        return (sign * length / (sigma * data), -sign * data / (sigma * length)) if sigma else (sign * math.inf, 0.0)

    return line


def _trig_flow_output(scheduler: Any, alpha: float, sigma: float) -> _Line:
    return (-(data_scale(scheduler) ** 2) / sigma, alpha / sigma) if sigma else _CLEAN


class _Family(NamedTuple):
    level: Callable[[Any, float | Tensor], tuple[float, float, float]]
    outputs: _Outputs


_DIFFUSION: _Outputs = {"epsilon": _epsilon, "v_prediction": _v, "sample": _sample}
_NO_SAMPLE: _Outputs = {"epsilon": _epsilon, "v_prediction": _v}
_DIFFUSION_OR_FLOW: _Outputs = {**_DIFFUSION, "flow_prediction": _velocity}
_FLOW: _Outputs = {"flow_prediction": _flow_velocity}
_EDM: _Outputs = {"epsilon": _edm_output(1), "v_prediction": _edm_output(-1)}

_FAMILIES = {
    "DDIMScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "DDIMParallelScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "DDPMScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "DDPMParallelScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "PNDMScheduler": _Family(_from_alphas_cumprod, _NO_SAMPLE),
    "LCMScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "TCDScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "CogVideoXDDIMScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "CogVideoXDPMScheduler": _Family(_from_alphas_cumprod, _DIFFUSION),
    "EulerDiscreteScheduler": _Family(_sigma_space, _DIFFUSION),
    "EulerAncestralDiscreteScheduler": _Family(_sigma_space, _NO_SAMPLE),
    "HeunDiscreteScheduler": _Family(_sigma_space, _DIFFUSION),
    "LMSDiscreteScheduler": _Family(_sigma_space, _DIFFUSION),
    "KDPM2DiscreteScheduler": _Family(_k_dpm_2, _NO_SAMPLE),
    "KDPM2AncestralDiscreteScheduler": _Family(_k_dpm_2_ancestral, _NO_SAMPLE),
    "DPMSolverSDEScheduler": _Family(_dpm_solver_sde, _NO_SAMPLE),
    "DPMSolverMultistepScheduler": _Family(_variance_preserving, _DIFFUSION_OR_FLOW),
    "DPMSolverSinglestepScheduler": _Family(_variance_preserving, _DIFFUSION_OR_FLOW),
    "UniPCMultistepScheduler": _Family(_variance_preserving, _DIFFUSION_OR_FLOW),
    "DEISMultistepScheduler": _Family(_variance_preserving, _DIFFUSION_OR_FLOW),
    "SASolverScheduler": _Family(_variance_preserving, _DIFFUSION_OR_FLOW),
    "EDMEulerScheduler": _Family(_edm, _EDM),
    "EDMDPMSolverMultistepScheduler": _Family(_edm, _EDM),
    "CosineDPMSolverMultistepScheduler": _Family(_edm, _EDM),
    "FlowMatchEulerDiscreteScheduler": _Family(_flow, _FLOW),
    "FlowMatchHeunDiscreteScheduler": _Family(_flow, _FLOW),
    "FlowMatchLCMScheduler": _Family(_flow, _FLOW),
    "LTXEulerAncestralRFScheduler": _Family(_flow, _FLOW),
    "FlowMapEulerDiscreteScheduler": _Family(_flow_map, _FLOW),
    "MiniMaxH3Scheduler": _Family(_flow, {"flow_prediction": _velocity_to_data}),
    "DDPMWuerstchenScheduler": _Family(_wuerstchen, {"epsilon": _epsilon}),
    "SCMScheduler": _Family(_trig_flow, {"trigflow": _trig_flow_output}),
}

_DISCRETE = ("Amused", "DiscreteDDIM", "EntropyBound", "VQDiffusion")  # of tokens, not of numbers
