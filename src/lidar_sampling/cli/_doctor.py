"""``lidar doctor``: check whether this installation works."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import typer

from . import _options as o
from ._screen import echo, guard_printing, print_json


def doctor(json: o.Json = False) -> None:
    """Check this installation.

    It checks versions, the device, the mathematics, attachment and the embedded model.
    """
    rows = [{"check": name, **_outcome(check)} for name, check in _CHECKS.items()]
    with guard_printing(saved=False):
        if json:
            print_json(rows)
        else:
            for row in rows:
                echo(f"{'ok  ' if row['ok'] else 'FAIL'} {row['check']}: {row['detail']}")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def _outcome(check: Callable[[], str]) -> dict[str, object]:
    try:
        return {"ok": True, "detail": check()}
    except Exception as error:
        return {"ok": False, "detail": " ".join(f"{type(error).__name__}: {error}".split())}


def _versions() -> str:
    from ..runs._summary import versions

    return ", ".join(f"{name} {number}" for name, number in versions().items())


def _torchvision() -> str:
    if find_spec("torchvision") is None:
        return "absent, as it should be: nothing here needs it"
    import torchvision

    return f"{torchvision.__version__} imports; nothing here needs it"


def _device() -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return f"{accelerator.type if accelerator else 'cpu'}, {torch.get_num_threads()} threads"


def _mathematics() -> str:
    import torch

    from .._guidance import mean_shift

    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(k, 64, generator=g, dtype=torch.float64) for k in (2, 9))
    r = torch.randn(9, generator=g, dtype=torch.float64)
    shift, _ = mean_shift(x, z, r, alpha=0.6, sigma=0.8, reward_scale=3.0)
    kernel = -torch.cdist(x, 0.6 * z).square() / (2 * 0.8**2)
    error = (shift - ((kernel + 3 * r).softmax(1) - kernel.softmax(1)) @ z).abs().max().item()
    if error > 1e-10:
        raise ArithmeticError(f"mean_shift is off by {error:.1e}")
    return f"mean_shift equals equations 16-18 to {error:.0e}"


def _attachment() -> str:
    import torch

    from .. import testing
    from .._guide import guide
    from .._quiet import quieten

    quieten()
    pipe = testing.tiny_stable_diffusion()

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=3, generator=generator, output_type="pt").images

    plain = run()
    with guide(pipe, testing.tiny_bank(), scale=0.0, reward_scale=1.0):
        attached = run()
    if not torch.equal(plain, attached):
        raise ArithmeticError("attaching without effect changed the picture")
    return "attaching without effect is bit-identical"


def _embedded_model() -> str:
    from .._embedded import find_weights

    if find_spec("lidar_sampling_glyph") is None:
        return 'not installed, and only glyph and molecules need it: pip install "lidar-sampling[glyph]"'
    find_weights("glyph")  # refuses that of another version
    from ..runs import Job, load_sampler

    lidar = load_sampler(Job(prompts=("a photo of a cat",), settings={"steps": 10}, device="cpu"))
    scores = lidar.vanilla("a photo of a cat", images=2).rewards
    return "draws a cat: " + ", ".join(f"{name} {values.mean():.2f}" for name, values in scores.items())


_CHECKS = {
    "versions": _versions,
    "torchvision": _torchvision,
    "device": _device,
    "mathematics": _mathematics,
    "attachment": _attachment,
    "embedded model": _embedded_model,
}
