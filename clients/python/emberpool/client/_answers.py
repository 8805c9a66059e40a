"""From an HTTP answer to its JSON, or to the error that it tells."""

from contextlib import suppress
from typing import Any, Final

import httpx

from emberpool.client.errors import Unreachable, refusal

_PASSING: Final = frozenset({500, 502, 503, 504})
"""What a proxy answers while the service behind it is away, and a server that is stopped in the middle of a request."""


def read_answer(url: str, answer: httpx.Response) -> Any:
    """Raises Refused for a problem, and Unreachable if the answer is not of this service."""
    body = None
    with suppress(ValueError):
        body = answer.json()
    if not isinstance(body, dict) or (answer.is_error and not {"detail", "code"} <= body.keys()):
        raise Unreachable(
            f"{url} is not an Emberpool service: {answer.request.method} {answer.request.url.path} gave HTTP "
            f"{answer.status_code} without its JSON",
            passing=answer.status_code in _PASSING,
        )
    if answer.is_error:
        raise refusal(answer.status_code, body, answer.headers.get("Retry-After"))
    return body


def describe_failure(url: str, error: httpx.TransportError) -> Unreachable:
    return Unreachable(
        f"{url}: {str(error) or type(error).__name__}", passing=not isinstance(error, httpx.UnsupportedProtocol)
    )
