"""From a solver's name to the pipeline that draws the lookahead samples.

Nothing writes to the target's weights. A LoRA goes on a twin of the denoiser that shares its parameters, so it
costs the memory of the adapter alone; a few-step denoiser stands beside the target's and shares all else; a few-step
pipeline is loaded whole.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .._hub import Published, fill, load_state_dict
from .._load import load_pipeline
from .._parts import denoisers
from .._values import annotations_of, check_settings
from ._solver import Solver
from .presets import FLUX, PRESETS, SANA, SD, SD3, SDXL

_log = logging.getLogger(__name__)

_FAMILIES = {
    "StableDiffusionXL": SDXL,
    "StableDiffusion3": SD3,
    "StableDiffusion": SD,
    "Flux(?!2)": FLUX,
    "Sana(?!Video)": SANA,
}
_ADAPTER = "lidar-lookahead"


def _dpm(scheduler: Any) -> Any:
    from ._dpm import dpm_solver

    return dpm_solver(scheduler)


def _karras_dpm(scheduler: Any) -> Any:
    from ._dpm import karras_dpm_solver

    return karras_dpm_solver(scheduler)


_SCHEDULERS = {"own": None, "dpm": _dpm, "dpm-karras": _karras_dpm}


def names() -> dict[str, list[Solver]]:
    """Return the presets by name; one name may serve several families.

    >>> [solver.bases for solver in names()["lcm-lora:4"]]
    [('Stable Diffusion',), ('Stable Diffusion XL',)]
    """
    return {preset.name: [p for p in PRESETS if p.name == preset.name] for preset in PRESETS}


def base_of(pipe: Any) -> str:
    """Return the family of ``pipe`` as presets name it, or else the name of its class."""
    for cls in type(pipe).__mro__:
        for prefix, family in _FAMILIES.items():
            if re.match(prefix, cls.__name__):
                return family
    return type(pipe).__name__


def load(name: str, pipe: Any = None) -> Solver:
    """Return the solver called ``name``: ``dpm:N``, ``dpm:N-karras``, ``own:N``, or one of the presets.

    Args:
        name: its name; N is a number of steps, at least 1. With ``-unguided`` at its end ``dpm:N`` or ``own:N`` goes
            without classifier-free guidance, for half the network evaluations.
        pipe: the target, which decides among presets of one name; None takes the first.

    Raises:
        ValueError: no such solver, or none of that name for the family of ``pipe``.

    Example:
        >>> load("dpm:5").steps
        5
    """
    if match := re.fullmatch(r"(own|dpm):([1-9]\d*)(-karras)?(-unguided)?", name):
        kind = match[1] + (match[3] or "")
        if kind in _SCHEDULERS:
            return Solver(name, int(match[2]), _SCHEDULERS[kind], guidance_scale=1.0 if match[4] else None)
    known = names()
    if name not in known:
        near = get_close_matches(name, [*known, "dpm:5", "own:8"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown solver {name!r}; {hint}known are dpm:N, dpm:N-karras, own:N and those of 'lidar solvers'"
        )
    if pipe is None:
        return known[name][0]
    for preset in known[name]:
        if base_of(pipe) in preset.bases:
            return preset
    bases = " or ".join(base for preset in known[name] for base in preset.bases)
    raise ValueError(f"{name} is made for {bases}, not for {type(pipe).__name__}; own:N fits every model, dpm:N most")


def lookahead_pipeline(solver: Solver, pipe: Any) -> Any:
    """Return the pipeline that ``solver`` draws with: ``pipe`` itself, a twin that shares its parts, or another.

    Raises:
        ValueError: the target is offloaded, or the other model has no latent space in common with it.
        ImportError: a LoRA without ``peft``.
        FileNotFoundError: weights that are neither here nor in reach.
    """
    weights = solver.weights
    if isinstance(weights, Published) and not weights.commercial:
        _log.warning("%s uses weights under terms of their own: %s", solver.name, weights)
    if solver.lora is not None:
        return _with_lora(solver, pipe)
    if solver.denoiser is not None:
        return _with_denoiser(solver, pipe)
    if isinstance(solver.pipeline, Published | str | Path):
        return _load_pipeline(solver.pipeline, like=pipe)
    return pipe if solver.pipeline is None else solver.pipeline


@contextmanager
def use_solver(solver: Solver, pipe: Any) -> Iterator[None]:
    """Let ``pipe`` use the scheduler of ``solver`` inside the block."""
    own = pipe.scheduler
    pipe.scheduler = _scheduler(solver, own)
    try:
        yield
    finally:
        pipe.scheduler = own


def _scheduler(solver: Solver, own: Any) -> Any:
    if callable(solver.scheduler):
        return solver.scheduler(own)
    import diffusers

    cls = type(own) if solver.scheduler is None else getattr(diffusers, solver.scheduler, None)
    if cls is None:
        raise ValueError(f"{solver.name}: diffusers has no scheduler {solver.scheduler!r}")
    check_settings(f"{solver.name}: {cls.__name__}", solver.settings, annotations_of(cls.__init__))
    made = cls.from_config(own.config, **solver.settings)
    if (
        solver.scheduler is None and "shift" not in solver.settings and hasattr(own, "set_shift")
    ):  # a shift that was set is not in the configuration
        made.set_shift(own.shift)
    return made


def _with_lora(solver: Solver, pipe: Any) -> Any:
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ImportError(f"{solver.name} is a LoRA and needs peft: pip install 'lidar-sampling[lora]'") from None
    name, denoiser = _denoiser(solver, pipe)
    # The twin's modules are its own, so that adapters reach no module of the target; its parameters are the target's.
    twin = copy.deepcopy(denoiser, {id(p): p for p in (*denoiser.parameters(), *denoiser.buffers())})
    vars(twin).pop("forward", None)  # a compiled one would be that of the target
    lookahead = _twin(pipe, {name: twin})
    before = lookahead.get_active_adapters() if hasattr(twin, "peft_config") else []
    file = _file(solver.lora)
    lookahead.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=_ADAPTER)
    lookahead.set_adapters([*before, _ADAPTER], [*(1.0 for _ in before), solver.lora_scale])
    return lookahead


def _with_denoiser(solver: Solver, pipe: Any) -> Any:
    name, denoiser = _denoiser(solver, pipe)
    twin = type(denoiser).from_config(denoiser.config)
    file = _file(solver.denoiser)
    fill(twin, load_state_dict(file), file)
    return _twin(pipe, {name: twin.to(denoiser.device, denoiser.dtype).eval()})


def _denoiser(solver: Solver, pipe: Any) -> tuple[str, Any]:
    """Return the name and the module of the target's one denoiser, as it was before it was compiled."""
    found = denoisers(pipe)
    if len(found) != 1:
        raise ValueError(f"{solver.name} replaces one denoiser, and {type(pipe).__name__} has {len(found)}")
    ((name, module),) = found.items()
    module = getattr(module, "_orig_mod", module)
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ValueError(f"{solver.name} cannot share the weights of an offloaded model: use dpm:N or own:N")
    return name, module


def _twin(pipe: Any, changes: dict[str, Any]) -> Any:
    """Return a pipeline of the same class and configuration with some components replaced."""
    options = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
    accepted = {name: value for name, value in options.items() if not isinstance(value, tuple | list)}
    return type(pipe)(**{**accepted, **pipe.components, **changes})


def _load_pipeline(source: Published | str | Path, *, like: Any) -> Any:
    repo, revision = (source.repo, source.revision) if isinstance(source, Published) else (source, None)
    return load_pipeline(repo, revision=revision, dtype=like.dtype).to(like.device)


def _file(source: Published | str | Path | None) -> Path:
    path = source.download() if isinstance(source, Published) else Path(str(source))
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return path
