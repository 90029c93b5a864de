"""The service over HTTP: OpenAI's images API, and our own with banks and jobs, in front of one desk."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path as File
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer

from .._guard import Guard
from . import answers, requests
from .catalog import Catalog, RefusedError, check_size
from .desk import Desk
from .metrics import Metrics
from .order import Order
from .problems import describe, handle
from .requests import Draw, Generation, Look, refusal
from .schema import document

_GONE = Response(status_code=499)  # the client is gone
_Place = Annotated[int, Path(ge=0, le=10_000)]
_PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": _EVENT}}


def make_app(
    desk: Desk,
    catalog: Catalog,
    *,
    tokens: Sequence[str] = (),
    warming: Sequence[Future[Any]] = (),
) -> FastAPI:
    """Return the web app in front of a desk.

    Args:
        desk: the desk that draws; its places limit the queue.
        catalog: what clients can choose from, and their limits.
        tokens: a request must carry one of them; several tokens distinguish clients.
        warming: work that must be done before the server is ready.

    Raises:
        ValueError: the defaults of a loaded model are above the limits. Those of a model that is still being loaded
            end its work in ``warming`` with this error.
    """
    from .. import __version__

    limits, metrics = catalog.limits, Metrics(desk)
    app = FastAPI(title="lidar-sampling", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard, refusal=refusal, tokens=tuple(tokens), largest=limits.body, patience=30.0, seen=metrics.count
    )
    desk.check_with(catalog.check_loaded)
    for usual in catalog.jobs():
        if (lidar := desk.sampler(usual)) is not None:  # it was loaded before it could be checked
            catalog.check_loaded(usual, lidar)
    handle(app, desk)
    document(app, catalog)
    known = [Depends(HTTPBearer(auto_error=False))] if tokens else []
    wait_of = Annotated[int, Query(ge=0, le=limits.wait, description="Seconds to wait for the end of the job.")]

    async def accept(request: Request, make: Callable[[], Any], *, live: bool = False) -> Order:
        """Accept the Job of a request, outside the event loop, since it is written to disk."""

        def submit() -> Order:
            job = make()
            if (lidar := desk.sampler(job)) is not None:
                check_size(lidar, job.call)
                catalog.check_loaded(job, lidar)
            return desk.submit(job, client=request.scope["lidar.client"], live=live)

        desk.check_room(request.scope["lidar.client"])  # at once, whatever else is running
        return await asyncio.to_thread(submit)

    async def wait_for_end(
        request: Request, order: Order, seconds: float | None = None, *, cancels: bool = True
    ) -> bool:
        """Wait for the end of an order and return whether it came; a client that goes away cancels the order."""
        try:
            async with asyncio.timeout(seconds):
                async for _ in answers.changes(order, request.scope["lidar.gone"]):
                    pass
        except TimeoutError:
            return False
        finally:
            if cancels and not order.ended and request.scope["lidar.gone"].is_set():
                await asyncio.to_thread(desk.cancel, order)
        return True

    async def answer(request: Request, order: Order, wait: int) -> Response:
        """Answer with a job; if the client waits for it, after its end."""
        if wait:
            await wait_for_end(request, order, wait)
        view = await asyncio.to_thread(answers.job_view, desk, order)
        return JSONResponse(view, 200 if order.ended else 202, {"location": f"/v1/jobs/{order.id}"})

    def job_of(name: str) -> Order:
        if (order := desk.orders.get(name)) is None:
            raise RefusedError("id", f"no job {name!r} here: it is unknown, or no longer kept", 404)
        return order

    def file_of(path: File | None, what: str) -> Response:
        try:
            if path is not None:
                return Response(path.read_bytes(), media_type="image/png")
        except FileNotFoundError:  # removed meanwhile
            pass
        raise RefusedError("k", f"no picture of that number in {what}", 404)

    @app.post(
        "/v1/images/generations",
        response_model=requests.Pictures,
        responses={**describe(404, 422, 429, 500, 503, 504), 200: {"content": _EVENTS}},
        dependencies=known,
    )
    async def generate(request: Request, asked: Generation) -> Response:
        """Draw pictures, with OpenAI's request and answer."""
        stream = bool(asked.stream)
        order = await accept(
            request, lambda: catalog.generation(asked, desk.banks), live=stream and bool(asked.partial_images)
        )
        if stream:
            events = answers.openai_events(desk, order, request.scope["lidar.gone"], asked.partial_images or 0)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            await wait_for_end(request, order)
        except answers.LeftError:
            return _GONE
        if order.state != "done":
            return JSONResponse(answers.refusal_of(order), answers.status_of(order))
        return JSONResponse(await asyncio.to_thread(answers.pictures, order))

    @app.post(
        "/v1/banks",
        status_code=202,
        response_model=requests.JobView,
        responses={200: {"model": requests.JobView}, **describe(422, 429)},
        dependencies=known,
    )
    async def look(request: Request, asked: Look, wait: wait_of = 0) -> Response:
        """Draw a bank: the scored lookahead samples that guide pictures."""
        return await answer(request, await accept(request, lambda: catalog.look(asked)), wait)

    @app.post(
        "/v1/images",
        status_code=202,
        response_model=requests.JobView,
        responses={200: {"model": requests.JobView}, **describe(404, 422, 429)},
        dependencies=known,
    )
    async def draw(request: Request, asked: Draw, wait: wait_of = 0, previews: bool = False) -> Response:
        """Draw pictures that a bank guides."""
        order = await accept(request, lambda: catalog.draw(asked, desk.banks), live=previews)
        return await answer(request, order, wait)

    @app.get("/v1/jobs/{id}", response_model=requests.JobView, responses=describe(404), dependencies=known)
    async def job(request: Request, id: str, wait: wait_of = 0) -> Response:
        """Return the state of a job. An accepted job is still known after a restart, if only as lost."""
        order = job_of(id)
        if wait:
            await wait_for_end(request, order, wait, cancels=False)
        return JSONResponse(await asyncio.to_thread(answers.job_view, desk, order))

    @app.delete("/v1/jobs/{id}", response_model=requests.JobView, responses=describe(404), dependencies=known)
    async def cancel(id: str) -> Response:
        """Cancel a job (at once if it waits, within a step if it runs), and delete it with its pictures."""
        order = job_of(id)
        await asyncio.to_thread(desk.forget, order)
        return JSONResponse(await asyncio.to_thread(answers.job_view, desk, order))

    @app.get("/v1/jobs/{id}/events", responses={200: {"content": _EVENTS}, **describe(404)}, dependencies=known)
    async def events(request: Request, id: str, previews: bool = False) -> StreamingResponse:
        """Send news of a job as server-sent events, until it ends."""
        order = job_of(id)
        found = answers.job_events(desk, order, request.scope["lidar.gone"], previews=previews)
        return StreamingResponse(found, media_type="text/event-stream")

    @app.get("/v1/jobs/{id}/images/{k}", responses={200: _PNG, **describe(404)}, dependencies=known)
    def picture(id: str, k: _Place) -> Response:
        """Return a picture of a job, with the settings that drew it embedded."""
        order = job_of(id)
        done = order.state == "done" and order.job.task == "generate"
        files = order.result()[order.job.methods[-1]]["images"] if done else []
        return file_of(order.out / files[k] if k < len(files) else None, f"job {id}")

    @app.get("/v1/banks/{bank_id}", response_model=requests.BankView, responses=describe(404), dependencies=known)
    def bank(bank_id: str) -> Response:
        """Return the members of a bank, best first."""
        job, found = desk.banks.job(bank_id), desk.banks.recall(bank_id, catalog.guide(bank_id, desk.banks))
        if found is None or job is None:
            raise RefusedError("bank_id", f"no bank {bank_id!r} here: draw one with POST /v1/banks", 404)
        return JSONResponse(answers.bank_view(found, job))

    @app.get("/v1/banks/{bank_id}/images/{k}", responses={200: _PNG, **describe(404)}, dependencies=known)
    def member(bank_id: str, k: _Place) -> Response:
        """Return the picture of a member of a bank."""
        file = desk.banks.file(bank_id)
        return file_of(file and desk.banks.galleries / file.stem / f"{k:04d}.png", f"bank {bank_id}")

    @app.get("/v1/models", response_model=requests.Models, responses=describe(), dependencies=known)
    def models() -> Response:
        """List the models, rewards and methods that requests can choose."""
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "lidar-sampling"} for name in catalog.models
        ]
        names = {"rewards": list(catalog.rewards), "methods": list(catalog.methods)}
        return JSONResponse({"object": "list", "data": rows, **names})

    @app.get("/healthz", response_model=requests.Status, responses={503: {"model": requests.Status}})
    def alive() -> Response:
        """Return whether the server can draw."""
        return JSONResponse({"status": "ok"} if desk.alive else {"status": "dead"}, 200 if desk.alive else 503)

    @app.get("/readyz", response_model=requests.Status, responses={503: {"model": requests.Status}})
    def ready() -> Response:
        """Return whether the models are loaded and requests are accepted."""
        state = "ok"
        for coming in warming:
            state = "loading" if not coming.done() else "broken" if coming.exception() else state
        state = "closing" if desk.closing else state
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **describe()}, dependencies=known)
    def numbers() -> Response:
        """Return the numbers for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app
