"""One HTTP connection with bounds: uvicorn's protocol, and around it what a client may send, how much of it, and how slowly.

What a client sends is counted before the parser sees it, and the parser gets it in pieces that end at the next bound. A request
that cannot be read on is answered with a problem, after all that was asked before it, and its connection is closed.
"""

import asyncio
from collections import deque
from enum import Enum, auto
from typing import Any, ClassVar, cast

import httptools
from typing_extensions import override
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.connections.heads import PipelineFull, check_start, describe, without_upgrade
from app.api.connections.shared import NEVER, Connections
from app.api.problems import render
from app.errors import BodyTooLarge, EmberpoolError, HeadersTooLarge, Overloaded, RequestTimeout, TargetTooLong
from app.telemetry import REQUESTS

_PIECE = 64 * 1024
_LINGER_SECONDS = 2.0
_OVERLOADED = "the service holds as many connections and requests as it can; try again in a moment"


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


class BoundedProtocol(HttpToolsProtocol):
    shared: ClassVar[Connections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.phase = Phase.NEW
        self.deadline = self.read_deadline = NEVER
        self.held = 0
        self._begun = 0  # requests
        self._received = 0  # bytes of the request that is arriving
        self._content = 0  # bytes of its body, without the framing of chunks
        self._headers = 0  # and trailers
        self._sizes: deque[int] = deque()  # of what has arrived and is not answered, in bytes
        self._keep_alive = True  # what the request that is arriving asks for
        self._served: RequestResponseCycle | None = None
        self._refusal = b""
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
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.shared.enter(self):
            self._enter(Phase.NEW, self.shared.settings.head_timeout_seconds)
        else:
            self.phase = Phase.ENDED
            transport.write(self._render(Overloaded(_OVERLOADED, retry_after=1)))
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
    def data_received(self, data: bytes) -> None:
        while data and self.phase is not Phase.ENDED:
            room = self._room()
            self._read(data[:room])
            data = data[room:]
        if data:
            self._drop(len(data))

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun += 1
        self._received = self._content = self._headers = 0
        self._enter(Phase.HEAD, self.shared.settings.head_timeout_seconds)

    @override
    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > (most := self.shared.settings.max_target_bytes):
            raise TargetTooLong(f"the path with its query is longer than {most} bytes")
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers > (most := self.shared.settings.max_headers):
            raise HeadersTooLarge(f"the request has more than {most} headers")
        if self.phase is Phase.HEAD:  # and not a trailer, which comes after all that headers decide
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        check_start(self.parser.get_method(), self.url, self.parser.get_http_version())
        if self.parser.should_upgrade():
            return  # it is read again without the offer
        if len(self.pipeline) == self.shared.settings.max_pipelined_requests:
            raise PipelineFull
        if self.shared.held > self.shared.settings.max_held_bytes:
            raise Overloaded(_OVERLOADED, retry_after=1)
        super().on_headers_complete()
        self._keep_alive = self.cycle.keep_alive and not self._stopping
        if self.expect_100_continue:
            # Whoever is answered before the body came may send it or not: then the connection cannot go on.
            self.cycle.waiting_for_100_continue = self.scope["http_version"] == "1.1"
            self.cycle.keep_alive = False
        self._enter(Phase.BODY, self.shared.settings.body_timeout_seconds)
        self._read_on()

    @override
    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._content += len(body)
        if not self.cycle.response_complete:
            self._hold(len(body))
        self._read_on()

    @override
    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            self._release_arriving()
            self._rest()
            return
        self._sizes.append(self.held)
        self.held = 0
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive and not self._stopping
        self._enter(Phase.SERVED, NEVER)

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
        self.refuse(Overloaded(_OVERLOADED, retry_after=1))

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

    def _read_on(self) -> None:
        """Reads on while a request waits for its turn, where uvicorn stops: what waits is bounded here, and whoever does not read
        never learns that the client has left.
        """
        if self.pipeline:
            self.flow.resume_reading()

    def _room(self) -> int:
        """How many bytes the parser may see before a bound has to be looked at."""
        if self.phase is Phase.BODY:
            return _PIECE
        return self.shared.settings.max_head_bytes - (self._received if self.phase is Phase.HEAD else 0)

    def _read(self, data: bytes) -> None:
        begun, was_reading = self._begun, self.is_reading
        try:
            rest = self._feed(data)
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError as error:
            self._give_up(error)
        else:
            # What came before the beginning of a request in the same piece is not counted as part of it.
            if self.is_reading and self._begun == begun + (not was_reading):
                self._count(len(data))
        if self.shared.held > self.shared.settings.max_held_bytes:
            self.shared.relieve()

    def _feed(self, data: bytes) -> bytes | None:
        """Has the parser read the data. Returns what is to be read instead of the rest of it, if anything.

        Offers to speak another protocol are ignored (RFC 9110, 7.8); Java's client makes one (h2c) with its first request. The
        parser leaves all after such a head unread, a body too: another one reads the head again without the offer.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        else:
            return None
        head = without_upgrade(self.parser.get_method(), self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head + rest

    def _give_up(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, PipelineFull):
            last = self.pipeline[0][0]
            last.keep_alive = False
            self._enter(Phase.ENDED, NEVER)
        elif isinstance(cause, EmberpoolError):
            self.refuse(cause)
        else:
            self.refuse(describe(error, self.parser.get_method(), self.headers))

    def _count(self, size: int) -> None:
        settings = self.shared.settings
        self._received += size
        if self.phase is Phase.HEAD:
            self._hold(size)
            if self._received >= settings.max_head_bytes:
                self.refuse(HeadersTooLarge(f"the headers are larger than {settings.max_head_bytes} bytes together"))
        elif self._content > settings.max_body_bytes:
            self.refuse(BodyTooLarge(f"the body is larger than the limit of {settings.max_body_bytes} bytes"))
        elif self._received - self._content > 2 * settings.max_head_bytes:
            self.refuse(
                BodyTooLarge("the body has too many chunks for its size; send larger ones, or a Content-Length")
            )

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
        self._received = 0
        self.transport.write(refusal)
        self.transport.write_eof()
        self.flow.resume_reading()

    def _drop(self, size: int) -> None:
        self._received += size
        if self._received > self.shared.settings.max_body_bytes:
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
