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

import numpy as np
import torch
from torch import Tensor

from . import Reward, RewardError, name_of, score

PROTOCOL = 1
_log = logging.getLogger(__name__)


@contextmanager
def serve(
    rewards: Sequence[Reward], *, host: str = "127.0.0.1", port: int = 8000, most_megabytes: float = 256.0
) -> Iterator[str]:
    """Serve ``rewards`` by their names while the block runs.

    Only these can be asked for; nothing that a client sends is unpickled or loaded. Each reward scores one request at
    a time. There is no authentication: put a proxy in front of it before you open it to a network.

    Args:
        rewards: what is served.
        host: address to listen on; the default answers this machine alone.
        port: 0 takes a free one.
        most_megabytes: size of the largest request.

    Yields:
        The url.

    Raises:
        ValueError: no reward, or two of one name.
        OSError: the address cannot be listened on.
    """
    by_name = {name_of(reward): (reward, threading.Lock()) for reward in rewards}
    if len(by_name) < len(rewards) or not rewards:
        raise ValueError(f"serve one or more rewards of different names, got {[name_of(r) for r in rewards]}")

    class Handler(_Handler):
        served = by_name
        largest = int(most_megabytes * 1e6)

    with ThreadingHTTPServer((host, port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Mapping[str, tuple[Reward, threading.Lock]]
    largest: int

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
            reward, lock, images, prompts = self._read(json.loads(self.rfile.read(length)))
        except (ValueError, TypeError, KeyError, OSError) as error:
            return self._answer(400, {"error": f"{type(error).__name__}: {error}"})
        try:
            with lock:
                scores = _score(reward, images, prompts)
        except RewardError as error:
            return self._answer(500, {"error": str(error)})
        self._answer(200, {"scores": scores})

    def _read(self, request: Any) -> tuple[Reward, threading.Lock, list[Tensor], list[str]]:
        name, prompts, pictures = (request[key] for key in ("reward", "prompts", "images"))
        if name not in self.served:
            raise ValueError(f"no reward {name!r} here; there are {', '.join(self.served)}")
        if len(prompts) != len(pictures) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts and images must be as many, got {len(prompts)} and {len(pictures)}")
        return *self.served[name], [_tensor(picture) for picture in pictures], list(prompts)

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

    def log_message(self, format: str, *args: Any) -> None:
        _log.info(format, *args)


def _score(reward: Reward, images: list[Tensor], prompts: list[str]) -> list[float]:
    """Scores of images, together where they are of one size."""
    if len({image.shape for image in images}) == 1:
        return score(reward, images=torch.stack(images), prompts=prompts).tolist()
    pairs = zip(images, prompts, strict=True)
    return [score(reward, images=image[None], prompts=[prompt]).item() for image, prompt in pairs]


def _tensor(picture: str) -> Tensor:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(picture, validate=True)), formats=["PNG"]) as image:
            pixels = np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    return torch.from_numpy(pixels).movedim(-1, 0).float() / 255
