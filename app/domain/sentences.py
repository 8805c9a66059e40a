"""What is wrong with the value of a field, as a sentence for its author: the same for the body of a request and for a manifest."""

from collections.abc import Mapping
from typing import Any, Final

from app.domain.placement import PATTERNS_IN_WORDS as PLACEMENTS
from app.domain.pools import PATTERNS_IN_WORDS as POOLS
from app.domain.preloads import PATTERNS_IN_WORDS as PRELOADS

NO_NUL: Final = r"^[^\x00]*$"
PATTERNS_IN_WORDS: Final = {
    **PLACEMENTS,
    **POOLS,
    **PRELOADS,
    NO_NUL: "must not contain a NUL character",
}
"""The message for each pattern that does not match. A pattern is no sentence: nobody is shown one."""
_NO_OBJECT: Final = frozenset({"dict_type", "model_type", "model_attributes_type"})


def describe_invalid(found: Mapping[str, Any]) -> str:
    """The sentence for one error of pydantic, as its `errors()` lists them."""
    context = found.get("ctx") or {}
    match found["type"]:
        case "too_short":
            return f"needs at least {context['min_length']}, has {context['actual_length']}"
        case "too_long":
            return f"takes at most {context['max_length']}; give fewer"
        case "string_pattern_mismatch":
            words = PATTERNS_IN_WORDS.get(context["pattern"], "contains a character that does not belong here")
            return f"{words}; it is {found['input']!r}"
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] in _NO_OBJECT:
        message = "Input should be an object"
    if "should" in message and isinstance(found.get("input"), str | int | float | bool):
        return f"{message}; it is {found['input']!r}"
    return message
