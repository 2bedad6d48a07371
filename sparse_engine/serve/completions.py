"""/v1/completions of OpenAI's API: text that continues a prompt, whole or streamed.

https://platform.openai.com/docs/api-reference/completions, with two more fields, top_k and
repetition_penalty. Tokens of several requests alternate in the compute thread.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from sparse_engine.errors import UsageError
from sparse_engine.generation.detokenize import TextChunk
from sparse_engine.serve.messages import RequestError, json_response, parse_object, shown
from sparse_engine.serve.service import Served, Service
from sparse_engine.tasks import Generator, Sampling

MAX_PROMPTS = 8
# OpenAI's fields that are not supported, with the values that change nothing.
UNSUPPORTED = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "logprobs": None,
    "suffix": None,
    "logit_bias": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
NUMBERS = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "seed": int,
}
# Where OpenAI's defaults differ from those of Sampling.
DEFAULTS = {"max_tokens": 16, "temperature": 1.0}


def routes(service: Service) -> APIRouter:
    """POST /v1/completions."""
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        body = parse_object(await request.body())
        model = service.find(body.get("model"))
        generator, sampling = model.generator, read_sampling(body)
        prompts = read_prompts(body.get("prompt"))
        model.queue.check()  # before the work of tokenizing
        rows = [await model.queue.tokenize(generator.prompt_ids, prompt) for prompt in prompts]
        count = sum(map(len, rows))
        service.metrics.rows.observe(len(rows))
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }
        if body.get("stream"):
            model.queue.check()  # a error must come before the first byte
            events = stream(model, generator, rows, sampling, head)
            return StreamingResponse(events, media_type="text/event-stream")
        choices, new = [], 0
        with model.queue.slot():
            for index, row in enumerate(rows):
                chunks = [chunk async for chunk in in_turn(model, generator.stream(row, sampling))]
                text = "".join(chunk.text for chunk in chunks)
                choices.append(choice(index, text, chunks[-1].finish))
                new += chunks[-1].tokens
        usage = {
            "prompt_tokens": count,
            "completion_tokens": new,
            "total_tokens": count + new,
        }
        return json_response({**head, "choices": choices, "usage": usage})

    return router


async def stream(
    model: Served,
    generator: Generator,
    rows: list[list[int]],
    sampling: Sampling,
    head: dict[str, Any],
) -> AsyncIterator[str]:
    """Server-sent events, one for each chunk of text, then [DONE]."""
    with model.queue.slot():
        for index, row in enumerate(rows):
            async for chunk in in_turn(model, generator.stream(row, sampling)):
                event = {**head, "choices": [choice(index, chunk.text, chunk.finish)]}
                yield f"data: {json.dumps(event)}\n\n"
    yield "data: [DONE]\n\n"


async def in_turn(model: Served, chunks: Iterator[TextChunk]) -> AsyncIterator[TextChunk]:
    """Compute each chunk in a call of its own, so that requests alternate in the compute thread."""
    while (chunk := await model.queue.run(next, chunks, None)) is not None:
        yield chunk


def choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    """One of the answers."""
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def read_prompts(given: Any) -> list[str]:
    """`prompt` as a list of texts; RequestError for anything else."""
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise RequestError(400, f"prompt is {shown(given)}: give a text, or a list of texts")
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(
            400, f"prompt has {len(prompts)} texts, at most {MAX_PROMPTS} go into one"
        )
    if "" in prompts:
        raise RequestError(400, f"prompt {prompts.index('')} is empty")
    return prompts


def read_sampling(body: dict[str, Any]) -> Sampling:
    """The sampling that a body asks for; RequestError for values out of range and unsupported
    fields.
    """
    for name, neutral in UNSUPPORTED.items():
        if body.get(name) not in (None, neutral):
            raise RequestError(400, f"{name} is {shown(body[name])}: that is not supported here")
    given: dict[str, Any] = dict(DEFAULTS)
    for name, kind in NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int and (kind is int or type(value) is not float):
            raise RequestError(400, f"{name} is {shown(value)}: give a number")
        try:
            given[name] = kind(value)
        except OverflowError as error:
            raise RequestError(400, f"{name} is {shown(value)}: that is too large") from error
    if not 0 <= given.get("seed", 0) < 2**63:
        raise RequestError(400, f"seed is {shown(body['seed'])}: give 0 to 2^63 - 1")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) for s in stop):
        raise RequestError(
            400, f"stop is {shown(body['stop'])}: give a text, or a list of at most 4"
        )
    try:
        return Sampling(**given, stop=tuple(stop))
    except UsageError as error:
        raise RequestError(400, str(error)) from error
