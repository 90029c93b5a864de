"""The service on Ray Serve: the app in several processes behind one address.

It needs ``lidar-sampling[ray,serve]``. Each replica has its own desk, queue and folder. Ray sends a request to any of
them, so a job or a bank is known only to the replica that drew it. Use OpenAI's API, which answers on the same
connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .catalog import Catalog


def deployment(
    catalog: Catalog,
    folder: str | Path,
    *,
    replicas: int = 2,
    tokens: Sequence[str] = (),
    actor: dict[str, Any] | None = None,
) -> Any:
    """Return an application for ``ray.serve.run``.

    Args:
        catalog: what clients can choose from, and their limits.
        folder: folder in which each replica makes its own.
        replicas: number of processes that draw.
        tokens: a request must carry one of them.
        actor: resources of Ray for each replica, such as ``{"num_gpus": 1}``.

    Raises:
        ValueError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ValueError(
            f"replicas need Ray Serve ({error.name} is missing): pip install 'lidar-sampling[ray,serve]'"
        ) from None

    parts = {
        field.name: getattr(catalog, field.name) for field in fields(catalog)
    }  # these values are sent to the replicas

    def app() -> Any:
        from .app import make_app
        from .desk import Desk

        own = Catalog(**parts)
        limits = own.limits
        desk = Desk(
            Path(folder) / f"replica-{secrets.token_hex(4)}",
            places=limits.places,
            most_each=limits.each,
            seconds=limits.seconds,
            samplers=max(2, len(own.models)),
        )
        return make_app(desk, own, tokens=tokens, warming=[desk.warm(job) for job in own.jobs()])

    @serve.deployment(
        num_replicas=replicas,
        ray_actor_options=actor or {},
        max_ongoing_requests=2 * catalog.limits.places,
        health_check_timeout_s=60,
    )
    @serve.ingress(app)
    class Pictures:
        pass

    deployed: Any = Pictures
    return deployed.bind()
