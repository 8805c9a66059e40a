"""Pages of claims, the newest first, for any combination of filters. What a page costs depends on its length, not on the history.

Each combination has its own statement, which walks an index in the order of the page: ended claims by state, pool and shape, and by
label in `claim_label`. Claims that have not ended are as few as the VMs and the places in the queues: they are read whole where no
index has them in order, because one more index would cost every claim of a warm VM.
"""

from functools import cache
from uuid import UUID

from sqlalchemy import TextClause, text

from app.domain.states import CLAIM_ENDED, ClaimState
from app.store.database import Tx, read_page
from app.store.pools.names import ids_named
from app.store.rows import CLAIM_COLUMNS, CLAIM_TABLES, ClaimRow, read_claim
from app.store.walks import FIRST, for_each, newest

_OPEN = """
    open AS MATERIALIZED (
        SELECT id, pool_id, state, shape, labels FROM claim WHERE state = 'bound'
        UNION ALL
        SELECT c.id, c.pool_id, c.state, c.shape, c.labels FROM claim_queue q JOIN claim c ON c.id = q.claim_id)
"""
_STATES = "unnest(CAST(:states AS text[])) AS s(state)"
_POOLS = "unnest(CAST(:pools AS uuid[])) AS p(id)"


async def page(
    tx: Tx,
    *,
    after: UUID | None,
    limit: int,
    pool: str | None = None,
    state: ClaimState | None = None,
    label: tuple[str, str] | None = None,
    shape: str | None = None,
) -> list[ClaimRow]:
    """Up to `limit` claims after the claim `after`, which need not exist. `label`: name and value."""
    given = {"pool": pool is not None, "shape": shape is not None, "label": label is not None}
    name, value = label or (None, None)
    return await read_page(
        tx,
        statement(state=state, **given),
        read_claim,
        pools=await ids_named(tx, pool) if pool is not None else None,
        states=_states(state, open_too=shape is not None),
        shape=shape,
        label=f"{name}={value}",
        name=name,
        value=value,
        after=after or FIRST,
        limit=limit,
    )


@cache
def statement(*, pool: bool, state: ClaimState | None, shape: bool, label: bool) -> TextClause:
    """The statement for these filters."""
    branches = []
    if not (state or shape or label):
        branches.append(_walk("claim", pool=pool))
    elif shape and not label:
        branches.append(_walk("claim", pool=pool, state=True, shape=True))
    else:
        if state is None or state in CLAIM_ENDED:
            table, where = ("claim_label", "true") if label else ("claim", "ended_at IS NOT NULL")
            branches.append(_walk(table, pool=pool, state=True, shape=shape, label=label, where=where))
        if state is None or state not in CLAIM_ENDED:
            branches.append(_scan(pool=pool, state=state, shape=shape, label=label))
    found = " UNION ALL ".join(f"({branch})" for branch in branches)
    before = f"{_OPEN}," if " FROM open " in found else ""
    return text(f"""
        WITH {before} page AS MATERIALIZED (SELECT id FROM ({found}) found ORDER BY id DESC LIMIT :limit)
        SELECT {CLAIM_COLUMNS} FROM page JOIN {CLAIM_TABLES.replace("claim c", "claim c ON c.id = page.id", 1)}
        ORDER BY c.id DESC
    """)


def _walk(
    table: str, *, pool: bool, state: bool = False, shape: bool = False, label: bool = False, where: str = "true"
) -> str:
    """The newest claims in each state and of each pool that is asked for."""
    columns = {
        "label": (label, ":label"),
        "pool_id": (pool, "p.id"),
        "shape": (shape, ":shape"),
        "state": (state, "s.state"),
    }
    prefix = [(column, value) for column, (wanted, value) in columns.items() if wanted]
    sets = [each for each, wanted in ((_STATES, state), (_POOLS, pool)) if wanted]
    where = f"{where} AND shape IS NOT NULL" if shape else where
    return for_each(sets, newest(table, prefix, "claim_id" if label else "id", where=where))


def _scan(*, pool: bool, state: ClaimState | None, shape: bool, label: bool) -> str:
    """The newest of the claims that have not ended."""
    conditions = [
        *([f"state = '{state}'"] if state is not None else []),
        *(["pool_id = ANY(CAST(:pools AS uuid[]))"] if pool else []),
        *(["shape = :shape"] if shape else []),
        *(["labels->>CAST(:name AS text) = :value"] if label else []),
    ]
    return newest("open", (), where=" AND ".join(conditions) or "true")


def _states(state: ClaimState | None, *, open_too: bool) -> list[str]:
    if state is not None:
        return [str(state)]
    return sorted(str(each) for each in ClaimState if open_too or each in CLAIM_ENDED)
