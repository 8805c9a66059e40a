"""The service as the commands see it: asked over HTTP, asked again where a connection broke, and its errors in sentences."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import httpx

from app.errors import EmberpoolError

Json = dict[str, Any]
Query = Mapping[str, str | int]
DEFAULT_SERVER: Final = "http://127.0.0.1:8080"
_TRIES: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 30.0
PAGE: Final = 500
_UNPROCESSABLE: Final = 422
_NOT_FOUND: Final = 404
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class ServiceSaysNo(EmberpoolError):
    """`code` and `status` are those of the service's problem."""

    code = "service-says-no"
    title = "The service says no"

    def __init__(self, detail: str, *, problem_code: str, problem_status: int) -> None:
        super().__init__(detail)
        self.problem_code = problem_code
        self.problem_status = problem_status

    @property
    def is_not_found(self) -> bool:
        return self.problem_status == _NOT_FOUND


class ServiceAway(EmberpoolError):
    code = "service-away"
    title = "The service does not answer"


class Answer(NamedTuple):
    status: int
    body: Json
    headers: Mapping[str, str]


class Service:
    """One connection to the service at `server`, an http or https URL. Asking raises ServiceSaysNo and ServiceAway."""

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
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=_PATIENCE_SECONDS,
            transport=transport,
            # A proxy of the environment is for what is far away.
            trust_env=urlsplit(server).hostname not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, query: Query | None = None, *, wait_seconds: float = 0) -> Json:
        """With `wait_seconds` the answer may take so long."""
        params = {**(query or {}), **({"wait_seconds": wait_seconds} if wait_seconds else {})}
        return self.ask("GET", path, params=params, timeout=_PATIENCE_SECONDS + wait_seconds).body

    def ask(self, method: str, path: str, **request: Any) -> Answer:
        """One request that may be repeated: nothing is done twice by it, and so it is sent again where a connection broke."""
        for number in range(1, _TRIES + 1):
            try:
                answer = self._client.request(method, path, **request)
                break
            except httpx.TransportError as error:
                if number == _TRIES or isinstance(error, httpx.UnsupportedProtocol | httpx.ReadTimeout):
                    raise self._away(error) from error
                longest = _FIRST_PAUSE_SECONDS * 2 ** (number - 1)
                self._pause(random.uniform(longest / 2, longest))  # noqa: S311 - a pause is no secret
        else:
            raise AssertionError("the last try raises")
        return Answer(answer.status_code, self._read(method, path, answer), answer.headers)

    def pages(
        self, path: str, query: Query | None = None, *, limit: int | None = None, page: int = PAGE
    ) -> Iterator[Json]:
        """All items of a list, or the first `limit`; asked for by `page` at a time."""
        left, asked = limit, dict(query or {})
        while True:
            found = self.get(path, {**asked, "limit": page if left is None else min(page, left)})
            yield from found["items"]
            left = None if left is None else left - len(found["items"])
            if found["next"] is None or left == 0:
                return
            asked["after"] = found["next"]

    def _read(self, method: str, path: str, answer: httpx.Response) -> Json:
        try:
            body = answer.json()
        except ValueError as error:
            raise self._foreign(method, path, answer) from error
        if not isinstance(body, dict):
            raise self._foreign(method, path, answer)
        if not answer.is_error:
            return body
        if "detail" not in body or "code" not in body:
            raise self._foreign(method, path, answer)
        raise ServiceSaysNo(_tell(body), problem_code=str(body["code"]), problem_status=answer.status_code)

    def _foreign(self, method: str, path: str, answer: httpx.Response) -> ServiceAway:
        return ServiceAway(
            f"what answers at {self.server} is no Emberpool: {method} {path} gave HTTP {answer.status_code} without JSON of ours; "
            "give its address with --server or EMBERPOOL_SERVER"
        )

    def _away(self, error: httpx.TransportError) -> ServiceAway:
        reason = str(error) or type(error).__name__
        return ServiceAway(
            f"{self.server}: {reason}; start it (emberpool up), or give its address with --server or EMBERPOOL_SERVER"
        )


def _tell(problem: Json) -> str:
    """The problem's sentence; where it is about several fields, a line for each."""
    errors = problem.get("errors") or []
    if problem["code"] != "manifest-refused" or not errors:
        return str(problem["detail"])
    first = str(problem["detail"]).partition(". ")[0]
    return first + ":\n" + "\n".join(f"  {each['field']}: {each['message']}" for each in errors)
