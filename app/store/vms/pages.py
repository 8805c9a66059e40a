"""Pages of VMs, the newest first, for any combination of filters. What a page costs depends on its length, not on the history.

VMs that have ended are found by `lost`, which says in which of the two ways. All others are as few as the cluster can hold.
"""

from functools import cache
from uuid import UUID

from sqlalchemy import TextClause, text

from app.domain.states import VmState
from app.store.database import Tx, read_page
from app.store.pools.names import ids_named
from app.store.rows import VM_COLUMNS, VmRow, read_vm
from app.store.walks import FIRST, for_each, newest

_ENDED = {VmState.DELETED: "false", VmState.LOST: "true"}
_POOLS = "unnest(CAST(:pools AS uuid[])) AS p(id)"


async def page(
    tx: Tx, *, after: UUID | None, limit: int, pool: str | None, state: VmState | None, ended: bool
) -> list[VmRow]:
    """Up to `limit` VMs after the VM `after`, which need not exist. Without `ended` only VMs that still exist."""
    pools = await ids_named(tx, pool) if pool is not None else None
    query = statement(pool=pool is not None, state=state, ended=ended)
    return await read_page(
        tx, query, read_vm, pools=pools, state=state and str(state), after=after or FIRST, limit=limit
    )


@cache
def statement(*, pool: bool, state: VmState | None, ended: bool) -> TextClause:
    """The statement for these filters."""
    if ended and state is None and not pool:
        walks = [newest("vm", ())]
    else:
        of_pool = [("pool_id", "p.id")] if pool else []
        walks = [
            newest("vm", [*of_pool, ("lost", lost)], where="ended_at IS NOT NULL") for lost in _lost(state, ended=ended)
        ]
        if state not in _ENDED:
            live = "ended_at IS NULL" if state is None else "ended_at IS NULL AND state = :state"
            walks.append(newest("vm", of_pool, where=live))
    found = " UNION ALL ".join(f"({for_each([_POOLS] if pool else [], walk)})" for walk in walks)
    return text(f"""
        WITH page AS MATERIALIZED (SELECT id FROM ({found}) found ORDER BY id DESC LIMIT :limit)
        SELECT {VM_COLUMNS} FROM page JOIN vm v ON v.id = page.id JOIN pool p ON p.id = v.pool_id ORDER BY v.id DESC
    """)


def _lost(state: VmState | None, *, ended: bool) -> list[str]:
    if state is None:
        return list(_ENDED.values()) if ended else []
    return [_ENDED[state]] if ended and state in _ENDED else []
