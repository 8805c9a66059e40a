"""Which fields there are at a place in a body, and which known word an unknown one may be meant for."""

import pytest
from pydantic import BaseModel

from app.domain.fields import fields_at, model_of, suggest


class Leaf(BaseModel):
    size: int
    colour: str


class Other(BaseModel):
    weight: int


class Tree(BaseModel):
    leaf: Leaf
    maybe: Leaf | None
    leaves: list[Leaf]
    by_name: dict[str, Leaf]
    either: Leaf | Other
    word: str
    anything: dict[str, object]


LEAF = {"size", "colour"}
PLACES = [
    (("nothing",), set(Tree.model_fields)),
    (("leaf", "sise"), LEAF),
    (("maybe", "sise"), LEAF),
    (("leaves", 3, "sise"), LEAF),
    (("either", "sise"), set()),
    (("word", "sise"), set()),
    (("anything", "sise"), set()),
    (("unknown", "sise"), set()),
    (("leaf", "size", "deeper"), set()),
]


@pytest.mark.parametrize(("location", "fields"), PLACES)
def test_the_fields_beside_an_unknown_one(location, fields):
    assert fields_at(Tree, location) == fields
    assert fields_at(None, location) == set()


def test_the_model_of_a_field():
    assert model_of(Tree, "maybe") is Leaf
    assert model_of(Tree, "either") is None


@pytest.mark.parametrize(
    ("word", "meant"),
    [("sise", "size"), ("Size", "size"), ("color", "colour"), ("minAvailable", "min_available"), ("zebra", None)],
)
def test_a_word_is_meant_for_the_one_that_is_most_like_it(word, meant):
    assert suggest(word, ["size", "colour", "min_available"]) == meant
