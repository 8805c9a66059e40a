"""The OpenAPI document: what the framework generates from the routes, completed and corrected."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api import examples
from app.api.problems import Problem, describe_errors
from app.errors import BodyTooLarge, EmberpoolError, MalformedBody, Unauthenticated, UnsupportedMediaType

Json = dict[str, Any]
_SCHEMA = "#/components/schemas/"
_JSON = "application/json"
_BODY_ERRORS: tuple[type[EmberpoolError], ...] = (MalformedBody, BodyTooLarge, UnsupportedMediaType)


def install(app: FastAPI) -> None:
    """Makes the application serve this document instead of the framework's."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's own way to change the document


def describe(app: FastAPI) -> Json:
    """Adds to the framework's document: the media type of problems, the errors of every body and of the token, and the examples
    (from which the framework would drop each null).
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
    for name, found in examples.load()["schemas"].items():
        if name in schemas:
            schemas[name]["examples"] = found
    _name_choices(schemas)
    for schema in schemas.values():
        _tell_defaults(schema)
    components["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Required if the service has EMBERPOOL_API_TOKEN set.",
        }
    }
    # Of the whole document: a generator of clients takes the security of an operation for one that must be there.
    document["security"] = [{}, {"token": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(method, operation, guarded=path.startswith("/v1/"))
    return document


def _name_choices(schemas: Json) -> None:
    """Gives each titled alternative of a schema a place of its own: generators name types by these, and not those within."""
    for schema in list(schemas.values()):
        for choices in (schema.get("oneOf", []), schema.get("anyOf", [])):
            for at, choice in enumerate(choices):
                if "title" in choice:
                    schemas[choice["title"]] = choice
                    choices[at] = {"$ref": _SCHEMA + choice["title"]}


def _tell_defaults(schema: Json) -> None:
    """Tells the defaults of fields in words. As keywords they make generators take these fields for ones that must be given."""
    for field in schema.get("properties", {}).values():
        if (default := field.pop("default", None)) is not None:
            told = field.get("description", "")
            spelt = json.dumps(default, ensure_ascii=False)
            field["description"] = told if "Default:" in told else f"{told} Default: `{spelt}`.".strip()


def _complete(method: str, operation: Json, *, guarded: bool) -> None:
    name = operation["operationId"]
    answers: Json = operation["responses"]
    of_type = (UnsupportedMediaType,) if method == "post" else ()
    errors = (*(_BODY_ERRORS if "requestBody" in operation else of_type), *((Unauthenticated,) if guarded else ()))
    for status, answer in describe_errors(*errors).items():
        answers.setdefault(str(status), answer)
    for status, example in examples.load()["responses"].get(name, {}).items():
        answers[status]["content"][_JSON]["example"] = example
    if bodies := examples.load()["bodies"].get(name):
        for kind, media in operation["requestBody"]["content"].items():
            if kind.endswith("json"):
                media["examples"] = bodies
    if not guarded:
        operation["security"] = []
    operation["responses"] = dict(sorted(answers.items()))
