"""Limits of what a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
        prompt: characters per prompt.
        images: samples.
        n: lookahead samples.
        steps: denoising steps.
        pixels: pixels per sample, height times width.
        body: bytes per request.
        wait: seconds that a request may wait for its answer with ``?wait=``.
        seconds: seconds to draw a job.
        places: waiting jobs.
        each: waiting jobs of one client.
    """

    prompt: int = 2000
    images: int = 8
    n: int = 64
    steps: int = 100
    pixels: int = 1 << 20
    body: int = 1 << 18
    wait: int = 600
    seconds: int = 600
    places: int = 16
    each: int = 8

    def __post_init__(self) -> None:
        for limit in fields(self):
            if (value := getattr(self, limit.name)) < 1:
                raise ValueError(f"the limit {limit.name} must be at least 1, got {value}")
