"""The reference server of :mod:`lidar_sampling.rewards.service`: rewards of this package over HTTP."""

import asyncio
import base64
import io
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._guard import Guard
from .._http import check_address, listen, need_extra, run_in_thread, server_of, url_of
from .._media import read_picture
from .._values import cut
from . import Reward, RewardError, name_of, score_pictures

if TYPE_CHECKING:
    from fastapi import FastAPI

PROTOCOL = 1
_log = logging.getLogger(__name__)


@contextmanager
def serve(
    rewards: Sequence[Reward],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: Sequence[str] = (),
    most_megabytes: float = 256.0,
    most_megapixels: float = 100.0,
    at_once: int = 2,
    places: int = 64,
    patience: float = 60.0,
) -> Iterator[str]:
    """Serve ``rewards`` by their names within this block.

    Clients can ask only for these; nothing that a client sends is unpickled or loaded. Each reward scores one request
    at a time.

    Args:
        rewards: the rewards to serve.
        host: address to listen on; the default serves only this machine.
        port: port to listen on; 0 takes a free one.
        tokens: a request must carry one of them; needed for any address but the default.
        most_megabytes: size of the largest request.
        most_megapixels: most pixels of all pictures in a request, since a small PNG may hold very many.
        at_once: requests that are read and decoded at once; the others wait unread.
        places: most requests at a time; further ones are refused with 503.
        patience: seconds without a byte after which a silent client loses its place.

    Yields:
        The url.

    Raises:
        ValueError: there is no reward, two have one name, or another address has no token.
        OSError: the server cannot listen on the address.

    Example:
        >>> import torch
        >>> from lidar_sampling.rewards import load
        >>> with serve([load("brightness")], port=0) as url:
        ...     load(f"{url}/brightness")(images=torch.ones(1, 3, 2, 2), prompts=["a cat"])
        tensor([1.])
    """
    check_address(host, tokens)
    app = make_app(
        rewards,
        tokens=tokens,
        most_megabytes=most_megabytes,
        most_megapixels=most_megapixels,
        at_once=at_once,
        places=places,
        patience=patience,
    )
    with listen(host, port) as listening, run_in_thread(server_of(app), listening):
        yield url_of(listening)


def make_app(
    rewards: Sequence[Reward],
    *,
    tokens: Sequence[str] = (),
    most_megabytes: float = 256.0,
    most_megapixels: float = 100.0,
    at_once: int = 2,
    places: int = 64,
    patience: float = 60.0,
) -> "FastAPI":
    """Return the web app of :func:`serve`; arguments and errors are the same."""
    need_extra()
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from starlette.exceptions import HTTPException

    served = {name_of(reward): (reward, threading.Lock()) for reward in rewards}
    if len(served) < len(rewards) or not rewards:
        raise ValueError(f"serve one or more rewards of different names, got {[name_of(r) for r in rewards]}")
    registry = CollectorRegistry()
    answers = Counter("lidar_reward_requests", "Answers by status.", ["status"], registry=registry)
    seconds = Histogram(
        "lidar_reward_seconds", "To score a request, waiting included.", ["reward"], registry=registry
    )
    pixels = int(most_megapixels * 1e6)
    app = FastAPI(title="lidar-sampling rewards", docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard,
        refusal=lambda status, text: {"error": text},
        tokens=tuple(tokens),
        largest=int(most_megabytes * 1e6),
        patience=patience,
        at_once=at_once,
        places=places,
        seen=lambda scope, status: answers.labels(str(status)).inc(),
    )

    @app.get("/")
    def offer() -> dict[str, Any]:
        """Return the names of the rewards."""
        return {"protocol": PROTOCOL, "rewards": list(served)}

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        """Score pictures; lidar_sampling.rewards.service describes the protocol."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page in a browser can send other types anywhere without asking
            return JSONResponse({"error": f"send Content-Type: application/json, got {kind[:80]!r}"}, 415)
        body = await request.body()
        status, content = await asyncio.to_thread(_answer, served, body, pixels, seconds)
        return JSONResponse(content, status)

    @app.get("/healthz")
    def alive() -> dict[str, str]:
        """Return that the server is alive."""
        return {"status": "ok"}

    @app.get("/metrics")
    def numbers() -> Response:
        """Return the numbers for Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        there = f"no page {request.url.path}; there are / and /score"
        text = {404: there, 405: f"no {request.method} of {request.url.path}"}.get(
            error.status_code, str(error.detail)
        )
        return JSONResponse({"error": text}, error.status_code, error.headers)

    app.add_exception_handler(HTTPException, other)
    return app


def _answer(
    served: dict[str, tuple[Reward, threading.Lock]], body: bytes, pixels: int, seconds: Any
) -> tuple[int, dict[str, Any]]:
    """Return the status and content of the answer to a request."""
    try:
        reward, lock, pictures, prompts = _read_request(served, json.loads(body), pixels)
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        return 400, {"error": f"{type(error).__name__}: {error}"}
    try:
        with seconds.labels(name_of(reward)).time(), lock:
            return 200, {"scores": score_pictures(reward, pictures=pictures, prompts=prompts)}
    except RewardError as error:
        wrong = isinstance(error.__cause__, ValueError | TypeError)  # such as a prompt that it cannot use
        return 422 if wrong else 500, {"error": str(error)}
    except Exception as error:  # mostly out of memory, which a dropped connection would not tell
        _log.info("a request failed", exc_info=True)
        return 500, {"error": f"{type(error).__name__}: {error}"}


def _read_request(
    served: dict[str, tuple[Reward, threading.Lock]], request: Any, pixels: int
) -> tuple[Reward, threading.Lock, list[Tensor], list[str]]:
    if not isinstance(request, dict):
        raise ValueError(f"a request must be a JSON object, got {cut(repr(request))}")
    if missing := [key for key in ("reward", "prompts", "images") if key not in request]:
        raise ValueError(f"a request must have reward, prompts and images, and this one lacks {missing[0]}")
    name, prompts, pictures = request["reward"], request["prompts"], request["images"]
    if not isinstance(name, str) or name not in served:
        raise ValueError(f"no reward {cut(repr(name))} here; there are {', '.join(served)}")
    for key, value in (("prompts", prompts), ("images", pictures)):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{key} must be a list of strings, got {cut(repr(value))}")
    if len(prompts) != len(pictures):
        raise ValueError(f"prompts and images must have the same length, got {len(prompts)} and {len(pictures)}")
    return *served[name], _tensors(pictures, pixels), prompts


def _tensors(pictures: Sequence[str], most_pixels: int) -> list[Tensor]:
    """Return PNGs in base64 as (3, H, W) each; check their sizes before unpacking any."""
    files = [base64.b64decode(picture, validate=True) for picture in pictures]
    if (pixels := sum(_pixels(file) for file in files)) > most_pixels:
        raise ValueError(f"a request must have at most {most_pixels} pixels, got {pixels}: send fewer at a time")
    return [read_picture(file, name=f"image {k} of the request", formats=("PNG",)) for k, file in enumerate(files)]


def _pixels(file: bytes) -> int:
    """Return the number of pixels in a PNG's header; 0 for other files, which are refused on reading."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            return image.width * image.height
    except UnidentifiedImageError:
        return 0
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
