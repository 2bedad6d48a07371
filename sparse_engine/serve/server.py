"""One process that serves one model on one port: load, answer, drain, exit."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from sparse_engine.errors import UsageError
from sparse_engine.io import load
from sparse_engine.serve.app import build
from sparse_engine.serve.connection import MAX_CONNECTIONS, Connection
from sparse_engine.serve.metrics import formats_of
from sparse_engine.serve.middleware import MAX_HEADER
from sparse_engine.tasks import open_task

DRAIN_SECONDS = 30.0

Ready = Callable[[str], None]


def run_package(
    folder: str | Path,
    host: str,
    port: int,
    name: str | None,
    ready: Ready | None,
    threads: int | None,
    device: str = "cpu",
) -> None:
    """See `sparse_engine.serve.run`."""
    listener = listen(host, port)  # before the model, which takes long to load
    try:
        torch.set_num_threads(threads or torch.get_num_threads())
        task = open_task(load(folder, device=device), folder)
        task.warm_up()
        name = name or Path(folder).resolve().name
        title = f"{name} ({task.task}, {', '.join(formats_of(task.model))})"
        answer(build({name: task}, threads), listener, title, ready)
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 chooses a free one. Raises UsageError if the port is not free."""
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port}: give 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets with an explicit protocol TCP; without it every
    # answer on a kept connection waits for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} on {host} is in use: give another, or 0") from error
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def answer(
    app: FastAPI, listener: socket.socket, title: str = "models", ready: Ready | None = None
) -> None:
    """Answer requests on `listener` until SIGINT or SIGTERM; print the URL, call `ready` with it.

    A signal turns readiness to 503; requests in flight have DRAIN_SECONDS to finish. A second
    signal ends that at once.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER,
        # asyncio accepts this many at once, each a file descriptor, before it closes any.
        backlog=MAX_CONNECTIONS // 2,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def started() -> None:
        print(f"serving {title} at {url}", flush=True)
        if ready is not None:
            ready(url)

    Server(config, app, started).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn that drains before it exits; the socket stays open, so that probes get the 503."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, started: Callable[[], None]) -> None:
        super().__init__(config)
        self.traffic = app.state.service.traffic
        self.call_started = started
        self.drain_until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.call_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain; second: exit. uvicorn itself would raise the signals again."""
        if self.traffic.draining:
            self.should_exit = self.force_exit = True
        self.traffic.draining = True
        self.drain_until = time.monotonic() + DRAIN_SECONDS

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s; True ends the server."""
        drained = self.traffic.in_flight == 0 or time.monotonic() > self.drain_until
        if self.traffic.draining and drained:
            self.should_exit = True
        return bool(await super().on_tick(counter))
