"""The metrics of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from .desk import Desk
from .order import ENDED

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The metrics of one app.

    Args:
        desk: the desk whose queue is reported.
    """

    def __init__(self, desk: Desk) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "lidar_requests", "Answers by page and status.", ["page", "status"], registry=registry
        )
        self._seconds = Histogram(
            "lidar_job_seconds", "From the acceptance of a job to its end.", buckets=SECONDS, registry=registry
        )
        for name, text, value in (
            ("lidar_jobs_waiting", "Jobs that wait.", lambda: desk.waiting),
            ("lidar_jobs_running", "Whether something is drawn.", lambda: desk.running is not None),
            ("lidar_places", "Jobs that may wait.", lambda: desk.places),
            ("lidar_bank_bytes", "Bytes of the banks that are kept, with their pictures.", lambda: desk.banks.bytes),
        ):
            Gauge(name, text, registry=registry).set_function(value)
        self.registry.register(_Ended(desk))
        desk.on_end = lambda order, seconds: self._seconds.observe(seconds)

    def count(self, scope: Any, status: int) -> None:
        """Count an answer by page and status."""
        page = getattr(scope.get("route"), "path", "other")
        self._requests.labels(page, str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in the format of Prometheus."""
        return generate_latest(self.registry)


class _Ended:
    """A collector of the jobs that ended, counted by the shelf."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counts."""
        ended = CounterMetricFamily("lidar_jobs_ended", "Jobs that ended, by how.", labels=["state"])
        for state in ENDED:
            ended.add_metric([state], self.desk.counts[state])
        yield ended
