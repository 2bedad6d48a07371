"""A model that fails, many requests at once, clients that leave, a server that drains."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import serve_model

from sparse_engine.errors import UsageError
from sparse_engine.serve import Embedder, create_app
from sparse_engine.serve.queue import MAX_WAITING

client, infer, tensor = serve_model.client, serve_model.infer, serve_model.tensor
V1, V2 = "/v1/embeddings", "/v2/models/tiny/infer"
Send = Callable[..., Any]


def vectors(answer: Any) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    return [entry["embedding"] for entry in answer.json()["data"]]


@pytest.fixture
def hooked(embedder: Embedder) -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Give it a forward hook of the model; the hook is taken off at the end."""
    handles = []
    yield lambda hook: handles.append(embedder.model.register_forward_hook(hook))
    for handle in handles:
        handle.remove()


def test_a_failing_model_is_a_500_without_internals(
    send: Send, hooked: Any, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail_once(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise UsageError("secret of the house")

    hooked(fail_once)
    answer = send("POST", V1, json={"input": "a"}, headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    message = "internal error, request id abc-1"
    assert answer.json()["error"] == {
        "message": message,
        "type": "server_error",
        "code": "internal_error",
    }
    assert answer.headers["x-request-id"] == "abc-1"
    assert "secret of the house" in caplog.text
    got = vectors(send("POST", V1, json={"input": "dense"}))
    np.testing.assert_allclose(got, embedder.embed(["dense"]).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("body", [{"input": "a"}, {"input": "a", "encoding_format": "base64"}])
def test_numbers_that_json_has_no_word_for(
    send: Send, hooked: Any, caplog: pytest.LogCaptureFixture, bad: float, body: dict[str, str]
) -> None:
    def spoil(module: Any, args: Any, output: Any) -> None:
        output.last_hidden_state[0, 0] = bad

    hooked(spoil)
    answer = send("POST", V1, json=body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "the model's output has NaN or infinity" in caplog.text


def test_request_ids_of_clients_are_plain_words_or_replaced(send: Send) -> None:
    answer = send("GET", "/health/live", headers={"x-request-id": "a b"})
    assert len(answer.headers["x-request-id"]) == 32


def test_eight_at_once_each_get_their_own(app: Any, embedder: Embedder) -> None:
    texts = [" ".join(serve_model.WORDS[: 1 + i]) for i in range(8)]

    async def going() -> list[Any]:
        async with client(app) as one:
            sent = [one.post(V1, json={"input": [t, "dense"]}) for t in texts]
            return await asyncio.gather(*sent)

    for text, answer in zip(texts, asyncio.run(going()), strict=True):
        expected = embedder.embed([text, "dense"]).numpy()
        np.testing.assert_allclose(vectors(answer), expected, rtol=0, atol=1e-6)


def test_probes_answer_while_a_model_computes_and_the_queue_is_bounded(
    app: Any, hooked: Any
) -> None:
    gate, running = threading.Event(), []

    def wait(*_: Any) -> None:
        running.append(threading.current_thread().name)
        assert gate.wait(20)

    hooked(wait)
    queue = app.state.service.models["tiny"].queue
    assert queue.capacity == MAX_WAITING
    queue.capacity = 2

    async def going() -> list[Any]:
        async with client(app) as one:
            sent = [asyncio.create_task(one.post(V1, json={"input": "a"})) for _ in range(3)]
            while queue.length < 3 or not running:
                await asyncio.sleep(0.01)
            assert (await one.get("/health/ready")).status_code == 200
            assert 'se_queue_depth{model="tiny"} 3.0' in (await one.get("/metrics")).text
            refused = await one.post(V2, json=infer(tensor("input_ids", [2, 4, 3], [1, 3])))
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert len(running) == 1
            gate.set()
            return await asyncio.gather(*sent)

    try:
        answers = asyncio.run(going())
    finally:
        gate.set()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert queue.length == 0
    assert len(set(running)) == 1
    assert running[0].startswith("compute")


def test_a_client_that_leaves_while_waiting_is_not_computed(app: Any, hooked: Any) -> None:
    gate, computed = threading.Event(), []

    def wait(module: Any, args: Any, output: Any) -> None:
        computed.append(output.last_hidden_state.shape[1])
        assert gate.wait(20)

    hooked(wait)
    service = app.state.service
    queue = service.models["tiny"].queue

    async def leaving(left: asyncio.Event) -> None:
        """One request of 5 tokens whose client goes away when `left` is set."""
        body = [{"type": "http.request", "body": b'{"input": [4, 4, 4, 4, 4]}'}]

        async def receive() -> Any:
            if body:
                return body.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there")

        scope = {"type": "http", "method": "POST", "path": V1, "headers": [], "query_string": b""}
        await app(scope, receive, send)

    async def going() -> None:
        async with client(app) as one:
            first = asyncio.create_task(one.post(V1, json={"input": [4, 4]}))
            while not computed:
                await asyncio.sleep(0.01)
            left = asyncio.Event()
            second = asyncio.create_task(leaving(left))
            while queue.length < 2:
                await asyncio.sleep(0.01)
            left.set()
            await second
            gate.set()
            assert (await first).status_code == 200
            assert (await one.post(V1, json={"input": [4, 4, 4]})).status_code == 200
            assert 'code="499",route="/v1/embeddings"} 1.0' in (await one.get("/metrics")).text

    try:
        asyncio.run(going())
    finally:
        gate.set()
    assert computed == [2, 3]
    assert (queue.length, service.traffic.in_flight) == (0, 0)


def test_a_request_that_is_cancelled_hears_why(app: Any, hooked: Any) -> None:
    gate, started, sent = threading.Event(), threading.Event(), []

    def wait(*_: Any) -> None:
        started.set()
        assert gate.wait(20)

    hooked(wait)
    scope = {"type": "http", "method": "POST", "path": V1, "headers": [], "query_string": b""}
    body = [{"type": "http.request", "body": b'{"input": "a"}'}]

    async def receive() -> Any:
        return body.pop() if body else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def going() -> None:
        task = asyncio.create_task(app(scope, receive, send))
        while not started.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        await task

    try:
        asyncio.run(going())
    finally:
        gate.set()
    assert sent[0]["status"] == 503
    assert b"shutting down" in sent[1]["body"]


def test_threads_are_set_where_models_run(embedder: Embedder) -> None:
    app = create_app({"tiny": embedder}, threads=1)
    thread = app.state.service.models["tiny"].queue.compute
    assert thread.submit(torch.get_num_threads).result() == 1


def test_draining_refuses_work_but_not_probes(app: Any, send: Send) -> None:
    app.state.service.traffic.draining = True
    assert send("GET", "/health/live").status_code == 200
    for path in ("/health/ready", "/v2/health/ready"):
        assert send("GET", path).status_code == 503
    answer = send("POST", V1, json={"input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert answer.headers["retry-after"] == "1"
    assert app.state.service.traffic.in_flight == 0
