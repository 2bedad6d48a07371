"""/v2: the Open Inference Protocol with JSON tensors.

https://github.com/kserve/open-inference-protocol. A model takes token ids or text:
    input_ids, attention_mask  INT64 [n, seq]  ->  last_hidden_state  FP32 [n, seq, hidden]
    text                       BYTES [n]       ->  embedding          FP32 [n, hidden]
and one with a head
    text [, question]          BYTES [n]       ->  answer             BYTES [n], each JSON
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from itertools import chain
from math import prod
from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from sparse_engine.serve.messages import RequestError, floats, json_response, parse_object, shown
from sparse_engine.serve.service import MAX_ITEMS, Served, Service
from sparse_engine.tasks import Answerer, Classifier, Embedder, Generator

MAX_VALUES = 2**22  # of one output: 50 MB of JSON


def routes(service: Service) -> APIRouter:
    """Server and model metadata, and POST /v2/models/{name}/infer."""
    router = APIRouter(prefix="/v2")

    @router.get("")
    async def server() -> Response:
        from sparse_engine import __version__

        return json_response({"name": "sparse_engine", "version": __version__, "extensions": []})

    @router.get("/models/{name}")
    async def metadata(name: str) -> Response:
        return json_response(describe(service.find(name)))

    @router.get("/models/{name}/ready")
    async def ready(name: str) -> Response:
        service.find(name)
        ready = not service.traffic.draining
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    @router.post("/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        model = service.find(name)
        body = parse_object(await request.body())
        if not isinstance(model.task, Embedder):
            return await infer_head(service, model, body)
        inputs = read_inputs(body)
        output = "embedding" if "text" in inputs else "last_hidden_state"
        check_rest(body, output)
        embedder = model.embedder
        with model.queue.slot():
            if "text" in inputs:
                rows = await model.queue.tokenize(embedder.encode, read_texts(inputs["text"]))
                result = await model.queue.run(embedder.embed_checked, rows)
            else:
                ids, mask = read_tokens(inputs, embedder)
                result = await model.queue.run(embedder.hidden_states, ids, mask)
            service.metrics.rows.observe(len(result))
            answer = await asyncio.to_thread(render, result, output, name, body.get("id"))
        return Response(answer, media_type="application/json")

    return router


async def infer_head(service: Service, model: Served, body: dict[str, Any]) -> Response:
    """Labels of texts or pairs, spans of texts, or answers to questions, each as a JSON text."""
    task = model.task
    if isinstance(task, Generator | Embedder):
        raise RequestError(400, f"model {model.name} does {task.task}: POST /v1/completions")
    listed = body.get("inputs")
    entries = listed if isinstance(listed, list) else []
    inputs = {str(e.get("name")): e for e in entries if isinstance(e, dict)}
    names = {"text", "question"} if isinstance(task, Answerer) else {"text"}
    pairs = isinstance(task, Classifier) and set(inputs) == {"text", "pair"}
    if not pairs and (set(inputs) != names or len(entries) != len(names)):
        raise RequestError(400, f"inputs: give {' and '.join(sorted(names))}, BYTES [n]")
    check_rest(body, "answer")
    texts = read_texts(inputs["text"])
    others = next((read_texts(inputs[n]) for n in ("pair", "question") if n in inputs), texts)
    if len(others) != len(texts):
        raise RequestError(400, f"inputs have {len(texts)} and {len(others)} texts: give as many")
    with model.queue.slot():
        found: list[Any]
        if isinstance(task, Answerer):
            found = [
                await model.queue.run(task.answer, question, text)
                for question, text in zip(others, texts, strict=True)
            ]
        elif isinstance(task, Classifier):
            joint = list(zip(texts, others, strict=True)) if pairs else texts
            found = await model.queue.run(task.classify, joint)
        else:
            found = await model.queue.run(task.tag, texts)
    service.metrics.rows.observe(len(texts))
    plain = [
        [asdict(part) for part in one] if isinstance(one, list) else asdict(one) for one in found
    ]
    data = [json.dumps(one, allow_nan=False) for one in plain]
    output = {"name": "answer", "datatype": "BYTES", "shape": [len(data)], "data": data}
    head = {"id": body["id"]} if body.get("id") else {}
    return json_response({"model_name": model.name, **head, "outputs": [output]})


def describe(model: Served) -> dict[str, Any]:
    """A model's metadata. -1 is any size; `parameters` holds the task's limits and options."""
    task, texts = model.task, {"name": "text", "datatype": "BYTES", "shape": [-1]}
    if not isinstance(task, Embedder):
        more = [texts | {"name": "question"}] if isinstance(task, Answerer) else []
        return {
            "name": model.name,
            "platform": "sparse_engine",
            "inputs": [texts, *more],
            "outputs": [texts | {"name": "answer"}],
            "parameters": task.info,
        }
    hidden = task.hidden
    return {
        "name": model.name,
        "platform": "sparse_engine",
        "inputs": [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
            texts,
        ],
        "outputs": [
            {"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, hidden]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, hidden]},
        ],
        "parameters": task.info,
    }


def read_inputs(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Inputs by name: text, or input_ids with or without attention_mask."""
    entries = body.get("inputs")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError(400, "inputs is missing: give a list of tensors")
    names = [entry.get("name") for entry in entries]
    allowed = (["text"], ["input_ids"], ["attention_mask", "input_ids"])
    if len(names) > 2 or sorted(map(str, names)) not in allowed:
        listed = ", ".join(map(shown, names[:3]))
        raise RequestError(400, f"inputs are {listed}: give text, or input_ids with attention_mask")
    return {str(entry["name"]): entry for entry in entries}


def check_rest(body: dict[str, Any], output: str) -> None:
    """Raise RequestError for an id that is no text, or for outputs other than `output`."""
    if body.get("id") is not None and not isinstance(body["id"], str):
        raise RequestError(400, f"id is {shown(body['id'])}: give a text")
    asked = body.get("outputs") or []
    if not isinstance(asked, list) or not all(isinstance(entry, dict) for entry in asked):
        raise RequestError(400, f"outputs is {shown(asked)}: give a list of tensors")
    for entry in asked:
        if entry.get("name") != output:
            raise RequestError(
                400, f"output {shown(entry.get('name'))}: these inputs give {output}"
            )


def read_texts(entry: dict[str, Any]) -> list[str]:
    """Texts of a BYTES tensor [n] or [n, 1]."""
    data = _data(entry, "BYTES", ranks=(1, 2))
    if len(entry["shape"]) == 2 and entry["shape"][1] != 1:
        raise RequestError(400, f"text has shape {entry['shape']}, expected [n] or [n, 1]")
    for index, text in enumerate(data):
        if not isinstance(text, str):
            raise RequestError(400, f"text {index} is {shown(text)}: BYTES data are texts here")
        if not text:
            raise RequestError(400, f"text {index} is empty")
    return data


def read_tokens(inputs: dict[str, dict[str, Any]], embedder: Embedder) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, int64 [n, seq]; a missing mask is all ones."""
    entry = inputs["input_ids"]
    data = _data(entry, "INT64", ranks=(2,))
    n, seq = entry["shape"]
    if seq > embedder.max_length:
        limit = embedder.max_length
        raise RequestError(
            400, f"input_ids has {seq} tokens a row, the model takes at most {limit}"
        )
    if n * seq * embedder.hidden > MAX_VALUES:
        raise RequestError(
            400,
            f"last_hidden_state would have {n * seq * embedder.hidden} values, at most "
            f"{MAX_VALUES} go into one answer: send fewer rows",
        )
    ids = _whole_numbers(data, "input_ids", embedder.vocabulary).view(n, seq)
    if "attention_mask" not in inputs:
        return ids, torch.ones_like(ids)
    entry = inputs["attention_mask"]
    data = _data(entry, "INT64", ranks=(2,))
    if entry["shape"] != [n, seq]:
        raise RequestError(400, f"attention_mask has shape {entry['shape']}, input_ids {[n, seq]}")
    mask = _whole_numbers(data, "attention_mask", 2).view(n, seq)
    if not bool(mask.any(1).all()):
        raise RequestError(400, "attention_mask has a row of zeros only: each row needs a token")
    return ids, mask


def render(result: Tensor, output: str, name: str, request_id: str | None) -> str:
    """The answer as JSON."""
    head: dict[str, Any] = {"model_name": name} | ({"id": request_id} if request_id else {})
    tensor = {"name": output, "datatype": "FP32", "shape": list(result.shape)}
    text = f'{json.dumps(tensor)[:-1]},"data":[{floats(result.numpy())}]}}'
    return f'{json.dumps(head)[:-1]},"outputs":[{text}]}}'


def _data(entry: dict[str, Any], datatype: str, ranks: tuple[int, ...]) -> list[Any]:
    """Flat row-major data of a tensor, after checks of its datatype, shape and length."""
    name, shape, data = entry["name"], entry.get("shape"), entry.get("data")
    if entry.get("datatype") != datatype:
        raise RequestError(
            400, f"{name} has datatype {shown(entry.get('datatype'))}, not {datatype}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) not in ranks
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise RequestError(400, f"{name} has shape {shown(shape)}: give {ranks[0]} sizes from 1 up")
    if shape[0] > MAX_ITEMS:
        raise RequestError(
            400, f"{name} has {shape[0]} rows, at most {MAX_ITEMS} go into one request"
        )
    if not isinstance(data, list):
        raise RequestError(400, f"{name} has no data: give a list of {prod(shape)} values")
    if len(shape) == 2 and data and all(isinstance(row, list) for row in data):
        if len(data) != shape[0] or any(len(row) != shape[1] for row in data):
            raise RequestError(400, f"{name}: the nested data does not have shape {shape}")
        data = list(chain.from_iterable(data))
    if len(data) != prod(shape):
        raise RequestError(400, f"{name} has {len(data)} values, shape {shape} has {prod(shape)}")
    return data


def _whole_numbers(data: list[Any], name: str, end: int) -> Tensor:
    """int64 [len(data)] of whole numbers from 0 up to `end`, exclusive."""
    for value in data:
        if type(value) is not int or not 0 <= value < end:
            raise RequestError(400, f"{name} has {shown(value)}: give whole numbers 0 to {end - 1}")
    return torch.tensor(data, dtype=torch.int64)
