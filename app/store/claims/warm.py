"""The claim of warm VMs: one statement for many claims, prepared by the driver itself.

It takes constant time, whatever the size of the pool or its history: a claim begins at a hint, the first sequence number
that this process has not seen claimed, and so never walks the dead entries that an old transaction snapshot keeps at the head of the
index. A hint may be wrong. Sequence numbers commit out of order and other processes roll back, so rows can lie below it:
`lower_hints` corrects it in the background, and a caller looks again from the true start before it says "none".

One statement writes everything: the claim, the queue, the VM's row and the history. It sends no notice and writes no row of
the pool: either would make claims wait for each other.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from app.domain.claims import KnownClaim, NewClaim, Outcome, WarmClaim
from app.errors import DatabaseLost, DatabaseUnavailable, OutcomeUnknown
from app.store.database import driver_dsn
from app.store.postgres_errors import is_stale, not_committed, translate
from app.store.rows import CLAIM_COLUMNS, CLAIM_TABLES, ClaimRow, read_claim

_CONNECT_SECONDS = 5.0
_STATEMENT_SECONDS = 15.0
# One generic plan for the life of a connection. Made while the tables are small it would scan them, and go on scanning when
# they are large (measured: from 40 to 500 microseconds a claim after 6,000 claims). Every table here has its index.
_SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    "application_name": "emberpool-claims",
}

# $1 pool, $2 hint, then one array entry for each claim: $3 ids, $4 lease seconds, $5 labels, $6 idempotency keys, $7 request
# hashes. $8: the claims are one batch; where one of its keys is known the batch was made before, and nothing is added to it.
# $9: all of them or none. No join to an updated or deleted table: under a generic plan Postgres scans such a table. Keys are
# inserted in one order, so that two processes with the same keys cannot deadlock.
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

# The same for claims without a key: nothing can conflict with them, so every VM that is picked is claimed and no join is
# needed ($1 to $5; on Postgres 18, 16 claims cost 370 microseconds of CPU, and 470 in the statement above).
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

# A batch fails as a whole, and takes nothing, where another process has taken one of its keys meanwhile.
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

_ALIVE = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND datname = current_database()"
_LOOKS = (0.0, 0.1, 0.4, 1.0, 1.5)
"""Seconds before each look for what became of a statement: a client waits meanwhile."""

_READ = f"SELECT {CLAIM_COLUMNS} FROM {CLAIM_TABLES} WHERE c.id = ANY($1::uuid[])"


class _Idle(NamedTuple):
    """A connection that nobody uses. It is closed where others of its generation turned out to be of no use any more."""

    connection: "asyncpg.Connection[Any]"
    generation: int


class WarmClaimStore:
    """The connections of the claim path, and one process's hints: for each pool, where its queue of ready VMs begins."""

    def __init__(self, url: str, *, connections: int = 3) -> None:
        self._dsn = driver_dsn(url)
        self._size = connections
        self._idle: asyncio.LifoQueue[_Idle | None] = asyncio.LifoQueue()
        self._generation = 0
        for _ in range(connections):
            self._idle.put_nowait(None)
        self._hints: dict[UUID, int] = {}
        # How often each hint was lowered: a statement does not raise one that was lowered while it was in flight.
        self._lowered: dict[UUID, int] = {}

    async def claim(
        self,
        pool_id: UUID,
        new: Sequence[NewClaim],
        *,
        from_start: bool = False,
        batch: bool = False,
        all_or_nothing: bool = False,
    ) -> list[Outcome]:
        """Serves each claim, in their order, as far as there are ready VMs; the outcomes come in the same order.

        No two claims may have the same key: the later one would be taken for a conflict with another process.
        `from_start` looks below the hint too. With `batch` the claims belong together: where one of their keys is known,
        or becomes known at the same moment, all answers are those of the first time.

        Raises DatabaseUnavailable where nothing was committed, and OutcomeUnknown where that cannot be found out: a connection
        broke, and Postgres does not say yet what became of the statement.
        """
        hint = 0 if from_start else self._hints.get(pool_id, 0)
        lowered = self._lowered.get(pool_id, 0)
        keyless = not batch and all(claim.request.key is None for claim in new)
        statement = _CLAIM_KEYLESS if keyless else _CLAIM_BATCH if batch else _CLAIM
        labels = [_encode_json(claim.request.labels) if claim.request.labels else "{}" for claim in new]
        arguments: list[object] = [
            *(pool_id, hint, [claim.id for claim in new], [claim.lease_seconds for claim in new], labels)
        ]
        if not keyless:
            arguments += [[claim.request.key for claim in new], [claim.request.request_hash for claim in new]]
            arguments += [batch, all_or_nothing]
        backend = 0
        try:
            async with self._connection(committing=True) as connection:
                backend = connection.get_server_pid()
                rows = await connection.fetch(statement, *arguments)
        except asyncpg.UniqueViolationError:
            # Another process has committed a batch with these keys meanwhile; the next look sees it.
            again = {"from_start": from_start, "batch": batch, "all_or_nothing": all_or_nothing}
            return await self.claim(pool_id, new, **again)
        except Exception as error:
            if not from_start:  # another statement may have moved the hint past the rows that this one had locked
                self._lower(pool_id, hint)
            if not isinstance(error, DatabaseLost):
                raise
            return await self._settle(new, backend, error)
        outcomes: list[Outcome] = [None] * len(new)
        taken: list[int] = []
        left: list[int] = []
        for row in rows:
            place = row["n"] - 1
            if keyless or row["made"]:
                outcomes[place] = _warm(new[place], row)
                taken.append(row["seq"])
            elif row["known"] is not None:
                outcomes[place] = KnownClaim(row["known"])
            else:
                left.append(row["seq"])
        self._learn(pool_id, taken, left, from_start=from_start, lowered=lowered)
        return outcomes

    async def read(self, claim_ids: Sequence[UUID]) -> list[ClaimRow]:
        """The claims, in one round trip, for clients that are waiting. Raises DatabaseUnavailable."""
        return [read_claim(dict(row)) for row in await self._fetch(_READ, list(claim_ids))]

    async def warm_up(self) -> None:
        """Connects and plans the statements on every connection, so that no claim waits for that. Raises DatabaseUnavailable."""
        # All at once: one after another would take the same connection each time.
        for result in await asyncio.gather(*(self._warm_one() for _ in range(self._size)), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _warm_one(self) -> None:
        nothing: tuple[object, ...] = (UUID(int=0), 0, [], [], [])
        async with self._connection() as connection:
            await connection.fetch(_CLAIM_KEYLESS, *nothing)
            await connection.fetch(_CLAIM, *nothing, [], [], False, False)

    async def lower_hints(self, pool_ids: Iterable[UUID] | None = None) -> None:
        """Moves hints down to where rows really begin; only claims move them up. Without `pool_ids`: of every pool known
        here. Forgets the hints of deleted pools. Raises DatabaseUnavailable.
        """
        asked = list(self._hints if pool_ids is None else pool_ids)
        if not asked:
            return
        for row in await self._fetch(_LOWEST, asked):
            if not row["lives"]:
                self._hints.pop(row["id"], None)
                self._lowered.pop(row["id"], None)
            elif row["seq"] is not None:
                self._lower(row["id"], row["seq"])

    async def close(self) -> None:
        while not self._idle.empty():
            idle = self._idle.get_nowait()
            if idle is not None:
                with contextlib.suppress(Exception):
                    await idle.connection.close(timeout=2)

    def _learn(self, pool_id: UUID, taken: list[int], left: list[int], *, from_start: bool, lowered: int) -> None:
        """Sets the hint after a statement: past what it took, but not past a VM that it had to leave (`left`) because another
        process won the key, nor past what the hint was lowered to while the statement was in flight.
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

    async def _settle(self, new: Sequence[NewClaim], backend: int, error: DatabaseLost) -> list[Outcome]:
        """After a broken connection: what was committed counts.

        While the server process `backend` of that connection lives, its statement may still be committed: one that waits for a
        synchronous standby goes on waiting, however long its client has been away.
        """
        for pause in _LOOKS:
            await asyncio.sleep(pause)
            try:
                # One after the other: what is not there once the process has ended will never be.
                alive = await self._fetch(_ALIVE, backend)
                found = {row["id"]: row for row in await self._fetch(_SETTLED, [claim.id for claim in new])}
            except DatabaseUnavailable:
                continue
            if found:
                return [_warm(claim, found[claim.id]) if claim.id in found else None for claim in new]
            if not alive:
                raise not_committed() from error
        raise OutcomeUnknown("the database does not say whether it committed") from error

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        """Raises DatabaseUnavailable."""
        async with self._connection() as connection:
            return await connection.fetch(statement, *arguments)

    @asynccontextmanager
    async def _connection(self, *, committing: bool = False) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """One of the connections, opened again where it was lost. It is given back however the block ends.

        Raises DatabaseUnavailable. `committing`: the block sends a statement that commits; raises DatabaseLost where it is not
        known how that ended.
        """
        idle = await self._idle.get()
        if idle is not None and (idle.connection.is_closed() or idle.generation != self._generation):
            idle.connection.terminate()
            idle = None
        try:
            if idle is None:
                idle = _Idle(await self._connect(), self._generation)
            yield idle.connection
        except BaseException as error:
            # The connection's state is unknown: the next user gets a new one.
            sent = idle is not None
            if idle is not None:
                idle.connection.terminate()
                idle = None
            if is_stale(error):
                self._generation += 1
            ours = translate(error, committing=committing and sent)
            if ours is None:
                raise
            raise ours from error
        finally:
            self._idle.put_nowait(idle)

    async def _connect(self) -> "asyncpg.Connection[Any]":
        connection = await asyncpg.connect(
            self._dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            server_settings=_SESSION,
        )
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_encode_json, decoder=orjson.loads)
        return connection


def _warm(claim: NewClaim, row: Any) -> WarmClaim:
    """From a row that begins with the VM's columns, in the order of WarmClaim's fields."""
    return WarmClaim(claim, *row[:7])


def _encode_json(value: object) -> str:
    return orjson.dumps(value).decode()
