"""What a run takes from the machine: the device and the precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16", "auto")


def device_of(name: str | None) -> str:
    """Return the named device, or else the machine's accelerator, or else its CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return name or (accelerator.type if accelerator else "cpu")


def check_dtype(name: str) -> None:
    """Refuse a text that is not the name of a precision.

    Raises:
        ValueError: there is no such precision.
    """
    if name not in DTYPES:
        raise ValueError(f"--dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {name!r}")


def dtype_of(name: str, device: str = "cpu") -> torch.dtype:
    """Return the named precision; ``auto`` is the fastest with full range that ``device`` computes in.

    Raises:
        ValueError: there is no such precision.
    """
    import torch

    check_dtype(name)
    if name == "auto":
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    return getattr(torch, name)


def _computes_in_bfloat16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return device == "cpu" and any(ask is not None and ask() for ask in told)
