"""What is wrong with the value of a field, as a sentence for its author: the same for the body of a request and for a manifest."""

from collections.abc import Mapping
from typing import Any, Final

from app.domain.guests import PATTERNS_IN_WORDS as GUESTS
from app.domain.placement import PATTERNS_IN_WORDS as PLACEMENTS
from app.domain.pools import PATTERNS_IN_WORDS as POOLS
from app.domain.preloads import PATTERNS_IN_WORDS as PRELOADS
from app.errors import shorten

PATTERNS_IN_WORDS: Final = {
    **GUESTS,
    **PLACEMENTS,
    **POOLS,
    **PRELOADS,
}
"""The message for each pattern that does not match. A pattern is no sentence: nobody is shown one."""
_OWN_WORDS: Final = frozenset({"value_error", "assertion_error"})
"""Errors that our own validators raise: their message is a sentence already, behind a prefix."""
_KINDS: Final = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a number",
    "decimal": "must be a number",
    "string": "must be text",
    "bytes": "must be text",
    "list": "must be a list",
    "tuple": "must be a list",
    "set": "must be a list",
    "frozen": "must be a list",
    "iterable": "must be a list",
    "dict": "must be an object",
    "mapping": "must be an object",
    "model": "must be an object",
    "dataclass": "must be an object",
    "uuid": "must be an id, as 01a206d8-517b-7231-a079-9e6d21989c09",
    "datetime": "must be a date and time, as 2026-01-12T09:00:00Z",
    "date": "must be a date, as 2026-01-12",
    "time": "must be a time in seconds",
    "timezone": "must be a date and time with its zone, as 2026-01-12T09:00:00Z",
    "url": "must be an address, as https://example.com/image.qcow2",
    "path": "must be the path of a file",
    "json": "must be JSON",
    "none": "must be left out",
    "unexpected": "must be left out",
    "union": "has none of the forms that are possible here",
}
"""By the first word of an error's type: pydantic-core names them `int_parsing`, `list_type` and so on."""
_LIMITS: Final = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_too_short": "needs at least {min_length} characters",
    "string_too_long": "takes at most {max_length} characters",
    "int_parsing_size": "has too many digits",
}


def describe_invalid(found: Mapping[str, Any]) -> str:
    """The sentence for one error of pydantic, as its `errors()` lists them."""
    kind, context = found["type"], found.get("ctx") or {}
    match kind:
        case "too_short":
            return f"needs at least {context['min_length']}, has {context['actual_length']}"
        case "too_long":
            return f"takes at most {context['max_length']}; give fewer"
        case "missing":
            return "this field is required"
        case "extra_forbidden":
            return "there is no such field; check its spelling (/docs lists all fields)"
        case "string_pattern_mismatch":
            words = PATTERNS_IN_WORDS.get(context["pattern"], "contains a character that does not belong here")
        case "string_too_short" if context["min_length"] == 1:
            return "must not be empty"
        case _ if kind in _OWN_WORDS:
            return str(context.get("error") or found["msg"])
        case _ if kind in _LIMITS:
            words = _LIMITS[kind].format_map({name: _plain(limit) for name, limit in context.items()})
        case _:
            words = _KINDS.get(kind.partition("_")[0], "is not valid here")
    return f"{words}{_shown(found.get('input'))}"


def _plain(limit: object) -> object:
    """60.0 as 60: a limit of seconds is a float only because parts of seconds are allowed below it."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _shown(value: object) -> str:
    match value:
        case bool():
            return f"; it is {str(value).lower()}"
        case str():
            return f"; it is {shorten(value)!r}"
        case int() | float():
            return f"; it is {shorten(repr(value))}"
        case None:
            return "; it is null"
        case _:
            return ""
