"""The claim of warm VMs: one statement for many requests, on the driver's own prepared statement.

Constant time, whatever the size of the pool or its history: a claim begins at a hint, the first sequence number that this
process has not seen claimed, and so never walks the dead entries that an old snapshot keeps at the head of the index. A
hint is only a hint. Sequences commit out of order and other processes roll back, so rows can lie below it: `lower_hints`
puts it right in the background, and a caller asks again from the true start before it says "none".

One statement moves everything: the claim, the queue, the VM's row and the history. Nothing in it notifies, and no row of
the pool's is written: either would make claims wait for each other.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from app.store.database import busy, driver_dsn, is_away, is_busy, unavailable
from app.store.rows import CLAIM_COLUMNS, CLAIM_TABLES, ClaimRow, read_claim

_CONNECT_SECONDS = 5.0
_STATEMENT_SECONDS = 15.0
# One generic plan for good. Made on a young database it would read the claims whole, since they are few, and go on doing so
# when they are many (measured: 40 to 500 microseconds a claim after 6,000 claims); every table here has its index.
_SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    "application_name": "emberpool-claims",
}

# $1 pool, $2 hint, then one array entry a request: $3 claim ids, $4 lease seconds, $5 labels, $6 idempotency keys, $7 request
# hashes. $8: the requests are one batch, which a key of it that is known makes an old one: nothing is added to it. $9: all
# of them or none. No join to an updated or deleted table: under a generic plan Postgres reads such a table whole. Keys are inserted
# in one order, so that two processes with the same keys do not wait for each other in a circle.
_CLAIM = """
WITH req AS MATERIALIZED (
    SELECT r.id, r.key, r.hash, r.lease, r.labels, r.ord, c.id AS known
    FROM unnest($3::uuid[], $6::text[], $7::text[], $4::int[], $5::text[])
        WITH ORDINALITY AS r(id, key, hash, lease, labels, ord)
    LEFT JOIN LATERAL (SELECT id FROM claim WHERE idem_key = r.key LIMIT 1) c ON true),
fresh AS MATERIALIZED (
    SELECT id, key, hash, lease, labels, ord, row_number() OVER (ORDER BY ord) AS n FROM req
    WHERE known IS NULL AND NOT ($8::bool AND EXISTS (SELECT 1 FROM req WHERE known IS NOT NULL))),
locked AS MATERIALIZED (
    SELECT ctid AS tid, seq, vm_id, name, node, addresses, ready_at, boot_seconds FROM ready_slot
    WHERE pool_id = $1 AND seq >= $2 AND (SELECT deleting_at IS NULL FROM pool WHERE id = $1)
    ORDER BY seq LIMIT (SELECT count(*) FROM fresh) FOR UPDATE SKIP LOCKED),
picked AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY seq) AS n FROM locked
    WHERE NOT $9::bool OR (SELECT count(*) FROM locked) = (SELECT count(*) FROM fresh)),
made AS (
    INSERT INTO claim (id, pool_id, vm_id, state, idem_key, request_hash, labels, path, lease_seconds, lease_expires_at, bound_at)
    SELECT f.id, $1, p.vm_id, 'bound', f.key, f.hash, f.labels::jsonb, 'pool', f.lease, now() + make_interval(secs => f.lease), now()
    FROM picked p JOIN fresh f USING (n) ORDER BY f.key, n
    ON CONFLICT (idem_key) WHERE idem_key IS NOT NULL DO NOTHING
    RETURNING id, vm_id),
unqueued AS (DELETE FROM ready_slot WHERE ctid = ANY(ARRAY(SELECT tid FROM picked JOIN made USING (vm_id)))),
taken AS (
    UPDATE vm SET state = 'claimed', state_since = now(), claimed_at = now(),
        claim_id = (SELECT made.id FROM made WHERE made.vm_id = vm.id)
    WHERE id = ANY(ARRAY(SELECT vm_id FROM made))),
noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
    SELECT 'claim.bound', $1, vm_id, id, '{"path": "pool"}'::jsonb FROM made)
SELECT p.vm_id, p.name, p.node, p.addresses, p.ready_at, p.boot_seconds, now() AS created_at, f.ord AS n, p.seq,
    m.id IS NOT NULL AS made, NULL::uuid AS known
FROM picked p JOIN fresh f USING (n) LEFT JOIN made m USING (vm_id)
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, ord, NULL, false, known FROM req WHERE known IS NOT NULL
"""

# The same for requests without a key: nothing can be in their way, so that every VM that is picked is claimed, and the joins
# fall away ($1 to $5; Postgres 18: 16 claims cost it 370 microseconds of CPU, 470 in the statement above).
_CLAIM_KEYLESS = """
WITH picked AS MATERIALIZED (SELECT *, row_number() OVER () AS n FROM (
    SELECT ctid AS tid, seq, vm_id, name, node, addresses, ready_at, boot_seconds FROM ready_slot
    WHERE pool_id = $1 AND seq >= $2 AND (SELECT deleting_at IS NULL FROM pool WHERE id = $1)
    ORDER BY seq LIMIT cardinality($3::uuid[]) FOR UPDATE SKIP LOCKED) AS locked),
made AS (
    INSERT INTO claim (id, pool_id, vm_id, state, request_hash, labels, path, lease_seconds, lease_expires_at, bound_at)
    SELECT ($3::uuid[])[n], $1, vm_id, 'bound', '', ($5::text[])[n]::jsonb, 'pool', ($4::int[])[n],
        now() + make_interval(secs => ($4::int[])[n]), now() FROM picked),
unqueued AS (DELETE FROM ready_slot WHERE ctid = ANY(ARRAY(SELECT tid FROM picked))),
taken AS (
    UPDATE vm SET state = 'claimed', state_since = now(), claimed_at = now(),
        claim_id = ($3::uuid[])[array_position(ARRAY(SELECT vm_id FROM picked ORDER BY n), id)]
    WHERE id = ANY(ARRAY(SELECT vm_id FROM picked))),
noted AS (INSERT INTO event (type, pool_id, vm_id, claim_id, data)
    SELECT 'claim.bound', $1, vm_id, ($3::uuid[])[n], '{"path": "pool"}'::jsonb FROM picked)
SELECT vm_id, name, node, addresses, ready_at, boot_seconds, now() AS created_at, n, seq FROM picked
"""

# A batch yields whole: where another process has taken one of its keys meanwhile, it fails and takes nothing.
_CLAIM_BATCH = _CLAIM.replace("ON CONFLICT (idem_key) WHERE idem_key IS NOT NULL DO NOTHING", "")

_LOWEST = """
SELECT p.id, (SELECT min(seq) FROM ready_slot WHERE pool_id = p.id) AS seq,
    EXISTS (SELECT 1 FROM pool WHERE pool.id = p.id AND deleted_at IS NULL) AS lives
FROM unnest($1::uuid[]) AS p(id)
"""

_SETTLED = """
SELECT v.id AS vm_id, v.name, v.node, v.addresses, v.ready_at, v.boot_seconds, c.created_at, c.id
FROM claim c JOIN vm v ON v.id = c.vm_id WHERE c.id = ANY($1::uuid[]) AND c.state = 'bound'
"""


_READ = f"SELECT {CLAIM_COLUMNS} FROM {CLAIM_TABLES} WHERE c.id = ANY($1::uuid[])"


class ClaimRequest(NamedTuple):
    """One request for one warm VM. `claim_id` is made by the caller; `labels` is JSON."""

    claim_id: UUID
    key: str | None
    request_hash: str
    lease_seconds: int
    labels: str


class Bound(NamedTuple):
    """A warm VM, claimed: what the answer needs, with no further read."""

    claim_id: UUID
    vm_id: UUID
    name: str
    node: str | None
    addresses: tuple[str, ...]
    ready_at: datetime
    boot_seconds: float | None
    created_at: datetime
    lease_expires_at: datetime


class Known(NamedTuple):
    """The idempotency key belongs to an earlier claim already: that one is the answer, if its body was the same."""

    claim_id: UUID


Outcome = Bound | Known | None
"""None: no warm VM for this request in this look."""


class ClaimLane:
    """The connections of the claim path and the hints of one process."""

    def __init__(self, url: str, *, connections: int = 3) -> None:
        self._dsn = driver_dsn(url)
        self._size = connections
        self._idle: asyncio.LifoQueue[asyncpg.Connection[Any] | None] = asyncio.LifoQueue()
        for _ in range(connections):
            self._idle.put_nowait(None)
        self._hints: dict[UUID, int] = {}
        self._lowered: dict[
            UUID, int
        ] = {}  # how often; a statement raises no hint that was lowered while it was in flight

    async def claim(
        self,
        pool_id: UUID,
        requests: Sequence[ClaimRequest],
        *,
        from_start: bool = False,
        batch: bool = False,
        all_or_nothing: bool = False,
    ) -> list[Outcome]:
        """Serves each request, in their order, as far as warm VMs go; the outcomes in the same order.

        No two requests may carry the same key: the later one would be taken for a conflict with another process.
        `from_start` looks below the hint too. With `batch` the requests belong together: where one of their keys is known,
        or becomes known at the same moment, all answers are those of the first time. Raises DatabaseUnavailable; a connection
        that breaks after Postgres has committed is found out by asking again, so that no VM is claimed for nobody while its
        client waits.
        """
        hint = 0 if from_start else self._hints.get(pool_id, 0)
        lowered = self._lowered.get(pool_id, 0)
        keyless = not batch and all(r.key is None for r in requests)
        statement = _CLAIM_KEYLESS if keyless else _CLAIM_BATCH if batch else _CLAIM
        arguments: list[object] = [
            *(pool_id, hint, [r.claim_id for r in requests]),
            *([r.lease_seconds for r in requests], [r.labels for r in requests]),
        ]
        if not keyless:
            arguments += [[r.key for r in requests], [r.request_hash for r in requests], batch, all_or_nothing]
        try:
            async with self._connection() as connection:
                rows = await connection.fetch(statement, *arguments)
        except asyncpg.UniqueViolationError:
            # Another process's batch of these keys has committed since; the next look sees it.
            again = {"from_start": from_start, "batch": batch, "all_or_nothing": all_or_nothing}
            return await self.claim(pool_id, requests, **again)
        except Exception as error:
            if not from_start:  # another statement may have gone past what this one had in hand
                self._lower(pool_id, hint)
            if is_busy(error):
                raise busy() from error
            if not is_away(error):
                raise
            return await self._settle(requests, error)
        outcomes: list[Outcome] = [None] * len(requests)
        taken: list[int] = []
        left: list[int] = []
        for row in rows:
            place = row["n"] - 1
            if keyless or row["made"]:
                outcomes[place] = _bound(requests[place], row)
                taken.append(row["seq"])
            elif row["known"] is not None:
                outcomes[place] = Known(row["known"])
            else:
                left.append(row["seq"])
        self._learn(pool_id, taken, left, from_start=from_start, lowered=lowered)
        return outcomes

    async def read(self, claim_ids: Sequence[UUID]) -> list[ClaimRow]:
        """The claims, in one way to and fro: for those whose clients wait this moment. Raises DatabaseUnavailable."""
        try:
            async with self._connection() as connection:
                rows = await connection.fetch(_READ, list(claim_ids))
        except Exception as error:
            if is_away(error):
                raise unavailable() from error
            raise
        return [read_claim(dict(row)) for row in rows]

    async def warm_up(self) -> None:
        """Connects and plans ahead on every connection, so that no claim waits for either. Raises DatabaseUnavailable."""
        # Side by side, since a connection that came back would be the next one again.
        for result in await asyncio.gather(*(self._warm_one() for _ in range(self._size)), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _warm_one(self) -> None:
        nothing: tuple[object, ...] = (UUID(int=0), 0, [], [], [])
        try:
            async with self._connection() as connection:
                await connection.fetch(_CLAIM_KEYLESS, *nothing)
                await connection.fetch(_CLAIM, *nothing, [], [], False, False)
        except Exception as error:
            if is_away(error):
                raise unavailable() from error
            raise

    async def lower_hints(self, pool_ids: Iterable[UUID] | None = None) -> None:
        """Moves hints down to where rows really begin; up only through claims. Without `pool_ids` for every pool known here;
        those of deleted pools are forgotten.

        Raises DatabaseUnavailable.
        """
        asked = list(self._hints if pool_ids is None else pool_ids)
        if not asked:
            return
        try:
            async with self._connection() as connection:
                rows = await connection.fetch(_LOWEST, asked)
        except Exception as error:
            if is_away(error):
                raise unavailable() from error
            raise
        for row in rows:
            if not row["lives"]:
                self._hints.pop(row["id"], None)
                self._lowered.pop(row["id"], None)
            elif row["seq"] is not None:
                self._lower(row["id"], row["seq"])

    async def close(self) -> None:
        while not self._idle.empty():
            connection = self._idle.get_nowait()
            if connection is not None:
                with contextlib.suppress(Exception):
                    await connection.close(timeout=2)

    def _learn(self, pool_id: UUID, taken: list[int], left: list[int], *, from_start: bool, lowered: int) -> None:
        """The hint after a statement: past what it took, but not past a VM whose claim another process's key won (`left`),
        nor past what the hint was lowered to while the statement was in flight.
        """
        if left:
            self._hints[pool_id] = min(left)
            self._lowered[pool_id] = self._lowered.get(pool_id, 0) + 1
        elif taken and self._lowered.get(pool_id, 0) == lowered:
            past = max(taken) + 1
            self._hints[pool_id] = past if from_start else max(past, self._hints.get(pool_id, 0))

    def _lower(self, pool_id: UUID, hint: int) -> None:
        if hint < self._hints.setdefault(pool_id, hint):
            self._hints[pool_id] = hint
            self._lowered[pool_id] = self._lowered.get(pool_id, 0) + 1

    async def _settle(self, requests: Sequence[ClaimRequest], error: Exception) -> list[Outcome]:
        """After a broken connection: what was committed counts; where nothing was, nobody is told otherwise."""
        try:
            async with self._connection() as connection:
                rows = await connection.fetch(_SETTLED, [r.claim_id for r in requests])
        except Exception as again:
            if is_away(again):
                raise unavailable() from error
            raise
        if not rows:
            raise unavailable() from error
        found = {row["id"]: row for row in rows}
        return [_bound(r, found[r.claim_id]) if r.claim_id in found else None for r in requests]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """One of the connections, made again where it was lost. It goes back however the block ends."""
        connection = await self._idle.get()
        try:
            if connection is None or connection.is_closed():
                connection = await self._connect()
            yield connection
        except BaseException:
            # The state of the wire is unknown: the next user gets a new connection.
            if connection is not None:
                connection.terminate()
                connection = None
            raise
        finally:
            self._idle.put_nowait(connection)

    async def _connect(self) -> "asyncpg.Connection[Any]":
        connection = await asyncpg.connect(
            self._dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            server_settings=_SESSION,
        )
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_encode_json, decoder=orjson.loads)
        return connection


def _bound(request: ClaimRequest, row: Any) -> Bound:
    """From a row that begins with what a `Bound` needs, in this order."""
    vm_id, name, node, addresses, ready_at, boot_seconds, created_at = row[:7]
    lease_expires_at = created_at + timedelta(seconds=request.lease_seconds)
    return Bound(
        *(request.claim_id, vm_id, name, node, tuple(addresses), ready_at, boot_seconds, created_at, lease_expires_at)
    )


def _encode_json(value: object) -> str:
    return orjson.dumps(value).decode()
