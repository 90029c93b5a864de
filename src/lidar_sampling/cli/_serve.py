"""``lidar serve``: serve pictures over HTTP; ``lidar serve-rewards``: serve rewards to samplers elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as o
from ._screen import warn

Names = Annotated[list[str], typer.Argument(help="Rewards from 'lidar rewards'.", show_default=False)]
Token = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        help="What clients must send as Authorization: Bearer TOKEN. Repeat for several clients; pictures are then "
        "drawn for them in turn. To hide tokens from other users, set LIDAR_TOKEN instead, with commas between them.",
        show_default=False,
    ),
]


def serve(
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model to serve: glyph, a path or a hub id, or NAME=ONE of these. Repeat for "
            "more. [default: glyph]",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward", help="A reward to serve, as for 'lidar generate'. Repeat for more. [default: the model's]"
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="A method to serve. Repeat for more. [default: lidar and vanilla]"),
    ] = None,
    host: o.Host = "127.0.0.1",
    port: o.Port = 8008,
    token: Token = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder for jobs and banks, used again after a restart. [default: a temporary one, "
            "deleted at the end]"
        ),
    ] = None,
    places: Annotated[
        int, typer.Option(min=1, help="Most jobs that may wait; more are refused with status 429.")
    ] = 16,
    each: Annotated[int, typer.Option(min=1, help="Most jobs of one client that may wait.")] = 8,
    seconds: Annotated[int, typer.Option(min=1, help="Most seconds that drawing a job may take.")] = 600,
    most_images: Annotated[int, typer.Option(min=1, help="Most images per request.")] = 8,
    most_steps: Annotated[int, typer.Option(min=1, help="Most steps per request.")] = 100,
    most_n: Annotated[int, typer.Option(min=1, help="Most lookahead samples per request.")] = 64,
    most_pixels: Annotated[int, typer.Option(min=1, help="Most pixels per image.")] = 1 << 20,
    most_megabytes: Annotated[float, typer.Option(min=1, help="Most megabytes of banks that are kept.")] = 4096.0,
    n: o.N = None,
    steps: o.Steps = None,
    call: o.Call = None,
    variant: o.Variant = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
) -> None:
    """Serve pictures over HTTP.

    It runs until Ctrl-C or SIGTERM, and then finishes the running job first. It speaks OpenAI's POST
    /v1/images/generations, and adds banks and jobs (docs/serving.md). Give --model and --reward as NAME=WHAT to let
    clients use names of your choice.
    """
    if words:
        raise typer.BadParameter(
            f"{words[0]!r}: rewards are served by 'lidar serve-rewards'; a model goes by --model"
        )
    from .._http import check_address, listen, need_extra, server_of, url_of
    from .._quiet import quieten
    from ..runs import Job, device_of
    from ..service import Desk
    from ..service.limits import Limits

    need_extra()
    tokens = _tokens(token)
    check_address(host, tokens)
    from ..service.app import make_app
    from ..service.catalog import Catalog

    base = Job(
        prompts=["a photo of two cats"],
        variant=variant,
        call=o.read_call(call),
        settings=o.drop_unset(n=n, steps=steps),
        images=1,
        dtype=dtype,
        fast=fast,
        batch_size=batch_size,
        device=device_of(device),
    )
    limits = Limits(
        images=most_images,
        steps=most_steps,
        n=most_n,
        pixels=most_pixels,
        seconds=seconds,
        places=places,
        each=min(each, places),
    )
    catalog = Catalog(
        _read_named("--model", model or ["glyph"]),
        _read_named("--reward", reward or []),
        tuple(method or ("lidar", "vanilla")),
        base,
        limits,
    )
    quieten()
    with tempfile.TemporaryDirectory(prefix="lidar-") as place, listen(host, port) as listening:
        desk = Desk(
            folder or place,
            places=limits.places,
            most_each=limits.each,
            most_bytes=int(most_megabytes * 1e6),
            samplers=max(2, len(catalog.models)),
            seconds=limits.seconds,
        )
        warming = [desk.warm(job) for job in catalog.jobs()]
        app = make_app(desk, catalog, tokens=tokens, warming=warming)
        server = server_of(app, stopping=desk.stop, busy=lambda: desk.running is not None)

        def notice(coming: Any) -> None:
            if coming.exception() is not None:
                server.should_exit = True
            elif all(each.done() for each in warming):
                warn("ready")

        for coming in warming:
            coming.add_done_callback(notice)
        typer.echo(f"serving {', '.join(catalog.models)} at {url_of(listening)}/v1", err=True)
        _run_until_stopped(server, listening)
        desk.close(finish=False)
        for coming in warming:
            if coming.done() and (error := coming.exception()) is not None:
                raise error


def serve_rewards(
    names: Names,
    host: o.Host = "127.0.0.1",
    port: o.Port = 8000,
    token: Token = None,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
) -> None:
    """Serve rewards over HTTP.

    It runs until Ctrl-C or SIGTERM. Use a reward elsewhere as --reward http://HOST:PORT/NAME.
    """
    from .._http import check_address, listen, need_extra, server_of, url_of
    from .._quiet import quieten
    from ..rewards import load as load_reward
    from ..rewards.server import make_app
    from ..runs import device_of, dtype_of

    need_extra()
    tokens = _tokens(token)
    check_address(host, tokens)
    quieten()
    rewards = [load_reward(name, device=device_of(device), dtype=dtype_of(dtype)) for name in names]
    with listen(host, port) as listening:
        typer.echo(f"serving {', '.join(names)} at {url_of(listening)}", err=True)
        _run_until_stopped(server_of(make_app(rewards, tokens=tokens)), listening)


def _run_until_stopped(server: Any, listening: Any) -> None:
    """Run a server until SIGTERM or Ctrl-C; the latter is raised again."""
    sys.setswitchinterval(0.001)  # otherwise a request waits 5 ms for each turn beside the drawing thread
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has stopped
    try:
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def _tokens(given: Sequence[str] | None) -> list[str]:
    return [*(given or [token for token in os.environ.get("LIDAR_TOKEN", "").split(",") if token])]


def _read_named(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Return names and what they stand for, from texts ``NAME=WHAT`` or ``WHAT``.

    >>> _read_named("--model", ["glyph", "sd=/models/sd-1.5"])
    {'glyph': 'glyph', 'sd': '/models/sd-1.5'}
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or not name.replace("-", "").replace(".", "").isalnum():
            name, what = text, text
        if not what:
            raise typer.BadParameter(f"{option} must be NAME=WHAT or WHAT, got {text!r}")
        if name in found:
            raise typer.BadParameter(f"{option} gives {name} twice: leave one out")
        found[name] = what
    return found
