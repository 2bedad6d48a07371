"""One connection: HTTP/1.1 by uvicorn, with time limits for what it leaves unlimited."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
HEADER_SECONDS = 10.0
# A client that reads an answer more slowly than this many bytes in HEADER_SECONDS is cut off.
MIN_READ = 65536


class Connection(H11Protocol):
    """Is cut off when the client takes longer than HEADER_SECONDS for a request's header, for the
    rest of a body that was answered already, or for reading MIN_READ bytes of an answer.

    Of more than MAX_CONNECTIONS, the one that has waited longest for its client is cut off, so that
    neither idle sockets nor unread answers shut others out.
    """

    _late: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c._late]
            oldest = min(waiting, key=lambda c: c._late.when())  # type: ignore[union-attr]
            # connection_lost comes later: further connections made until then find others.
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Only close where the request was answered already: the rest of its body is malformed."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Start the clock while the client has to do something; it runs on when bytes trickle."""
        waiting = (
            self.conn.their_state is h11.IDLE
            or self.conn.our_state is h11.DONE
            or self.flow.write_paused
            or self.transport.is_closing()  # which waits until the answer is read
        )
        if not waiting:
            self._unwatch()
        elif self._late is None:
            self._start()

    def _start(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._late = self.loop.call_later(HEADER_SECONDS, self._end)

    def _end(self) -> None:
        """Time is up: go on only while the client reads."""
        if 0 < self.transport.get_write_buffer_size() <= self._unread - MIN_READ:
            self._start()
        else:
            self.transport.abort()

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
