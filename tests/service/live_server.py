"""A server on a free port, in a thread."""

from concurrent.futures import Future
from contextlib import contextmanager

from lidar_sampling.service import Desk


@contextmanager
def serving(folder, tiny, base, *, tokens=(), rewards=None, models=None, limits=None, warm=True, **desk_options):
    """Yield (url, desk, app) of a server that runs within the block."""
    from lidar_sampling._http import listen, run_in_thread, server_of, url_of
    from lidar_sampling.service.app import make_app
    from lidar_sampling.service.catalog import Catalog
    from lidar_sampling.service.limits import Limits

    catalog = Catalog(
        models or {"tiny": tiny}, rewards or {"brightness": "brightness"}, base=base, limits=limits or Limits()
    )
    with Desk(folder, **{"places": 16, **desk_options}) as desk:
        warming: list[Future] = [desk.warm(job) for job in catalog.jobs()] if warm else []
        for coming in warming:
            coming.result(60)
        app = make_app(desk, catalog, tokens=tokens, warming=warming)
        with listen("127.0.0.1", 0) as listening, run_in_thread(server_of(app, stopping=desk.stop), listening):
            yield url_of(listening), desk, app
