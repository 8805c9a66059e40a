"""Sentences about invalid fields, which are shown to people."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.claims.schemas import ClaimBody
from app.domain.pools import PoolSpec
from app.domain.preloads import PreloadSpec
from app.domain.sentences import PATTERNS_IN_WORDS, describe_invalid
from app.domain.snapshots import SnapshotSpec

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
            "Input should be 'Always', 'IfNotPresent' or 'Never'; it is 'Once'",
        ),
        ({"image": []}, "Input should be an object"),
        ({"image": {"container": "a"}, "size": "1Gi"}, "does not go with a container image: it takes no volume"),
    ],
)
def test_no_sentence_has_a_regular_expression_or_a_word_of_python(body, sentence):
    with pytest.raises(ValidationError) as refused:
        PreloadSpec.model_validate(body)
    assert [describe_invalid(error) for error in refused.value.errors()] == [sentence]
