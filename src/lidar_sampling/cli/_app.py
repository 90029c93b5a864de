"""``lidar app``: a page to look at guidance."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .._http import check_address, listen
from . import _options as o
from ._screen import warn

Folder = Annotated[
    Path | None,
    typer.Option(
        help="Folder for jobs and banks. [default: a temporary one, deleted at the end]", show_default=False
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="LIDAR_TOKEN", help="Password of the user 'lidar'; required if other machines can reach the page."
    ),
]


def app(
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    call: o.Call = None,
    scheduler: o.Scheduler = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    device: o.Device = None,
    batch_size: o.BatchSize = 16,
    folder: Folder = None,
    host: o.Host = "127.0.0.1",
    port: o.Port = 7860,
    token: Token = None,
) -> None:
    """Open a page to draw, look and compare.

    It runs until Ctrl-C or SIGTERM.
    """
    check_address(host, [token] if token else [])
    if port:
        listen(host, port).close()  # a port in use is reported before the model loads
    scratch = tempfile.TemporaryDirectory(prefix="lidar-")
    # Gradio reads both as it is imported. It copies what a browser may load.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(Path(scratch.name, "gradio"))}
    try:
        import gradio
    except ImportError:
        raise ValueError("the page needs gradio: pip install 'lidar-sampling[app]'") from None
    from starlette.middleware import Middleware

    from .._guard import OwnPage
    from ..app.page import CSS, make_page, theme, usual_controls
    from ..runs import Job, device_of
    from ..service import Desk

    base = Job(
        prompts=["a photo of two cats"],
        model=model,
        variant=variant,
        preset=preset,
        reward=reward or ("glyph" if model == "glyph" else None),
        call=o.read_call(call),
        scheduler=scheduler,
        dtype=dtype,
        fast=fast,
        device=device_of(device),
        batch_size=batch_size,
    )
    guard = {} if token else {"middleware": [Middleware(OwnPage)]}
    with scratch as place, Desk(folder or Path(place, "desk")) as desk:
        warn(f"loading {model}")
        page = make_page(desk, base, usual_controls(desk.warm(base).result(), base))
        page.queue(max_size=64)
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or None,
            auth=("lidar", token) if token else None,
            allowed_paths=[str(desk.folder)],
            ssr_mode=False,
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            theme=theme(),
            css=CSS,
            footer_links=[],
            app_kwargs=guard,
            max_file_size="50mb",
        )
        typer.echo(f"the page is at {url} (gradio {gradio.__version__}); Ctrl-C ends it", err=True)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends the page like Ctrl-C
        try:
            page.block_thread()
        finally:
            signal.signal(signal.SIGTERM, before)
            page.close(verbose=False)
            desk.close(finish=False)
