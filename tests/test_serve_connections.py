"""Connections of a real server: what they may cost, and that none shuts the others out."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from sparse_engine.serve import Embedder, connection, create_app, middleware, replies, server

TINY: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("serve_model.py")))
V1 = "/v1/embeddings"
BODY = b'{"input": "dense"}'
Address = tuple[str, int]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(TINY["model"](), TINY["write"](tmp_path_factory.mktemp("model")))


@contextlib.contextmanager
def running(embedder: Embedder) -> Iterator[Address]:
    """A server in a thread of this process."""
    app, ready = create_app({"tiny": embedder}, threads=1), threading.Event()
    with server.listen("127.0.0.1", 0) as listener:
        address: Address = listener.getsockname()
        run = threading.Thread(
            target=server.answer, args=(app, listener, "tiny", lambda url: ready.set())
        )
        run.start()
        try:
            assert ready.wait(20)
            yield address
        finally:
            app.state.service.traffic.draining = True
            run.join(20)
        assert not run.is_alive()


def get(address: Address, path: str) -> tuple[int, str]:
    one = http.client.HTTPConnection(*address, timeout=20)
    with contextlib.closing(one):
        one.request("GET", path)
        answer = one.getresponse()
        return answer.status, answer.read().decode()


def until_closed(peer: socket.socket, trickle: bytes = b"") -> bytes:
    """What comes until the server closes; `trickle` is sent byte by byte meanwhile, over and over."""
    peer.settimeout(0.05)
    got, end = b"", time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            try:
                if trickle:
                    peer.sendall(trickle)
                part = peer.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                return got
            if not part:
                return got
            got += part
    raise AssertionError("the server kept the connection")


def test_twenty_requests_on_one_connection(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = []
    made = connection.Connection.connection_made

    def looking(self: Any, transport: Any) -> None:
        peer = transport.get_extra_info("socket")
        delays.append(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(connection.Connection, "connection_made", looking)
    with running(embedder) as address:
        one = http.client.HTTPConnection(*address, timeout=20)
        with contextlib.closing(one):
            for _ in range(20):
                one.request("POST", V1, BODY)
                answer = one.getresponse()
                assert (answer.status, len(answer.read()) > 100) == (200, True)
    # One connection; answers do not wait for the client to acknowledge the ones before.
    assert delays == [1]


def test_idle_sockets_shut_nobody_out(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 4)
    with running(embedder) as address, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address, 20)) for _ in range(12)]
        assert get(address, "/health/live")[0] == 200
        assert get(address, "/v1/models")[0] == 200
        for peer in idle[:8]:  # those that waited longest went first
            assert until_closed(peer) == b""


@pytest.mark.parametrize(
    "begin",
    [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"],
    ids=["first", "kept-alive"],
)
@pytest.mark.parametrize("trickle", [b"", b"a"], ids=["silent", "trickle"])
def test_a_header_has_a_time_limit(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, begin: bytes, trickle: bytes
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    with running(embedder) as address, socket.create_connection(address, 20) as peer:
        peer.sendall(begin + b"GET / HTTP/1.1\r\nX: ")
        assert until_closed(peer, trickle).count(b"200 OK") == bool(begin)


def test_the_rest_of_a_refused_body_has_a_time_limit(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    length = middleware.MAX_BODY + 1
    with running(embedder) as address, socket.create_connection(address, 20) as peer:
        peer.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: " % V1.encode())
        peer.sendall(b"%d\r\n\r\n" % length)
        assert b"413" in until_closed(peer, b"x")


def test_refusals_are_counted_under_their_route(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.2)
    post = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " % V1.encode()
    with running(embedder) as address:
        for length, status in ((b"9000000", b"413"), (b"50", b"408")):
            with socket.create_connection(address, 20) as peer:
                peer.sendall(post + length + b"\r\n\r\n{")
                assert status in until_closed(peer)
        metrics = get(address, "/metrics")[1]
    for status in ("413", "408"):
        assert f'se_requests_total{{code="{status}",route="{V1}"}} 1.0' in metrics


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (b"X: " + b"a" * 17_000 + b"\r\n", b"431", b"at most 16384"),
        (b"".join(b"X-%d: %s\r\n" % (i, b"a" * 90) for i in range(200)), b"431", b"at most 16384"),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"400", b"send one of them"),
    ],
    ids=["one-long-header", "many-headers", "two-lengths"],
)
def test_headers_that_are_refused_end_the_connection(
    embedder: Embedder, more: bytes, status: bytes, words: bytes
) -> None:
    with running(embedder) as address, socket.create_connection(address, 20) as peer:
        peer.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n0\r\n\r\n" % (V1.encode(), more))
        got = until_closed(peer)
    assert got.split(b" ", 2)[1] == status
    assert words in got


def test_probes_are_outside_the_limit_of_requests(embedder: Embedder) -> None:
    app = create_app({"tiny": embedder}, threads=1)
    app.state.service.traffic.in_flight = middleware.MAX_REQUESTS
    send = TINY["sender"](app)
    answer = send("POST", V1, content=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert send("GET", "/health/ready").status_code == 200


def test_the_front_page_and_the_docs(embedder: Embedder) -> None:
    send = TINY["sender"](create_app({"tiny": embedder}, threads=1))
    home = send("GET", "/").json()
    assert (home["name"], home["models"], home["docs"]) == ("sparse_engine", ["tiny"], "/docs")
    docs = send("GET", "/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "curl http://test/v1/embeddings" in docs.text
    assert "<script" not in docs.text


@pytest.mark.parametrize("text", ["[" * 20_000, '{"\\' * 20_000])
def test_brackets_in_texts_are_no_lists(text: str) -> None:
    assert replies.parse_object(json.dumps({"input": text}).encode()) == {"input": text}


@pytest.mark.parametrize("body", [b'"\\' * 50_000 + b"[" * 20_000, b'"[' * 20_001, b'"[\\' * 9])
def test_counting_lists_in_what_is_no_json(body: bytes) -> None:
    assert replies.containers(body) <= body.count(b"[")


def test_texts_too_long_are_not_tokenized_and_two_at_most_at_once(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lock, now, most = embedder.tokenizer, threading.Lock(), 0, 0
    three = threading.Event()

    class Slow:
        def encode_batch(self, texts: list[str]) -> Any:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
                if now > 2:
                    three.set()
            three.wait(0.2)
            with lock:
                now -= 1
            return real.encode_batch(texts)

    monkeypatch.setattr(embedder, "tokenizer", Slow())
    app = create_app({"tiny": embedder}, threads=1)
    statuses = in_parallel(app, [BODY] * 5)
    assert statuses == [200] * 5
    assert most == 2
    most = 0
    assert in_parallel(app, [b'{"input": "%s"}' % (b"a" * 10_000)]) == [400]
    assert most == 0


def in_parallel(app: Any, bodies: list[bytes]) -> list[int]:
    async def going() -> list[int]:
        async with TINY["client"](app) as one:
            answers = await asyncio.gather(*(one.post(V1, content=body) for body in bodies))
        return [answer.status_code for answer in answers]

    return asyncio.run(going())
