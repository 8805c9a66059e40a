"""The commands' HTTP client: it sends a request again if the connection broke, and raises errors as sentences."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from app.errors import EmberpoolError, FieldProblem

Json = dict[str, Any]
Query = Mapping[str, str | int]
DEFAULT_SERVER: Final = "http://127.0.0.1:8080"
_TRIES: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.2
TIMEOUT_SECONDS: Final = 30.0
PAGE: Final = 500
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class ServiceRefused(EmberpoolError):
    """`problem_code` is the code of the service's problem."""

    code = "service-refused"
    title = "The service refused the request"
    problem_code = ""


class ServiceUnreachable(EmberpoolError):
    code = "service-unreachable"
    title = "The service does not answer"


def in_path(name: str) -> str:
    """The name as one part of a path: `?` and the like in it do not end it, which would name something else."""
    return quote(name, safe="")


class Service:
    """A client of the service at `server`, an http or https URL. Every request raises ServiceRefused and ServiceUnreachable."""

    def __init__(
        self,
        server: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server.rstrip("/")
        self._pause = pause
        self._client = httpx.Client(
            base_url=self.server,
            # The service refuses a POST without a body that a page of another site could have sent: it asks for this type.
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
            timeout=TIMEOUT_SECONDS,
            transport=transport,
            # A proxy from the environment is not for this machine.
            trust_env=urlsplit(server).hostname not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, query: Query | None = None, *, wait_seconds: float = 0) -> Json:
        """`wait_seconds`: how long the service may wait before it answers."""
        params = {**(query or {}), **({"wait_seconds": wait_seconds} if wait_seconds else {})}
        return self.ask("GET", path, params=params, timeout=TIMEOUT_SECONDS + wait_seconds)

    def ask(self, method: str, path: str, **request: Any) -> Json:
        """Sends a request that is idempotent, and so sends it again if the connection broke. Returns the answer's body."""
        number = 1
        while True:
            try:
                return self._read(method, path, self._client.request(method, path, **request))
            except httpx.TransportError as error:
                if number == _TRIES or isinstance(error, httpx.UnsupportedProtocol | httpx.ReadTimeout):
                    reason = str(error) or type(error).__name__
                    raise ServiceUnreachable(
                        f"{self.server}: {reason}; start the service (emberpool up), or set its address with --server "
                        "or EMBERPOOL_SERVER"
                    ) from error
            longest = _FIRST_PAUSE_SECONDS * 2 ** (number - 1)
            self._pause(random.uniform(longest / 2, longest))  # noqa: S311 - the pause is not a secret
            number += 1

    def pages(
        self, path: str, query: Query | None = None, *, limit: int | None = None, page: int = PAGE
    ) -> Iterator[Json]:
        """All items of a list, or the first `limit`; `page` items for each request."""
        left, asked = limit, dict(query or {})
        while True:
            found = self.get(path, {**asked, "limit": page if left is None else min(page, left)})
            yield from found["items"]
            left = None if left is None else left - len(found["items"])
            if found["next"] is None or left == 0:
                return
            asked["after"] = found["next"]

    def _read(self, method: str, path: str, answer: httpx.Response) -> Json:
        body = None
        with suppress(ValueError):
            body = answer.json()
        if not isinstance(body, dict) or (answer.is_error and not {"detail", "code"} <= body.keys()):
            raise ServiceUnreachable(
                f"{self.server} is not an Emberpool service: {method} {path} gave HTTP {answer.status_code} without its JSON; "
                "set the address of the service with --server or EMBERPOOL_SERVER"
            )
        if answer.is_error:
            raise _refusal(body)
        return body


def _refusal(problem: Json) -> ServiceRefused:
    found = [FieldProblem(each["field"], each["message"]) for each in problem.get("errors") or []]
    error = ServiceRefused(str(problem["detail"]), problems=found)
    error.problem_code = str(problem["code"])
    return error
