"""The service on Ray Serve: the same app in several processes, behind one address.

It needs ``lidar-sampling[ray,serve]``. Each replica has a desk, a queue and a folder of its own. Ray sends a request
to any of them, so a job or a bank is known only to the replica that drew it: use the face of OpenAI, whose answer
comes on the connection that asked.
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
        catalog: what clients can name, and their limits.
        folder: where each replica makes a folder of its own.
        replicas: processes that draw.
        tokens: one of which a request must bring.
        actor: what Ray is to give each, such as ``{"num_gpus": 1}``.

    Raises:
        ValueError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ValueError(
            f"replicas need Ray Serve ({error.name} is missing): pip install 'lidar-sampling[ray,serve]'"
        ) from None

    parts = {field.name: getattr(catalog, field.name) for field in fields(catalog)}  # what travels to the replicas

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
