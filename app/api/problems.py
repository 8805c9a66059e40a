"""Every error response is an RFC 9457 problem, and is rendered here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from app.api import examples
from app.api.versions import etag
from app.domain.fields import fields_at, suggest
from app.domain.sentences import describe_invalid
from app.errors import (
    ClusterError,
    ClusterForbidden,
    ClusterUnavailable,
    DatabaseUnavailable,
    EmberpoolError,
    FieldProblem,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    PreconditionFailed,
    list_problems,
    shorten,
)

CLUSTER_ERRORS = (ClusterUnavailable, ClusterForbidden, ClusterError)
"""What a route that asks the cluster may answer, beside what it says itself."""
MOST_TOLD: Final = 20
"""The most problems that one answer lists. Whoever has more of them made one mistake many times."""
_LONGEST_DETAIL, _LONGEST_MESSAGE, _LONGEST_FIELD = 4000, 1000, 300
"""In characters. What a client wrote is part of what it is told, and must not come back many times over."""
_KEY = "[key]"
"""Pydantic ends the location of an entry with an invalid name with this."""
MEDIA_TYPE = "application/problem+json"
DISCONNECTED = 499
"""What a request of a client is counted as that broke off in the middle of it. Nobody reads that answer."""
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
log = structlog.get_logger(__name__)


class ProblemField(BaseModel):
    field: str = Field(
        description="Dotted path of the field from the root of the body; empty for the body itself.", examples=["size"]
    )
    message: str = Field(examples=["must be 0 or more; it is -1"])


class Problem(BaseModel):
    """A problem of RFC 9457. Programs should use `code`, which is stable; `detail` is a sentence for people."""

    type: str = Field(examples=["urn:emberpool:problem:no-warm-vm"])
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = Field(default=None, description="Path of the request.")
    errors: list[ProblemField] | None = Field(
        default=None, max_length=MOST_TOLD, description="The first of the invalid fields, if any."
    )
    more_errors: int | None = Field(
        default=None, description="How many invalid fields there are beside those in `errors`."
    )


def render(error: EmberpoolError, *, instance: str | None = None) -> Response:
    """The response for an error, with `Retry-After` in whole seconds if the error has `retry_after`."""
    body = _body(error)
    if instance is not None:
        body["instance"] = shorten(instance, _LONGEST_FIELD)
    if error.problems:
        body["errors"] = [
            {"field": shorten(p.field, _LONGEST_FIELD), "message": shorten(p.message, _LONGEST_MESSAGE)}
            for p in error.problems[:MOST_TOLD]
        ]
    if more := len(error.problems[MOST_TOLD:]) + error.untold:
        body["more_errors"] = more
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, PreconditionFailed) and error.version is not None:
        headers["ETag"] = etag(error.version)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if error.status == 401:  # noqa: PLR2004 - the one status that must name its scheme
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


def render_crash(path: str, error: Exception) -> Response:
    """The response to an unexpected exception: the log gets the traceback, the client only a general sentence."""
    log.error("request.crashed", path=path, exc_info=error)
    found = EmberpoolError("the service failed unexpectedly; its log has the details. Trying again may help")
    return render(found, instance=path)


def responses(*errors: type[EmberpoolError]) -> dict[int | str, dict[str, Any]]:
    """The errors of a route for the OpenAPI document: those given, and the two that every route of the API may answer."""
    return describe_errors(*errors, InvalidRequest, DatabaseUnavailable)


def describe_errors(*errors: type[EmberpoolError]) -> dict[int | str, dict[str, Any]]:
    """As entries of an operation's `responses`, by status, with one example for each code."""
    found: dict[int | str, dict[str, Any]] = {}
    for error in dict.fromkeys(errors):
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}}
        entry = found.setdefault(error.status, {"description": error.title, "content": content})
        if entry["description"] != error.title:
            entry["description"] += f"; {error.title[0].lower()}{error.title[1:]}"
        example = {**_body(error), "detail": examples.load()["problems"][error.code]}
        entry["content"][MEDIA_TYPE]["examples"][error.code] = {"value": example}
    return found


def _body(error: EmberpoolError | type[EmberpoolError]) -> dict[str, Any]:
    return {
        "type": f"urn:emberpool:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": shorten(getattr(error, "detail", ""), _LONGEST_DETAIL),
        "code": error.code,
    }


def explain(error: ValidationError | RequestValidationError, model: type[BaseModel] | None = None) -> InvalidRequest:
    """The error for what pydantic found wrong in the body, the path, the query or a header: one problem for each field.

    `model`: what the body is to be an instance of; a field that it does not have gets the one that is most like it.
    """
    all_found = error.errors()
    skipped = 1 if isinstance(error, RequestValidationError) else 0  # which of body, path, query and header it is in
    relevant = [found for found in all_found if not _is_counted_wrongly(found, all_found)]
    problems = [_problem(found, found["loc"][skipped:], model) for found in relevant[:MOST_TOLD]]
    untold = len(relevant) - len(problems)
    told = list_problems(problems, untold=untold)
    stop = "" if told.endswith("?") else "."
    return InvalidRequest(f"{told}{stop} Nothing was changed", problems=problems, untold=untold)


def _problem(found: Mapping[str, Any], place: Sequence[int | str], model: type[BaseModel] | None) -> FieldProblem:
    location = [str(part) for part in place]
    message = describe_invalid(found)
    if found["type"] == "extra_forbidden" and (meant := suggest(location[-1], fields_at(model, place))):
        message = f"there is no such field; did you mean `{meant}`?"
    if found["type"] == "extra_forbidden" and location == ["spec"]:
        message = "there is no such field; write the fields of the spec themselves, without `spec` around them"
    if location[-1:] == [_KEY]:
        message = f"name {shorten(location[-2])!r}: {message}"
        location = location[:-2]
    return FieldProblem(".".join(location), message)


def install(app: FastAPI) -> None:
    """Makes the application render every error as a problem."""

    @app.exception_handler(EmberpoolError)
    async def on_own(request: Request, error: EmberpoolError) -> Response:
        if error.status >= 500 and error.retry_after is None:  # noqa: PLR2004 - the server's own errors
            log.error("request.failed", path=request.url.path, code=error.code, detail=error.detail)
        return render(error, instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        body = getattr(request.scope.get("route"), "body_field", None)
        annotation = body.field_info.annotation if body is not None else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        return render(explain(error, model), instance=request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        # The framework reports any failure to read a body as a bad body; if the cause is one of our errors, that one is right.
        cause = error.__cause__
        if isinstance(cause, ClientDisconnect):
            return Response(status_code=DISCONNECTED)
        found = cause if isinstance(cause, EmberpoolError) else _from_http(request, error)
        return render(found, instance=request.url.path)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=DISCONNECTED)

    @app.exception_handler(Exception)
    async def on_crash(request: Request, error: Exception) -> Response:
        return render_crash(request.url.path, error)


def _from_http(request: Request, error: HTTPException) -> EmberpoolError:
    match error.status_code:
        case 404:
            return NotFound(f"there is no {request.url.path}; /docs lists all paths")
        case 405:
            allowed = find_methods(request.app.routes, request.url.path)
            said = f"{request.url.path} does not support {request.method}, but {' and '.join(allowed)}"
            return MethodNotAllowed(f"{said}; /docs lists all operations", allowed=allowed)
        case 400:
            return MalformedBody(f"the body cannot be read: {error.detail}")
        case _:
            return EmberpoolError(str(error.detail))


def _is_counted_wrongly(found: Mapping[str, Any], all_found: Sequence[Mapping[str, Any]]) -> bool:
    """A list that is too short only because pydantic counts its valid entries; the others have problems of their own."""
    return found["type"] == "too_short" and any(_is_within(other["loc"], found["loc"]) for other in all_found)


def find_methods(routes: Sequence[BaseRoute], path: str) -> list[str]:
    """The methods of all routes of a path; HEAD is served wherever GET is."""

    def serves(method: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    found = [method for method in _METHODS if serves(method)]
    return sorted([*found, "HEAD"]) if "GET" in found else found


def _is_within(inner: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)
