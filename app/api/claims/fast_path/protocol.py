"""The shorter road of `POST /v1/claim`, below ASGI: from the bytes of a request to those of its answer, with no task between.

A connection speaks uvicorn's HTTP protocol. A request that is a plain claim (one that came whole, in HTTP/1.1, with a length,
and that the edge admits) is handed to the claim route from here, and where a warm VM is its answer that is written at once. All else goes
uvicorn's ordinary way through ASGI: every other request, every claim in an unusual form, and every plain claim that turns
out to be anything but warm, which takes with it what was found so far.

The same head means the same from one request to the next, so it is parsed once. What ASGI costs a claim: 20 of 50
microseconds of CPU, a task and two turns of the loop among them.
"""

import time
from typing import Any, ClassVar, NamedTuple

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.claims.fast_path import route as claim_route
from app.api.claims.fast_path.route import BEGUN, Begun, ClaimRoute, header
from app.api.edge import Edge
from app.errors import EmberpoolError
from app.services.claims.queue import NewClaim
from app.store.claims.warm import Bound, ClaimRequest, Outcome

_REQUEST_LINE = f"POST {claim_route.PATH} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_MAX_HEAD = 4096
_MAX_HEADS = 1000
_NOT_PLAIN = {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"}


class Head(NamedTuple):
    """What a plain claim's head says: the bytes of its body, and its idempotency key."""

    length: int
    key: str | None


class Shortcut:
    """What all connections of a process share: the heads that they have sent, and where claims go."""

    def __init__(self, edge: Edge, route: ClaimRoute) -> None:
        self.route = route
        self._edge = edge
        self._heads: dict[bytes, Head] = {}
        self._default: list[tuple[bytes, bytes]] | None = None
        self._answer = b""

    def read(self, head: bytes) -> Head | None:
        """A head with its empty line; None where it is not that of a plain claim, or the edge would refuse it."""
        return self._heads.get(head) or self._parse(head)

    def answer_head(self, default: list[tuple[bytes, bytes]]) -> bytes:
        """The head of a warm answer up to its length. `default`: uvicorn's own headers, another list once a second."""
        if default is not self._default:
            lines = [b"HTTP/1.1 201 Created\r\n", *(b"%s: %s\r\n" % each for each in default)]
            self._answer = b"".join([*lines, b"content-type: application/json\r\ncontent-length: "])
            self._default = default
        return self._answer

    def _parse(self, head: bytes) -> Head | None:
        parsed = _ParsedHead()
        parser = httptools.HttpRequestParser(parsed)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        lengths = [value for name, value in parsed.headers if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit() or not parsed.is_plain:
            return None
        scope: dict[str, Any] = {"path": claim_route.PATH, "query_string": b"", "headers": parsed.headers}
        try:
            self._edge.check(scope)
        except EmberpoolError:
            return None
        found = Head(int(lengths[0]), header(scope, b"idempotency-key"))
        if found.key is None and len(head) <= _MAX_HEAD:  # with a key none comes twice
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[head] = found
        return found


class ClaimProtocol(HttpToolsProtocol):
    """One connection. While a claim of its own is in flight, what comes after it on the connection is held."""

    shortcut: ClassVar[Shortcut]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wish: NewClaim | None = None  # of the claim in flight
        self._data = b""
        self._held = b""
        self._began = 0.0
        self._answered_at = 0.0
        self._begun: Begun | None = None
        self._unanswered = 0  # requests that went the ordinary way
        self._midway = False  # the parser has seen a part of a request, or will see none any more
        self._stopping = False

    @override
    def data_received(self, data: bytes) -> None:
        if self._wish is not None:
            self._held += data
            self.flow.pause_reading()
        elif not (data.startswith(_REQUEST_LINE) and self._is_free() and self._begin(data)):
            super().data_received(data)

    def has_left(self) -> bool:
        return self.transport.is_closing()

    def hear(self, request: ClaimRequest, outcome: Outcome | Exception) -> None:
        """The outcome of the claim in flight."""
        wish = self._wish
        if wish is None:
            raise AssertionError("no claim of this connection is in flight")
        self._wish = None
        if isinstance(outcome, Bound):
            try:
                body = self.shortcut.route.render_bound(wish, request, outcome)
            except Exception as error:  # noqa: BLE001 - the claims of others wait behind this one
                outcome = error
            else:
                self._answer(body)
                return
        self._begun = Begun(wish, request, outcome, self._began)
        super().data_received(self._data)
        if self._stopping:
            self.cycle.keep_alive = False
        self._take_up_held()

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._midway = True
        self._unanswered += 1
        if self._begun is not None:
            self.scope["state"][BEGUN] = self._begun
            self._begun = None

    @override
    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._midway = self.parser.should_upgrade()

    @override
    def on_response_complete(self) -> None:
        self._unanswered -= 1
        super().on_response_complete()

    @override
    def shutdown(self) -> None:
        if self._wish is None:
            super().shutdown()
        else:
            self._stopping = True

    @override
    def timeout_keep_alive_handler(self) -> None:
        """Claims leave the timer as it is, which would cost as much as parsing them: it asks when it goes off."""
        self.timeout_keep_alive_task = None
        idle = 0.0 if self._wish is not None else self.loop.time() - self._answered_at
        if idle >= self.timeout_keep_alive or self.transport.is_closing():
            super().timeout_keep_alive_handler()
        else:
            self._keep_alive(self.timeout_keep_alive - idle)

    def _is_free(self) -> bool:
        """Whether this is the beginning of a request, with no other before it."""
        return not (
            self._midway or self.flow.write_paused or self.root_path or self._unanswered or self.transport.is_closing()
        )

    def _begin(self, data: bytes) -> bool:
        end = data.find(_END) + len(_END)
        head = self.shortcut.read(data[:end])
        if head is None or len(data) != end + head.length:
            return False
        self._began = time.perf_counter()
        self._wish = self.shortcut.route.begin(data[end:], head.key, self)
        self._data = data
        return self._wish is not None

    def _answer(self, body: bytes) -> None:
        close = b"\r\nconnection: close" if self._stopping else b""
        head = self.shortcut.answer_head(self.server_state.default_headers)
        self.transport.write(b"%s%d%s\r\n\r\n%s" % (head, len(body), close, body))
        claim_route.observe("warm", 201, time.perf_counter() - self._began)
        self.server_state.total_requests += 1
        if self._stopping:
            self.transport.close()
            return
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive(self.timeout_keep_alive)
        if self._held:
            self._take_up_held()

    def _keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _take_up_held(self) -> None:
        self.flow.resume_reading()
        if self._held:
            held, self._held = self._held, b""
            self.data_received(held)


def protocol(edge: Edge) -> type[HttpToolsProtocol]:
    """What uvicorn is to speak on the connections of an application behind this edge."""
    if edge.claim is None:
        return HttpToolsProtocol
    return type("BoundClaimProtocol", (ClaimProtocol,), {"shortcut": Shortcut(edge, edge.claim)})


class _ParsedHead:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    @property
    def is_plain(self) -> bool:
        return self.complete and not any(
            name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive")
            for name, value in self.headers
        )

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True
