"""The guidance of a pipeline's call: whether it has several branches, and which of its arguments it does not read."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from ._call import parameters_of
from ._parts import denoisers


def is_guided(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Return whether a call has classifier-free guidance.

    The pipeline's own property says so, if it has one. Otherwise it is ``true_cfg_scale`` above 1 with a negative
    prompt, or ``guidance_scale`` above 1 of a model that does not take it as an input.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe, call = testing.tiny_flux(), {"true_cfg_scale": 4.0}
        >>> is_guided(pipe, call), is_guided(pipe, {**call, "negative_prompt": ""})
        (False, True)
    """
    if hasattr(type(pipe), "do_classifier_free_guidance"):
        return bool(with_scales(pipe, call).do_classifier_free_guidance)
    arguments = {**parameters_of(pipe), **call}
    if "true_cfg_scale" in arguments:
        return arguments["true_cfg_scale"] > 1 and call.get("negative_prompt") is not None
    return not _embeds(pipe) and not _is_flux(pipe) and (arguments.get("guidance_scale") or 0) > 1


def with_scales(pipe: Any, call: Mapping[str, Any]) -> Any:
    """Return a copy of ``pipe`` that has taken the scales of guidance of a call, as its properties read them."""
    twin, arguments = copy(pipe), {**parameters_of(pipe), **call}
    for name, value in arguments.items():
        if name.endswith("_scale"):
            # Sound takes over the scale of pictures where it has none.
            vars(twin)[f"_{name}"] = value or arguments.get(name.removeprefix("audio_"))
    return twin


def unread_of(pipe: Any, call: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of guidance in ``call`` that ``pipe`` does not read, each with a line that says why.

    Example:
        >>> from lidar_sampling import testing
        >>> unread_of(testing.tiny_stable_diffusion(), {"negative_prompt": "grey", "guidance_scale": 1.0})
        {'negative_prompt': 'negative_prompt does nothing: it is read where guidance_scale is above 1'}
    """
    found = {}
    takes, says = parameters_of(pipe), hasattr(type(pipe), "do_classifier_free_guidance")
    distilled = not says and ("true_cfg_scale" in takes or _is_flux(pipe))
    scale = call.get("guidance_scale")
    if distilled and scale is not None and scale > 1 and not _embeds(pipe):
        mend = ", but true_cfg_scale with a negative_prompt" if "true_cfg_scale" in takes else ""
        line = f"guidance_scale={scale} does nothing: this {type(pipe).__name__} does not read it{mend}"
        found["guidance_scale"] = line
    reads = "true_cfg_scale" if distilled else "guidance_scale"
    # A prior has guidance of its own, and a guider scales of its own.
    simple = reads in takes and "prior_guidance_scale" not in takes and getattr(pipe, "guider", None) is None
    if simple and call.get("negative_prompt") is not None and not is_guided(pipe, call):
        found["negative_prompt"] = f"negative_prompt does nothing: it is read where {reads} is above 1"
    return found


def _embeds(pipe: Any) -> bool:
    """Return whether the network takes the scale of guidance as an input, in place of a second branch."""
    return any(getattr(module.config, "guidance_embeds", False) for module in denoisers(pipe).values())


def _is_flux(pipe: Any) -> bool:
    """Return whether the network is that of FLUX.1, whose pipelines never guide by ``guidance_scale``."""
    return any(type(module).__name__ == "FluxTransformer2DModel" for module in denoisers(pipe).values())
