"""Sentences about invalid fields, which are shown to people."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

import app.api
from app.api.claims.bodies import ClaimBody
from app.domain.pools import PoolSpec
from app.domain.preloads import PreloadSpec
from app.domain.sentences import PATTERNS_IN_WORDS, describe_invalid
from app.domain.snapshot_specs import SnapshotSpec

MODELS: tuple[type[BaseModel], ...] = (ClaimBody, PoolSpec, PreloadSpec, SnapshotSpec)


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for value in schema.values():
            yield from patterns(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from patterns(value)


def test_a_limit_is_told_without_a_fraction_that_is_zero():
    found = {"type": "less_than_equal", "ctx": {"le": 60.0}, "input": 100}
    assert describe_invalid(found) == "must be 60 or less; it is 100"
    assert describe_invalid({**found, "ctx": {"le": 0.5}}) == "must be 0.5 or less; it is 100"


@pytest.mark.parametrize("model", MODELS)
def test_every_pattern_of_a_body_has_words(model):
    found = set(patterns(model.model_json_schema()))
    assert found
    assert found <= PATTERNS_IN_WORDS.keys()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            {"image": {"http": {"url": "ftp://a"}}},
            "must be an address that begins with http:// or https://; it is 'ftp://a'",
        ),
        ({"image": {"container": "a b"}}, "must be the reference of an image, without spaces; it is 'a b'"),
        (
            {"image": {"container": "a"}, "policy": "Once"},
            "must be 'Always', 'IfNotPresent' or 'Never'; it is 'Once'",
        ),
        ({"image": []}, "must be an object"),
        ({"image": {"container": "a"}, "size": "1Gi"}, "does not go with a container image: it takes no volume"),
    ],
)
def test_no_sentence_has_a_regular_expression_or_a_word_of_python(body, sentence):
    with pytest.raises(ValidationError) as refused:
        PreloadSpec.model_validate(body)
    assert [describe_invalid(error) for error in refused.value.errors()] == [sentence]


def bodies() -> dict[str, type[BaseModel]]:
    """Every model that the API reads from a request."""
    found = {}
    for info in pkgutil.walk_packages(app.api.__path__, f"{app.api.__name__}."):
        router = getattr(importlib.import_module(info.name), "router", None)
        for route in router.routes if router is not None else ():
            body = getattr(route, "body_field", None)
            model = body.field_info.annotation if body is not None else None
            if isinstance(model, type) and issubclass(model, BaseModel):
                found[model.__name__] = model
    return found


WRONG = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    float("inf"),
    "",
    "x",
    "a b/\0",
    [],
    ["x"],
    [1],
    {},
    {"x": 1},
    {"": ""},
    [[]],
    [{}],
    {"x": {"y": 1}},
]
"""A value of each kind: wherever one is wrong, its error has a type of its own."""
PYTHON = re.compile(
    r"Value error|Input should|\b(?:dict|str|int|float|bool|NoneType|pydantic|instance of)\b|\^|\\[dSsw]|None|True|False"
)


def fill(model, value, depth=0):
    """Bodies of the model with the value in each field, and in each field of the models within."""
    for name, field in model.model_fields.items():
        yield {name: value}
        if depth < 4:
            for inner in models_in(field.annotation):
                for below in fill(inner, value, depth + 1):
                    yield {name: below}
                    yield {name: [below]}


def models_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


@pytest.mark.parametrize("model", bodies().values(), ids=lambda model: model.__name__)
def test_whatever_is_wrong_is_told_in_plain_words(model):
    told = set()
    for value in WRONG:
        for body in fill(model, value):
            try:
                model.model_validate(body)
            except ValidationError as refused:
                told |= {
                    (error["type"], re.sub(r"; it is .*", "", describe_invalid(error), flags=re.DOTALL))
                    for error in refused.errors()
                }
    assert len(told) > 3
    for kind, sentence in told:
        assert not PYTHON.search(sentence), (kind, sentence)
        assert sentence != "is not valid here", kind
