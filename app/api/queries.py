"""The names in a query. One that the operation does not have is refused: with a slip in it, such as `dryrun` for `dry_run`, the
request would do what nobody asked for.
"""

from collections.abc import Collection
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.dependencies.models import Dependant

from app.domain.fields import suggest
from app.errors import InvalidRequest, shorten


async def check_query(request: Request) -> None:
    """A dependency of every route of the API. Raises InvalidRequest."""
    if query := request.scope["query_string"]:
        require_known(query, _parameters_of(request.scope["route"].dependant))


def require_known(query: bytes, known: Collection[str]) -> None:
    """Raises InvalidRequest for the first name in the query that is not among the known ones."""
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            raise InvalidRequest.of_field(shorten(name), _explain(name, known), ". Nothing was changed")


def _parameters_of(dependant: Dependant) -> set[str]:
    nested = (_parameters_of(each) for each in dependant.dependencies)
    return {parameter.alias for parameter in dependant.query_params}.union(*nested)


def _explain(name: str, known: Collection[str]) -> str:
    if meant := suggest(name, known):
        return f"there is no such query parameter; write `{meant}`"
    if known:
        return f"there is no such query parameter; there are {', '.join(f'`{each}`' for each in sorted(known))}"
    return "there is no such query parameter: this operation has none"
