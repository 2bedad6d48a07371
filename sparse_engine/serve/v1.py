"""/v1 of OpenAI's API: embeddings and the list of models.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from fastapi import APIRouter, Request, Response
from torch import Tensor

from sparse_engine.serve.messages import RequestError, floats, json_response, parse_object, shown
from sparse_engine.serve.service import MAX_ITEMS, Service
from sparse_engine.tasks import Embedder

ENCODINGS = ("float", "base64")
Items = list[str] | list[list[int]]


def routes(service: Service) -> APIRouter:
    """GET /v1/models and POST /v1/embeddings."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> Response:
        data = [
            {
                "id": model.name,
                "object": "model",
                "created": service.started,
                "owned_by": "sparse_engine",
                "info": model.task.info,
            }
            for model in service.models.values()
        ]
        return json_response({"object": "list", "data": data})

    @router.post("/embeddings")
    async def embeddings(request: Request) -> Response:
        body = parse_object(await request.body())
        model = service.find(body.get("model"))
        items = read_items(body.get("input"))
        encoding = read_encoding(body, model.embedder.hidden)
        with model.queue.slot():
            rows = await model.queue.tokenize(token_ids, model.embedder, items)
            vectors = await model.queue.run(model.embedder.embed_checked, rows)
            service.metrics.rows.observe(len(rows))
            tokens = sum(map(len, rows))
            answer = await asyncio.to_thread(render, vectors, encoding, model.name, tokens)
        return Response(answer, media_type="application/json")

    return router


def read_items(given: Any) -> Items:
    """`input` as a list of texts or of token lists; RequestError for anything else."""
    if isinstance(given, str) or _is_tokens(given):
        given = [given]
    if not isinstance(given, list) or not given:
        found = "an empty list" if given == [] else type(given).__name__
        raise RequestError(
            400, f"input is {found}: give a text, token ids, or a list of one of them"
        )
    if len(given) > MAX_ITEMS:
        raise RequestError(
            400, f"input has {len(given)} items, at most {MAX_ITEMS} go into one request"
        )
    for index, item in enumerate(given):
        if item in ("", []):
            raise RequestError(400, f"input {index} is empty")
        if not isinstance(item, str) and not _is_tokens(item):
            raise RequestError(400, f"input {index} is {shown(item)}: give a text or token ids")
        if isinstance(item, str) != isinstance(given[0], str):
            raise RequestError(
                400, f"input {index}: texts and token ids do not go into one request"
            )
    return given


def read_encoding(body: dict[str, Any], hidden: int) -> str:
    """`encoding_format`; RequestError for an unknown one, or for `dimensions` other than the
    model's.
    """
    encoding = body.get("encoding_format")
    if encoding is None:
        encoding = "float"
    if encoding not in ENCODINGS:
        raise RequestError(400, f"encoding_format {shown(encoding)}: use {' or '.join(ENCODINGS)}")
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions != hidden):
        raise RequestError(400, f"dimensions {shown(dimensions)}: this model gives {hidden}")
    return str(encoding)


def token_ids(embedder: Embedder, items: Items) -> list[list[int]]:
    """Token ids of each item, checked; lists of token ids stay what they are."""
    if isinstance(items[0], str):
        return embedder.encode(items)
    embedder.check_ids(items)
    return items


def render(vectors: Tensor, encoding: str, name: str, tokens: int) -> str:
    """The answer as JSON; vectors float32 [n, hidden]; base64 holds little-endian float32."""
    data = []
    for index, vector in enumerate(vectors.numpy()):
        value = f"[{floats(vector)}]"  # refuses NaN, whatever the encoding
        if encoding == "base64":
            value = json.dumps(base64.b64encode(vector.astype("<f4").tobytes()).decode())
        data.append(f'{{"object":"embedding","index":{index},"embedding":{value}}}')
    rest = {"model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return f'{{"object":"list","data":[{",".join(data)}],{json.dumps(rest)[1:]}'


def _is_tokens(value: Any) -> bool:
    """Whether a value is a list of whole numbers; True and False do not count."""
    return isinstance(value, list) and bool(value) and all(type(v) is int for v in value)
