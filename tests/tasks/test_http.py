"""Tasks over HTTP: completions, streamed or whole, and what models with heads answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


import task_models
from task_models import opened

from sparse_engine.tasks import Sampling


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return task_models.packages(tmp_path_factory.mktemp("tasks"))


def serve(task: Any, path: str, *bodies: Any) -> list[Any]:
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from sparse_engine.serve import create_app

    async def going() -> list[Any]:
        transport = httpx.ASGITransport(app=create_app({"tiny": task}, threads=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return list(await asyncio.gather(*(client.post(path, json=body) for body in bodies)))

    return asyncio.run(going())


def test_completions_over_http(packages: dict[str, Path]) -> None:
    task = opened(packages["LlamaForCausalLM"])
    asked = {"prompt": "Once", "max_tokens": 12, "temperature": 0}
    expected = task.generate("Once", Sampling(max_tokens=12))
    whole, both, streamed, other = serve(
        task,
        "/v1/completions",
        asked,
        {**asked, "prompt": ["Once", "The end"]},
        {**asked, "stream": True},
        {**asked, "temperature": 0.9, "seed": 3, "top_k": 5, "stop": ["q", "zz"]},
    )
    assert whole.status_code == 200, whole.text
    body = whole.json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == expected
    assert body["choices"][0]["finish_reason"] == "length"
    prompt = len(task.prompt_ids("Once"))
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 12,
        "total_tokens": prompt + 12,
    }
    assert [choice["index"] for choice in both.json()["choices"]] == [0, 1]
    assert both.json()["choices"][0]["text"] == expected
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    told = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in told) == expected
    assert told[-1]["finish_reason"] == "length"
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt 0 is empty"),
        ({"prompt": ["a"] * 9}, "at most 8"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "x" * 64}, "64"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"n": 2}, "n is 2"),
        ({"logprobs": 3}, "logprobs"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"model": "other"}, "other"),
    ],
    ids=str,
)
def test_completions_refuse(packages: dict[str, Path], wrong: dict[str, Any], why: str) -> None:
    task = opened(packages["LlamaForCausalLM"])
    for more in ({}, {"stream": True}):
        (answer,) = serve(task, "/v1/completions", {"prompt": "Once", **wrong, **more})
        assert answer.status_code in (400, 404)
        assert why in answer.json()["error"]["message"]


def test_heads_over_http(packages: dict[str, Path]) -> None:
    def texts(name: str, *data: str) -> dict[str, Any]:
        return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": list(data)}

    path = "/v2/models/tiny/infer"
    task = opened(packages["BertForSequenceClassification"])
    one, pair, wrong, uneven = serve(
        task,
        path,
        {"inputs": [texts("text", "a cat", "the dog sat")], "id": "7"},
        {"inputs": [texts("text", "a cat"), texts("pair", "a dog")]},
        {"inputs": [texts("question", "a cat")]},
        {"inputs": [texts("text", "a cat"), texts("pair", "a dog", "b")]},
    )
    labels = [json.loads(text) for text in one.json()["outputs"][0]["data"]]
    assert one.json()["id"] == "7"
    assert labels[1][0]["label"] == task.classify(["the dog sat"])[0][0].label
    (expected,) = task.classify([("a cat", "a dog")])
    assert json.loads(pair.json()["outputs"][0]["data"][0])[0]["label"] == expected[0].label
    assert (wrong.status_code, uneven.status_code) == (400, 400)
    task = opened(packages["BertForQuestionAnswering"])
    (found,) = serve(
        task, path, {"inputs": [texts("text", "the cat sat"), texts("question", "who ?")]}
    )
    assert (
        json.loads(found.json()["outputs"][0]["data"][0])["text"]
        == task.answer("who ?", "the cat sat").text
    )
    task = opened(packages["BertForTokenClassification"])
    (found,) = serve(task, path, {"inputs": [texts("text", "the cat sat")]})
    assert isinstance(json.loads(found.json()["outputs"][0]["data"][0]), list)
    for other in ("/v1/embeddings", "/v1/completions"):
        (found,) = serve(task, other, {"input": "a", "prompt": "a"})
        assert found.status_code == 400
        assert "token-classification" in found.text
    (found,) = serve(opened(packages["LlamaForCausalLM"]), path, {"inputs": [texts("text", "a")]})
    assert "/v1/completions" in found.text
