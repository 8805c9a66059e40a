"""The OpenAPI document and its page: committed, whole, and served without the internet."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from app.api import examples
from app.api.app import create_app
from app.api.problems import MEDIA_TYPE
from app.config import Role
from app.errors import EmberpoolError
from tests.support.service import client_of

COMMITTED = Path(__file__).parents[2] / "openapi" / "openapi.json"
API = COMMITTED.parents[1] / "app" / "api"
FILES = sorted(API.rglob("examples.json"))
DOCUMENT = create_app().openapi()
OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
every_operation = pytest.mark.parametrize(("at", "operation"), OPERATIONS, ids=[at for at, _ in OPERATIONS])


def validate(value, schema):
    jsonschema.validate({**DOCUMENT, "value": value}["value"], {**schema, "components": DOCUMENT["components"]})


def errors_below(cls):
    for each in cls.__subclasses__():
        yield each
        yield from errors_below(each)


def test_the_committed_document_is_the_programs():
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == DOCUMENT, "run `make openapi` and commit what it writes"


def test_all_that_the_issue_names_is_there():
    assert {at for at, _ in OPERATIONS} >= {
        *("PUT /v1/pools/{name}", "GET /v1/pools/{name}", "DELETE /v1/pools/{name}", "GET /v1/pools"),
        *("POST /v1/pools/{name}/replenish", "POST /v1/pools/{name}/resume", "POST /v1/pools/{name}/pause"),
        *("POST /v1/claim", "GET /v1/claims", "GET /v1/claims/{claim_id}", "DELETE /v1/claims/{claim_id}"),
        *("POST /v1/claims/{claim_id}/renew", "GET /v1/vms", "GET /v1/vms/{vm_id}", "GET /v1/events"),
        *("PATCH /v1/pools/{name}", "POST /v1/pools/{name}/rotate", "DELETE /v1/vms/{vm_id}"),
        *("GET /healthz", "GET /readyz", "GET /metrics"),
    }


@every_operation
def test_every_operation_is_named_tagged_and_described(at, operation):
    assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", operation["operationId"])
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"] in [[tag["name"]] for tag in DOCUMENT["tags"]]
    for parameter in operation.get("parameters", []):
        assert parameter.get("description"), parameter["name"]


def test_a_token_may_be_left_out_everywhere():
    assert {} in DOCUMENT["security"]
    guarded = {at for at, operation in OPERATIONS if "security" not in operation}
    assert guarded == {at for at, _ in OPERATIONS if at.split()[1].startswith("/v1/")}


def test_operation_ids_are_unique():
    ids = [operation["operationId"] for _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


@every_operation
def test_every_body_and_good_answer_has_an_example_of_its_shape(at, operation):
    contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
    for status, answer in operation["responses"].items():
        assert answer["description"] not in {"", "Successful Response"}
        if status.startswith("2") or "application/json" in answer["content"]:
            contents.append(answer["content"])
    for content in contents:
        for kind, media in content.items():
            found = list(_examples(media))
            assert found, f"{at} {kind}"
            for example in found:
                validate(example, media["schema"])


@every_operation
def test_every_error_is_a_problem_with_an_example_of_each_code(at, operation):
    guarded = at.split()[1].startswith("/v1/")
    statuses = {int(status) for status in operation["responses"]}
    assert (401 in statuses) == guarded
    if "requestBody" in operation:
        assert statuses >= {400, 413, 415, 422}
    if guarded:
        assert statuses >= {422, 503}
    for status, answer in operation["responses"].items():
        if status[0] in "45" and operation["operationId"] != "getReadiness":
            assert list(answer["content"]) == [MEDIA_TYPE]
            for code, example in answer["content"][MEDIA_TYPE]["examples"].items():
                validate(example["value"], answer["content"][MEDIA_TYPE]["schema"])
                assert (example["value"]["code"], str(example["value"]["status"])) == (code, status)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(API)))
def test_every_example_in_a_file_has_the_schema_that_it_illustrates(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found) <= set(examples.KINDS)
    operations = {operation["operationId"]: operation for _, operation in OPERATIONS}
    for name, values in found.get("schemas", {}).items():
        assert values
        for value in values:
            validate(value, DOCUMENT["components"]["schemas"][name])
    for name, bodies in found.get("bodies", {}).items():
        for body in bodies.values():
            assert body["summary"]
            validate(body["value"], operations[name]["requestBody"]["content"]["application/json"]["schema"])
    for name, answers in found.get("responses", {}).items():
        for status, value in answers.items():
            validate(value, operations[name]["responses"][status]["content"]["application/json"]["schema"])


def test_codes_are_stable_and_each_has_one_meaning():
    by_code = {}
    for error in errors_below(EmberpoolError):
        if error.__module__.startswith("app.cli"):
            continue  # commands end with an exit code, and never leave as a problem document
        by_code.setdefault(error.code, set()).add(error.status)
    assert {code: len(found) for code, found in by_code.items() if len(found) > 1} == {}
    assert set(examples.load()["problems"]) <= set(by_code)


def test_a_workers_document_has_its_health_alone():
    assert set(create_app(Role.WORKER).openapi()["paths"]) == {"/healthz", "/readyz", "/metrics"}


async def test_the_page_needs_nothing_that_is_not_served_here():
    async with client_of(create_app()) as client:
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "<title>Emberpool" in page.text
        linked = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']*)["']""", page.text)
        assert len(linked) >= 4
        for address in linked:
            assert address.startswith("/")
            assert not address.startswith("//")
            assert (await client.get(address)).status_code == 200, address
        assert "http" not in re.sub(r"<!--.*?-->", "", page.text)
        style = (await client.get("/static-offline-docs/swagger-ui.css")).text
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//", style)


@every_operation
def test_whatever_a_request_holds_has_an_end(at, operation):
    schemas = [(parameter["name"], parameter["schema"]) for parameter in operation.get("parameters", [])]
    if at != "POST /v1/manifests":  # its documents are bounded by their number, their values and the bytes of the body
        content = operation.get("requestBody", {}).get("content", {})
        schemas += [("", media["schema"]) for media in content.values()]
    assert [place for name, schema in schemas for place in _endless(schema, name)] == []


def _endless(schema, place):
    """The places below a schema whose text, lists, maps or numbers may be as large as one likes."""
    if "$ref" in schema:
        yield from _endless(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]], place)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _endless({**choice, **{key: schema[key] for key in schema.keys() & _ENDS}}, place)
    kind = schema.get("type")
    if kind in _BOUNDS and not schema.keys() & _BOUNDS[kind] and "format" not in schema:
        yield f"{place}: {kind}"
    if "items" in schema:
        yield from _endless(schema["items"], f"{place}[]")
    for name, below in schema.get("properties", {}).items():
        yield from _endless(below, f"{place}.{name}")
    if isinstance(more := schema.get("additionalProperties"), dict):
        yield from _endless(more, f"{place}.*")


_BOUNDS = {
    "string": {"maxLength", "enum", "const"},
    "array": {"maxItems"},
    "object": {"maxProperties", "properties"},
    "integer": {"maximum", "exclusiveMaximum"},
    "number": {"maximum", "exclusiveMaximum"},
}
_ENDS = set.union(*_BOUNDS.values()) - {"properties"}


def _examples(media):
    if "example" in media:
        yield media["example"]
    for each in media.get("examples", {}).values():
        yield each["value"]
    yield from _of_schema(media["schema"])


def _of_schema(schema):
    """The examples of a schema, or of what it is made of: an item of a page, one of two alternatives."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        found = DOCUMENT["components"]["schemas"][name]
        if name.endswith("Page") and "examples" not in found:
            for item in _of_schema(found["properties"]["items"]["items"]):
                yield {"items": [item], "next": None}
        elif "examples" in found:
            yield from found["examples"]
        elif "oneOf" in found:
            yield from _of_schema({"oneOf": found["oneOf"]})
        elif "properties" in found and all("const" in each for each in found["properties"].values()):
            yield {key: each["const"] for key, each in found["properties"].items()}
    for part in (*schema.get("anyOf", []), *schema.get("oneOf", [])):
        yield from _of_schema(part)
