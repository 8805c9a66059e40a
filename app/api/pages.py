"""Lists are pages: newest or alphabetical first, with a cursor that is only ever handed back."""

import base64
import binascii
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from app.errors import FieldProblem, InvalidRequest

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=500, description="At most so many items.")]
After = Annotated[str | None, Query(description="`next` of the page before.", max_length=200)]


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    next: str | None = Field(description="The cursor of the next page; null: this is the last one.")


def encode(value: str) -> str:
    return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")


def decode(cursor: str | None) -> str | None:
    """Raises InvalidRequest where the cursor is none of ours."""
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
    """Raises InvalidRequest where the cursor is none of ours."""
    value = decode(cursor)
    try:
        return UUID(value) if value is not None else None
    except ValueError as error:
        raise bad_cursor() from error


def bad_cursor() -> InvalidRequest:
    message = "this is no cursor of ours; hand back `next` of the page before, or leave it out for the first page"
    return InvalidRequest(f"after: {message}", problems=[FieldProblem("after", message)])
