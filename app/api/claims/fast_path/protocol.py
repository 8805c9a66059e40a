"""The fast path of `POST /v1/claim`, below ASGI: from the bytes of a request to those of its answer, without a task.

A connection speaks uvicorn's HTTP protocol. A request that is a plain claim (complete, HTTP/1.1, with a length, and admitted
by the edge) goes from here straight to the claim route, and a warm answer is written at once. All else goes uvicorn's ordinary
way through ASGI: every other request, every claim in an unusual form, and every plain claim that turns out not to be warm,
which takes along what was found so far.

The same head means the same on every request, so it is parsed once. ASGI would cost a claim a task and two turns
of the event loop; docs/operations.md says what a claim costs.
"""

import time
from typing import Any, ClassVar, NamedTuple

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.claims.fast_path import route as claim_route
from app.api.claims.fast_path.route import SUBMITTED, ClaimRoute, Submitted
from app.api.edge import Edge
from app.api.text import idempotency_key
from app.domain.claims import NewClaim, Outcome, WarmClaim
from app.errors import EmberpoolError

_REQUEST_LINE = f"POST {claim_route.PATH} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_MAX_HEAD = 4096
_MAX_HEADS = 1000
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
        if found.key is None and len(head) <= _MAX_HEAD:  # a head with a key does not come again
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[head] = found
        return found


class ClaimProtocol(HttpToolsProtocol):
    """One connection. While its claim is in flight, further requests on the connection wait."""

    shortcut: ClassVar[Shortcut]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_flight = False  # a claim was submitted and has no outcome yet
        self._data = b""
        self._waiting = b""  # what came after the claim in flight
        self._began = 0.0
        self._answered_at = 0.0
        self._submitted: Submitted | None = None
        self._unanswered = 0  # requests that went the ordinary way
        self._midway = False  # the parser has seen part of a request, or the connection is no longer HTTP
        self._stopping = False

    @override
    def data_received(self, data: bytes) -> None:
        if self._in_flight:
            self._waiting += data
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
        if self._stopping:
            self.cycle.keep_alive = False
        self._resume()

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._midway = True
        self._unanswered += 1
        if self._submitted is not None:
            self.scope["state"][SUBMITTED] = self._submitted
            self._submitted = None

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
        if self._in_flight:
            self._stopping = True
        else:
            super().shutdown()

    @override
    def timeout_keep_alive_handler(self) -> None:
        """Claims do not reset the timer, which would cost as much as parsing them: when it fires it checks the idle time."""
        self.timeout_keep_alive_task = None
        idle = 0.0 if self._in_flight else self.loop.time() - self._answered_at
        if idle >= self.timeout_keep_alive or self.transport.is_closing():
            super().timeout_keep_alive_handler()
        else:
            self._keep_alive(self.timeout_keep_alive - idle)

    def _is_free(self) -> bool:
        """Whether this is the beginning of a request, with no other before it."""
        return not (
            self._midway or self.flow.write_paused or self.root_path or self._unanswered or self.transport.is_closing()
        )

    def _submit(self, data: bytes) -> bool:
        end = data.find(_END) + len(_END)
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
            self.transport.close()
            return
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive(self.timeout_keep_alive)
        if self._waiting:
            self._resume()

    def _keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _resume(self) -> None:
        self.flow.resume_reading()
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            self.data_received(waiting)


def protocol(edge: Edge) -> type[HttpToolsProtocol]:
    """The protocol that uvicorn speaks on the connections of an application behind this edge."""
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
