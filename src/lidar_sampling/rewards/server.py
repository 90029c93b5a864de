"""The reference server of :mod:`lidar_sampling.rewards.service`: rewards of this package over HTTP."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from .._media import read_picture
from . import Reward, RewardError, name_of, score_pictures

PROTOCOL = 1
_log = logging.getLogger(__name__)


@contextmanager
def serve(
    rewards: Sequence[Reward],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    most_megabytes: float = 256.0,
    most_megapixels: float = 100.0,
) -> Iterator[str]:
    """Serve ``rewards`` by their names while the block runs.

    Only these can be asked for; nothing that a client sends is unpickled or loaded. Each reward scores one request at
    a time. There is no authentication: put a proxy in front of it before you open it to a network.

    Args:
        rewards: what is served.
        host: address to listen on; the default answers this machine alone.
        port: 0 takes a free one.
        most_megabytes: size of the largest request.
        most_megapixels: of all pictures of a request; a small PNG may hold very many.

    Yields:
        The url.

    Raises:
        ValueError: no reward, or two of one name.
        OSError: the address cannot be listened on.

    Example:
        >>> import torch
        >>> from lidar_sampling.rewards import load
        >>> with serve([load("brightness")], port=0) as url:
        ...     load(f"{url}/brightness")(images=torch.ones(1, 3, 2, 2), prompts=["a cat"])
        tensor([1.])
    """
    by_name = {name_of(reward): (reward, threading.Lock()) for reward in rewards}
    if len(by_name) < len(rewards) or not rewards:
        raise ValueError(f"serve one or more rewards of different names, got {[name_of(r) for r in rewards]}")

    class Handler(_Handler):
        served = by_name
        largest = int(most_megabytes * 1e6)
        pixels = int(most_megapixels * 1e6)

    try:
        listening = _Server((host, port), Handler)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}): choose another host or port") from None
    with listening as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # clients that may knock at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away while it was answered is no matter for stderr."""
        _log.info("a request of %s broke off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    served: Mapping[str, tuple[Reward, threading.Lock]]
    largest: int
    pixels: int
    timeout = 60  # seconds without a byte after which a client that went silent gives its thread back

    def do_GET(self) -> None:
        if self.path != "/":
            return self._answer(404, {"error": f"no page {self.path}; there are / and /score"})
        self._answer(200, {"protocol": PROTOCOL, "rewards": list(self.served)})

    def do_POST(self) -> None:
        if self.path != "/score":
            return self._answer(404, {"error": f"no page {self.path}; there are / and /score"})
        try:
            length = int(self.headers.get("Content-Length") or -1)
            if not 0 <= length <= self.largest:
                self._discard(min(length, 4 * self.largest))  # a client that is still sending would not listen
                self.close_connection = True
                return self._answer(413, {"error": f"a request must have 0 to {self.largest} bytes, got {length}"})
            reward, lock, pictures, prompts = self._read(json.loads(self.rfile.read(length)))
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            return self._answer(400, {"error": f"{type(error).__name__}: {error}"})
        try:
            with lock:
                scores = score_pictures(reward, pictures=pictures, prompts=prompts)
        except RewardError as error:
            wrong = isinstance(error.__cause__, ValueError | TypeError)  # such as a prompt it cannot use
            return self._answer(422 if wrong else 500, {"error": str(error)})
        except Exception as error:  # out of memory, above all: a dropped connection would not say so
            return self._answer(500, {"error": f"{type(error).__name__}: {error}"})
        self._answer(200, {"scores": scores})

    def _read(self, request: Any) -> tuple[Reward, threading.Lock, list[Tensor], list[str]]:
        if not isinstance(request, dict):
            raise ValueError(f"a request must be a JSON object, got {_shown(request)}")
        if missing := [key for key in ("reward", "prompts", "images") if key not in request]:
            raise ValueError(f"a request must have reward, prompts and images, and this one lacks {missing[0]}")
        name, prompts, pictures = request["reward"], request["prompts"], request["images"]
        if not isinstance(name, str) or name not in self.served:
            raise ValueError(f"no reward {_shown(name)} here; there are {', '.join(self.served)}")
        for key, value in (("prompts", prompts), ("images", pictures)):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{key} must be a list of strings, got {_shown(value)}")
        if len(prompts) != len(pictures):
            raise ValueError(f"prompts and images must be as many, got {len(prompts)} and {len(pictures)}")
        return *self.served[name], _tensors(pictures, self.pixels), prompts

    def _discard(self, length: int) -> None:
        while length > 0 and (read := len(self.rfile.read(min(length, 1 << 16)))):
            length -= read

    def _answer(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, such as other methods, in the protocol's words."""
        self.close_connection = True
        self._answer(code, {"error": message or f"status {code}"})

    def log_message(self, format: str, *args: Any) -> None:
        _log.info(format, *args)


def _shown(value: Any) -> str:
    """``value`` for a message, cut: a client may send megabytes."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tensors(pictures: Sequence[str], most_pixels: int) -> list[Tensor]:
    """PNGs in base64 as (3, H, W) each; their sizes are checked before any is unpacked."""
    files = [base64.b64decode(picture, validate=True) for picture in pictures]
    if (pixels := sum(_pixels(file) for file in files)) > most_pixels:
        raise ValueError(f"a request must have at most {most_pixels} pixels, got {pixels}: send fewer at a time")
    return [read_picture(file, name=f"image {k} of the request", formats=("PNG",)) for k, file in enumerate(files)]


def _pixels(file: bytes) -> int:
    """How many pixels a PNG says it has; 0 of what is not a PNG, which is refused when it is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            return image.width * image.height
    except UnidentifiedImageError:
        return 0
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
