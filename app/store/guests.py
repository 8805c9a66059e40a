"""Guests: the identities of their VMs, what they said of themselves, and what the next answer to one depends on.

A guest is found by the hash of its token. Rows are locked in the order of `store.claims.rows`, with the guest after the VM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.domain.states import ClaimState, VmState
from app.store.database import Tx, any_row, first, mappings, run

_KEPT_BOOTS = 8

_KNOW = text("""
    INSERT INTO guest (vm_id, token_hash, identity_uid, release_seconds) VALUES (:vm_id, :hash, :uid, :release_seconds)
    ON CONFLICT (vm_id) DO UPDATE SET token_hash = EXCLUDED.token_hash, identity_uid = EXCLUDED.identity_uid
""")
_GONE = text("UPDATE guest SET identity_gone = true WHERE vm_id = :vm_id AND NOT identity_gone")
_LEFT_OVER = text("""
    SELECT v.id AS vm_id, v.name, g.identity_uid AS uid FROM guest g JOIN vm v ON v.id = g.vm_id
    WHERE NOT g.identity_gone AND v.ended_at IS NOT NULL ORDER BY v.id LIMIT :limit
""")
_FACTS = """
    SELECT g.vm_id, v.name AS vm_name, v.state AS vm_state, v.pool_id, p.name AS pool, p.spec->>'warm_when' AS warm_when,
        g.boot_id, g.former_boots, g.hello_at, g.conflict, g.claim_id AS told_id, g.settled_id,
        c.id AS claim_id, c.state AS claim_state, c.labels, c.lease_expires_at, h.state AS handover, h.sealed, now() AS now,
        extract(epoch FROM v.due_at - now())::float AS removal_seconds
    FROM guest g JOIN vm v ON v.id = g.vm_id JOIN pool p ON p.id = v.pool_id
    LEFT JOIN claim c ON c.id = v.claim_id AND c.vm_id = v.id
    LEFT JOIN handover h ON h.claim_id = c.id
    WHERE g.token_hash = :hash
"""
_BY_TOKEN = text(_FACTS)
_LOCKED = text(f"{_FACTS} FOR UPDATE OF g")
_HELLO = text(f"""
    UPDATE guest SET boot_id = :boot_id, hello_at = now(), former_boots = CASE WHEN boot_id IS NULL OR boot_id = :boot_id
        THEN former_boots ELSE (array_prepend(boot_id, former_boots))[1:{_KEPT_BOOTS}] END
    WHERE vm_id = :vm_id
""")
_CONFLICT = text("UPDATE guest SET conflict = :conflict WHERE vm_id = :vm_id AND conflict IS NULL RETURNING vm_id")
_TELL = text("UPDATE guest SET claim_id = :claim_id WHERE vm_id = :vm_id")
_SETTLE = text("UPDATE guest SET settled_id = :claim_id WHERE vm_id = :vm_id")
_NOTE_REFUSAL = text("""
    UPDATE guest SET refused_at = now() WHERE token_hash = :hash AND (refused_at IS NULL OR refused_at < now() - interval '1 minute')
    RETURNING vm_id
""")
_REMOVE_NOW = text("""
    UPDATE vm SET due_at = now() WHERE id = :vm_id AND state = 'releasing' AND due_at > now() AND lease_token IS NULL RETURNING id
""")
_WARM = text("""
    SELECT v.id FROM vm v JOIN pool p ON p.id = v.pool_id
    WHERE v.id = :vm_id AND v.state = 'booting' AND p.spec->>'warm_when' = 'hello' AND v.vmi_uid IS NOT NULL AND v.addresses <> '{}'
    FOR UPDATE OF v
""")
_WAKE = text("SELECT pg_notify('emberpool', 'guest:' || vm_id) FROM guest WHERE vm_id = ANY(CAST(:ids AS uuid[]))")


@dataclass(frozen=True, slots=True)
class LeftIdentity:
    """An identity in the cluster whose VM has ended. `uid`: None if the cluster never answered."""

    vm_id: UUID
    name: str
    uid: str | None


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """All that an answer to a guest depends on. `told_id` is the claim that it was last told of, `settled_id` the one whose hand-over
    it has acknowledged. `claim_id` and what follows are of the claim that its VM has, or had last. `removal_seconds`: until its
    VM is removed, if it is being released.
    """

    vm_id: UUID
    vm_name: str
    vm_state: VmState
    pool_id: UUID
    pool: str
    warm_when: str
    boot_id: str | None
    former_boots: tuple[str, ...]
    hello_at: datetime | None
    conflict: str | None
    told_id: UUID | None
    settled_id: UUID | None
    claim_id: UUID | None
    claim_state: ClaimState | None
    labels: dict[str, str]
    lease_expires_at: datetime | None
    handover: str | None
    sealed: bytes | None
    now: datetime
    removal_seconds: float


async def know(tx: Tx, vm_id: UUID, *, token_hash: bytes, uid: str | None, release_seconds: int) -> None:
    """The VM's identity has a token with this hash. `uid`: of its object; None before the cluster was asked for it."""
    await run(tx, _KNOW, vm_id=vm_id, hash=token_hash, uid=uid, release_seconds=release_seconds)


async def note_gone(tx: Tx, vm_id: UUID) -> None:
    """The cluster no longer has the VM's identity."""
    await run(tx, _GONE, vm_id=vm_id)


async def left_over(tx: Tx, *, limit: int) -> list[LeftIdentity]:
    """Identities whose VM has ended otherwise than by its removal."""
    return [LeftIdentity(**row) for row in await mappings(tx, _LEFT_OVER, limit=limit)]


async def by_token(tx: Tx, token_hash: bytes, *, lock: bool = False) -> GuestFacts | None:
    """With `lock` nobody else changes the guest's row until `tx` ends."""
    row = await first(tx, _LOCKED if lock else _BY_TOKEN, hash=token_hash)
    return _facts(dict(row)) if row is not None else None


async def greet(tx: Tx, vm_id: UUID, boot_id: str) -> None:
    """The guest with this boot id has said hello."""
    await run(tx, _HELLO, vm_id=vm_id, boot_id=boot_id)


async def note_conflict(tx: Tx, vm_id: UUID, conflict: str) -> bool:
    """False if there was one already."""
    return await any_row(tx, _CONFLICT, vm_id=vm_id, conflict=conflict)


async def note_told(tx: Tx, vm_id: UUID, claim_id: UUID) -> None:
    await run(tx, _TELL, vm_id=vm_id, claim_id=claim_id)


async def note_settled(tx: Tx, vm_id: UUID, claim_id: UUID) -> None:
    await run(tx, _SETTLE, vm_id=vm_id, claim_id=claim_id)


async def note_refusal(tx: Tx, token_hash: bytes) -> UUID | None:
    """The VM of a token that was refused, once a minute at most; None: there is none, or one was noted just before."""
    return (await run(tx, _NOTE_REFUSAL, hash=token_hash)).scalar()


async def remove_now(tx: Tx, vm_id: UUID) -> bool:
    """A VM that was kept for its guest is removed at once. False if it was not kept."""
    return await any_row(tx, _REMOVE_NOW, vm_id=vm_id)


async def is_warm(tx: Tx, vm_id: UUID) -> bool:
    """Whether a hello is all that the VM lacked; its row is locked until `tx` ends."""
    return await any_row(tx, _WARM, vm_id=vm_id)


async def wake(tx: Tx, vm_ids: Sequence[UUID]) -> None:
    """Guests of these VMs that wait are answered anew once `tx` has committed. VMs without a channel cost nothing more."""
    if vm_ids:
        await run(tx, _WAKE, ids=list(vm_ids))


def _facts(row: dict[str, Any]) -> GuestFacts:
    state = row["claim_state"]
    return GuestFacts(
        **{
            **row,
            "vm_state": VmState(row["vm_state"]),
            "former_boots": tuple(row["former_boots"]),
            "claim_state": ClaimState(state) if state is not None else None,
            "labels": row["labels"] or {},
        }
    )
