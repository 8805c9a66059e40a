"""Changes of an existing claim: renewing its lease and releasing it. And the refusals that several services share."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog

from app.domain.claims import NewClaim
from app.domain.states import CLAIM_ENDED
from app.errors import ClaimEnded, ClaimNotFound, Conflict, DatabaseLost, FieldProblem, LeaseTooLong, OutcomeUnknown
from app.lifecycle.claims import release
from app.store import guests
from app.store.claims import rows as claims
from app.store.database import Database, Tx
from app.store.pools import rows as pool_rows
from app.store.rows import ClaimRow

log = structlog.get_logger(__name__)


async def renew_claim(db: Database, claim_id: UUID, lease_seconds: int | None) -> ClaimRow:
    """Sets the lease to `lease_seconds` from now (None: the claim's own `lease_seconds`).

    Raises ClaimNotFound, ClaimEnded, Conflict (it has no VM yet), LeaseTooLong.
    """
    async with db.begin() as tx:
        claim = await _existing(tx, claim_id)
        pool = await pool_rows.get_by_id(tx, claim.pool_id)
        seconds = lease_seconds if lease_seconds is not None else claim.lease_seconds
        if pool is not None:
            refuse_long_lease(seconds, pool.spec.max_lease_seconds, pool.name)
        if not await claims.renew(tx, claim_id, seconds=seconds):
            raise _not_bound(claim)
        if pool is not None and pool.spec.has_channel and claim.vm_id is not None:
            await guests.wake(tx, [claim.vm_id])
        return await _existing(tx, claim_id)


async def release_claim(db: Database, claim_id: UUID) -> ClaimRow:
    """Ends a claim and destroys its VM; a claim that has ended is not changed. Raises ClaimNotFound."""
    async with db.begin() as tx:
        ended = await release(tx, claim_id, reason="released by its client")
        claim = await _existing(tx, claim_id)
    if ended:
        log.info("claim.released", claim=str(claim_id), vm=claim.vm_name)
    return claim


@contextmanager
def tell_of_claim(claim: NewClaim) -> Iterator[None]:
    """Raises, where it is not known whether the claim was committed, OutcomeUnknown with how to find out."""
    try:
        yield
    except (DatabaseLost, OutcomeUnknown) as error:
        raise OutcomeUnknown.of_claim(claim.id, keyed=claim.request.key is not None) from error


def no_such_claim(claim_id: UUID) -> ClaimNotFound:
    return ClaimNotFound(f"no claim has the id {claim_id}; ended claims are deleted after some days")


def refuse_long_lease(seconds: int, limit: int, pool: str) -> None:
    """Raises LeaseTooLong where the lease is above the pool's limit."""
    if seconds > limit:
        message = f"pool {pool!r} gives leases of up to {limit} s; ask for less and renew, or raise max_lease_seconds"
        raise LeaseTooLong(
            f"a lease of {seconds} s is too long: {message}", problems=[FieldProblem("lease_seconds", message)]
        )


async def _existing(tx: Tx, claim_id: UUID) -> ClaimRow:
    claim = await claims.get(tx, claim_id)
    if claim is None:
        raise no_such_claim(claim_id)
    return claim


def _not_bound(claim: ClaimRow) -> Conflict:
    if claim.state in CLAIM_ENDED:
        return ClaimEnded(f"claim {claim.id} is {claim.state} ({claim.reason}); its VM is gone: claim another one")
    return Conflict(f"claim {claim.id} has no VM yet, so there is no lease to renew; wait until it is bound")
