"""Every error leaves as an RFC 9457 problem, and leaves here alone."""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.api.examples import DETAILS
from app.domain.pools import POOL_NAME_PATTERN
from app.domain.preloads import PATTERNS_IN_WORDS
from app.errors import EmberpoolError, FieldProblem, InvalidRequest, MalformedBody, MethodNotAllowed, NotFound

_NAME_RULE = "a name is 1 to 63 lower-case letters, digits and '-', and begins and ends with a letter or digit"
_KEY = "[key]"
"""How pydantic ends the place of an entry whose name is wrong."""
_NO_OBJECT = {"dict_type", "model_type", "model_attributes_type"}
MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger(__name__)


class ProblemField(BaseModel):
    field: str = Field(
        description="Dotted path of the field from the body's root; empty: the body itself.", examples=["size"]
    )
    message: str = Field(examples=["Input should be greater than or equal to 0"])


class Problem(BaseModel):
    """RFC 9457. `code` is stable and meant for programs; `detail` is a sentence for people."""

    type: str = Field(examples=["urn:emberpool:problem:no-warm-vm"])
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = Field(default=None, description="The path that was asked for.")
    errors: list[ProblemField] | None = Field(default=None, description="Each wrong field, where fields are wrong.")


def render(error: EmberpoolError, *, instance: str | None = None) -> Response:
    """The problem of an error, with `Retry-After` in whole seconds where the error says when to try again."""
    body: dict[str, Any] = {
        "type": f"urn:emberpool:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    if instance is not None:
        body["instance"] = instance
    if error.problems:
        body["errors"] = [{"field": p.field, "message": p.message} for p in error.problems]
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:  # noqa: PLR2004 - the one status that must name its scheme
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


def render_crash(path: str, error: Exception) -> Response:
    """The answer to a bug of ours: logged whole, told as nothing but that."""
    log.error("request.crashed", path=path, exc_info=error)
    found = EmberpoolError("an error on our side; its details are in the service's log. Trying again may help")
    return render(found, instance=path)


def responses(*errors: type[EmberpoolError]) -> dict[int | str, dict[str, Any]]:
    """What a route declares of its errors in the OpenAPI document: by status, one example a code."""
    found: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = found.setdefault(
            error.status,
            {
                "description": error.title,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        if error.title not in entry["description"]:
            entry["description"] += f"; {error.title[0].lower()}{error.title[1:]}"
        entry["content"][MEDIA_TYPE]["examples"][error.code] = {
            "value": {
                "type": f"urn:emberpool:problem:{error.code}",
                "title": error.title,
                "status": error.status,
                "detail": DETAILS[error.code],
                "code": error.code,
            }
        }
    return found


def explain(error: ValidationError | RequestValidationError) -> InvalidRequest:
    """What pydantic found wrong, each with its field: of the body, the path, the query or a header, which needs no telling."""
    problems = []
    all_found = error.errors()
    for found in all_found:
        location = [str(part) for part in found["loc"]]
        if found["type"] == "too_short" and any(_is_within(other["loc"], found["loc"]) for other in all_found):
            continue  # what was wrong with its entries is told, and only the good ones were counted
        if found["type"] == "json_invalid":
            return MalformedBody(f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}")
        if isinstance(error, RequestValidationError):
            location = location[1:]
        message = _sentence(found)
        if location[-1:] == [_KEY]:
            message = f"the name {location[-2]!r}: {message}"
            location = location[:-2]
        problems.append(FieldProblem(".".join(location), message))
    named = "; ".join(f"{p.field or 'body'}: {p.message}" for p in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""  # noqa: PLR2004 - as many as above
    return InvalidRequest(f"{named}{more}. Nothing was changed", problems=problems)


def install(app: FastAPI) -> None:
    """Makes the application render every error as a problem."""

    async def on_ours(request: Request, error: Exception) -> Response:
        if not isinstance(error, EmberpoolError):
            raise error
        if error.status >= 500 and error.retry_after is None:  # noqa: PLR2004 - the server's own errors
            log.error("request.failed", path=request.url.path, code=error.code, detail=error.detail)
        return render(error, instance=request.url.path)

    async def on_invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        return render(explain(error), instance=request.url.path)

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        # The framework calls whatever goes wrong while a body is read a bad body; where it was an error of ours, that one counts.
        ours = error.__cause__
        found = ours if isinstance(ours, EmberpoolError) else _from_http(request, error)
        return render(found, instance=request.url.path)

    async def on_bug(request: Request, error: Exception) -> Response:
        return render_crash(request.url.path, error)

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        (EmberpoolError, on_ours),
        (RequestValidationError, on_invalid),
        (HTTPException, on_http),
        (Exception, on_bug),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


def _from_http(request: Request, error: HTTPException) -> EmberpoolError:
    match error.status_code:
        case 404:
            return NotFound(f"nothing is served at {request.url.path}; /docs shows what is")
        case 405:
            return MethodNotAllowed(f"{request.method} is not taken at {request.url.path}; /docs shows what is")
        case 400:
            return MalformedBody(f"the body cannot be read: {error.detail}")
        case _:
            return EmberpoolError(str(error.detail))


def _is_within(inner: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)


def _sentence(found: Any) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] in _NO_OBJECT:
        message = "Input should be an object"
    if found["type"] == "too_short":
        return f"needs {found['ctx']['min_length']} or more, and has {found['ctx']['actual_length']}"
    if found["type"] == "too_long":
        return f"takes {found['ctx']['max_length']} at the most; give fewer"
    if found["type"] == "extra_forbidden":
        return "there is no such field; check its spelling (/docs shows them all)"
    if found["type"] == "missing":
        return "this field is required"
    if found["type"] == "string_pattern_mismatch" and found["ctx"]["pattern"] == POOL_NAME_PATTERN:
        return f"{_NAME_RULE}; it is {found['input']!r}"
    if found["type"] == "string_pattern_mismatch" and found["ctx"]["pattern"] in PATTERNS_IN_WORDS:
        return f"{PATTERNS_IN_WORDS[found['ctx']['pattern']]}; it is {found['input']!r}"
    if "should" in message and isinstance(found.get("input"), str | int | float | bool):
        return f"{message}; it is {found['input']!r}"
    return message
