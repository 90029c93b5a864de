"""The configuration flags of diffusers' schedulers: which ones are known, and which ones rule out guidance.

``_levels.py`` was read against every flag of :data:`KNOWN`, and ``tests/test_levels.py`` tests it with each of them
set. A flag that is not here may move the noise levels or change the meaning of the model output, so a scheduler
that sets one is refused. An entry of the configuration counts only where the scheduler's own constructor takes it:
``from_config`` keeps what another class was saved with, and diffusers ignores it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

_TRAINING = """
    num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr snr_shift_scale
    prediction_type sigma_data variance_type
"""
_LEVELS = """
    timestep_spacing timestep_type timestep_scaling steps_offset original_inference_steps skip_prk_steps
    interpolation_type lambda_min_clipped use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas
    sigma_min sigma_max sigma_schedule rho final_sigmas_type set_alpha_to_one
    use_flow_sigmas flow_shift shift shift_terminal invert_sigmas use_dynamic_shifting time_shift_type
    base_shift max_shift base_image_seq_len max_image_seq_len scaler s
"""
_STEPS = """
    algorithm_type solver_order solver_type solver_p predictor_order corrector_order disable_corrector predict_x0
    tau_func lower_order_final euler_at_final stochastic_sampling eta s_noise noise_sampler_seed
    clip_sample clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value scale_factors upscale_mode
"""
KNOWN = frozenset(f"{_TRAINING} {_LEVELS} {_STEPS}".split())


def flag(scheduler: Any, name: str) -> Any:
    """Return the value of a configuration flag, None where the constructor of ``scheduler`` does not take it."""
    taken = name in _parameters(type(scheduler))  # type: ignore[arg-type]
    return scheduler.config.get(name) if taken else None


def in_edm_levels(scheduler: Any) -> bool:
    """Return whether a flow scheduler is configured to walk the noise levels of EDM, as pipelines of Cosmos 2 do.

    Those register ``sigma_max`` with the scheduler, whose constructor does not take it but whose schedules read it.
    """
    spaced = any(flag(scheduler, f"use_{name}_sigmas") for name in ("karras", "exponential", "beta"))
    return flag(scheduler, "shift") is not None and spaced and (scheduler.config.get("sigma_max") or 0) > 1


def check_flags(scheduler: Any, prediction: str) -> None:
    """Refuse a configuration whose levels are not known, or whose steps would undo or misread guidance.

    Args:
        scheduler: a diffusers scheduler of a known family.
        prediction: what its model predicts.

    Raises:
        ValueError: a flag that is not known is set, or flags that do not go together; the message says what to do.
    """
    name = type(scheduler).__name__
    for parameter, default in _parameters(type(scheduler)).items():  # type: ignore[arg-type]
        value = scheduler.config.get(parameter, default)
        if parameter not in KNOWN and _differs(value, default):
            raise ValueError(
                f"{name} has {parameter}={value!r}, a flag that lidar-sampling does not know and that may change "
                f"what a step means; load it with {parameter}={default!r}, or update lidar-sampling"
            )
    for refusal in _REFUSALS:
        if refusal.applies(scheduler, prediction):
            raise ValueError(f"{name} {refusal.reason}")


class _Refusal(NamedTuple):
    applies: Callable[[Any, str], bool]
    reason: str  # what is set, why it cannot be guided, and the mend


def _clips(switch: str) -> _Refusal:
    return _Refusal(
        lambda scheduler, _: bool(flag(scheduler, switch)) and type(scheduler).__name__ not in _NEVER_CLIP,
        f"has {switch}=True, which cuts the guided prediction back; load it with "
        f"type(scheduler).from_config(scheduler.config, {switch}=False) if the model allows",
    )


def _predicts_noise_of_pure_noise(scheduler: Any, prediction: str) -> bool:
    # Euler, DPM-Solver and UniPC keep a last alpha of 2^-12 and can divide by it.
    return prediction == "epsilon" and flag(scheduler, "rescale_betas_zero_snr") and scheduler.alphas_cumprod[-1] == 0


def _leaves_flow_levels(scheduler: Any, _: str) -> bool:
    if not flag(scheduler, "use_flow_sigmas"):
        return False
    spacings = ["use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
    if not type(scheduler).__name__.startswith("UniPC"):  # UniPC alone makes flow levels of Karras's
        spacings.append("use_karras_sigmas")
    return any(flag(scheduler, name) for name in spacings)


def _renoises(scheduler: Any) -> bool:
    return bool(flag(scheduler, "stochastic_sampling")) or type(scheduler).__name__ == "FlowMatchLCMScheduler"


_NEVER_CLIP = ("TCDScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")  # these take the flag and ignore it

_REFUSALS = (
    _clips("clip_sample"),
    _clips("thresholding"),
    _Refusal(
        _predicts_noise_of_pure_noise,
        "has rescale_betas_zero_snr=True and prediction_type='epsilon': a noise prediction says nothing about the "
        "clean sample at zero terminal SNR; load it with rescale_betas_zero_snr=False, or with "
        "prediction_type='v_prediction' if the model was trained so",
    ),
    _Refusal(
        _leaves_flow_levels,
        "has use_flow_sigmas=True and a spacing of levels made for diffusion models, which leaves the flow's 0 to 1; "
        "load it with use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False and "
        "use_lu_lambdas=False",
    ),
    _Refusal(
        lambda scheduler, prediction: prediction == "flow_prediction" and flag(scheduler, "use_flow_sigmas") is False,
        "has prediction_type='flow_prediction' and use_flow_sigmas=False: a velocity belongs to the levels of a "
        "flow; load it with use_flow_sigmas=True",
    ),
    _Refusal(
        lambda scheduler, prediction: prediction == "v_prediction" and bool(flag(scheduler, "use_flow_sigmas")),
        "has prediction_type='v_prediction' and use_flow_sigmas=True: v belongs to variance preserving levels; "
        "load it with prediction_type='flow_prediction', or with use_flow_sigmas=False",
    ),
    _Refusal(
        lambda scheduler, _: (
            bool(scheduler.config.get("invert_sigmas"))
            and (not flag(scheduler, "invert_sigmas") or _renoises(scheduler) or in_edm_levels(scheduler))
        ),
        "steps a model with invert_sigmas=True, whose noise levels count up, as if they counted down; load "
        "FlowMatchEulerDiscreteScheduler with stochastic_sampling=False",
    ),
    _Refusal(
        lambda scheduler, _: in_edm_levels(scheduler) and _renoises(scheduler),
        "adds noise as a flow does, and has a sigma_max above 1, which no flow has; load "
        "FlowMatchEulerDiscreteScheduler with stochastic_sampling=False",
    ),
    _Refusal(
        lambda scheduler, _: bool(flag(scheduler, "scale_factors")),
        "has scale_factors, which change the size of the sample between steps, while a bank has one size; load it "
        "with scale_factors=None",
    ),
)


@functools.cache
def _parameters(scheduler_class: Any) -> dict[str, Any]:
    """Return the parameters that the constructors of a class and its bases take, with their defaults."""
    found: dict[str, Any] = {}
    for cls in scheduler_class.__mro__:
        init = vars(cls).get("__init__")
        parameters = inspect.signature(init).parameters.values() if init else ()
        for p in [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]:
            found.setdefault(p.name, p.default)
    return found


def _differs(value: Any, default: Any) -> bool:
    if isinstance(value, list) and isinstance(default, tuple):  # JSON has no tuples
        value = tuple(value)
    try:
        return bool(value != default)
    except (ValueError, RuntimeError):  # an array is not the default
        return True
