"""Connections of a real server: what they may cost, and that none shuts the others out."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import serve_model

from sparse_engine.serve import Embedder, connection, create_app, messages, middleware, page, server
from sparse_engine.serve.service import Served
from sparse_engine.tasks import Answerer, Generator, TokenClassifier

V1 = "/v1/embeddings"
BODY = b'{"input": "dense"}'
Address = tuple[str, int]


@contextlib.contextmanager
def running(embedder: Embedder, buffer: int = 0) -> Iterator[Address]:
    """A server in a thread of this process; `buffer`: bytes that the system takes for a client."""
    app, ready = create_app({"tiny": embedder}, threads=1), threading.Event()
    with server.listen("127.0.0.1", 0) as listener:
        address: Address = listener.getsockname()
        if buffer:  # connections inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
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
    """What comes until the server closes; `trickle` is sent byte by byte meanwhile, over
    and over.
    """
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


# What clients leave behind: nothing; a probe with a body that never comes; unread answers.
SLOW_PROBE = b"POST /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def client(stack: contextlib.ExitStack, address: Address, buffer: int = 0) -> socket.socket:
    """A connection, closed with `stack`; `buffer`: bytes that it takes unread."""
    peer = stack.enter_context(socket.socket())
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.connect(address)
    return peer


@pytest.mark.parametrize("at_once", [False, True], ids=["one-by-one", "at-once"])
def test_idle_sockets_shut_nobody_out(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(connection, "HEADER_SECONDS", 1000.0)
    loops = watched(monkeypatch)
    with running(embedder) as address, contextlib.ExitStack() as stack:
        get(address, "/health/live")
        if at_once:  # all are accepted before any of them is told that it is closed
            held = threading.Event()
            loops[0].loop.call_soon_threadsafe(held.wait, 20)
        idle = [client(stack, address) for _ in range(12)]
        if at_once:
            held.set()
        assert get(address, "/health/live")[0] == 200
        assert get(address, "/v1/models")[0] == 200
        for peer in idle[:8]:  # those that waited longest went first
            assert until_closed(peer) == b""


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All connections that a server makes from now on."""
    found: list[Any] = []
    made = connection.Connection.connection_made

    def making(self: Any, transport: Any) -> None:
        found.append(self)
        made(self, transport)

    monkeypatch.setattr(connection.Connection, "connection_made", making)
    return found


def test_probes_with_slow_bodies_shut_nobody_out(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(connection, "HEADER_SECONDS", 1000.0)
    with running(embedder) as address, contextlib.ExitStack() as stack:
        for _ in range(12):
            peer = client(stack, address)
            peer.sendall(SLOW_PROBE)
            assert b" 405 " in peer.recv(65536)
        assert get(address, "/health/live")[0] == 200


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"], ids=["kept", "last"])
def test_answers_that_nobody_reads_are_dropped(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    found = watched(monkeypatch)
    answers = METRICS * 100 + METRICS[:-2] + last + b"\r\n"
    with running(embedder, 4096) as address, contextlib.ExitStack() as stack:
        client(stack, address, 2048).sendall(answers)
        until(lambda: found and found[0].transport.get_write_buffer_size() > 0)
        until(lambda: found[0] not in found[0].connections)
        assert found[0].transport.get_write_buffer_size() == 0


def test_slow_readers_get_their_whole_answer(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(connection, "MIN_READ", 1024)
    found = watched(monkeypatch)
    count = 100
    with running(embedder, 4096) as address, contextlib.ExitStack() as stack:
        peer = client(stack, address, 8192)
        peer.sendall(METRICS * (count - 1) + METRICS[:-2] + b"Connection: close\r\n\r\n")
        until(lambda: found and found[0].transport.get_write_buffer_size() > 0)
        got, end = b"", time.monotonic() + 1.0
        while part := peer.recv(8192):
            got += part
            if time.monotonic() < end:
                time.sleep(0.01)
    assert got.count(b" 200 OK") == count


def until(condition: Any) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_malformed_rest_of_an_answered_body_closes_quietly(
    embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    with running(embedder) as address, socket.create_connection(address, 20) as peer:
        peer.sendall(b"POST /health/live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
        peer.sendall(b"\r\n")
        assert b" 405 " in peer.recv(65536)
        peer.sendall(b"no number\r\n")
        assert b"HTTP/1.1" not in until_closed(peer)
    assert "Fatal error" not in caplog.text


def test_all_bodies_together_are_bounded(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "MAX_BODIES", 1000)
    app = create_app({"tiny": embedder}, threads=1)
    send = serve_model.sender(app)
    answer = send("POST", V1, content=BODY + b" " * 1000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    for _ in range(100):  # what was held is given back
        assert send("POST", V1, content=BODY).status_code == 200
    assert app.state.service.traffic.body_bytes == 0


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
    send = serve_model.sender(app)
    answer = send("POST", V1, content=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert send("GET", "/health/ready").status_code == 200


def test_the_front_page_and_the_docs(embedder: Embedder) -> None:
    send = serve_model.sender(create_app({"tiny": embedder}, threads=1))
    home = send("GET", "/").json()
    assert (home["name"], home["models"], home["docs"]) == ("sparse_engine", ["tiny"], "/docs")
    docs = send("GET", "/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "curl http://test/v1/embeddings" in docs.text
    assert "<script" not in docs.text


@pytest.mark.parametrize("task", [Embedder, Answerer, Generator, TokenClassifier])
def test_the_commands_of_the_docs_run_nothing_else(task: type, tmp_path: Path) -> None:
    name, base = "a 'b' $(touch x)?#", "http://$(touch x)"
    served = Served(name, object.__new__(task), None)  # type: ignore[arg-type]
    words = shlex.split(page.command(served, base))
    ran = f"printf '%s\\n' {page.command(served, base)}"
    printed = subprocess.run(["sh", "-c", ran], capture_output=True, text=True, cwd=tmp_path)
    assert printed.stdout.splitlines() == words
    assert not list(tmp_path.iterdir())
    assert words[:1] + words[2:5] == ["curl", "-H", "content-type: application/json", "-d"]
    body, path = json.loads(words[5]), unquote(words[1].removeprefix(base))
    assert (body.get("model") == name) != (path == f"/v2/models/{name}/infer")


@pytest.mark.parametrize("text", ["[" * 20_000, '{"\\' * 20_000])
def test_brackets_in_texts_are_no_lists(text: str) -> None:
    assert messages.parse_object(json.dumps({"input": text}).encode()) == {"input": text}


@pytest.mark.parametrize("body", [b'"\\' * 50_000 + b"[" * 20_000, b'"[' * 20_001, b'"[\\' * 9])
def test_counting_lists_in_what_is_no_json(body: bytes) -> None:
    assert messages.containers(body) <= body.count(b"[")


def test_texts_too_long_are_not_tokenized_and_two_at_most_at_once(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lock, now, most = embedder.tokenizer, threading.Lock(), 0, 0
    three = threading.Event()

    class Slow:
        def encode_batch(self, texts: list[str], **options: Any) -> Any:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
                if now > 2:
                    three.set()
            three.wait(0.2)
            with lock:
                now -= 1
            return real.encode_batch(texts, **options)

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
        async with serve_model.client(app) as one:
            answers = await asyncio.gather(*(one.post(V1, content=body) for body in bodies))
        return [answer.status_code for answer in answers]

    return asyncio.run(going())
