"""What the client raises.

EmberpoolError
|-- Misconfigured      the address or the token cannot be used; nothing was sent
|-- Unreachable        the service did not answer for as long as the client's patience lasts
|-- Refused            the service answered with a problem (RFC 9457); by its status also
|   |-- Invalid        400, 413, 415, 422
|   |-- Unauthenticated    401
|   |-- NotFound       404
|   |-- Conflict       409, 412
|   `-- Unavailable    429, 503
|-- NoVm               the claim got no VM: it still waited when the time was over, or it ended
`-- ClaimLost          a claim ended while its VM was in use
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from emberpool.client.schemas import ClaimView


class FieldProblem(NamedTuple):
    """What is wrong with one field. `field` is a dotted path from the root of the body; empty for the body itself."""

    field: str
    message: str


class EmberpoolError(Exception):
    """`detail` is a sentence that says what is wrong and what to do."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Misconfigured(EmberpoolError):
    """The address or the token cannot be used. Nothing was sent. `argument`: `url` or `token`."""

    def __init__(self, detail: str, *, argument: str = "token") -> None:
        super().__init__(detail)
        self.argument = argument


class Unreachable(EmberpoolError):
    """No answer of the service came. `passing`: sending the request again may help."""

    def __init__(self, detail: str, *, passing: bool = True) -> None:
        super().__init__(detail)
        self.passing = passing


class Refused(EmberpoolError):
    """The service's problem document. `retry_after` is in seconds; None: the service names no time."""

    def __init__(self, problem: Mapping[str, Any], *, retry_after: float | None = None) -> None:
        super().__init__(str(problem["detail"]))
        self.problem = problem
        self.code = str(problem["code"])
        """Stable, and meant for programs."""
        self.title = str(problem.get("title", ""))
        self.status = int(problem.get("status", 0))
        self.retry_after = retry_after

    @property
    def problems(self) -> list[FieldProblem]:
        """The first of the invalid fields, if any."""
        return [FieldProblem(each["field"], each["message"]) for each in self.problem.get("errors") or ()]

    @property
    def field(self) -> str | None:
        """The first invalid field."""
        return next((each.field for each in self.problems), None)


class Invalid(Refused):
    """The request is wrong, and sending it again does not help."""


class Unauthenticated(Refused):
    """The service asks for a token, or for another one."""


class NotFound(Refused):
    """There is no such resource."""


class Conflict(Refused):
    """The resource is not in a state, or not at the version, that allows it."""


class Unavailable(Refused):
    """Not now. `retry_after` says when to try again."""


class NoVm(EmberpoolError):
    """`claim` is as it was last seen. It has been released, unless it had ended."""

    def __init__(self, detail: str, claim: ClaimView) -> None:
        super().__init__(detail)
        self.claim = claim


class ClaimLost(EmberpoolError):
    """The claim ended while its VM was in use: what ran there since may be gone."""


_BY_STATUS: Mapping[int, type[Refused]] = {
    **dict.fromkeys((400, 413, 415, 422), Invalid),
    401: Unauthenticated,
    404: NotFound,
    **dict.fromkeys((409, 412), Conflict),
    **dict.fromkeys((429, 503), Unavailable),
}


def refusal(status: int, problem: Mapping[str, Any], retry_after: str | None) -> Refused:
    """The error for a problem document. `retry_after` is the header's text; only seconds are known there."""
    return _BY_STATUS.get(status, Refused)({"status": status, **problem}, retry_after=_seconds(retry_after))


def _seconds(text: str | None) -> float | None:
    try:
        found = float(text or "")
    except ValueError:
        return None
    return max(0.0, found) if math.isfinite(found) else None
