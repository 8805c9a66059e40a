"""What every write of a resource has in common: it is prepared, then committed.

`prepare` checks the request against the cluster with no transaction open, and its result is a value. `commit` writes that value in
one transaction, after it has checked that the resource is still as it was when it was prepared.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final, TypeVar

from app.errors import Conflict

_ATTEMPTS: Final = 5
_Prepared = TypeVar("_Prepared")
_Written = TypeVar("_Written")


class WriteOutcome(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


class Overtaken(Conflict):
    """Another request changed the resource between prepare and commit; nothing was written. Preparing again may succeed."""


def overtaken(what: str) -> Overtaken:
    """`what` names the resource, such as `pool 'web'`."""
    return Overtaken(f"{what} was changed by another request at the same time; read it and try again")


async def prepare_and_commit(
    prepare: Callable[[], Awaitable[_Prepared]], commit: Callable[[_Prepared], Awaitable[_Written]]
) -> _Written:
    """Prepares again where another request came first. Raises Overtaken when that happened five times."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await commit(await prepare())
        except Overtaken:
            continue
    return await commit(await prepare())
