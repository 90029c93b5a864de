"""What a value holds, as JSON: for keys that must change whenever the value does, and never otherwise.

Tensors, arrays and pictures count by their numbers, modules by their weights and settings, functions by their code.
Addresses and paths never count, so a key is the same in another process and in another folder. What cannot be told
this way raises :class:`OpaqueError`, and whoever wants a key goes without one.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_BLOCK = 1 << 17  # words of 8 bytes that are summed at a time: what a core's cache holds
_MIX = -7046029254386353131  # 2**64 over the golden ratio, as a signed number
_TORCH = frozenset(vars(nn.Module()))  # what every module has of torch: parameters, buffers, hooks
_NAMES = ("_name_or_path", "name_or_path", "_commit_hash")  # where a configuration was loaded from


class OpaqueError(ValueError):
    """A value whose contents cannot be told; the message says which."""


def contents(value: Any, name: str = "value") -> Any:
    """Return what ``value`` holds, as JSON values.

    Args:
        value: anything.
        name: what to call it in an error.

    Raises:
        OpaqueError: it holds something whose contents cannot be told, such as an open file.

    >>> contents({"strength": 0.8, "size": (64, 64)})
    {'size': [64, 64], 'strength': 0.8}
    >>> contents(torch.zeros(2)) == contents(torch.zeros(2)) != contents(torch.ones(2))
    True
    """
    return _Reader().read(value, name)


def key(value: Any) -> str:
    """Return the SHA-256 of JSON values, 64 hexadecimal digits.

    >>> key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def digest(tensor: Tensor) -> str:
    """Return a checksum of type, shape and every element, computed where the tensor is.

    One element that changes always changes it; it is no defence against somebody who wants a collision.

    >>> digest(torch.zeros(3)) == digest(torch.zeros(3)) != digest(torch.zeros(4))
    True
    """
    if tensor.device.type == "meta":
        raise OpaqueError("weights that are elsewhere (sequential offload) cannot be compared")
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    data = flat.view(torch.uint8)
    words = (nn.functional.pad(data, (0, -len(data) % 8)) if len(data) % 8 else data).view(torch.int64)
    place = 2 * torch.arange(_BLOCK, device=words.device) + 1
    rows = 128 if words.device.type == "cuda" else 1
    sums = []
    for part in words.split(rows * _BLOCK):
        padded = nn.functional.pad(part, (0, -len(part) % _BLOCK)) if len(part) > _BLOCK else part
        block = padded.view(-1, min(len(padded), _BLOCK)) if len(padded) else padded.view(0, 1)
        mixed = (block ^ (block >> 32)) * _MIX
        mixed = (mixed ^ (mixed >> 29)) * place[: block.shape[1]]
        sums.append(mixed.sum(1))
    numbers = torch.cat(sums).cpu().tolist() if sums else []
    return key([str(tensor.dtype), list(tensor.shape), numbers])[:32]


def pipeline_contents(pipe: Any) -> dict[str, Any]:
    """Return what a diffusers pipeline draws with: the state of every part, its configuration and its scheduler.

    Every weight is read: about a second a gigabyte on a CPU, nothing to speak of on a GPU.

    Raises:
        OpaqueError: a part cannot be told, as with weights that are offloaded one by one.
    """
    parts = dict(pipe.components)
    scheduler = parts.pop("scheduler", None) or pipe.scheduler
    own = {name: value for name, value in vars(pipe).items() if name not in (*parts, "scheduler") and name[0] != "_"}
    config = {name: v for name, v in pipe.config.items() if name not in (*parts, "scheduler") and name[0] != "_"}
    return {
        "class": _class(pipe),
        "scheduler": contents(scheduler, "scheduler"),
        "config": _Reader(lenient=True).read(_without_names(config), "config"),
        "attributes": _Reader(lenient=True).read(own, "attributes"),
        "components": {name: contents(part, name) for name, part in sorted(parts.items())},
    }


class _Reader:
    """Reads nested values; ``lenient`` takes the class alone of what cannot be told."""

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self._inside: list[int] = []

    def read(self, value: Any, name: str) -> Any:
        if value is None or (isinstance(value, bool | int | str) and not isinstance(value, enum.Enum)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, Tensor):
            return f"tensor {digest(value)}"
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value), name)
        if isinstance(value, bytes | bytearray):
            return f"bytes {hashlib.sha256(value).hexdigest()}"
        if isinstance(value, Path | enum.Enum | torch.dtype | torch.device | complex | range | slice | type):
            return f"{_class(value)} {value}"
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            return f"{getattr(value, '__module__', '')} {value.__name__}"
        if id(value) in self._inside:
            return "itself"
        self._inside.append(id(value))
        try:
            return self._inner(value, name)
        finally:
            self._inside.pop()

    def _inner(self, value: Any, name: str) -> Any:
        if isinstance(value, nn.Module):
            return f"{type(value).__qualname__} {key(self._module(value, name))[:32]}"
        if hasattr(value, "fingerprint") and not isinstance(value, type):  # it says itself what decides
            return [_class(value), self.read(value.fingerprint, f"{name}.fingerprint")]
        if isinstance(value, Mapping):
            kept = sorted(value.items(), key=lambda item: str(item[0]))
            return {str(k): self.read(v, f"{name}[{k!r}]") for k, v in kept}
        if isinstance(value, list | tuple):
            return [self.read(item, f"{name}[{k}]") for k, item in enumerate(value)]
        if isinstance(value, set | frozenset):
            return sorted((self.read(item, name) for item in value), key=json.dumps)
        if isinstance(value, functools.partial):
            return ["partial", *(self.read(part, name) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, types.MethodType):
            return [self.read(value.__self__, name), self.read(value.__func__, name)]
        if isinstance(value, types.FunctionType):
            return self._function(value, name)
        return self._object(value, name)

    def _array(self, array: np.ndarray, name: str) -> Any:
        if array.dtype.hasobject:
            return self.read(array.tolist(), name)
        data = np.ascontiguousarray(array)
        return f"array {array.dtype.str} {list(array.shape)} {hashlib.sha256(data.tobytes()).hexdigest()[:32]}"

    def _module(self, module: nn.Module, name: str) -> Any:
        """Weights, and what else decides: strengths and switches of adapters, processors, tiling, caches, hooks."""
        inside = _Reader(lenient=True)
        inside._inside = self._inside
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        parts = []
        for path, part in module.named_modules():
            held = {k: v for k, v in vars(part).items() if k not in _TORCH and _decides(k, v)}
            if caching := getattr(getattr(part, "_diffusers_hook", None), "hooks", None):  # layers that are skipped
                held["hooks"] = {k: [_class(hook), getattr(hook, "config", None)] for k, hook in caching.items()}
            hooks = [h for kind in ("_forward_pre_hooks", "_forward_hooks") for h in getattr(part, kind).values()]
            outer = [_class(h) for h in hooks if _class(h).split(".")[0] not in _HARMLESS]
            parts.append([path, _class(part), inside.read(_without_names(held), f"{name}.{path}"), outer])
        try:
            weights = {k: digest(v) for k, v in tensors.items()}
        except OpaqueError as error:
            raise OpaqueError(f"{name}: {error}") from None
        return [weights, parts]

    def _function(self, function: types.FunctionType, name: str) -> Any:
        """Its code, what it closes over, its defaults, and what it uses of its module."""
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        used = {n: function.__globals__[n] for n in _names(function.__code__) if n in function.__globals__}
        own = {n: v for n, v in used.items() if not _of_a_package(v)}
        parts = {"defaults": [function.__defaults__, function.__kwdefaults__], "closure": cells, "uses": own}
        return ["function", _code(function.__code__), self.read(parts, f"{function.__qualname__} ({name})")]

    def _object(self, value: Any, name: str) -> Any:
        if hasattr(value, "mode") and hasattr(value, "tobytes"):  # a Pillow image
            return [_class(value), value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()[:32]]
        if hasattr(value, "get_vocab"):
            return [_class(value), self._tokenizer(value)]
        if isinstance(getattr(value, "config", None), Mapping):  # schedulers and processors of diffusers
            return [_class(value), self.read(_without_names(value.config), name)]
        if callable(getattr(value, "to_dict", None)):  # configurations and processors of transformers
            parts = [getattr(value, part, None) for part in ("tokenizer", "image_processor", "chat_template")]
            return [_class(value), self.read(_without_names(value.to_dict()), name), self.read(parts, name)]
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return [_class(value), self.read(fields, name)]
        if type(value).__module__.split(".")[0] not in _STANDARD and hasattr(value, "__dict__"):
            own = [cls for cls in type(value).__mro__ if not _of_a_package(cls)]
            methods = {name: function for cls in own for name, function in _methods(cls).items()}
            return [_class(value), self.read(methods, name), self.read(vars(value), name)]
        if self.lenient:
            return _class(value)
        raise OpaqueError(f"{name} is a {type(value).__name__}, whose contents cannot be compared")

    def _tokenizer(self, tokenizer: Any) -> Any:
        settings = {k: getattr(tokenizer, k, None) for k in ("model_max_length", "chat_template")}
        special = {k: str(v) for k, v in getattr(tokenizer, "special_tokens_map", {}).items()}
        fast = getattr(tokenizer, "backend_tokenizer", None)
        # A call leaves its padding and truncation in the fast tokenizer.
        state = json.loads(fast.to_str()) if fast else {}
        whole = {name: part for name, part in state.items() if name not in ("padding", "truncation")}
        return [key([sorted(tokenizer.get_vocab().items()), special, whole])[:32], self.read(settings, "tokenizer")]


# Objects of these are told by nothing that they carry: locks, files, threads, generators.
_HARMLESS = ("lidar_sampling", "accelerate", "diffusers", "transformers", "torch")  # hooks of these watch or move
_STANDARD = ("builtins", "_thread", "threading", "_io", "io", "socket", "subprocess", "torch", "weakref", "queue")


def _class(value: Any) -> str:
    cls = value if isinstance(value, type | types.FunctionType) else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


def _decides(name: str, value: Any) -> bool:
    """Whether an attribute of a module may decide what it computes; most private ones are its caches."""
    if isinstance(value, nn.Module) or name in ("forward", "_old_forward", "_hf_hook"):
        return False
    return not name.startswith("_") or name in ("_active_adapter", "_disable_adapters", "_internal_dict")


def _without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without where it was loaded from, and by which version."""
    left_out = (*_NAMES, "_diffusers_version", "transformers_version", "_use_default_values")
    return {
        name: _without_names(value) if name == "_internal_dict" and isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in left_out
    }


def _code(code: types.CodeType) -> Any:
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest()[:32], list(code.co_names), constants]


def _methods(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if isinstance(value, types.FunctionType)}


def _constant(value: Any) -> str:
    return repr(sorted(value, key=repr) if isinstance(value, frozenset) else value)


def _names(code: types.CodeType) -> list[str]:
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return [*code.co_names, *inner]


def _of_a_package(value: Any) -> bool:
    """Whether a function or class comes from an installed package, whose version stands for its code."""
    if isinstance(value, types.ModuleType):
        return True
    if not isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return False
    module = sys.modules.get(value.__module__ or "")
    file = getattr(module, "__file__", None)
    return (file is None and module is not sys.modules["__main__"]) or "site-packages" in (file or "") or _ours(value)


def _ours(value: Any) -> bool:
    return str(value.__module__).split(".")[0] == __name__.split(".")[0]
