"""Every error of the routes: its status, its one line, and a server that lives on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import serve_model

from sparse_engine.serve import Embedder, create_app
from sparse_engine.serve.middleware import MAX_BODY

HIDDEN, infer, tensor = serve_model.HIDDEN, serve_model.infer, serve_model.tensor
V1, V2 = "/v1/embeddings", "/v2/models/tiny/infer"
Send = Callable[..., Any]


@pytest.fixture(scope="module")
def send(embedder: Embedder) -> Send:
    """To one server for all of this file."""
    return serve_model.sender(create_app({"tiny": embedder}, threads=1))


def check_alive(send: Send, embedder: Embedder) -> None:
    assert send("GET", "/health/ready").status_code == 200
    (entry,) = send("POST", V1, json={"input": "dense"}).json()["data"]
    expected = embedder.embed(["dense"]).numpy()[0]
    np.testing.assert_allclose(entry["embedding"], expected, rtol=0, atol=1e-6)


IDS = tensor("input_ids", [2, 4, 3], [1, 3])
REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("not json", V1, b"{", 400, "not JSON"),
    ("not utf-8", V1, b'{"input": "\xff"}', 400, "not JSON"),
    ("empty body", V1, b"", 400, "not JSON"),
    ("nan", V1, b'{"input": "a", "x": NaN}', 400, "NaN is not allowed"),
    ("infinity", V1, b'{"input": [-Infinity]}', 400, "-Infinity is not allowed"),
    ("too deep", V1, b"[" * 9000, 400, "nested too deeply"),
    ("many lists", V1, b"[" + b"[]," * 10_000 + b"[]]", 400, "more than 10000 lists"),
    ("long text", V1, {"input": "x" * (17 * 64 + 1)}, 400, "has 1089 characters"),
    ("huge number", V1, b'{"input": [' + b"9" * 5000 + b"]}", 400, "not JSON"),
    ("no object", V1, [1], 400, "a JSON list, expected an object"),
    ("unknown model", V1, {"input": "a", "model": "gpt\n\ud800"}, 404, "not served here: use tiny"),
    ("model of no text", V1, {"input": "a", "model": {}}, 404, "not served here"),
    ("no input", V1, {}, 400, "input is NoneType"),
    ("number", V1, {"input": 3}, 400, "input is int"),
    ("empty list", V1, {"input": []}, 400, "empty list"),
    ("empty text", V1, {"input": ""}, 400, "input 0 is empty"),
    ("empty text in list", V1, {"input": ["a", ""]}, 400, "input 1 is empty"),
    ("empty tokens", V1, {"input": [[2], []]}, 400, "input 1 is empty"),
    ("fractions", V1, {"input": [2.5]}, 400, "input 0 is 2.5"),
    ("booleans", V1, {"input": [[True]]}, 400, "input 0 is a list of 1"),
    ("mixed", V1, {"input": ["a", [2]]}, 400, "do not go into one request"),
    ("surrogate", V1, b'{"input": "\\ud800"}', 400, "surrogate"),
    (
        "too long",
        V1,
        {"input": ["a", "a " * 16]},
        400,
        "input 1 has 18 tokens, the model takes at most 17",
    ),
    ("too many tokens", V1, {"input": [4] * 18}, 400, "18 tokens, the model takes at most 17"),
    ("too many items", V1, {"input": ["a"] * 129}, 400, "129 items, at most 128"),
    ("vocabulary", V1, {"input": [2, 15]}, 400, "token id 15, the vocabulary is 0 to 14"),
    ("negative", V1, {"input": [[-1]]}, 400, "token id -1"),
    ("encoding", V1, {"input": "a", "encoding_format": "f16"}, 400, "use float or base64"),
    ("encoding list", V1, {"input": "a", "encoding_format": []}, 400, "use float or base64"),
    ("dimensions", V1, {"input": "a", "dimensions": 8}, 400, "this model gives 24"),
    ("v2 not json", V2, b"[1", 400, "not JSON"),
    ("v2 unknown", "/v2/models/other/infer", infer(IDS), 404, "use tiny"),
    ("v2 no inputs", V2, {}, 400, "inputs is missing"),
    ("v2 inputs of no objects", V2, {"inputs": [1]}, 400, "inputs is missing"),
    ("v2 unknown input", V2, infer(tensor("x", [1], [1])), 400, "inputs are 'x'"),
    ("v2 only a mask", V2, infer(IDS | {"name": "attention_mask"}), 400, "inputs are"),
    ("v2 twice", V2, infer(IDS, IDS), 400, "inputs are 'input_ids', 'input_ids'"),
    ("v2 text and ids", V2, infer(IDS, tensor("text", ["a"], [1], "BYTES")), 400, "inputs are"),
    ("v2 nameless", V2, infer({"shape": [1]}), 400, "inputs are None"),
    ("v2 datatype", V2, infer(IDS | {"datatype": "INT32"}), 400, "'INT32', not INT64"),
    ("v2 no datatype", V2, infer({"name": "input_ids"}), 400, "datatype None, not INT64"),
    ("v2 rank", V2, infer(IDS | {"shape": [3]}), 400, "has shape a list of 1: give 2 sizes"),
    ("v2 zero size", V2, infer(IDS | {"shape": [0, 3], "data": []}), 400, "sizes from 1 up"),
    ("v2 negative size", V2, infer(IDS | {"shape": [-1, -3]}), 400, "sizes from 1 up"),
    ("v2 shape of texts", V2, infer(IDS | {"shape": ["1", "3"]}), 400, "sizes from 1 up"),
    ("v2 huge shape", V2, infer(IDS | {"shape": [2, 10**30]}), 400, "values"),
    ("v2 rows", V2, infer(tensor("input_ids", [4] * 129, [129, 1])), 400, "129 rows, at most 128"),
    ("v2 length", V2, infer(IDS | {"shape": [1, 4]}), 400, "has 3 values, shape [1, 4] has 4"),
    ("v2 nested", V2, infer(tensor("input_ids", [[2], [4, 3, 3]], [2, 2])), 400, "nested data"),
    ("v2 no data", V2, infer(IDS | {"data": None}), 400, "has no data"),
    ("v2 seq", V2, infer(tensor("input_ids", [4] * 18, [1, 18])), 400, "18 tokens a row"),
    ("v2 vocabulary", V2, infer(IDS | {"data": [2, 15, 3]}), 400, "input_ids has 15"),
    ("v2 big id", V2, infer(IDS | {"data": [2, 2**70, 3]}), 400, "whole numbers 0 to 14"),
    ("v2 fraction", V2, infer(IDS | {"data": [2, 4.0, 3]}), 400, "input_ids has 4.0"),
    ("v2 boolean", V2, infer(IDS | {"data": [2, True, 3]}), 400, "input_ids has True"),
    ("v2 mask value", V2, infer(IDS, tensor("attention_mask", [1, 2, 1], [1, 3])), 400, "0 to 1"),
    (
        "v2 mask shape",
        V2,
        infer(IDS, tensor("attention_mask", [1, 1, 1], [3, 1])),
        400,
        "shape [3, 1]",
    ),
    ("v2 empty mask", V2, infer(IDS, tensor("attention_mask", [0] * 3, [1, 3])), 400, "zeros only"),
    ("v2 text long", V2, infer(tensor("text", ["a " * 16], [1], "BYTES")), 400, "18 tokens"),
    ("v2 text empty", V2, infer(tensor("text", ["a", ""], [2], "BYTES")), 400, "text 1 is empty"),
    ("v2 text number", V2, infer(tensor("text", [1], [1], "BYTES")), 400, "text 0 is 1"),
    ("v2 text shape", V2, infer(tensor("text", ["a", "b"], [1, 2], "BYTES")), 400, "[n] or [n, 1]"),
    ("v2 text type", V2, infer(tensor("text", ["a"], [1], "INT64")), 400, "not BYTES"),
    ("v2 id", V2, infer(IDS, id=7), 400, "id is 7"),
    ("v2 output", V2, infer(IDS, outputs=[{"name": "embedding"}]), 400, "give last_hidden_state"),
    ("v2 outputs", V2, infer(IDS, outputs="embedding"), 400, "give a list of tensors"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [case[1:] for case in REFUSED],
    ids=[case[0].replace(" ", "-") for case in REFUSED],
)
def test_refusals(
    send: Send, embedder: Embedder, path: str, body: Any, status: int, words: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = send("POST", path, content=content)
    error = answer.json()["error"]
    if not path.startswith("/v2"):
        assert error.keys() == {"message", "type", "code"}
        assert error["type"] == "invalid_request_error"
        error = error["message"]
    assert words in error
    assert "\n" not in error
    assert answer.status_code == status
    check_alive(send, embedder)


def test_hidden_states_that_are_too_large_for_json(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_engine.serve.v2.MAX_VALUES", 3 * HIDDEN - 1)
    answer = send("POST", V2, json=infer(IDS))
    assert answer.status_code == 400
    assert f"{3 * HIDDEN} values, at most {3 * HIDDEN - 1}" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", V1, 405),
        ("GET", "/v2/nothing", 404),
        ("DELETE", "/v2", 405),
    ],
)
def test_unknown_routes(send: Send, method: str, path: str, status: int) -> None:
    answer = send(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error if path.startswith("/v2") else error["message"]).startswith(f"{method} {path}")


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_counted(send: Send, embedder: Embedder, chunked: bool) -> None:
    async def pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 2**16):
            yield b" " * 2**16
        yield b" " * (size % 2**16)

    for size, status in ((MAX_BODY + 1, 413), (MAX_BODY, 400)):  # all spaces is no JSON
        answer = send("POST", V1, content=pieces(size) if chunked else b" " * size)
        assert answer.status_code == status, answer.text
    check_alive(send, embedder)


def test_a_body_that_never_ends(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_engine.serve.middleware.BODY_SECONDS", 0.05)

    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "

    assert send("POST", V1, content=dripping()).status_code == 408
