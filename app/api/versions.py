"""Versions of resources over HTTP: the `ETag` of an answer, and the `If-Match` by which a write names the version that it changes."""

import re
from typing import Annotated, Any, Final

from fastapi import Header

from app.errors import InvalidRequest
from app.services.writes import IfMatch

IfMatchHeader = Annotated[
    str | None,
    Header(
        max_length=1024,
        description=(
            "Change the resource only if this is its `ETag`; otherwise the answer is 412, and nothing is changed. `*`: only if it "
            "exists."
        ),
    ),
]
"""As the type of a route's parameter `if_match`."""
HEADERS: Final[dict[str, Any]] = {
    "ETag": {
        "description": "The version that `If-Match` of a later write may name.",
        "schema": {"type": "string"},
        "example": '"3"',
    }
}
_TAG = re.compile(r'[\s,]*(?:(?P<weak>W/)?"(?P<tag>[^"]*)"|(?P<bare>[0-9]+))\s*(?:,|$)')
"""A shell takes the quotes away easily, and a number is clear without them."""


def etag(version: str) -> str:
    return f'"{version}"'


def read_if_match(header: str | None) -> IfMatch | None:
    """A weak tag matches nothing (RFC 9110, section 13.1.1). Raises InvalidRequest if this is no list of tags."""
    if header is None:
        return None
    tags = header.strip(" \t,")
    if tags == "*":
        return IfMatch(None)
    versions, at = set(), 0
    while at < len(tags) and (found := _TAG.match(tags, at)) is not None:
        at = found.end()
        if not found["weak"]:
            versions.add(found["tag"] if found["bare"] is None else found["bare"])
    if at < len(tags) or not tags:
        raise InvalidRequest.of_field(
            "If-Match", 'must be the ETag of an answer, such as "3", or * for any; it is ' + repr(header)
        )
    return IfMatch(frozenset(versions))
