"""Middleware for every request: limits, draining, request ids, metrics, unexpected errors."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.routing import Match

from sparse_engine.serve.messages import RequestError, error_response
from sparse_engine.serve.metrics import Metrics
from sparse_engine.tasks import InputError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_REQUESTS = 256
MAX_HEADER = 16 * 2**10
MAX_BODY = 8 * 2**20
MAX_BODIES = 128 * 2**20  # of all requests in flight together
BODY_SECONDS = 30.0
PROBES = ("/health/", "/v2/health/", "/metrics")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("sparse_engine.serve")


@dataclass
class Traffic:
    """Requests in flight, without probes; bytes of their bodies; whether the server drains."""

    in_flight: int = 0
    body_bytes: int = 0
    draining: bool = False


class ClientDisconnected(Exception):
    """The client closed the connection before it had its answer."""


class Guard:
    """ASGI middleware. The app inside receives whole bodies, and may raise any exception."""

    def __init__(self, app: App, traffic: Traffic, metrics: Metrics) -> None:
        self.app, self.traffic, self.metrics = app, traffic, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        status = 499  # unless an answer starts: the client disconnected

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        counted = not scope["path"].startswith(PROBES)
        self.traffic.in_flight += counted
        try:
            await self._answer(scope, receive, sending, counted)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:  # draining took too long
            if status == 499:
                late = RequestError(503, "the server is shutting down", "draining", retry_after=1)
                await error_response(late, scope["path"])(scope, receive, sending)
        except Exception:
            log.exception("request %s failed", request_id.decode())
            if status == 499:
                reason = f"internal error, request id {request_id.decode()}"
                failed = RequestError(500, reason, "internal_error")
                await error_response(failed, scope["path"])(scope, receive, sending)
        finally:
            self.traffic.in_flight -= counted
            route = route_of(scope)
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, counted: bool) -> None:
        size_held = 0

        def hold(size: int) -> None:
            nonlocal size_held
            size_held += size
            self.traffic.body_bytes += size
            if self.traffic.body_bytes > MAX_BODIES:
                reason = f"the bodies in flight have more than {MAX_BODIES} bytes: try again"
                raise RequestError(503, reason, "overloaded", retry_after=1)

        try:
            if counted and self.traffic.draining:
                raise RequestError(503, "the server is shutting down", "draining", retry_after=1)
            if counted and self.traffic.in_flight > MAX_REQUESTS:
                reason = f"{MAX_REQUESTS} requests are in flight already: try again"
                raise RequestError(503, reason, "overloaded", retry_after=1)
            check_headers(scope)
            if (
                not counted
            ):  # probes are outside the limit of requests, so their bodies are not read
                await self.app(scope, _replay(b""), send)
                return
            body = await read_body(scope, receive, hold)
            await while_connected(self.app(scope, _replay(body), send), receive)
        except RequestError as error:
            await error_response(error, scope["path"])(scope, receive, send)
        except InputError as error:
            wrong = RequestError(400, str(error))
            await error_response(wrong, scope["path"])(scope, receive, send)
        finally:
            self.traffic.body_bytes -= size_held


def check_headers(scope: Scope) -> None:
    """RequestError 431 for more than MAX_HEADER bytes of headers, 400 for a body of two lengths.

    A proxy may use the other length (request smuggling, RFC 9112 section 6.3), so the connection
    is closed.
    """
    size = len(scope.get("raw_path", b"")) + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and CRLF
    if size > MAX_HEADER:
        reason = f"the request header has {size} bytes, at most {MAX_HEADER} are read"
        raise RequestError(431, reason, "header_too_large", close=True)
    names = {name for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        reason = "the request has both Content-Length and Transfer-Encoding: send one of them"
        raise RequestError(400, reason, close=True)


def route_of(scope: Scope) -> str:
    """Path of the route that serves a request, "other" where there is none.

    It is looked up here for a request that was refused before it reached the router.
    """
    if "route" in scope:
        return str(getattr(scope["route"], "path", "other"))
    routes = scope["app"].routes if "app" in scope else []
    found = (route.path for route in routes if route.matches(scope)[0] is Match.FULL)
    return next(found, "other")


async def read_body(scope: Scope, receive: Receive, hold: Callable[[int], None]) -> bytes:
    """The whole body; RequestError 413 or 408 when it is larger than MAX_BODY or takes too long.

    Received bytes are counted, because Content-Length may be wrong and chunked bodies have none.
    `hold` is called with the size of each part.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY:
        raise _too_large()
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                parts.append(message.get("body", b""))
                hold(len(parts[-1]))
                size += len(parts[-1])
                if size > MAX_BODY:
                    raise _too_large()
                more = message.get("more_body", False)
    except TimeoutError as error:
        reason = f"the body did not arrive within {BODY_SECONDS:.0f} s"
        raise RequestError(408, reason, "request_timeout") from error
    return b"".join(parts)


def _too_large() -> RequestError:
    return RequestError(
        413, f"the body is larger than {MAX_BODY} bytes: send less", "body_too_large"
    )


async def while_connected(answering: Awaitable[None], receive: Receive) -> None:
    """Await `answering`; if the client disconnects first, cancel it and raise ClientDisconnected.

    A request that is still in the queue is then never computed.
    """
    answer, disconnect = asyncio.ensure_future(answering), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnected
        await answer
    finally:
        answer.cancel()
        disconnect.cancel()


def _replay(body: bytes) -> Receive:
    """A `receive` that returns the body in one message, then waits forever.

    `while_connected` watches for a disconnect. Streamed answers watch `receive` themselves, and
    must not spin on it.
    """
    sent = False

    async def receiving() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _request_id(scope: Scope) -> bytes:
    """The client's id if it matches REQUEST_ID, else a new one."""
    sent = dict(scope["headers"]).get(b"x-request-id", b"")
    return sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex.encode()
