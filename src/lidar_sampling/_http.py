"""A server around an ASGI app: the addresses that it may have, its socket, and a uvicorn that ends in order."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ._guard import HERE


def check_address(host: str, tokens: Sequence[str]) -> None:
    """Refuse to listen where other machines can knock without a token.

    Raises:
        ValueError: the address is not this machine's own, and there is no token.
    """
    if host not in HERE and not tokens:
        raise ValueError(f"--host {host} can be reached from elsewhere: give a --token, or LIDAR_TOKEN")
    if any(len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token for token in tokens):
        raise ValueError("a --token must be 8 or more letters, digits and signs of ASCII, without spaces")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OSError: the address cannot be listened on; the message names it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)  # a named protocol: asyncio sends at once on no other
    except OSError as error:
        raise _refusal(host, port, error) from None
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(512)
    except OSError as error:
        found.close()
        raise _refusal(host, port, error) from None
    return found


def _refusal(host: str, port: int, error: OSError) -> OSError:
    return OSError(f"cannot listen on {host}:{port} ({error.strerror}): choose another host or port")


def url_of(listening: socket.socket) -> str:
    """Return the url of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(
    app: Any, *, stopping: Callable[[], None] = lambda: None, busy: Callable[[], bool] = lambda: False
) -> Any:
    """Return a uvicorn server of an app, which ends in order.

    Args:
        app: an ASGI app.
        stopping: called when it is to stop, before it waits for the answers that are under way.
        busy: whether there is still work that no client waits for; a second Ctrl-C ends it all the same.

    Raises:
        ValueError: uvicorn is not installed.
    """
    need_extra()
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            stopping()
            await super().shutdown(sockets)
            while busy() and not self.force_exit:
                await asyncio.sleep(0.05)

    return Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=15
        )
    )


@contextmanager
def run_in_thread(server: Any, listening: socket.socket) -> Iterator[None]:
    """Run a server of :func:`server_of` in a thread while the block runs."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def need_extra() -> None:
    """Refuse to serve without the libraries for it.

    Raises:
        ValueError: one is missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'lidar-sampling[serve]'") from None
