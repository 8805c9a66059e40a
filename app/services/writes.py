"""What every write of a resource has in common: its client may name the version that it changes; it is prepared, then committed.

`prepare` checks the request against the cluster with no transaction open, and its result is a value. `commit` writes that value in
one transaction, after it has checked that the resource is still as it was when it was prepared.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from app.errors import Conflict, FieldProblem, PreconditionFailed

_ATTEMPTS: Final = 30
_PAUSE_SECONDS: Final = 0.02
_Prepared = TypeVar("_Prepared")
_Written = TypeVar("_Written")


class WriteOutcome(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class IfMatch:
    """What a client requires of the resource that it changes: that it exists, in one of these `versions`; None: in any.

    `check` belongs into `prepare`, because `commit` writes nothing if the version has changed since.
    """

    versions: frozenset[str] | None

    def check(self, what: str, version: str | None) -> None:
        """`what` names the resource and its versions, such as `the generation of pool 'web'`; `version` None: it does not exist.

        Raises PreconditionFailed.
        """
        if version is None:
            message = f"{what} is not there, because nothing has that name; leave If-Match out to create it"
        elif self.versions is not None and version not in self.versions:
            wanted = " or ".join(sorted(self.versions)) or "weak ETags alone, which never match"
            message = f"{what} is {version}, and If-Match names {wanted}; read it again, and decide again"
        else:
            return
        problems = [FieldProblem("If-Match", message)]
        raise PreconditionFailed(f"{message}. Nothing was changed", problems=problems, version=version)


class Overtaken(Conflict):
    """Another request changed the resource between prepare and commit; nothing was written. Preparing again may succeed."""


def overtaken(what: str) -> Overtaken:
    """`what` names the resource, such as `pool 'web'`."""
    return Overtaken(f"{what} was changed by another request at the same time; read it and try again")


async def prepare_and_commit(
    prepare: Callable[[], Awaitable[_Prepared]], commit: Callable[[_Prepared], Awaitable[_Written]]
) -> _Written:
    """Prepares again where another request came first, so that of many at once each is written. Raises Overtaken when that happened
    thirty times.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return await commit(await prepare())
        except Overtaken:
            await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS * attempt))  # noqa: S311 - the pause is not a secret
    return await commit(await prepare())
