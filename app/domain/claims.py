"""What a client asks for, and what a warm claim gives: the types that the API, the services and the store share.

A claim on the warm path takes these forms: the request's body, a `ClaimRequest`, a `NewClaim`, the `WarmClaim` that the
database answers with, and the bytes of the response.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from app.domain.guests import GuestSpec
from app.domain.handovers import HandoverRequest
from app.domain.observation import WarmWhen
from app.domain.paths import StartPath
from app.domain.placement import Placement, Prefer
from app.domain.pools import StartFrom


class ClaimRequest(NamedTuple):
    """A request for a VM of one pool. It never changes, and one value may serve many requests with the same body.

    `pool` is empty where the client describes its VM and the pool is not chosen yet. `lease_seconds`: None stands for the
    pool's default. `request_hash` is the hash of the whole body: a key that comes again must come with the same one.
    """

    pool: str
    wait_seconds: float
    lease_seconds: int | None
    labels: dict[str, str]
    key: str | None
    request_hash: str
    prefer: Prefer | None = None
    handover: HandoverRequest | None = None


class DescribedClaimRequest(NamedTuple):
    """A request that describes its VM. `paths` are those that may serve it; `start_from` leaves one of them, and a pool's.

    `lease_seconds`: None stands for the default, or for the longest that there is with `longest_lease`. `namespace`: where the
    client believes that its VM will be; None if it does not say.
    """

    vm: dict[str, Any]
    paths: tuple[StartPath, ...] = tuple(StartPath)
    warm_when: WarmWhen = WarmWhen.AGENT
    start_from: StartFrom | None = None
    placement: Placement | None = None
    prefer: Prefer | None = None
    deadline_seconds: float | None = None
    remember: bool = False
    wait_seconds: float = 0.0
    lease_seconds: int | None = None
    labels: Mapping[str, str] = MappingProxyType({})
    key: str | None = None
    request_hash: str = ""
    allow_unschedulable: bool = False
    longest_lease: bool = False
    namespace: str | None = None
    guest: GuestSpec | None = None
    handover: HandoverRequest | None = None

    def in_pool(self, pool: str = "", max_lease_seconds: int | None = None) -> ClaimRequest:
        """The same request, addressed to a pool that gives leases of up to `max_lease_seconds`."""
        lease = max_lease_seconds if self.longest_lease else self.lease_seconds
        return ClaimRequest(
            *(pool, self.wait_seconds, lease, dict(self.labels), self.key, self.request_hash),
            prefer=self.prefer,
            handover=self.handover,
        )


class NewClaim(NamedTuple):
    """A claim that is about to be made for a request, under an id of its own and with its lease in seconds."""

    id: UUID
    lease_seconds: int
    request: ClaimRequest


class WarmClaim(NamedTuple):
    """A claim that got a warm VM: all that its answer needs. `shape` and `choice` belong to a claim that describes its VM."""

    claim: NewClaim
    vm_id: UUID
    vm_name: str
    node: str | None
    addresses: Sequence[str]
    ready_at: datetime
    boot_seconds: float | None
    created_at: datetime
    shape: str | None = None
    choice: dict[str, Any] | None = None

    @property
    def lease_expires_at(self) -> datetime:
        return self.created_at + timedelta(seconds=self.claim.lease_seconds)


class KnownClaim(NamedTuple):
    """The idempotency key belongs to an earlier claim, which is the answer if its request had the same body."""

    claim_id: UUID


Outcome = WarmClaim | KnownClaim | None
"""What the warm path found for one claim. None: no ready VM."""
