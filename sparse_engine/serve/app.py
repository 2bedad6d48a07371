"""The ASGI app: models, routes and the guard around them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from sparse_engine.errors import UsageError
from sparse_engine.serve import completions, page, v1, v2
from sparse_engine.serve.compute import Line, compute_thread, reader_threads
from sparse_engine.serve.metrics import Metrics
from sparse_engine.serve.middleware import Guard, Traffic
from sparse_engine.serve.replies import Refusal, error_response, json_response
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
    thread, readers = compute_thread(threads), reader_threads()
    served = {name: Served(name, model, Line(thread, readers)) for name, model in models.items()}
    service = Service(served, Traffic(), Metrics(), int(time.time()))
    for model in served.values():
        service.metrics.add_model(model.name, model.task, model.line)

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
    """Probes, which say the same under both paths, and the metrics."""
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
    """404 and 405 of the router, in the shape of all other errors."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    reason = f"{request.method} {path[:200]}: {error.detail}"
    response = error_response(Refusal(error.status_code, reason, "no_such_route"), path)
    response.headers.update(error.headers or {})
    return response
