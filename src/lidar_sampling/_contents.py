"""The contents of a value as JSON, for keys that change exactly when the value does.

Tensors, arrays and pictures count by their numbers, modules by their weights and settings, functions by their code.
Addresses and paths never count, so a key is the same in another process and in another folder. What cannot be told
this way raises :class:`OpaqueError`, and its caller goes without a key.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import json
import math
import os
import pickle
import sys
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCH = frozenset(vars(nn.Module())) - {"training"}  # what every module has of torch: parameters, buffers, hooks


class OpaqueError(ValueError):
    """A value whose contents cannot be read; the message says which."""


def contents(value: Any, name: str = "value") -> Any:
    """Return what ``value`` holds, as JSON values.

    Args:
        value: anything.
        name: what to call it in an error.

    Raises:
        OpaqueError: it holds something whose contents cannot be read, such as an open file.

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
    """Return the SHA-256 of type, shape and every element, 32 hexadecimal digits; the same on every device.

    Raises:
        OpaqueError: its elements are not here (sequential offload), or not one number each (sparse, quantized).

    >>> digest(torch.zeros(3)) == digest(torch.zeros(3)) != digest(torch.zeros(4))
    True
    """
    if tensor.device.type == "meta":
        raise OpaqueError("weights that are elsewhere (sequential offload) cannot be compared")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise OpaqueError(f"a {tensor.layout} tensor of {tensor.dtype} cannot be compared")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each; the hash runs outside of Python's lock, so cores share the work."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(digest, tensors.values()), strict=True))


def pipeline_contents(pipe: Any) -> dict[str, Any]:
    """Return what a diffusers pipeline draws with: the state of every part, its configuration and its scheduler.

    Every weight is read: about a second per gigabyte on a CPU, and hardly any time on a GPU.

    Raises:
        OpaqueError: a part cannot be read, such as weights that are offloaded one by one.
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
    """Reads nested values; if ``lenient``, a value that cannot be read counts by its class alone."""

    def __init__(self, *, lenient: bool = False, within: _Reader | None = None) -> None:
        self.lenient = lenient
        self._inside: list[int] = within._inside if within else []
        self._modules: dict[int, str] = within._modules if within else {}  # a value that is held twice is read once

    def read(self, value: Any, name: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) in (type(None), bool, int, str):
            return value
        if isinstance(value, float):
            return int(value) if value.is_integer() else value if math.isfinite(value) else str(value)
        if isinstance(value, Tensor):
            return "elsewhere" if self.lenient and value.device.type == "meta" else f"tensor {digest(value)}"
        if isinstance(value, np.ndarray):
            return self._array(value, name)
        if isinstance(value, bytes | bytearray):
            return f"bytes {hashlib.sha256(value).hexdigest()}"
        if isinstance(value, Path | enum.Enum | torch.dtype | torch.device | complex | range | slice):
            return f"{_class(value)} {value}"
        if id(value) in self._inside:
            return "itself"
        self._inside.append(id(value))
        try:
            return self._inner(value, name)
        finally:
            self._inside.pop()

    def _inner(self, value: Any, name: str) -> Any:
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            held = None if owner is None or isinstance(owner, types.ModuleType) else self.read(owner, name)
            return [str(value.__module__), value.__qualname__, held]
        if isinstance(value, type):
            return [_class(value), {} if _of_a_package(value) else self._class_body(value, name)]
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, nn.Module):
            value = getattr(value, "_orig_mod", value)  # what was compiled
            if id(value) not in self._modules:
                self._modules[id(value)] = key(self._module(value, name))[:32]
            return f"{type(value).__qualname__} {self._modules[id(value)]}"
        if hasattr(value, "fingerprint"):  # the object says itself what decides
            return [_class(value), self.read(value.fingerprint, f"{name}.fingerprint")]
        own = not _of_a_package(type(value))
        if isinstance(value, Mapping) and not own:
            kept = {k if isinstance(k, str) else f"{_class(k)} {k}": v for k, v in value.items()}
            return {k: self.read(v, f"{name}[{k!r}]") for k, v in sorted(kept.items())}
        if isinstance(value, list | tuple) and not own:
            return [self.read(item, f"{name}[{k}]") for k, item in enumerate(value)]
        if isinstance(value, set | frozenset) and not own:
            return sorted((self.read(item, name) for item in value), key=json.dumps)
        if isinstance(value, functools.partial):
            return ["partial", *(self.read(part, name) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, types.MethodType):
            return [self.read(value.__self__, name), self.read(value.__func__, name)]
        if isinstance(value, types.FunctionType):
            return self._function(value, name)
        if isinstance(value, staticmethod | classmethod):
            return self.read(value.__func__, name)
        if isinstance(value, property):
            return [self.read(part, name) for part in (value.fget, value.fset)]
        return self._own(value, name) if own else self._object(value, name)

    def _array(self, array: np.ndarray, name: str) -> Any:
        if isinstance(array, np.ma.MaskedArray):
            return [self.read(array.filled(0), name), self.read(np.ma.getmaskarray(array), name)]
        if array.dtype.hasobject:
            return self.read(array.tolist(), name)
        data = np.ascontiguousarray(array)
        return f"array {array.dtype.str} {list(array.shape)} {hashlib.sha256(data.tobytes()).hexdigest()[:32]}"

    def _module(self, module: nn.Module, name: str) -> Any:
        """Return its weights and what else decides: adapters, their strengths, processors, tiling, caches, hooks."""
        inside = _Reader(lenient=True, within=self)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        parts = []
        for path, part in module.named_modules():
            own = not _of_a_package(type(part))
            held = {k: v for k, v in vars(part).items() if k not in _TORCH and (own or _decides(k))}
            held = {k: v for k, v in held.items() if not isinstance(v, nn.Module) and k not in _SAME}
            if "forward" in vars(part) and not _is_moved_or_compiled(part):
                held["forward"] = part.forward
            if caching := getattr(getattr(part, "_diffusers_hook", None), "hooks", None):  # layers that are skipped
                held["hooks"] = {k: [_class(h), _public(h)] for k, h in caching.items() if "offload" not in k}
            hooks = [h for kind in ("_forward_pre_hooks", "_forward_hooks") for h in getattr(part, kind).values()]
            held["own hooks"] = [h for h in hooks if _module_of(h).split(".")[0] not in _HARMLESS]
            if isinstance(part, torch.jit.ScriptModule):
                held["code"] = getattr(part, "code", "")
            body = inside._class_body(type(part), name) if own else {}
            parts.append([path, _class(part), inside.read(_without_names(held), f"{name}.{path}"), body])
        try:
            return [_digests(tensors), parts]
        except OpaqueError as error:
            raise OpaqueError(f"{name}: {error}") from None

    def _function(self, function: types.FunctionType, name: str) -> Any:
        """Return its code, closure and defaults, and what it uses of its own and other modules of the user."""
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        names = _names(function.__code__)
        used = {n: function.__globals__[n] for n in names if n in function.__globals__}
        for module in [v for v in used.values() if isinstance(v, types.ModuleType) and not _of_a_package(v)]:
            used |= {f"{module.__name__}.{n}": vars(module)[n] for n in names if n in vars(module)}
        own = {n: v for n, v in used.items() if not _of_a_package(v)}
        parts = {"defaults": [function.__defaults__, function.__kwdefaults__], "closure": cells, "uses": own}
        return ["function", _code(function.__code__), self.read(parts, f"{function.__qualname__} ({name})")]

    def _own(self, value: Any, name: str) -> Any:
        """Return the code of the class, which is the user's, and all that the object holds."""
        held = dict(getattr(value, "__dict__", {}))
        for cls in type(value).__mro__:
            slots = vars(cls).get("__slots__", ())
            held |= {
                n: getattr(value, n) for n in ([slots] if isinstance(slots, str) else slots) if hasattr(value, n)
            }
        items: Any = None
        if isinstance(value, Mapping):
            items = dict(value)
        elif isinstance(value, list | tuple | set | frozenset):
            items = list(value)
        body = self._class_body(type(value), name)
        return [_class(value), body, self.read(held, name), self.read(items, name)]

    def _class_body(self, cls: type, name: str) -> Any:
        own = [base for base in cls.__mro__ if not _of_a_package(base)]
        body = {f"{base.__qualname__}.{k}": v for base in own for k, v in vars(base).items() if k not in _BODY}
        return _Reader(lenient=True, within=self).read(body, name)

    def _object(self, value: Any, name: str) -> Any:
        if hasattr(value, "mode") and hasattr(value, "tobytes"):  # a Pillow image
            value = value.convert("RGBA") if value.mode in ("P", "PA") else value
            return ["picture", value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()[:32]]
        if hasattr(value, "get_vocab"):
            return [_class(value), self._tokenizer(value)]
        if isinstance(getattr(value, "config", None), Mapping):  # schedulers, processors and guiders of diffusers
            return [_class(value), self.read(_without_names(value.config), name), self._beside_config(value, name)]
        if callable(getattr(value, "to_dict", None)):  # configurations and processors of transformers
            parts = [getattr(value, part, None) for part in ("tokenizer", "image_processor", "chat_template")]
            return [_class(value), self.read(_without_names(value.to_dict()), name), self.read(parts, name)]
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return [_class(value), self.read(fields, name)]
        if isinstance(value, functools._lru_cache_wrapper | functools.cached_property):
            inner = value.func if isinstance(value, functools.cached_property) else value.__wrapped__
            return [_class(value), self.read(inner, name)]
        if _package(value) in sys.stdlib_module_names:  # locks and files refuse; dates and patterns do not
            try:
                return [_class(value), hashlib.sha256(pickle.dumps(value, 4)).hexdigest()[:32]]
            except Exception:
                pass
        elif hasattr(value, "__dict__") and _package(value) != "torch":
            return [_class(value), self.read(vars(value), name)]
        if self.lenient:
            return _class(value)
        raise OpaqueError(f"{name} is a {type(value).__name__}, whose contents cannot be compared")

    def _beside_config(self, value: Any, name: str) -> Any:
        """Return what an object with a configuration holds beside it; of a scheduler not what a run leaves there."""
        if hasattr(value, "set_timesteps"):
            held = {k: v for k, v in vars(value).items() if k in ("_shift", "alphas_cumprod")}
        else:
            held = {k: v for k, v in vars(value).items() if not k.startswith("_") or k == "_enabled"}
        return _Reader(lenient=True, within=self).read(held, name)

    def _tokenizer(self, tokenizer: Any) -> Any:
        sides = ("model_max_length", "chat_template", "padding_side", "truncation_side")
        settings = {k: getattr(tokenizer, k, None) for k in sides}
        special = {k: str(v) for k, v in getattr(tokenizer, "special_tokens_map", {}).items()}
        fast = getattr(tokenizer, "backend_tokenizer", None)
        # A call leaves its padding and truncation in the fast tokenizer.
        state = json.loads(fast.to_str()) if fast else {}
        whole = {name: part for name, part in state.items() if name not in ("padding", "truncation")}
        return [key([sorted(tokenizer.get_vocab().items()), special, whole])[:32], self.read(settings, "tokenizer")]


_HARMLESS = ("lidar_sampling", "accelerate", "diffusers", "transformers", "torch")  # hooks of these watch or move
_SAME = (  # attributes of modules that do not change what is computed
    "forward",
    "_old_forward",
    "_hf_hook",
    "use_slicing",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "hf_device_map",
)
_BODY = ("__doc__", "__module__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__", "_abc_impl")
_LEFT_OUT = (  # where a configuration was loaded from, by which version, and what saving adds
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_diffusers_version",
    "transformers_version",
    "_use_default_values",
    "_class_name",
    "architectures",
    "dtype",
    "torch_dtype",
)


def _class(value: Any) -> str:
    cls = value if isinstance(value, type | types.FunctionType) else type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


def _module_of(function: Any) -> str:
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _package(value: Any) -> str:
    return str(type(value).__module__).split(".")[0]


def _decides(name: str) -> bool:
    """Return whether an attribute of a module may decide what it computes; most private ones are caches."""
    known = ("_active_adapter", "_disable_adapters", "_internal_dict", "_cache_config")
    return not name.startswith("_") or name in known


def _is_moved_or_compiled(module: nn.Module) -> bool:
    """Return whether ``forward`` was replaced by code that moves weights or compiles, and computes the same."""
    registry = getattr(getattr(module, "_diffusers_hook", None), "hooks", None)
    wrapped = hasattr(module.forward, "_torchdynamo_orig_callable") or hasattr(module, "_hf_hook")
    return wrapped or bool(registry)


def _public(value: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(value).items() if k[0] != "_" and isinstance(v, bool | int | float | str | tuple)}


def _without_names(config: Any) -> Any:
    """Return a configuration without where it was loaded from and what saving adds, at every depth."""
    if not isinstance(config, Mapping):
        return config
    return {name: _without_names(value) for name, value in config.items() if name not in _LEFT_OUT}


def _code(code: types.CodeType) -> Any:
    decisive = (None, *code.co_consts[1:]) if _has_docstring(code) else code.co_consts
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in decisive]
    return [hashlib.sha256(code.co_code).hexdigest()[:32], list(code.co_names), constants]


def _has_docstring(code: types.CodeType) -> bool:
    """Return whether the first constant of a function is its docstring alone, which decides nothing."""
    if not code.co_consts or not isinstance(code.co_consts[0], str):
        return False
    if sys.version_info >= (3, 13):
        first = bool(code.co_flags & 0x4000000)  # CO_HAS_DOCSTRING
    else:  # the first constant of a function is its docstring or None, that of a class body or a comprehension is not
        first = bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")
    return first and not any(each.arg == 0 and each.opcode in dis.hasconst for each in dis.get_instructions(code))


def _constant(value: Any) -> str:
    return repr(sorted(value, key=repr) if isinstance(value, frozenset) else value)


def _names(code: types.CodeType) -> list[str]:
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return [*code.co_names, *inner]


def _of_a_package(value: Any) -> bool:
    """Return whether a function, class or module is from an installed package, whose version stands for its code."""
    if isinstance(value, types.ModuleType):
        module: Any = value
    elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        module = sys.modules.get(value.__module__ or "")
    else:
        return False
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None) or ""
    if name == "__main__":
        return False
    first = name.split(".")[0]
    known = (*sys.stdlib_module_names, __name__.split(".")[0])
    return module is None or not file or first in known or "site-packages" in file or "dist-packages" in file
