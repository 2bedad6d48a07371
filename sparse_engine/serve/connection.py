"""One connection: HTTP/1.1 by uvicorn, with time limits for what it leaves unlimited."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
HEADER_SECONDS = 10.0


class Connection(H11Protocol):
    """Is closed when a request's header, or the rest of a body that was answered already, takes
    longer than HEADER_SECONDS.

    Of more than MAX_CONNECTIONS, the one that has waited longest for a header is closed, so that
    idle sockets shut nobody out.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c._late]
            oldest = min(waiting, key=lambda c: c._late.when())  # type: ignore[union-attr]
            oldest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Start the clock while there is no request to answer; it runs on when bytes trickle in."""
        waiting = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if not waiting or self.transport.is_closing():
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
