"""Whether a refusal for lack of a right is to be believed.

An API server that has just started refuses everybody for about a second, until its authorizer knows the roles (Kubernetes 1.36).
So a refusal counts as an outage at first. A SelfSubjectAccessReview tells which it is: if it says that we have the right, the
authorizer was not ready. If it says that we do not, that is believed once it has been repeated for a while; if it cannot be
asked either, which is how an authorizer that is not ready answers, for a longer while.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.compute.kubevirt.errors import NoRight
from app.compute.kubevirt.kinds import Manifest
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable, EmberpoolError

_UNANSWERED = 6  # times as long
_OUTDATED_SECONDS = 600.0  # a refusal that was not repeated for so long says nothing of the next one
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Access:
    """What is asked of the cluster, in the words of its authorizer. Empty fields: all of them. A subresource is `pods/log`."""

    verb: str
    group: str
    resource: str
    namespace: str = ""

    def review(self) -> Manifest:
        """The SelfSubjectAccessReview that asks for it."""
        resource, _, part = self.resource.partition("/")
        attributes = {"verb": self.verb, "group": self.group, "resource": resource, "subresource": part}
        attributes["namespace"] = self.namespace
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }


@dataclass(slots=True)
class _Refused:
    since: float
    last: float


class AccessJudge:
    """`review` asks the cluster whether we have a right. `clock` is in seconds."""

    def __init__(
        self,
        review: Callable[[Access], Awaitable[bool]],
        *,
        believe_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._review = review
        self._believe_seconds = believe_seconds
        self._clock = clock
        self._refused: dict[Access, _Refused] = {}

    def granted(self, access: Access) -> None:
        """The cluster did it: refusals from before say nothing any more."""
        if self._refused:
            self._refused.pop(access, None)

    async def judge(self, access: Access, error: NoRight) -> EmberpoolError:
        """ClusterForbidden if the refusal is believed, otherwise ClusterUnavailable."""
        try:
            allowed: bool | None = await self._review(access)
        except (ClusterError, ClusterUnavailable):
            allowed = None
        if allowed:
            self._refused.pop(access, None)
            told = "It says itself that the service has the right: its API server may just have started."
            return ClusterUnavailable(f"{error.detail}. {told}", retry_after=_RETRY_SECONDS)
        patience = self._believe_seconds * (1 if allowed is False else _UNANSWERED)
        if (lasted := self._lasted(access)) >= patience:
            return ClusterForbidden(error.detail, retry_after=error.retry_after)
        told = (
            f"An API server that has just started says that too; it is believed once it has lasted for {patience:g} s."
        )
        return ClusterUnavailable(f"{error.detail}. {told}", retry_after=min(_RETRY_SECONDS, patience - lasted))

    def _lasted(self, access: Access) -> float:
        """For how many seconds it has been refused."""
        now = self._clock()
        refused = self._refused.get(access)
        if refused is None or now - refused.last > _OUTDATED_SECONDS:
            refused = self._refused[access] = _Refused(now, now)
        refused.last = now
        return now - refused.since
