"""Answers to clients about orders: jobs, pictures, banks, and events during drawing."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from .._live import Glimpse
from .._media import to_pil
from ..runs import Job
from .catalog import field_of
from .desk import Desk
from .order import Bank, Order
from .requests import refusal

_PING = 15.0  # longest silence of a connection in seconds


class LeftError(Exception):
    """The client has gone away."""


async def changes(order: Order, gone: asyncio.Event) -> AsyncIterator[bool]:
    """Yield at once and at every change of an order, until it ends; yield False after a long silence.

    Raises:
        LeftError: the client has gone away.
    """
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(woken.set)

    leaving = asyncio.create_task(gone.wait())
    try:
        with order.listen(wake):
            news = True
            while True:
                version = order.version
                yield news
                if order.ended:
                    return
                if order.version != version:
                    continue
                waking = asyncio.create_task(woken.wait())
                done, _ = await asyncio.wait({waking, leaving}, timeout=_PING, return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
                woken.clear()
                news = bool(done)
                if gone.is_set():
                    raise LeftError
    finally:
        leaving.cancel()


def status_of(order: Order) -> int:
    """Return the HTTP status for an order that ended without pictures."""
    if order.state == "failed":
        return {"request": 422, "time": 504}.get(order.fault, 500)
    return 503


def refusal_of(order: Order) -> dict[str, Any]:
    """Return the reason why an order ended without pictures."""
    at_fault = field_of(order.problem) if order.fault == "request" else None
    return refusal(status_of(order), order.problem or "it was cancelled", at_fault)


def job_view(desk: Desk, order: Order) -> dict[str, Any]:
    """Return a job as JSON."""
    progress = order.progress
    return {
        "id": order.id,
        "object": "job",
        "task": "bank" if order.job.task == "look" else "images",
        "state": order.state,
        "prompt": order.job.text(0),
        "seed": order.job.seeds[0],
        "position": desk.position(order) if order.state == "waiting" else 0,
        "phase": progress.phase if progress else "",
        "part": progress.part if progress else 0.0,
        "problem": order.problem,
        "notes": order.notes,
        "bank_id": _bank_id(order),
        "images": _samples(order),
    }


def bank_view(bank: Bank, job: Job) -> dict[str, Any]:
    """Return a bank as JSON, by the Job that draws it."""
    members = [
        {
            "picture": f"/v1/banks/{bank.id}/images/{k}",
            "rewards": {name: values[k] for name, values in bank.rewards.items()},
        }
        for k in bank.best_first()
    ]
    return {"id": bank.id, "object": "bank", "prompt": job.text(0), "seed": job.seeds[0], "images": members}


def pictures(order: Order) -> dict[str, Any]:
    """Return OpenAI's answer for a finished order, with our fields beside its own."""
    entry = order.result()[order.job.methods[-1]]
    data = [
        {
            "b64_json": base64.b64encode((order.out / file).read_bytes()).decode(),
            "revised_prompt": None,
            "reward": order.scores[k] if order.scores else None,
            "rewards": sample["rewards"],
        }
        for k, (file, sample) in enumerate(zip(entry["images"], _samples(order), strict=True))
    ]
    return {
        "created": int(order.since),
        "data": data,
        "output_format": "png",
        "size": _size(base64.b64decode(data[0]["b64_json"])),
        "id": order.id,
        "seed": order.job.seeds[0],
        "bank_id": _bank_id(order),
        "notes": order.notes,
    }


def event(name: str, data: dict[str, Any]) -> str:
    """Return one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def job_events(desk: Desk, order: Order, gone: asyncio.Event, *, previews: bool) -> AsyncIterator[str]:
    """Yield events of a job, with unfinished pictures if they are wanted; the last event is its end."""
    seen: Glimpse | None = None
    with suppress(LeftError):
        async for news in changes(order, gone):
            if not news:
                yield ": still here\n\n"
                continue
            yield event("job", await asyncio.to_thread(job_view, desk, order))
            if previews and (glimpse := order.glimpse) is not None and glimpse is not seen:
                seen = glimpse
                shown = await asyncio.to_thread(_encode, glimpse)
                yield event("preview", {"phase": glimpse.phase, "step": glimpse.step, "b64_json": shown})


async def openai_events(desk: Desk, order: Order, gone: asyncio.Event, partial_images: int) -> AsyncIterator[str]:
    """Yield OpenAI's events: unfinished pictures, then each picture. A client that goes away cancels the order."""
    index = 0
    try:
        async for news in changes(order, gone):
            if not news:
                yield ": still here\n\n"
            glimpse = order.glimpse
            if glimpse is None or glimpse.phase != "sampling" or index >= partial_images:
                continue
            if glimpse.step * (partial_images + 1) >= (index + 1) * glimpse.total:
                (first,) = await asyncio.to_thread(_encode, glimpse._replace(images=glimpse.images[:1]))
                yield event(*_openai(order, "partial_image", first, partial_image_index=index))
                index += 1
        if order.state != "done":
            yield event("error", refusal_of(order))
            return
        found = await asyncio.to_thread(pictures, order)
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        usage_of = {**usage, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
        ours = {name: found[name] for name in ("id", "seed", "bank_id", "notes")}
        for k, sample in enumerate(found["data"]):
            more = {"usage": usage_of, "index": k, "reward": sample["reward"], "rewards": sample["rewards"], **ours}
            yield event(*_openai(order, "completed", sample["b64_json"], **more))
    except LeftError:
        pass
    finally:
        if not order.ended:
            desk.cancel(order)


def _openai(order: Order, kind: str, picture: str, **more: Any) -> tuple[str, dict[str, Any]]:
    name = f"image_generation.{kind}"
    look = {"background": "opaque", "output_format": "png", "quality": "auto"}
    size = _size(base64.b64decode(picture))
    return name, {"type": name, "b64_json": picture, "created_at": int(order.since), "size": size, **look, **more}


def _encode(glimpse: Glimpse) -> list[str]:
    """Return unfinished samples as PNGs in base64."""
    found = []
    for image in glimpse.images:
        file = io.BytesIO()
        to_pil(image.clamp(0, 1)).save(file, "PNG", compress_level=1)
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def _size(png: bytes) -> str:
    """Return the size in the header of a PNG, width first."""
    return f"{int.from_bytes(png[16:20])}x{int.from_bytes(png[20:24])}"


def _samples(order: Order) -> list[dict[str, Any]]:
    if order.state != "done" or order.job.task != "generate" or not order.folder.is_dir():  # the order was forgotten
        return []
    entry = order.result()[order.job.methods[-1]]
    return [
        {
            "picture": f"/v1/jobs/{order.id}/images/{k}",
            "rewards": {name: values[k] for name, values in entry["rewards"].items()},
        }
        for k in range(len(entry["images"]))
    ]


def _bank_id(order: Order) -> str | None:
    return order.bank.id if order.bank is not None and order.bank.file.is_file() else None
