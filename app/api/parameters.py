"""Parameters that the routes of several resources share."""

from fastapi import Path
from fastapi.params import Path as PathParameter

from app.domain.pools import POOL_NAME_PATTERN


def name_in_path(of: str, example: str) -> PathParameter:
    """The `{name}` of a resource that clients name themselves."""
    found: PathParameter = Path(
        pattern=POOL_NAME_PATTERN,
        max_length=63,
        description=f"Name of the {of}.",
        openapi_examples={example: {"value": example}},
    )
    return found
