"""What puts creates off: the cluster is away, hangs, refuses for now, or forbids them.

One row for each pool whose creates are put off, and one for all pools together, which exists while no create of any pool
succeeds. A success ends both. A row that was not written again for a minute after its time tells nothing any more: nobody has
asked the cluster since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from typing_extensions import override

from app.store.database import Tx, run

_ALL = UUID(int=0)
_SETTLED_SECONDS = 3.0
"""How long no create of any pool must have succeeded before that is told. A single error says nothing of the others."""
_MARK = "put off: "
_CURRENT = "until > now() - interval '1 minute'"

# The longer it lasts, the longer is the pause between two attempts.
_WRITE = text(f"""
    INSERT INTO put_off AS o (pool_id, reason, until)
    SELECT id, :reason, now() + make_interval(secs => :least) FROM unnest(CAST(:ids AS uuid[])) AS n(id) ORDER BY id
    ON CONFLICT (pool_id) DO UPDATE SET reason = excluded.reason,
        since = CASE WHEN o.{_CURRENT} THEN o.since ELSE now() END,
        until = now() + CASE WHEN o.{_CURRENT}
            THEN greatest(make_interval(secs => :least), least((now() - o.since) / 2, make_interval(secs => :most)))
            ELSE make_interval(secs => :least) END
""")
_END = text("""
    DELETE FROM put_off WHERE pool_id = ANY(ARRAY(
        SELECT pool_id FROM put_off WHERE pool_id = ANY(CAST(:ids AS uuid[])) ORDER BY pool_id FOR UPDATE))
    RETURNING pool_id, since < now() - make_interval(secs => :settled) AS settled
""")
_END_ALL = text("""
    DELETE FROM put_off WHERE pool_id = ANY(ARRAY(SELECT pool_id FROM put_off ORDER BY pool_id FOR UPDATE))
    RETURNING pool_id
""")
_CALM = text(f"""
    UPDATE vm SET health = NULL WHERE id = ANY(ARRAY(
        SELECT id FROM vm WHERE work = 'create' AND pool_id = ANY(CAST(:ids AS uuid[])) AND state = 'planned'
          AND starts_with(health, '{_MARK}') ORDER BY id FOR UPDATE SKIP LOCKED))
""")
_READ = text(f"""
    SELECT pool_id, reason, since FROM put_off WHERE {_CURRENT}
      AND CASE pool_id WHEN :all THEN since < now() - make_interval(secs => :settled) ELSE pool_id = ANY(CAST(:ids AS uuid[])) END
""")
_PRUNE = text("DELETE FROM put_off WHERE until < now() - interval '1 hour'")


@dataclass(frozen=True, slots=True)
class PutOff:
    """Why creates are put off, and since when. Its text is a sentence for people."""

    reason: str
    since: datetime

    @override
    def __str__(self) -> str:
        return f"no VM can be created since {self.since.isoformat(timespec='seconds')}: {self.reason}"


def health_of(reason: str) -> str:
    """What a VM whose create was put off suffers from."""
    return f"{_MARK}{reason}"


def is_health(text: str) -> bool:
    """Whether it is what `health_of` says. Its pool tells the same."""
    return text.startswith(_MARK)


async def write(tx: Tx, pool_id: UUID, *, reason: str, least_seconds: float, most_seconds: float) -> None:
    """A create of the pool was put off. No create of it is begun for `least_seconds`, growing to `most_seconds` while it lasts."""
    await run(tx, _WRITE, ids=[_ALL, pool_id], reason=reason, least=least_seconds, most=most_seconds)


async def end(tx: Tx, pool_id: UUID) -> tuple[UUID, ...] | None:
    """A create of the pool succeeded. Returns the pools whose creates were put off and need not be any more; None: nothing was.

    If none of any pool had succeeded for a while, all pools may try again at once.
    """
    ended = {row.pool_id: row.settled for row in await run(tx, _END, ids=[_ALL, pool_id], settled=_SETTLED_SECONDS)}
    if not ended:
        return None
    pools = set(ended)
    if ended.get(_ALL):
        pools |= {row.pool_id for row in await run(tx, _END_ALL)}
    pools.discard(_ALL)
    await run(tx, _CALM, ids=sorted(pools))
    return tuple(sorted(pools))


async def of_pools(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, PutOff]:
    """What puts the creates of these pools off, their own or those of all pools."""
    found = await _read(tx, ids)
    every = found.pop(_ALL, None)
    return found if every is None else {pool_id: found.get(pool_id, every) for pool_id in ids}


async def of_all(tx: Tx) -> PutOff | None:
    """Why no create of any pool has succeeded for a while; None: some have, or none was tried."""
    return (await _read(tx, [])).get(_ALL)


async def prune(tx: Tx) -> None:
    """Deletes rows that tell nothing any more."""
    await run(tx, _PRUNE)


async def _read(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, PutOff]:
    rows = await run(tx, _READ, ids=list(ids), all=_ALL, settled=_SETTLED_SECONDS)
    return {row.pool_id: PutOff(row.reason, row.since) for row in rows}
