"""Deletes history that is too old: events, claims and VMs that have ended, in batches that follow one another.

Each batch begins where the one before ended. Otherwise it would walk the dead entries that earlier batches left at the beginning of the
index, for as long as an old transaction keeps them there. Rows are deleted by their place in the table: a join to the deleted table
may be planned to read it whole.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.store.database import Tx, run
from app.store.events import Cursor

_LOCK = 0x656D6268
# What a crash undoes is deleted again later, so a commit need not wait for the disk, which the claims' commits wait for too.
_BEGIN = text(
    f"SELECT pg_try_advisory_xact_lock({_LOCK}) AS mine, set_config('synchronous_commit', 'off', true), set_config('enable_seqscan', 'off', true)"
)
_ENDED = """
    WITH gone AS (
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table} WHERE ended_at >= :since AND ended_at < now() - make_interval(secs => :seconds)
            ORDER BY ended_at LIMIT :limit))
        RETURNING ended_at, {kept} AS kept)
    SELECT count(*) AS n, max(ended_at) AS position, array_agg(kept) FILTER (WHERE kept IS NOT NULL) AS kept FROM gone
"""
# Not EXISTS: that may be planned to read all hand-overs for each batch.
_WITH_MORE = "CASE WHEN labels <> '{}' THEN id ELSE (SELECT h.claim_id FROM handover h WHERE h.claim_id = claim.id) END"
_WITH_GUEST = "(SELECT g.vm_id FROM guest g WHERE g.vm_id = vm.id)"
_CLAIMS = text(_ENDED.format(table="claim", kept=_WITH_MORE))
_VMS = text(_ENDED.format(table="vm", kept=_WITH_GUEST))
_LABELS = text("DELETE FROM claim_label WHERE claim_id = ANY(CAST(:ids AS uuid[]))")
_HANDOVERS = text("DELETE FROM handover WHERE claim_id = ANY(CAST(:ids AS uuid[]))")
_GUESTS = text("DELETE FROM guest WHERE vm_id = ANY(CAST(:ids AS uuid[]))")
# The order of transaction ids is about the order of time: the first one that is not too old ends the batch.
_EVENTS = text("""
    WITH gone AS (
        DELETE FROM event WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM (
                SELECT ctid, at FROM event WHERE (xid, id) > (CAST(CAST(:xid AS text) AS xid8), :id) ORDER BY xid, id LIMIT :limit) oldest
            WHERE at < now() - make_interval(secs => :seconds)))
        RETURNING xid, id, pool_id, type),
    unlisted AS (
        DELETE FROM bound_event WHERE ctid = ANY(ARRAY(
            SELECT b.ctid FROM gone g CROSS JOIN LATERAL (
                SELECT ctid FROM bound_event WHERE pool_id = g.pool_id AND xid = g.xid AND id = g.id LIMIT 1) b
            WHERE g.type = 'claim.bound')))
    SELECT count(*) OVER () AS n, xid::text AS xid, id FROM gone ORDER BY gone.xid DESC, gone.id DESC LIMIT 1
""")
_TAKES = text("""
    DELETE FROM snapshot_take WHERE ctid = ANY(ARRAY(
        SELECT t.ctid FROM snapshot s CROSS JOIN LATERAL (
            SELECT ctid, ended_at FROM snapshot_take WHERE snapshot_id = s.id ORDER BY number DESC OFFSET :kept) t
        WHERE t.ended_at < now() - make_interval(secs => :seconds)))
""")
_BEGINNING = datetime.fromisoformat("2000-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows a batch deleted, and where the next one begins."""

    count: int
    position: Any = None


async def begin(tx: Tx) -> bool:
    """For the first thing of a transaction that deletes history. False if another process is deleting some at this moment."""
    return bool((await run(tx, _BEGIN)).one().mine)


async def prune_claims(tx: Tx, *, seconds: float, limit: int, position: datetime | None = None) -> Pruned:
    """Claims that ended more than `seconds` ago, with their idempotency keys, labels and hand-overs, those that ended first."""
    row = (await run(tx, _CLAIMS, seconds=seconds, limit=limit, since=position or _BEGINNING)).one()
    if row.kept:
        with_more: list[UUID] = row.kept
        await run(tx, _LABELS, ids=with_more)
        await run(tx, _HANDOVERS, ids=with_more)
    return Pruned(row.n, row.position or position)


async def prune_vms(tx: Tx, *, seconds: float, limit: int, position: datetime | None = None) -> Pruned:
    """VMs that ended more than `seconds` ago, and with them the times that were measured, those that ended first."""
    row = (await run(tx, _VMS, seconds=seconds, limit=limit, since=position or _BEGINNING)).one()
    if row.kept:
        with_guest: list[UUID] = row.kept
        await run(tx, _GUESTS, ids=with_guest)
    return Pruned(row.n, row.position or position)


async def prune_events(tx: Tx, *, seconds: float, limit: int, position: Cursor | None = None) -> Pruned:
    """Events older than `seconds`, the oldest first."""
    start = position or Cursor()
    row = (await run(tx, _EVENTS, seconds=seconds, limit=limit, xid=str(start.xid), id=start.id)).first()
    return Pruned(row.n, Cursor(int(row.xid), row.id)) if row else Pruned(0, position)


async def prune_takes(tx: Tx, *, seconds: float, kept: int) -> int:
    """Takes of snapshots that ended more than `seconds` ago, except for the last `kept` of each snapshot."""
    return (await run(tx, _TAKES, seconds=seconds, kept=kept)).rowcount
