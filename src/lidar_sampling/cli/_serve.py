"""``lidar serve-rewards``: rewards over HTTP, for samplers in other processes or on other machines."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from . import _options as o

Names = Annotated[list[str], typer.Argument(help="Rewards of 'lidar rewards'.", show_default=False)]
Host = Annotated[str, typer.Option(help="Address to listen on; the default answers this machine alone.")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.")]


def serve(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Say where this command went."""
    raise typer.BadParameter("rewards are served by 'lidar serve-rewards' now")


def serve_rewards(
    names: Names,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
) -> None:
    """Serve rewards until Ctrl-C; use one elsewhere as --reward http://HOST:PORT/NAME."""
    from ..rewards import load
    from ..rewards.server import serve as serving
    from ..runs import device_of, dtype_of, quieten

    quieten()
    rewards = [load(name, device=device_of(device), dtype=dtype_of(dtype)) for name in names]
    with serving(rewards, host=host, port=port) as url:
        typer.echo(f"serving {', '.join(names)} at {url}", err=True)
        threading.Event().wait()
