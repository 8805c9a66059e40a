"""One HTTP connection with bounds on what its client may send.

What a client sends is counted before the parser sees it, and the parser gets it in pieces that end at the next bound.
"""

from typing import Any

import httptools
from typing_extensions import override

from app.api.connections.heads import PipelineFull, check_start, describe, without_upgrade
from app.api.connections.lifecycle import OVERLOADED, BoundedConnection, Phase
from app.api.connections.shared import NEVER
from app.errors import BodyTooLarge, EmberpoolError, HeadersTooLarge, Overloaded, TargetTooLong

_PIECE = 64 * 1024


class BoundedProtocol(BoundedConnection):
    """The calls of the parser, and what they count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun = 0  # requests
        self._received = 0  # bytes of the request that is arriving
        self._content = 0  # bytes of its body, without the framing of chunks
        self._headers = 0  # and trailers
        self._keep_alive = True  # what it asks for

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
            raise Overloaded(OVERLOADED, retry_after=1)
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
