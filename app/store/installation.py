"""The installation's row: its id, how far its Lease has come, what it waits for, and what an operator decided."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.ownership import FoundVm, Identity, Known, KnownVm, Progress, Word
from app.domain.states import VmState
from app.store.database import Tx, any_row, first, mappings, run
from app.store.notices import Topic, notify

_HERE = "(SELECT oid FROM pg_database WHERE datname = current_database())"
_READ = text(f"""
    SELECT id, created_at, sequence, writer, home IS NULL OR home = {_HERE} AS at_home, namespace, instance, confirmed_at,
        extract(epoch FROM now() - confirmed_at)::float AS confirmed_age, waits, waits_since, findings, held, decision, outcome,
        adopted, disowned, left_alone, given_up
    FROM installation
""")
_ADVANCE = text(f"""
    UPDATE installation SET sequence = sequence + 1, writer = :writer, home = {_HERE}, namespace = :namespace, instance = :instance,
        confirmed_at = CASE WHEN :confirmed THEN clock_timestamp() ELSE confirmed_at END
    RETURNING sequence
""")
_DURABLE = text("SET LOCAL synchronous_commit = on")
_CONFIRM = text("""
    UPDATE installation SET confirmed_at = clock_timestamp(), waits = NULL, waits_since = NULL, findings = '{}'
    WHERE sequence = :sequence AND writer = :writer RETURNING id
""")
_WAIT = text("""
    UPDATE installation SET waits = :reason, waits_since = coalesce(waits_since, now()), findings = :findings
    WHERE waits IS DISTINCT FROM :reason OR findings <> :findings RETURNING id
""").bindparams(bindparam("findings", type_=JSONB))
_FIND = text("UPDATE installation SET findings = :findings WHERE findings <> :findings").bindparams(
    bindparam("findings", type_=JSONB)
)
_HOLD = text("""
    UPDATE installation SET held = CASE WHEN CAST(:told AS text) IS NULL THEN held - CAST(:kind AS text)
        ELSE held || jsonb_build_object(CAST(:kind AS text), jsonb_build_object('detail', CAST(:told AS text), 'uids', to_jsonb(CAST(:uids AS text[])))) END
    WHERE held->CAST(:kind AS text)->>'detail' IS DISTINCT FROM :told
""")
_DECIDE = text("UPDATE installation SET decision = :word, outcome = NULL")
_SETTLE = text("""
    UPDATE installation SET decision = NULL, outcome = :outcome, waits = NULL, waits_since = NULL, findings = '{}', held = '{}',
        adopted = :adopted, disowned = :disowned, left_alone = :left_alone, given_up = :given_up
""")
_REFUSE = text("UPDATE installation SET decision = NULL, outcome = :outcome")
_BECOME = text("""
    UPDATE installation SET id = :id, created_at = now(), sequence = 0, writer = NULL, home = NULL, namespace = NULL, instance = NULL,
        confirmed_at = NULL
""")
_OVERTAKE = text("UPDATE installation SET sequence = greatest(sequence, :sequence) + 1, writer = NULL, home = NULL")
_ROWS = text("""
    SELECT id, name, uid, state, claim_id FROM vm
    WHERE id = ANY(CAST(:ids AS uuid[])) OR (ended_at IS NULL AND uid = ANY(CAST(:uids AS text[])))
""")
_MISSING = text("""
    SELECT count(*) FROM vm WHERE ended_at IS NULL AND state IN ('booting', 'ready', 'claimed')
      AND NOT coalesce(uid = ANY(CAST(:uids AS text[])), false)
""")
_CLAIMS = text("SELECT id FROM claim WHERE id = ANY(CAST(:ids AS uuid[]))")


@dataclass(frozen=True, slots=True)
class InstallationRow:
    """`confirmed_age`: seconds since `confirmed_at`. `waits`: why nothing is done in the cluster; None: it is. `held`: by kind, which
    objects are held (`uids`), and why (`detail`). `decision`: what an operator decided and no worker has carried out yet.
    """

    identity: Identity
    progress: Progress
    created_at: datetime
    namespace: str | None
    instance: str | None
    confirmed_at: datetime | None
    confirmed_age: float | None
    waits: str | None
    waits_since: datetime | None
    findings: dict[str, Any]
    held: dict[str, dict[str, Any]]
    decision: Word | None
    outcome: str | None


async def read(tx: Tx) -> InstallationRow:
    row = await first(tx, _READ)
    if row is None:
        raise RuntimeError("the database has no installation, though its migration makes one")
    given = dict(row)
    identity = Identity(
        str(given.pop("id")),
        adopted=frozenset(map(str, given.pop("adopted"))),
        disowned=frozenset(map(str, given.pop("disowned"))),
        left_alone=frozenset(given.pop("left_alone")),
        given_up=frozenset(given.pop("given_up")),
    )
    writer = given.pop("writer")
    progress = Progress(given.pop("sequence"), str(writer) if writer else None, at_home=given.pop("at_home"))
    decision = given.pop("decision")
    return InstallationRow(identity, progress, decision=Word(decision) if decision else None, **given)


async def read_identity(tx: Tx) -> Identity:
    return (await read(tx)).identity


async def advance(tx: Tx, *, writer: UUID, namespace: str, instance: str, confirmed: bool) -> int:
    """The number of the next renewal of the Lease. `confirmed`: the objects in the cluster are known to be ours.

    It is durable once `tx` ends, whatever the database's settings are: a crash that lost it would look like a restored backup.
    """
    await run(tx, _DURABLE)
    number: int = (
        await run(tx, _ADVANCE, writer=writer, namespace=namespace, instance=instance, confirmed=confirmed)
    ).scalar_one()
    return number


async def confirm(tx: Tx, *, sequence: int, writer: UUID) -> bool:
    """The objects in the cluster are ours: work begins. False if somebody else has renewed since."""
    if not await any_row(tx, _CONFIRM, sequence=sequence, writer=writer):
        return False
    await notify(tx, Topic.INSTALLATION)
    return True


async def wait(tx: Tx, reason: str, findings: Mapping[str, Any]) -> bool:
    """Nothing is done in the cluster until an operator has decided. True if that is new."""
    if not await any_row(tx, _WAIT, reason=reason, findings=dict(findings)):
        return False
    await notify(tx, Topic.INSTALLATION)
    return True


async def find(tx: Tx, findings: Mapping[str, Any]) -> None:
    """What each decision would do, though nothing waits for one but objects that are held."""
    await run(tx, _FIND, findings=dict(findings))


async def hold(tx: Tx, kind: str, *, uids: Sequence[str], told: str | None) -> None:
    """What of a kind of object is held, by UID and in words; None: nothing."""
    await run(tx, _HOLD, kind=kind, uids=list(uids), told=told)


async def decide(tx: Tx, word: Word) -> None:
    """The leading worker carries it out."""
    await run(tx, _DECIDE, word=str(word))
    await notify(tx, Topic.INSTALLATION)


async def settle(tx: Tx, identity: Identity, outcome: str) -> None:
    """A decision was carried out: `identity` is what the installation is from now on, but for its id."""
    kinds = {"adopted": identity.adopted, "disowned": identity.disowned}
    ids = {name: [UUID(each) for each in sorted(found)] for name, found in kinds.items()}
    uids = {"left_alone": sorted(identity.left_alone), "given_up": sorted(identity.given_up)}
    await run(tx, _SETTLE, outcome=outcome, **ids, **uids)
    await notify(tx, Topic.INSTALLATION)


async def refuse(tx: Tx, outcome: str) -> None:
    """The decision cannot be carried out, and is dropped."""
    await run(tx, _REFUSE, outcome=outcome)


async def become(tx: Tx, installation_id: UUID) -> None:
    """The database is an installation of its own from now on, which has made nothing yet."""
    await run(tx, _BECOME, id=installation_id)


async def overtake(tx: Tx, sequence: int) -> None:
    """The database is the newest state of the installation from now on, though its Lease has come as far as `sequence`."""
    await run(tx, _OVERTAKE, sequence=sequence)


async def know(tx: Tx, found: Sequence[FoundVm]) -> Known:
    """What the rows say of these VMs."""
    ids = [vm.vm_id for vm in found if vm.vm_id is not None]
    uids = [vm.uid for vm in found]
    rows = await mappings(tx, _ROWS, ids=ids, uids=uids)
    known = [KnownVm(**{**row, "state": VmState(row["state"])}) for row in rows]
    claims = [vm.claim_id for vm in found if vm.claim_id is not None]
    return Known(
        rows=_by_object(found, known),
        ids={row.id for row in known},
        claims={row.id for row in await run(tx, _CLAIMS, ids=claims)},
        confirmed_at=(await read(tx)).confirmed_at,
        missing=(await run(tx, _MISSING, uids=uids)).scalar_one(),
    )


def _by_object(found: Sequence[FoundVm], known: Iterable[KnownVm]) -> dict[str, KnownVm]:
    by_id = {row.id: row for row in known}
    by_uid = {row.uid: row for row in by_id.values() if row.uid is not None}
    rows: dict[str, KnownVm] = {}
    for vm in found:
        row = by_uid.get(vm.uid) or (by_id.get(vm.vm_id) if vm.vm_id is not None else None)
        if row is not None and row.is_of(vm):
            rows[vm.uid] = row
    return rows
