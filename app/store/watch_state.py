"""How current the rows are compared with the cluster: written by the informers, read by readiness checks and planning."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from app.store.database import Tx, first, run

VMS = "virtualmachines"
"""The watch of our VMs: the name of its row and of its lease."""

_HEARD = text("""
    INSERT INTO watch (name, holder, listed_at, heard_at)
    VALUES (:name, :holder, CASE WHEN :listed THEN now() END, now())
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, heard_at = now(), broken_since = NULL, broken_reason = NULL,
        listed_at = CASE WHEN :listed THEN now() ELSE watch.listed_at END
""")
_BROKEN = text("""
    INSERT INTO watch (name, holder, broken_since, broken_reason) VALUES (:name, :holder, now(), :reason)
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,
        broken_since = coalesce(watch.broken_since, now()), broken_reason = excluded.broken_reason
""")
_READ = text("""
    SELECT holder, extract(epoch FROM now() - listed_at)::float AS list_age_seconds,
        extract(epoch FROM now() - heard_at)::float AS age_seconds, broken_since, broken_reason FROM watch WHERE name = :name
""")


@dataclass(frozen=True, slots=True)
class WatchState:
    """`age_seconds`: since the watch was last known to work. `list_age_seconds`: since the last whole list. None: never."""

    holder: str
    age_seconds: float | None
    list_age_seconds: float | None
    broken_since: datetime | None
    broken_reason: str | None


async def write_heard(tx: Tx, name: str, *, holder: str, listed: bool) -> None:
    await run(tx, _HEARD, name=name, holder=holder, listed=listed)


async def write_broken(tx: Tx, name: str, *, holder: str, reason: str) -> None:
    await run(tx, _BROKEN, name=name, holder=holder, reason=reason)


async def get(tx: Tx, name: str) -> WatchState | None:
    row = await first(tx, _READ, name=name)
    return WatchState(**row) if row else None
