"""GET / and GET /docs: the models that are served, and how to call them."""

from __future__ import annotations

import json
from html import escape
from shlex import quote as in_shell
from typing import Any
from urllib.parse import quote as in_url

from fastapi import APIRouter, Request, Response

from sparse_engine.serve.messages import json_response
from sparse_engine.serve.service import Served, Service
from sparse_engine.tasks import Answerer, Embedder, Generator

ROUTES = (
    ("POST /v1/embeddings", "OpenAI's embeddings"),
    ("POST /v1/completions", "OpenAI's completions, streamed on request"),
    ("POST /v2/models/NAME/infer", "Open Inference Protocol"),
    ("GET /v1/models, /v2, /v2/models/NAME", "models and their metadata"),
    ("GET /health/live, /health/ready", "probes"),
    ("GET /metrics", "Prometheus metrics"),
)
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}"
    "pre{background:#f4f4f4;padding:.8rem;overflow-x:auto}td{padding-right:1.5rem}"
)


def routes(service: Service) -> APIRouter:
    """The two pages."""
    router = APIRouter()

    @router.get("/")
    async def home() -> Response:
        from sparse_engine import __version__

        info = {"name": "sparse_engine", "version": __version__}
        return json_response({**info, "models": list(service.models), "docs": "/docs"})

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        return Response(page(service, base), media_type="text/html")

    return router


def page(service: Service, base: str) -> str:
    """HTML with a command for each model and a table of routes, without external resources."""
    models = "".join(
        f"<h2>{escape(model.name)}</h2><p>{escape(model.task.task)}, at most "
        f"{model.task.max_length} tokens</p><pre>{escape(command(model, base))}</pre>"
        for model in service.models.values()
    )
    rows = "".join(f"<tr><td><code>{escape(r)}</code><td>{escape(what)}" for r, what in ROUTES)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>sparse_engine</title>'
        f"<style>{STYLE}</style><h1>sparse_engine</h1>{models}"
        f"<h2>Routes</h2><table>{rows}</table></html>"
    )


def command(model: Served, base: str) -> str:
    """A curl command for `model`; names and the Host header are quoted for the shell."""
    body: dict[str, Any]
    if isinstance(model.task, Embedder):
        path, body = "/v1/embeddings", {"model": model.name, "input": ["one text", "another"]}
    elif isinstance(model.task, Generator):
        path = "/v1/completions"
        body = {"model": model.name, "prompt": "Once upon a time", "max_tokens": 16}
    else:
        path = f"/v2/models/{in_url(model.name)}/infer"
        names = ("question", "text") if isinstance(model.task, Answerer) else ("text",)
        body = {
            "inputs": [
                {"name": name, "datatype": "BYTES", "shape": [1], "data": [f"a {name}"]}
                for name in names
            ]
        }
    url, data = in_shell(f"{base}{path}"), in_shell(json.dumps(body))
    return f"curl {url} -H 'content-type: application/json' -d {data}"
