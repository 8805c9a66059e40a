"""Sends requests, sends them again where that helps, and raises what the service refuses."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx
from tenacity import Retrying, retry_if_exception
from typing_extensions import override

from emberpool.client import _where
from emberpool.client._answers import describe_failure, read_answer
from emberpool.client._patience import Patience
from emberpool.client._sync.background import sleep, to_thread
from emberpool.client.errors import Misconfigured

Query = Mapping[str, str | int | float | bool | None]
TIMEOUT_SECONDS: Final = 30.0
"""How long the service may take, beside what it was asked to wait."""
_UNAUTHORIZED: Final = 401


class Bearer(httpx.Auth):
    """Adds the token, and reads it again if the service no longer takes it."""

    def __init__(self, source: _where.TokenSource) -> None:
        self._source = source
        self._token: str | None = None
        self._known = False

    @override
    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        fresh = not self._known
        self._add(request)
        answer = yield request
        if answer.status_code == _UNAUTHORIZED and self._source.changes and not fresh:
            self._known = False
            self._add(request)
            yield request

    def _add(self, request: httpx.Request) -> None:
        if not self._known:
            self._token = to_thread(self._source.read)
            self._known = True
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"


class Transport:
    """The connections to one service."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
        token_command: str | Sequence[str] | None = None,
        patience: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`patience`: for how many seconds a request is sent again while the service is away. Raises Misconfigured.

        `url`: by default EMBERPOOL_URL, else http://127.0.0.1:8080. The token is `token`, or in the file `token_file`, or
        what `token_command` prints (an external program, such as a vault's); by default EMBERPOOL_API_TOKEN.
        `transport`: another way to the service than the network, as for httpx.
        """
        self.url = _where.find_url(url)
        self.patience = patience
        source = _where.TokenSource(token, token_file, token_command)
        if not source.changes:
            source.read()  # what is wrong with it is told now
        self.http = httpx.Client(
            base_url=self.url,
            auth=Bearer(source),
            # The service refuses a POST without a body that a page of another site could have sent: it asks for this type.
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_SECONDS,
            transport=transport,
            trust_env=_where.trusts_environment(self.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self.http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str | None] | None = None,
        patience: Patience | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of each try
    ) -> Any:
        """The JSON of the answer. `body` is sent as JSON; text and bytes are YAML. What is None is left out.
        `timeout`: seconds for each try; by default 30, and as many as the service is asked to wait.

        Raises Unreachable, Refused.
        """
        sent = _prepare(query, body, headers)
        if timeout is not None:
            sent["timeout"] = timeout
        patience = patience or Patience(self.patience)
        attempts = Retrying(
            retry=retry_if_exception(patience.goes_on),
            wait=patience.pause,
            stop=patience.ends,
            sleep=self._sleep,
            reraise=True,
        )
        return attempts(self._send, method, path, sent)

    def items(self, path: str, query: Query, *, page_size: int) -> Iterator[Any]:
        """All items of a list, from as many pages as it has."""
        asked = {**query, "limit": page_size}
        while True:
            found = self.request("GET", path, query=asked)
            for item in found["items"]:
                yield item
            if found["next"] is None or not found["items"]:
                return
            asked["after"] = found["next"]

    def _sleep(self, seconds: float) -> None:
        sleep(seconds)

    def _send(self, method: str, path: str, sent: dict[str, Any]) -> Any:
        try:
            return read_answer(self.url, self.http.request(method, path, **sent))
        except httpx.TransportError as error:
            raise describe_failure(self.url, error) from error
        except httpx.InvalidURL as error:
            raise Misconfigured(f"{self.url}{path}: {error}", argument="url") from error


def _prepare(query: Query | None, body: Any, headers: Mapping[str, str | None] | None) -> dict[str, Any]:
    """As httpx takes it."""
    found: dict[str, Any] = {"params": {name: value for name, value in (query or {}).items() if value is not None}}
    given = {name: value for name, value in (headers or {}).items() if value is not None}
    if isinstance(body, str | bytes):
        found["content"] = body
        given.setdefault("Content-Type", "application/yaml")
    elif body is not None:
        found["json"] = body
    found["headers"] = given
    waits = found["params"].get("wait_seconds") or 0
    found["timeout"] = TIMEOUT_SECONDS + float(waits)
    return found
