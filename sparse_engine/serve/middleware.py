"""Around every request: limits, draining, a request id, metrics, and the last catch."""

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

from sparse_engine.serve.metrics import Metrics
from sparse_engine.serve.replies import Refusal, error_response
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
    """Requests in flight, probes aside, the bytes of their bodies, and whether more are taken."""

    in_flight: int = 0
    body_bytes: int = 0
    draining: bool = False


class Gone(Exception):
    """The client went away before it had its answer."""


class Guard:
    """ASGI middleware; the app inside gets bodies whole and can raise what it likes."""

    def __init__(self, app: App, traffic: Traffic, metrics: Metrics) -> None:
        self.app, self.traffic, self.metrics = app, traffic, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        status = 499  # what stays when the client goes away

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
        except Gone:
            pass
        except asyncio.CancelledError:  # the time to drain is over
            if status == 499:
                late = Refusal(503, "the server is shutting down", "draining", retry_after=1)
                await error_response(late, scope["path"])(scope, receive, sending)
        except Exception:
            log.exception("request %s failed", request_id.decode())
            if status == 499:
                reason = f"internal error, request id {request_id.decode()}"
                failed = Refusal(500, reason, "internal_error")
                await error_response(failed, scope["path"])(scope, receive, sending)
        finally:
            self.traffic.in_flight -= counted
            route = route_of(scope)
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, counted: bool) -> None:
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self.traffic.body_bytes += size
            if self.traffic.body_bytes > MAX_BODIES:
                reason = f"the bodies in flight have more than {MAX_BODIES} bytes: try again"
                raise Refusal(503, reason, "overloaded", retry_after=1)

        try:
            if counted and self.traffic.draining:
                raise Refusal(503, "the server is shutting down", "draining", retry_after=1)
            if counted and self.traffic.in_flight > MAX_REQUESTS:
                reason = f"{MAX_REQUESTS} requests are in flight already: try again"
                raise Refusal(503, reason, "overloaded", retry_after=1)
            check_headers(scope)
            if not counted:  # outside the limit of requests: nobody may wait for a body there
                await self.app(scope, _replay(b""), send)
                return
            body = await read_body(scope, receive, hold)
            await while_connected(self.app(scope, _replay(body), send), receive)
        except Refusal as refusal:
            await error_response(refusal, scope["path"])(scope, receive, send)
        except InputError as error:
            wrong = Refusal(400, str(error))
            await error_response(wrong, scope["path"])(scope, receive, send)
        finally:
            self.traffic.body_bytes -= held


def check_headers(scope: Scope) -> None:
    """Refusal 431 for more than MAX_HEADER bytes of headers, 400 for a body of two lengths.

    A proxy in front may believe the other length (request smuggling, RFC 9112 section 6.3): the
    connection is closed.
    """
    size = len(scope.get("raw_path", b"")) + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and CRLF
    if size > MAX_HEADER:
        reason = f"the request header has {size} bytes, at most {MAX_HEADER} are read"
        raise Refusal(431, reason, "header_too_large", close=True)
    names = {name for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        reason = "the request has both Content-Length and Transfer-Encoding: send one of them"
        raise Refusal(400, reason, close=True)


def route_of(scope: Scope) -> str:
    """Path of the route that serves a request, "other" where there is none.

    A request that is refused before the router has seen it is looked up here.
    """
    if "route" in scope:
        return str(getattr(scope["route"], "path", "other"))
    routes = scope["app"].routes if "app" in scope else []
    found = (route.path for route in routes if route.matches(scope)[0] is Match.FULL)
    return next(found, "other")


async def read_body(scope: Scope, receive: Receive, hold: Callable[[int], None]) -> bytes:
    """The whole body; Refusal 413 or 408 when it is larger than MAX_BODY or takes too long.

    Bytes are counted as they come: Content-Length is a claim, and chunked bodies have none. `hold`
    gets the size of each part.
    """
    claim = dict(scope["headers"]).get(b"content-length", b"0")
    if claim.isdigit() and int(claim[:20]) > MAX_BODY:
        raise _too_large()
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                hold(len(parts[-1]))
                size += len(parts[-1])
                if size > MAX_BODY:
                    raise _too_large()
                more = message.get("more_body", False)
    except TimeoutError as error:
        reason = f"the body did not arrive within {BODY_SECONDS:.0f} s"
        raise Refusal(408, reason, "request_timeout") from error
    return b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"the body is larger than {MAX_BODY} bytes: send less", "body_too_large")


async def while_connected(answering: Awaitable[None], receive: Receive) -> None:
    """Await `answering`; when the client leaves first, cancel it and raise Gone.

    A request that still waits for its model is then never computed.
    """
    answer, leaving = asyncio.ensure_future(answering), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Gone
        await answer
    finally:
        answer.cancel()
        leaving.cancel()


def _replay(body: bytes) -> Receive:
    """A `receive` that gives the body in one message, then nothing: `while_connected` looks for the
    client's leaving, and streamed answers, which look themselves, must not spin on it.
    """
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _request_id(scope: Scope) -> bytes:
    """The client's own id where it is a plain word, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
