"""The OpenAPI document: what the framework makes of the routes, put right where it says less than is true, or something else."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api import examples
from app.api.nodes import examples as node_examples
from app.api.preloads import examples as preload_examples
from app.api.problems import Problem, responses
from app.api.snapshots.examples import SNAPSHOT
from app.errors import BodyTooLarge, EmberpoolError, MalformedBody, Unauthenticated, UnsupportedMediaType

Json = dict[str, Any]
_SCHEMA = "#/components/schemas/"
_JSON = "application/json"
_SHAPES: Json = {
    "PoolView": examples.POOL,
    "ImportView": examples.IMPORTED,
    "PreloadView": preload_examples.PRELOAD,
    "ClaimView": examples.CLAIM,
    "BatchView": examples.BATCH,
    "PathView": examples.PATH,
    "SnapshotView": SNAPSHOT,
    "VmView": examples.VM,
    "VmWithHistory": {**examples.VM, "history": [examples.EVENT]},
    "EventView": examples.EVENT,
    "NodePage": node_examples.NODE_PAGE,
    "NodeView": node_examples.NODE,
    "NodeWithVms": node_examples.NODE_WITH_VMS,
    "PlacementAnswer": node_examples.ANSWER,
    "ManifestsView": examples.APPLIED,
    "RenewBody": examples.RENEWAL,
    "Readiness": examples.READINESS,
}
"""By schema: what an answer of that shape looks like."""
_ANSWERS: Json = {
    "claim": {"200": examples.ENDED_CLAIM, "202": examples.PENDING_CLAIM},
    "getClaim": {"200": examples.VM_CLAIM},
    "releaseClaim": {"200": examples.ENDED_CLAIM},
    "getReadiness": {"503": examples.UNREADINESS},
}
"""By operation and status: where an answer looks otherwise than its shape's example."""
_BODY_ERRORS: tuple[type[EmberpoolError], ...] = (MalformedBody, BodyTooLarge, UnsupportedMediaType)


def install(app: FastAPI) -> None:
    """Makes the application give this document instead of the framework's."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's own way to change the document


def describe(app: FastAPI) -> Json:
    """Beyond the framework: problems as the media type that they are sent as, the errors of every body and of the token, and
    examples (which the framework would rob of each null).
    """
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template=_SCHEMA + "{model}")
    schemas |= {**problem.pop("$defs"), "Problem": problem}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, example in _SHAPES.items():
        if name in schemas:
            schemas[name]["examples"] = [example]
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "Where the service was given EMBERPOOL_API_TOKEN."}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(operation, guarded=path.startswith("/v1/"))
    return document


def _complete(operation: Json, *, guarded: bool) -> None:
    answers: Json = operation["responses"]
    common = responses(*(_BODY_ERRORS if "requestBody" in operation else ()), *((Unauthenticated,) if guarded else ()))
    for status, answer in common.items():
        answers.setdefault(str(status), answer)
    for status, example in _ANSWERS.get(operation["operationId"], {}).items():
        answers[status]["content"][_JSON]["example"] = example
    if guarded:
        operation["security"] = [{}, {"token": []}]
    operation["responses"] = dict(sorted(answers.items()))
