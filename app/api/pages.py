"""Lists are returned in pages. A cursor encodes the last item's key; clients only hand it back."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from app.errors import InvalidRequest

Item = TypeVar("Item")
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=500, description="Maximum number of items.")]
After = Annotated[str | None, Query(description="`next` of the previous page.", max_length=200)]
Next = Annotated[str | None, Field(description="Cursor of the next page; null on the last page.")]


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    next: Next


def cut(found: Sequence[Row], limit: int, key: Callable[[Row], object]) -> tuple[Sequence[Row], str | None]:
    """The rows of one page and the cursor of the next, from a query for `limit + 1` rows."""
    return found[:limit], encode(str(key(found[limit - 1]))) if len(found) > limit else None


def encode(value: str) -> str:
    return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")


def decode(cursor: str | None) -> str | None:
    """Raises InvalidRequest if this service did not make the cursor."""
    if cursor is None:
        return None
    try:
        value = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise bad_cursor() from error
    if not value.isprintable():
        raise bad_cursor()
    return value


def decode_id(cursor: str | None) -> UUID | None:
    """Raises InvalidRequest if this service did not make the cursor."""
    value = decode(cursor)
    try:
        return UUID(value) if value is not None else None
    except ValueError as error:
        raise bad_cursor() from error


def bad_cursor() -> InvalidRequest:
    message = "not a cursor of this service; pass `next` of the previous page, or leave it out for the first page"
    return InvalidRequest.of_field("after", message)
