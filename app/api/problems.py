"""Every error response is an RFC 9457 problem, and is rendered here."""

import math
from collections.abc import Sequence
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

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
)

CLUSTER_ERRORS = (ClusterUnavailable, ClusterForbidden, ClusterError)
"""What a route that asks the cluster may answer, beside what it says itself."""
_KEY = "[key]"
"""Pydantic ends the location of an entry with an invalid name with this."""
MEDIA_TYPE = "application/problem+json"
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
    errors: list[ProblemField] | None = Field(default=None, description="The invalid fields, if any.")


def render(error: EmberpoolError, *, instance: str | None = None) -> Response:
    """The response for an error, with `Retry-After` in whole seconds if the error has `retry_after`."""
    body = _body(error)
    if instance is not None:
        body["instance"] = instance
    if error.problems:
        body["errors"] = [{"field": p.field, "message": p.message} for p in error.problems]
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, PreconditionFailed) and error.version is not None:
        headers["ETag"] = etag(error.version)
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
        "detail": getattr(error, "detail", ""),
        "code": error.code,
    }


def explain(error: ValidationError | RequestValidationError, model: type[BaseModel] | None = None) -> InvalidRequest:
    """The error for what pydantic found wrong in the body, the path, the query or a header: one problem for each field.

    `model`: what the body is to be an instance of; a field that it does not have gets the one that is most like it.
    """
    problems = []
    all_found = error.errors()
    for found in all_found:
        place = found["loc"][1:] if isinstance(error, RequestValidationError) else found["loc"]
        location = [str(part) for part in place]
        if found["type"] == "too_short" and any(_is_within(other["loc"], found["loc"]) for other in all_found):
            continue  # its entries have problems of their own, and pydantic counted only the valid ones
        if found["type"] == "json_invalid":
            return MalformedBody(f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}")
        message = describe_invalid(found)
        if found["type"] == "extra_forbidden" and (meant := suggest(location[-1], fields_at(model, place))):
            message = f"there is no such field; did you mean `{meant}`?"
        if found["type"] == "extra_forbidden" and location == ["spec"]:
            message = "there is no such field; write the fields of the spec themselves, without `spec` around them"
        if location[-1:] == [_KEY]:
            message = f"name {location[-2]!r}: {message}"
            location = location[:-2]
        problems.append(FieldProblem(".".join(location), message))
    named = "; ".join(f"{p.field or 'body'}: {p.message}" for p in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""  # noqa: PLR2004 - as many as above
    stop = "" if (named + more).endswith("?") else "."
    return InvalidRequest(f"{named}{more}{stop} Nothing was changed", problems=problems)


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
        found = cause if isinstance(cause, EmberpoolError) else _from_http(request, error)
        return render(found, instance=request.url.path)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it: the client broke off in the middle of its request

    @app.exception_handler(Exception)
    async def on_crash(request: Request, error: Exception) -> Response:
        return render_crash(request.url.path, error)


def _from_http(request: Request, error: HTTPException) -> EmberpoolError:
    match error.status_code:
        case 404:
            return NotFound(f"there is no {request.url.path}; /docs lists all paths")
        case 405:
            return MethodNotAllowed(f"{request.url.path} does not support {request.method}; /docs lists all operations")
        case 400:
            return MalformedBody(f"the body cannot be read: {error.detail}")
        case _:
            return EmberpoolError(str(error.detail))


def _is_within(inner: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)
