"""The work of a pipeline after its last step, as a function of clean latents.

Unpacking, scaling, pasting and decoding differ from family to family, and only the pipeline's own call knows how. So
a twin of the pipeline makes that call once more, in two steps, and nothing in it works but the decoder: in the place
of denoisers and text encoders are stand-ins that return zeros, and ``scheduler.step`` returns the latents to decode.
The pipeline itself stays as it is, even in the middle of a call of its own.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ._call import TARGET_ONLY, blocks_of, for_batch, inputs_of, prompts_for
from ._draw import Item
from ._levels import data_scale

_DENOISERS = re.compile(r"unet|transformer|controlnet|prior|decoder")
_ENCODERS = re.compile(r"text_encoder|image_encoder|bert")
_OTHERWISE: dict[str, Any] = {  # what the call is made with, where the pipeline takes it
    "num_inference_steps": 2,  # some schedules cannot be of one
    "strength": 1.0,  # which leaves both
    "output_type": "pt",
}
_LEFT_OUT = (*TARGET_ONLY, "denoising_start", "latents", "callback", "callback_on_step_end", "return_dict")


class Tail:
    """A function from clean latents (B, *) in the scheduler's space to what a pipeline returns for them.

    Pictures that the call is given are encoded the first time, and no more.

    Args:
        pipe: a diffusers pipeline.
        call: the arguments that the latents were drawn with, as the sampler has them.
        items: the prompts and seeds that they were drawn with; None takes any.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any], items: Sequence[Item] | None = None) -> None:
        self._pipe, self._items, self._blocks = pipe, items, blocks_of(pipe)
        self._call = {name: value for name, value in call.items() if name not in _LEFT_OUT}
        known = inputs_of(pipe)
        self._otherwise = {name: value for name, value in _OTHERWISE.items() if name in known}
        self._encoded: list[Any] = []
        self._encodes = 0
        self._twin = copy(pipe)
        state = vars(self._twin)
        state["_progress_bar_config"] = {"disable": True}
        state["maybe_free_model_hooks"] = lambda: None  # the pipeline may be at work
        state.pop("prepare_latents", None)  # which draw() replaces where it keeps the graph
        for name, part in pipe.components.items():
            if name == "vae" and part is not None:
                state[name] = self._with_memory(part)
            elif name == "audio_vae" and part is not None:  # of a sound track, which is not looked at
                state[name] = _twin(part, type(part), decode=lambda z, *_, **__: _Output((z,)))
            elif name == "guider" and part is not None:
                state[name] = copy(part)  # it counts steps
            elif name == "connectors":  # from texts to what video and sound attend to
                state[name] = _stand_in(part, lambda _, embeds, *__, **___: (embeds, embeds, embeds))
            elif name == "vocoder" and "audio_vae" in pipe.components:
                state[name] = _stand_in(part, lambda _, spectrograms: spectrograms)
            elif isinstance(part, nn.Module) and _ENCODERS.search(name):
                state[name] = _stand_in(part, _encode)
            elif isinstance(part, nn.Module) and _DENOISERS.match(name):
                state[name] = _stand_in(part, _denoise)
        if self._blocks is not None:
            state["_blocks"] = self._blocks
            _silence(self._blocks)
            outputs = {output.name for output in self._blocks.outputs}
            self._otherwise["output"] = next(kind for kind in ("images", "videos", "audio") if kind in outputs)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the pipeline's own output for ``latents``; gradients flow where the latents have them.

        Raises:
            ValueError: they are of another shape than this call draws.
            TypeError: the pipeline returns no tensor, or takes its steps with another scheduler.
        """
        items = self._items or [Item("x", 0)] * len(latents)
        texts = [item.prompt for item in items]
        arguments = {
            "prompt": prompts_for(self._pipe, texts),
            "generator": [torch.Generator().manual_seed(item.seed) for item in items],
            **for_batch(self._call, texts, self._pipe),
            **self._otherwise,
        }
        self._encodes = 0
        vars(self._twin)["scheduler"] = scheduler = _scheduler(self._pipe.scheduler, latents)
        inner = getattr(type(self._pipe).__call__, "__wrapped__", type(self._pipe).__call__)  # without no_grad
        try:
            output: Any = inner(self._twin, **arguments)
        except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
            if _TAKEN in vars(scheduler) or isinstance(error, torch.OutOfMemoryError):
                raise
            who = type(self._pipe).__name__
            raise TypeError(
                f"{who} cannot decode latents apart from a call with all of its networks: {error}"
            ) from error
        drawn = output[0] if self._blocks is None else output
        if not isinstance(drawn, Tensor):
            raise TypeError(f"{type(self._pipe).__name__} returns no tensor, but {type(drawn).__name__}")
        if _TAKEN not in vars(scheduler):
            raise TypeError(f"{type(self._pipe).__name__} takes its steps with another scheduler than its own")
        return drawn

    def _with_memory(self, vae: Any) -> Any:
        """Return a twin of ``vae`` that decodes latents of any precision, and encodes nothing a second time."""

        def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            return vae.decode(z.to(vae.dtype), *args, **kwargs)

        def encode(*args: Any, **kwargs: Any) -> Any:
            self._encodes += 1
            if len(self._encoded) < self._encodes:
                with torch.no_grad():
                    self._encoded.append(vae.encode(*args, **kwargs))
            return self._encoded[self._encodes - 1]

        return _twin(vae, type(vae), decode=decode, encode=encode)


def _twin(part: Any, cls: type, **changes: Any) -> Any:
    """Return a shallow copy, of networks that are compiled or dispatched too."""
    twin: Any = object.__new__(cls)
    twin.__dict__.update(vars(part), **changes)
    return twin


def _silence(blocks: Any) -> None:
    for block in getattr(blocks, "sub_blocks", {}).values():
        if hasattr(block, "progress_bar"):
            block.set_progress_bar_config(disable=True)
        _silence(block)


class _Output(tuple[Any, ...]):
    """What networks and steps return: a tuple whose entries have the names that pipelines call them by."""

    __slots__ = ()
    sample = prev_sample = property(lambda self: self[0])
    pred_original_sample = property(lambda self: self[1])


_ANSWER = "_lidar_sampling_answer"


def _stand_in(module: Any, answer: Callable[..., Any]) -> Any:
    """Return a twin of ``module`` that does not run, and no hook of it, but returns what ``answer`` says."""
    twin = _twin(module, _idle(type(module)), **{_ANSWER: answer})  # type: ignore[arg-type]
    if hasattr(module, "cache_context"):  # it would enter the contexts of the module's own layers
        vars(twin)["cache_context"] = lambda *_, **__: nullcontext()
    return twin


@functools.cache
def _idle(base: type) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return self.__dict__[_ANSWER](self, *args, **kwargs)

    return _under_its_name(base, __call__=__call__)


def _under_its_name(base: type, **members: Any) -> type:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), {**members, **names})


def _denoise(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Return zeros in the shape of the denoiser's input; its answer may differ in channels, which no step reads."""
    if "ControlNet" in type(module).__name__:
        return _Output(([], None))
    shown = [kwargs[name] for name in _SHOWN if name in kwargs] or list(args[:1])
    zeros = [_zeros_like(each) for each in shown]
    return _Output((*zeros, None) if kwargs.get("kv_cache_mode") == "extract" else zeros)


def _zeros_like(shown: Any) -> Any:
    return [torch.zeros_like(each) for each in shown] if isinstance(shown, list) else torch.zeros_like(shown)


_SHOWN = ("hidden_states", "sample", "audio_hidden_states", "x")


class _Encoded:
    """Zeros in the shapes of what a text encoder returns."""

    def __init__(self, hidden: Tensor, pooled: Tensor, layers: int, *, projects: bool) -> None:
        self.last_hidden_state, self.hidden_states = hidden, (hidden,) * (layers + 1)
        self.pooler_output = self.text_embeds = self.image_embeds = pooled
        self._tuple = (pooled, hidden) if projects else (hidden, pooled)

    def __getitem__(self, index: Any) -> Any:
        return getattr(self, index) if isinstance(index, str) else self._tuple[index]


_OF_TEXT = ("text_config", "encoder")  # where configurations of several networks have that of the texts


def _encode(module: Any, *args: Any, **kwargs: Any) -> _Encoded:
    shown = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][0]  # noqa: RUF015
    config = next(filter(None, (getattr(module.config, name, None) for name in _OF_TEXT)), module.config)
    width = getattr(config, "hidden_size", None) or config.d_model
    layers = getattr(config, "num_hidden_layers", None) or config.num_layers
    rows, length = shown.shape[0], shown.shape[1] if shown.dim() == 2 else 1
    like: dict[str, Any] = {"dtype": module.dtype, "device": shown.device}
    pooled = torch.zeros(rows, getattr(config, "projection_dim", None) or width, **like)
    name = type(module).__name__
    shape = (length, rows, width) if name == "ChatGLMModel" else (rows, length, width)
    return _Encoded(torch.zeros(shape, **like), pooled, layers, projects="WithProjection" in name)


_LATENTS = "_lidar_sampling_latents"
_TAKEN = "_lidar_sampling_taken"


def _scheduler(scheduler: Any, latents: Tensor) -> Any:
    """Return a twin of ``scheduler``, without its hooks, whose every step returns ``latents``."""
    plain = copy(scheduler)
    twin = _of_another(type(plain), vars(plain))
    vars(twin)[_LATENTS] = latents * data_scale(plain)
    return twin


def _of_another(base: type, state: dict[str, Any]) -> Any:
    """Return a scheduler for another modality: its steps return the sample that they are shown."""
    twin: Any = object.__new__(_subclass_that_finishes(base))
    twin.__dict__.update(state)
    return twin


@functools.cache
def _subclass_that_finishes(base: type) -> type:
    signature = inspect.signature(base.step)  # type: ignore[attr-defined]

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        sample = signature.bind(self, *args, **kwargs).arguments["sample"]
        latents = self.__dict__.get(_LATENTS, sample)
        if latents.shape != sample.shape:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} do not fit a call that draws {tuple(sample.shape)}: decode "
                "with the arguments that they were drawn with, such as height and width"
            )
        self.__dict__[_TAKEN] = True
        return _Output((latents, latents))

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _TAKEN in self.__dict__:
            raise ValueError(
                "this call draws in sections, each with a schedule of its own, and the latents are of one"
            )
        return base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]

    def __reduce__(self: Any) -> Any:  # noqa: N807
        ours = (_LATENTS, _TAKEN)
        return _of_another, (base, {key: value for key, value in self.__dict__.items() if key not in ours})

    return _under_its_name(base, step=step, set_timesteps=set_timesteps, __reduce__=__reduce__)
