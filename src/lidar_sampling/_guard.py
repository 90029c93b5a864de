"""The guard before the apps of this package: it decides who may ask, how much, and how many at once.

A plain ASGI class: Starlette's decorator for middleware hides from the app that a client went away.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/healthz", "/readyz")
"""Pages that need no token: a supervisor asks for them."""

HERE = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that no other can reach."""


@dataclass
class OwnPage:
    """Lets requests through to a page that only this machine may see, and of browsers only from the page itself.

    Any page that a browser has open can send requests here, and can give its own name this address.

    Args:
        app: behind it.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the app, or answer it with 403."""
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, origin = headers.get(b"host", "localhost"), headers.get(b"origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if scope["type"] == "lifespan" or (_name_in(host) in HERE and not foreign):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            text = f"this page answers itself alone: ask for {HERE[1]}, or give 'lidar app' a --token".encode()
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": text})


def _name_in(host: str) -> str:
    """Return the name in a Host header, without its port.

    >>> _name_in("localhost:7860"), _name_in("[::1]:7860"), _name_in("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    before, bracket, _ = host.rpartition("]")
    return before[1:] if bracket else host.partition(":")[0]


@dataclass
class Guard:
    """Lets requests through to an app from known clients, up to a size, and up to a number at once.

    A request has been read when the app gets it. ``scope["lidar.gone"]`` is an event that is set when its client goes
    away, ``scope["lidar.client"]`` says who it is.

    Args:
        app: behind it.
        refusal: makes the body of an answer from a status and a text.
        tokens: one of which a request must bring; without any, the Host that it asks for must be this machine.
        largest: bytes of a body.
        patience: seconds without a byte after which a client that went silent is given up.
        at_once: requests that are read and answered at a time; the others wait unread.
        places: requests that may be there; the next are refused.
        seen: called with (scope, status) of each answer.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    refusal: Callable[[int, str], dict[str, Any]]
    tokens: Sequence[str] = ()
    largest: int = 1 << 20
    patience: float = 60.0
    at_once: int = 1000
    places: int = 1000
    seen: Callable[[Scope, int], None] = lambda scope, status: None
    _there: int = 0
    _room: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._room = asyncio.Semaphore(self.at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it to the app."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen(scope, message["status"])
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._who(scope, headers):
            await self._refuse(refused, receive, count)
        elif scope["path"] in OPEN:
            await self.app(scope, receive, count)
        elif self._there >= self.places:
            text = f"{self._there} requests are here, and no more may: ask again later"
            await self._refuse((503, text, {"retry-after": "1"}), receive, count)
        else:
            self._there += 1
            try:
                async with self._room:
                    await self._let_in(scope, headers, receive, count)
            finally:
                self._there -= 1

    def _who(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str, dict[str, str]] | None:
        """Note who asks; return why the client may not ask, if so."""
        client = scope.get("client") or ("",)
        scope["lidar.client"] = client[0]
        if not self.tokens:
            name = _name_in(headers.get(b"host", "localhost"))
            if name not in HERE:  # a page in a browser may give its own name this address
                return 403, f"the Host {name[:80]!r} is not this machine: ask for {HERE[1]}, or give a --token", {}
            return None
        if scope["path"] in OPEN:
            return None
        kind, _, given = headers.get(b"authorization", "").partition(" ")
        known = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in self.tokens]
        if kind.lower() != "bearer" or not any(known):
            return (
                401,
                "this server needs its token: send Authorization: Bearer TOKEN",
                {"www-authenticate": "Bearer"},
            )
        if len(self.tokens) > 1:
            scope["lidar.client"] = f"token {known.index(True)}"
        return None

    async def _let_in(self, scope: Scope, headers: dict[bytes, str], receive: Receive, send: Send) -> None:
        length = headers.get(b"content-length", "0")
        size, parts, more = 0, [], True
        too_large = int(length) > self.largest if length.isdigit() else False
        while not too_large:
            try:
                message = await asyncio.wait_for(receive(), self.patience)
            except TimeoutError:
                text = f"nothing came for {self.patience:g} s: send the whole request"
                await self._answer(408, text, {"connection": "close"}, send)
                return
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            too_large, more = size > self.largest, message.get("more_body", False)
            if not more:
                break
        if too_large:
            parts.clear()
            text = f"a request must have 0 to {self.largest} bytes, got {max(size, int(length or 0))}"
            await self._refuse((413, text, {}), receive, send, more=more)
            return
        body, given, gone = b"".join(parts), False, asyncio.Event()
        parts.clear()
        scope["lidar.gone"] = gone

        async def whole() -> Message:
            nonlocal given, body
            if not given:
                given, found, body = True, body, b""
                return {"type": "http.request", "body": found, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        watching = asyncio.create_task(watch())
        try:
            await self.app(scope, whole, send)
        finally:
            watching.cancel()

    async def _refuse(
        self, why: tuple[int, str, dict[str, str]], receive: Receive, send: Send, *, more: bool = True
    ) -> None:
        """Answer once the client has sent everything: it would not listen before."""
        left = 4 * self.largest
        while more and left > 0:
            try:
                message = await asyncio.wait_for(receive(), self.patience)
            except TimeoutError:
                break
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)
        status, text, headers = why
        await self._answer(status, text, headers if not more else {**headers, "connection": "close"}, send)

    async def _answer(self, status: int, text: str, headers: dict[str, str], send: Send) -> None:
        body = json.dumps(self.refusal(status, text)).encode()
        all_of = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        named = [(name.encode(), value.encode()) for name, value in all_of.items()]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})
