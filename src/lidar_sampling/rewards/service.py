"""A reward in another process or on another machine, over HTTP with JSON and PNG, so that heavy judges run elsewhere.

    GET  /        {"protocol": 1, "rewards": ["image-reward", ...]}
    POST /score   {"reward": "image-reward", "prompts": ["a cat", ...], "images": [PNG in base64, ...]}
              ->  {"scores": [0.61, ...]}, one number per image

A refusal is {"error": "..."}, with status 4xx if the request is at fault and 5xx if the server is. Any server with
this protocol will do; :mod:`.server` serves the rewards of this package. PNG holds 8 bits per channel, so the picture
is sent as it would be saved: a pixel changes by at most 1/510. A server with a token expects ``Authorization: Bearer
TOKEN``.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._media import check_batch, to_pil

_log = logging.getLogger(__name__)


class ServiceError(RuntimeError):
    """The service could not be reached, refused the request, or gave an invalid answer; the message names it."""


class RemoteReward:
    """A reward that a service computes.

    Args:
        url: address of the service, such as ``http://127.0.0.1:8000``.
        name: name of the reward there.
        timeout: seconds to wait for an answer.
        retries: number of new attempts after a timeout, a lost connection or an error of the server, with pauses of
            0.5, 1, 2, ... seconds.
        token: token of the server; None takes LIDAR_TOKEN, if it is set.

    Raises:
        ServiceError: there was no valid answer.

    Example:
        >>> from lidar_sampling.rewards.server import serve
        >>> from lidar_sampling.testing import brightness
        >>> with serve([brightness], port=0) as url:
        ...     RemoteReward(url, "brightness")(images=torch.ones(2, 3, 4, 4), prompts=["a", "b"])
        tensor([1., 1.])
    """

    differentiable = False

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout: float = 120.0,
        retries: int = 3,
        pause: float = 0.5,
        token: str | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the url of a reward service must start with http:// or https://, got {url!r}")
        if not name:
            raise ValueError(f"name the reward at the service: {url.rstrip('/')}/NAME")
        if not timeout > 0 or retries < 0:
            raise ValueError(f"timeout must be above 0 and retries at least 0, got {timeout} and {retries}")
        self.url, self.name, self.timeout, self.retries, self.pause = url.rstrip("/"), name, timeout, retries, pause
        self._token = token

    @property
    def fingerprint(self) -> dict[str, str]:
        """The address of the reward, since its internals cannot be seen from here."""
        return {"service": self.url, "reward": self.name}

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of images (B, 3, H, W) in [0, 1] and B prompts, on the CPU.

        Raises:
            ValueError: images or prompts have another form.
        """
        check_batch(images, prompts)
        if images.dim() != 4:
            raise ValueError(f"a reward service takes pictures (B, 3, H, W), got {tuple(images.shape)}")
        pictures = [_png(image) for image in images.detach().float().cpu()]
        answer = self._post({"reward": self.name, "prompts": list(prompts), "images": pictures})
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or not all(isinstance(s, int | float) and math.isfinite(s) for s in scores):
            raise ServiceError(f"{self.url}/score answered without finite scores: {str(answer)[:200]}")
        if len(scores) != len(pictures):
            raise ServiceError(f"{self.url}/score answered {len(scores)} scores for {len(pictures)} images")
        return torch.tensor(scores, dtype=torch.float32)

    def _post(self, content: Mapping[str, Any]) -> Any:
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        if token := self._token or os.environ.get("LIDAR_TOKEN", "").split(",")[0]:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"{self.url}/score", body, headers)
        own = urllib.parse.urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        # A proxy cannot reach this machine's own address.
        opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] if own else [])
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = _refusal(error)
                if error.code < 500:
                    raise ServiceError(f"{self.url}/score refused: {problem}") from None
            except (OSError, http.client.HTTPException) as error:  # connection refused or reset, or timeout
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError:
                raise ServiceError(f"{self.url}/score did not answer with JSON: is it a reward service?") from None
            _log.warning("%s/score, attempt %d: %s", self.url, attempt + 1, problem)
        raise ServiceError(
            f"{self.url}/score failed {self.retries + 1} times, last with: {problem}; "
            f"see whether it runs (lidar serve-rewards {self.name}) and answers within {self.timeout:g} s"
        )


def connect(model: str, *, device: torch.device | str, dtype: torch.dtype) -> RemoteReward:
    """Return the reward at ``http:`` and ``model``, ``//HOST:PORT/NAME``; device and precision are the server's."""
    return _at(f"http:{model}")


def connect_tls(model: str, *, device: torch.device | str, dtype: torch.dtype) -> RemoteReward:
    """Return the same with ``https:``."""
    return _at(f"https:{model}")


def _at(address: str) -> RemoteReward:
    """Return the reward at an address, whose name is quoted where it holds a slash: ``clip:my%2Fmodel``."""
    url, _, name = address.rpartition("/")
    return RemoteReward(url, urllib.parse.unquote(name))


def _png(image: Tensor) -> str:
    file = io.BytesIO()
    to_pil(image.clamp(0, 1)).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"
