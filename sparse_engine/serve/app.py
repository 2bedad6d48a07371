"""The ASGI app: models, routes and the middleware around them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from sparse_engine.errors import UsageError
from sparse_engine.serve import completions, page, v1, v2
from sparse_engine.serve.messages import RequestError, error_response, json_response
from sparse_engine.serve.metrics import Metrics
from sparse_engine.serve.middleware import Guard, Traffic
from sparse_engine.serve.queue import RequestQueue, compute_thread, tokenizer_threads
from sparse_engine.serve.service import Served, Service
from sparse_engine.tasks import Task


def build(models: Mapping[str, Task], threads: int | None) -> FastAPI:
    """The app; its `state.service` is the Service behind it."""
    if not models:
        raise UsageError("no model to serve: give at least one")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give 1 or more")
    for name in models:
        if not name or "/" in name:
            raise UsageError(f"model name {name!r}: it goes into URLs, use a plain name")
    compute, tokenizers = compute_thread(threads), tokenizer_threads()
    served = {
        name: Served(name, model, RequestQueue(compute, tokenizers))
        for name, model in models.items()
    }
    service = Service(served, Traffic(), Metrics(), int(time.time()))
    for model in served.values():
        service.metrics.add_model(model.name, model.task, model.queue)

    app = FastAPI(
        title="sparse_engine",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(Guard, traffic=service.traffic, metrics=service.metrics)
    app.add_exception_handler(HTTPException, _no_such_route)
    routers = (
        page.routes(service),
        _health(service),
        v1.routes(service),
        completions.routes(service),
        v2.routes(service),
    )
    for router in routers:
        app.router.routes += router.routes
    return app


def _health(service: Service) -> APIRouter:
    """Health probes, under two paths each, and metrics."""
    router = APIRouter()

    @router.get("/health/live")
    @router.get("/v2/health/live")
    async def live() -> Response:
        return json_response({"live": True})

    @router.get("/health/ready")
    @router.get("/v2/health/ready")
    async def ready() -> Response:
        ready = not service.traffic.draining
        return json_response({"ready": ready}, 200 if ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _no_such_route(request: Request, error: Exception) -> Response:
    """Errors 404 and 405 of the router as RequestError has them."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    reason = f"{request.method} {path[:200]}: {error.detail}"
    response = error_response(RequestError(error.status_code, reason, "no_such_route"), path)
    response.headers.update(error.headers or {})
    return response
