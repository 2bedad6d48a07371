"""An HTTP/1.1 connection of uvicorn with the time limits that it lacks."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
HEADER_SECONDS = 10.0
# The connection of a client that reads fewer bytes of an answer in HEADER_SECONDS is closed.
MIN_READ = 65536


class Connection(H11Protocol):
    """Closes when the client takes longer than HEADER_SECONDS for a request's header, for the rest
    of a body that was answered already, or for reading MIN_READ bytes of an answer.

    Of more than MAX_CONNECTIONS, the one that has waited longest for its client is closed, so that
    neither idle sockets nor unread answers keep new clients out.
    """

    _timer: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c._timer]
            oldest = min(waiting, key=lambda c: c._timer.when())  # type: ignore[union-attr]
            # connection_lost is called later: until then further connections must choose others.
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
        """Close without an answer if the request has one already: the rest of its body is
        malformed.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Start the timer while the server waits for the client; single bytes do not restart it."""
        waiting = (
            self.conn.their_state is h11.IDLE
            or self.conn.our_state is h11.DONE
            or self.flow.write_paused
            or self.transport.is_closing()  # after the answer was read
        )
        if not waiting:
            self._unwatch()
        elif self._timer is None:
            self._start()

    def _start(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._end)

    def _end(self) -> None:
        """The timer has run out: continue only if the client reads the answer."""
        if 0 < self.transport.get_write_buffer_size() <= self._unread - MIN_READ:
            self._start()
        else:
            self.transport.abort()

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
