"""The fields of a body: what their values are, and which known one an unknown one may be meant for."""

import difflib
from collections.abc import Collection, Sequence
from typing import get_args

from pydantic import BaseModel

_CLOSE = 0.6
_LONGEST = 100


def model_of(model: type[BaseModel] | None, field: str) -> type[BaseModel] | None:
    """The model of the field's value, or of its items. None: it has none, or more than one, or `model` has no such field."""
    found = model.model_fields.get(field) if model is not None else None
    models = set(_models_in(found.annotation)) if found is not None else set()
    return models.pop() if len(models) == 1 else None


def fields_at(model: type[BaseModel] | None, location: Sequence[str | int]) -> frozenset[str]:
    """The fields that there are beside the one at `location`, a path from `model` with an index for each list. Empty: not known."""
    for part in location[:-1]:
        if isinstance(part, str):
            model = model_of(model, part)
    return frozenset(model.model_fields) if model is not None else frozenset()


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def suggest(word: str, known: Collection[str]) -> str | None:
    """The known word that is most like `word`; None if none is close."""
    if len(word) > _LONGEST:
        return None  # like no word, and comparing takes the longer the longer it is
    folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=_CLOSE)
    return folded[found[0]] if found else None
