"""The fast path of `POST /v1/claim`, below ASGI: from the bytes of a request to those of its answer, without a task.

A connection speaks uvicorn's HTTP protocol, within bounds (app/api/connections). A request that is a plain claim (complete and
short, HTTP/1.1, with a length, and admitted by the edge) goes from here straight to the claim route, and a warm answer is written at once. All else goes uvicorn's ordinary
way through ASGI: every other request, every claim in an unusual form, and every plain claim that turns out not to be warm,
which takes along what was found so far.

The same head means the same on every request, so it is parsed once. ASGI would cost a claim a task and two turns
of the event loop; docs/operations.md says what a claim costs.
"""

import time
from typing import Any, ClassVar, NamedTuple

import httptools
from typing_extensions import override

from app.api.claims.fast_path import route as claim_route
from app.api.claims.fast_path.route import SUBMITTED, ClaimRoute, Submitted
from app.api.connections.lifecycle import Phase
from app.api.connections.protocol import BoundedProtocol
from app.api.connections.shared import Connections
from app.api.edge import Edge
from app.api.text import idempotency_key
from app.domain.claims import NewClaim, Outcome, WarmClaim
from app.errors import EmberpoolError

_REQUEST_LINE = f"POST {claim_route.PATH} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_MAX_HEAD = 4096
_IDLE = Phase.IDLE  # looked up twice for each claim
_MAX_HEADS = 1000
_MAX_HEADERS = 64
_NOT_PLAIN = {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"}


class Head(NamedTuple):
    """The content of a plain claim's head: the length of its body in bytes, and its idempotency key."""

    length: int
    key: str | None


class Shortcut:
    """What all connections of a process share: the heads that were parsed, and the claim route."""

    def __init__(self, edge: Edge, route: ClaimRoute) -> None:
        self.route = route
        self._edge = edge
        self._heads: dict[bytes, Head] = {}
        self._default: list[tuple[bytes, bytes]] | None = None
        self._answer = b""

    def read(self, head: bytes) -> Head | None:
        """Reads a head, with its empty line. None where it is not a plain claim's, or the edge would refuse it."""
        return self._heads.get(head) or self._parse(head)

    def answer_head(self, default: list[tuple[bytes, bytes]]) -> bytes:
        """The head of a warm answer up to its length. `default`: uvicorn's own headers, a new list every second."""
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
        scope: dict[str, Any] = {
            "method": "POST",
            "path": claim_route.PATH,
            "raw_path": claim_route.PATH.encode(),
            "query_string": b"",
            "headers": parsed.headers,
        }
        try:
            self._edge.check(scope)
            found = Head(int(lengths[0]), idempotency_key(parsed.headers))
        except EmberpoolError:
            return None
        if found.key is None:  # a head with a key does not come again
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[head] = found
        return found


class ClaimProtocol(BoundedProtocol):
    """One connection. While its claim is in flight, further requests on the connection wait."""

    shortcut: ClassVar[Shortcut]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_flight = False  # a claim was submitted and has no outcome yet
        self._data = b""
        self._waiting = b""  # what came after the claim in flight
        self._began = 0.0
        self._submitted: Submitted | None = None

    @property
    @override
    def is_idle(self) -> bool:
        return not self._in_flight and super().is_idle

    @override
    def data_received(self, data: bytes) -> None:
        if self._in_flight:
            self._waiting += data
            self._hold(len(data))
            self.flow.pause_reading()
        elif not (data.startswith(_REQUEST_LINE) and self._is_free() and self._submit(data)):
            super().data_received(data)

    def is_disconnected(self) -> bool:
        return self.transport.is_closing()

    def receive(self, claim: NewClaim, outcome: Outcome | Exception) -> None:
        """The outcome of the claim in flight."""
        self._in_flight = False
        if isinstance(outcome, WarmClaim):
            try:
                body = self.shortcut.route.render(outcome)
            except Exception as error:  # noqa: BLE001 - the claims of others wait behind this one
                outcome = error
            else:
                self._answer(body)
                return
        self._submitted = Submitted(claim, outcome, self._began)
        super().data_received(self._data)
        self._resume()

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._submitted is not None:
            self.scope["state"][SUBMITTED] = self._submitted
            self._submitted = None

    @override
    def shutdown(self) -> None:
        self._stopping = True
        if not self._in_flight:
            super().shutdown()

    @override
    def expire(self) -> None:
        if self._in_flight:
            self.deadline = self.shared.clock + self.shared.idle_seconds
        else:
            super().expire()

    def _is_free(self) -> bool:
        """Whether this is the beginning of a request, with no other before it."""
        return (self.phase is _IDLE or self.phase is Phase.NEW) and not self.flow.write_paused

    def _submit(self, data: bytes) -> bool:
        end = data.find(_END, 0, _MAX_HEAD) + len(_END)
        head = self.shortcut.read(data[:end])
        if head is None or len(data) != end + head.length:
            return False
        self._began = time.perf_counter()
        self._data = data
        self._in_flight = self.shortcut.route.submit(data[end:], head.key, self)
        return self._in_flight

    def _answer(self, body: bytes) -> None:
        close = b"\r\nconnection: close" if self._stopping else b""
        head = self.shortcut.answer_head(self.server_state.default_headers)
        self.transport.write(b"%s%d%s\r\n\r\n%s" % (head, len(body), close, body))
        claim_route.observe("warm", 201, time.perf_counter() - self._began)
        self.server_state.total_requests += 1
        if self._stopping:
            self.close_idle()
            return
        self.phase = _IDLE
        self.deadline = self.shared.clock + self.shared.idle_seconds
        if self._waiting:
            self._resume()

    def _resume(self) -> None:
        self.flow.resume_reading()
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            self._release_arriving()
            self.data_received(waiting)


def protocol(edge: Edge) -> type[BoundedProtocol]:
    """The protocol of the connections of an application behind this edge."""
    shared = Connections(edge.settings)
    if edge.claim is None:
        return type("SharedBoundedProtocol", (BoundedProtocol,), {"shared": shared})
    return type("SharedClaimProtocol", (ClaimProtocol,), {"shared": shared, "shortcut": Shortcut(edge, edge.claim)})


class _ParsedHead:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    @property
    def is_plain(self) -> bool:
        return (
            self.complete
            and len(self.headers) <= _MAX_HEADERS
            and not any(
                name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive")
                for name, value in self.headers
            )
        )

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True
