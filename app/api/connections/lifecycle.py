"""One HTTP connection from its beginning to its end: what its client has to do next and by when, and how it is closed.

A request that cannot be read on is answered with a problem, after all that was asked before it, and its connection is closed.
"""

import asyncio
from collections import deque
from enum import Enum, auto
from typing import Any, ClassVar, cast

from typing_extensions import override
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.connections.shared import NEVER, Connections
from app.api.problems import render
from app.errors import EmberpoolError, Overloaded, RequestTimeout
from app.telemetry import REQUESTS

OVERLOADED = "the service holds as many connections and requests as it can; try again in a moment"
_LINGER_SECONDS = 2.0


class Phase(Enum):
    NEW = auto()
    """Nothing has come yet."""
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    SERVED = auto()
    """All that was begun has come, and not all of it is answered."""
    ENDED = auto()
    """The connection closes after what is answered still; whatever comes is dropped."""


class BoundedConnection(HttpToolsProtocol):
    """The protocol of uvicorn with deadlines instead of timers, and with an end that clients understand."""

    shared: ClassVar[Connections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.phase = Phase.NEW
        self.deadline = self.read_deadline = NEVER
        self.held = 0
        self._sizes: deque[int] = deque()  # of what has arrived and is not answered, in bytes
        self._served: RequestResponseCycle | None = None
        self._refusal = b""
        self._dropped = 0  # bytes
        self._stopping = False

    @property
    def is_idle(self) -> bool:
        return self.phase is Phase.IDLE or self.phase is Phase.NEW

    @property
    def is_in_head(self) -> bool:
        return self.phase is Phase.HEAD

    @property
    def is_reading(self) -> bool:
        return self.phase is Phase.HEAD or self.phase is Phase.BODY

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a socket's transport, as in uvicorn
        super().connection_made(transport)
        if self.shared.enter(self):
            self._enter(Phase.NEW, self.shared.settings.head_timeout_seconds)
        else:
            self.phase = Phase.ENDED
            transport.write(self._render(Overloaded(OVERLOADED, retry_after=1)))
            transport.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.leave(self)
        self.shared.held -= self.held + sum(self._sizes)
        self.phase, self.held = Phase.ENDED, 0
        self._sizes.clear()
        if self._served is not None and not self._served.response_complete:  # uvicorn tells the last request only
            _disconnect(self._served)
        super().connection_lost(exc)

    @override
    def on_response_complete(self) -> None:
        """Not uvicorn's, which starts a timer for each answer."""
        self.server_state.total_requests += 1
        if self._sizes:
            self.shared.held -= self._sizes.popleft()
        else:
            self._release_arriving()
        if self.transport.is_closing():
            self._enter(Phase.ENDED, self.shared.settings.unread_timeout_seconds)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal:
            self._send_refusal()
        elif self.phase is Phase.SERVED:
            self._rest()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self.read_deadline = self.shared.clock + self.shared.settings.unread_timeout_seconds

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self.read_deadline = NEVER

    @override
    def shutdown(self) -> None:
        self._stopping = True
        super().shutdown()

    def expire(self) -> None:
        """Called by the sweep after a deadline."""
        settings = self.shared.settings
        if self.phase is Phase.ENDED or self.read_deadline < self.shared.clock:
            self.transport.abort()
        elif self.is_idle:
            self.close_idle()
        elif self.phase is Phase.HEAD:
            most = settings.head_timeout_seconds
            self.refuse(RequestTimeout(f"the headers did not arrive within {most:g} s; send the request again"))
        else:
            most = settings.body_timeout_seconds
            self.refuse(RequestTimeout(f"the body did not arrive within {most:g} s; nothing was changed"))

    def close_idle(self) -> None:
        self.phase = Phase.ENDED
        self.transport.close()

    def refuse_overload(self) -> None:
        self.refuse(Overloaded(OVERLOADED, retry_after=1))

    def refuse(self, error: EmberpoolError) -> None:
        """Ends the request that is arriving with an answer, if none was begun, and the connection after it."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        in_body = self.phase is Phase.BODY
        self._enter(Phase.ENDED, NEVER)
        self._release_arriving()
        self._refusal = self._render(error, instance=self.scope["path"] if in_body else None)
        if in_body and cycle is not None:
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()  # its turn had not come
                return
            if cycle.response_started:
                self._refusal = b""
            _disconnect(cycle)
        elif cycle is not None and not cycle.response_complete:
            return
        self._send_refusal()

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def _hold(self, size: int) -> None:
        self.held += size
        self.shared.held += size

    def _release_arriving(self) -> None:
        self.shared.held -= self.held
        self.held = 0

    def _rest(self) -> None:
        self._enter(Phase.IDLE, self.shared.idle_seconds)

    def _enter(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self.deadline = self.shared.clock + seconds

    def _send_refusal(self) -> None:
        """Then reads on for a moment: a client that still sends would lose the answer to a reset of the connection."""
        refusal, self._refusal = self._refusal, b""
        self._enter(Phase.ENDED, _LINGER_SECONDS)
        self.transport.write(refusal)
        self.transport.write_eof()
        self.flow.resume_reading()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > self.shared.settings.max_body_bytes:
            self.transport.abort()

    def _render(self, error: EmberpoolError, *, instance: str | None = None) -> bytes:
        REQUESTS.labels(operation="none", status=error.status).inc()
        answer = render(error, instance=instance)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % each for each in headers]
        return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", answer.body])


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tells a request that is being served that its client has left."""
    cycle.disconnected = True
    cycle.message_event.set()
