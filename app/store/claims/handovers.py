"""What claims hand over to the guests of their VMs: written with the claim, erased once the guest has it or the claim has ended.

The end of a claim erases it by a trigger (migration 0016), whatever version of the program ends the claim.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text

from app.domain.handovers import HandoverState
from app.store.database import Tx, any_row, first, mappings, run
from app.store.notices import Topic, notify

_INSERT = text("INSERT INTO handover (claim_id, sealed) VALUES (:claim_id, :sealed)")
# A VM that was made before its pool had a channel, or whose identity two guests use.
_HOPELESS = text("""
    UPDATE handover h SET state = 'failed', sealed = NULL, done_at = now(), reason = CASE WHEN g.vm_id IS NULL
        THEN 'the VM was made before its pool had guest.channel, so that its guest asks for nothing' ELSE g.conflict END
    FROM claim c LEFT JOIN guest g ON g.vm_id = c.vm_id
    WHERE h.claim_id = c.id AND c.id = ANY(CAST(:ids AS uuid[])) AND h.state = 'pending' AND (g.vm_id IS NULL OR g.conflict IS NOT NULL)
    RETURNING h.claim_id
""")
_WAKE = text("""
    SELECT pg_notify('emberpool', 'guest:' || c.vm_id) FROM handover h JOIN claim c ON c.id = h.claim_id
    WHERE c.id = ANY(CAST(:ids AS uuid[])) AND h.state = 'pending'
""")
_DUE = text("""
    SELECT c.vm_id FROM handover h JOIN claim c ON c.id = h.claim_id WHERE h.state = 'pending' AND c.state = 'bound' LIMIT :limit
""")
_TAKE = text("""
    UPDATE handover h SET state = 'taken', taken_at = coalesce(taken_at, now())
    FROM claim c WHERE h.claim_id = :claim_id AND h.state IN ('pending', 'taken') AND c.id = h.claim_id
    RETURNING h.taken_at = now() AS is_first, extract(epoch FROM now() - c.bound_at)::float AS seconds
""")
_SETTLE = text("""
    UPDATE handover SET state = :state, sealed = NULL, done_at = now(), exit_code = :exit_code, output = :output, reason = :reason
    WHERE claim_id = :claim_id AND state IN ('pending', 'taken') RETURNING claim_id
""")
_FAIL = text("""
    UPDATE handover SET state = 'failed', sealed = NULL, done_at = now(), reason = :reason
    WHERE claim_id = :claim_id AND state IN ('pending', 'taken') RETURNING claim_id
""")
_EXPLAIN = text("UPDATE handover SET reason = :reason WHERE claim_id = :claim_id AND state IN ('pending', 'taken')")
_OVER = text("SELECT 1 FROM handover WHERE claim_id = :claim_id AND state IN ('done', 'failed')")
_SETTLED = text(
    "SELECT claim_id FROM handover WHERE claim_id = ANY(CAST(:ids AS uuid[])) AND state IN ('done', 'failed')"
)


class Taken(NamedTuple):
    """A hand-over that a guest gets. `seconds`: since its claim was bound."""

    is_first: bool
    seconds: float


async def insert(tx: Tx, claim_id: UUID, sealed: bytes | None) -> None:
    """In the transaction that writes the claim."""
    await run(tx, _INSERT, claim_id=claim_id, sealed=sealed)


async def follow_bound(tx: Tx, claim_ids: Sequence[UUID]) -> None:
    """Those of the claims that hand something over were bound in this transaction: their guests are woken when it commits."""
    hopeless = [row.claim_id for row in await run(tx, _HOPELESS, ids=list(claim_ids))]
    await notify_over(tx, hopeless)
    await run(tx, _WAKE, ids=list(claim_ids))


async def notify_over(tx: Tx, claim_ids: Sequence[UUID]) -> None:
    """Wakes the requests that wait for the hooks of these claims."""
    for claim_id in claim_ids:
        await notify(tx, Topic.HANDED_OVER, claim_id)


async def due_guests(tx: Tx, *, limit: int) -> list[UUID]:
    """VMs whose guests have something to fetch."""
    return [row["vm_id"] for row in await mappings(tx, _DUE, limit=limit)]


async def take(tx: Tx, claim_id: UUID) -> Taken | None:
    """The guest gets it. None: there is nothing to get (any more)."""
    row = await first(tx, _TAKE, claim_id=claim_id)
    return Taken(row["is_first"], row["seconds"]) if row is not None else None


async def settle(tx: Tx, claim_id: UUID, *, exit_code: int, output: str, reason: str | None) -> bool:
    """The hooks have run; with a `reason` they have failed. False where it is over already, or there was nothing to hand over."""
    state = HandoverState.FAILED if reason else HandoverState.DONE
    return await any_row(
        tx, _SETTLE, claim_id=claim_id, state=str(state), exit_code=exit_code, output=output, reason=reason
    )


async def fail(tx: Tx, claim_id: UUID, *, reason: str) -> bool:
    """It will never be handed over. False where it is over already."""
    return await any_row(tx, _FAIL, claim_id=claim_id, reason=reason)


async def explain(tx: Tx, claim_id: UUID, *, reason: str) -> None:
    """What it waits for."""
    await run(tx, _EXPLAIN, claim_id=claim_id, reason=reason)


async def is_over(tx: Tx, claim_id: UUID) -> bool:
    """Whether it was handed over and erased, so that another VM could not get it."""
    return await any_row(tx, _OVER, claim_id=claim_id)


async def over(tx: Tx, claim_ids: Sequence[UUID]) -> list[UUID]:
    """Those of the claims whose hand-over is over."""
    return [row["claim_id"] for row in await mappings(tx, _SETTLED, ids=list(claim_ids))]
