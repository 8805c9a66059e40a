"""The tables, as the migrations make them (a test compares the two).

`vm.state` is authoritative for a VM; `ready_slot` is the queue of those that are `ready`, narrow so that a claim touches
nothing wide; `claim_queue` is the queue of claims that wait. A row of either queue exists exactly while its VM is `ready`
(its claim `pending`): each change of state moves both in one transaction, the queue's row locked first.

`event` is the history. Its order is `(xid, id)`: ids are given out before they commit, so that a reader that only remembered
the highest id would miss those that commit late; events of transactions below the oldest one still running are final.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType
from typing_extensions import override

from app.domain.paths import Path
from app.domain.snapshots import TakeState
from app.domain.states import ClaimState, VmState


class Xid8(UserDefinedType[str]):
    """A transaction id that never wraps around (Postgres 13 and later)."""

    cache_ok = True

    @override
    def get_col_spec(self, **kw: Any) -> str:
        return "xid8"


metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

_NOW = text("now()")
_AWARE = DateTime(timezone=True)


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


ready_seq = Sequence("ready_seq", metadata=metadata)

pool = Table(
    "pool",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False, comment="PoolSpec as written"),
    Column("vm_spec", JSONB, nullable=False, comment="the template, expanded"),
    Column("revision", Text, nullable=False, comment="fingerprint of vm_spec"),
    Column("generation", BigInteger, nullable=False, server_default=text("1")),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column(
        "refilled_at",
        _AWARE,
        nullable=False,
        server_default=_NOW,
        comment="claims since then drain a pool without auto_replenish",
    ),
    Column("consecutive_failures", Integer, nullable=False, server_default=text("0")),
    Column("last_failure", Text),
    Column("last_failure_at", _AWARE),
    Column("backoff_until", _AWARE),
    Column("stalled_at", _AWARE),
    Column("created_at", _AWARE, nullable=False, server_default=_NOW),
    Column("updated_at", _AWARE, nullable=False, server_default=_NOW),
    Column("deleting_at", _AWARE),
    Column("deleted_at", _AWARE),
    Column(
        "kind",
        Text,
        nullable=False,
        server_default=text("'pool'"),
        comment="pool; shape: of no size and not shown, its VMs are made for claims of their own",
    ),
    Column("shape", Text, comment="fingerprint of what its VMs boot"),
    Column("path", Text, nullable=False, server_default=text("'cold'"), comment="how its VMs start"),
    Column("source", Text, comment="the snapshot or preload that they start from"),
    CheckConstraint("kind IN ('pool', 'shape')", name="kind"),
    CheckConstraint(_one_of("path", Path), name="path"),
    Index("pool_name_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("pool_shape_idx", "shape", postgresql_where=text("deleted_at IS NULL")),
    Index("pool_source_idx", "source", postgresql_where=text("deleted_at IS NULL AND source IS NOT NULL")),
)

pool_plan = Table(
    "pool_plan",
    metadata,
    Column("pool_id", Uuid, ForeignKey("pool.id", ondelete="CASCADE"), primary_key=True),
    Column("due_at", _AWARE, nullable=False, server_default=_NOW),
    Column("planned_at", _AWARE),
    Column(
        "notes", JSONB, nullable=False, server_default=text("'[]'"), comment="what the last plan waits for, in words"
    ),
    Column(
        "unfit",
        Text,
        comment=(
            "why the nodes could never take as many of its VMs as its size, even with nothing else on them; "
            "NULL: they could, or nothing is known"
        ),
    ),
    Column(
        "waits_for_room",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="it is planned again as soon as a node has more room",
    ),
    postgresql_with={"fillfactor": "50"},
)

vm = Table(
    "vm",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("pool_id", Uuid, ForeignKey("pool.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'planned'")),
    Column("state_since", _AWARE, nullable=False, server_default=_NOW),
    Column("revision", Text, nullable=False),
    Column("urgent", Boolean, nullable=False, server_default=text("false"), comment="its pool is below its floor"),
    Column("uid", Text),
    Column("vmi_uid", Text),
    Column("node", Text),
    Column("addresses", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("health", Text, comment="what ails it, in words; NULL: nothing known"),
    Column("unwell_since", _AWARE),
    Column("created_at", _AWARE, nullable=False, server_default=_NOW),
    Column("asked_at", _AWARE, comment="when the cluster was first asked for it"),
    Column("ready_at", _AWARE),
    Column("claimed_at", _AWARE),
    Column("ended_at", _AWARE),
    Column("boot_seconds", Double, comment="asked_at to the first ready"),
    Column("stages", JSONB, comment="seconds by stage, from the cluster's own timestamps"),
    Column("reason", Text, comment="why it failed, was lost, or is released"),
    Column("claim_id", Uuid),
    Column("deadline_at", _AWARE, comment="booting: failed after it"),
    Column("due_at", _AWARE, nullable=False, server_default=_NOW, comment="a worker looks at it from then on"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("lease_token", Uuid),
    Column("lease_expires_at", _AWARE),
    Column(
        "work",
        Text,
        Computed(
            "CASE WHEN state IN ('planned', 'creating') THEN 'create' WHEN state IN ('failed', 'releasing') THEN 'remove' END",
            persisted=True,
        ),
        comment="what a worker has to do for it",
    ),
    Column("shape", Text, comment="its pool's when the cluster was first asked for it"),
    Column("path", Text, comment="likewise: how it started"),
    Column("source", Text, comment="likewise: the snapshot or preload that it started from"),
    Column(
        "whole",
        Boolean,
        nullable=False,
        server_default=text("true"),
        comment="false: its disks are made after it, and may be missing while it is creating",
    ),
    Column(
        "stopped",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="we stopped it, for a snapshot: it is well without an instance",
    ),
    Column(
        "member",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="a VirtualMachinePool owns it: it is detached before anything else is done to it",
    ),
    CheckConstraint(_one_of("state", VmState), name="state"),
    CheckConstraint("state <> 'claimed' OR claim_id IS NOT NULL", name="claimed"),
    # No index on what a claim changes (state, claim_id): the row is then updated in its page, with no index touched, which
    # halves what a claim costs Postgres. Half of each page is left free for that: a batch changes every row of a page at once.
    # The names of a VirtualMachinePool's VMs come back: live ones are told apart by their UIDs alone.
    Index("vm_name_idx", "name", postgresql_where=text("ended_at IS NULL")),
    Index("vm_uid_key", "uid", unique=True, postgresql_where=text("ended_at IS NULL AND uid IS NOT NULL")),
    Index("vm_live_idx", "pool_id", postgresql_where=text("ended_at IS NULL")),
    Index("vm_work_idx", "work", "due_at", postgresql_where=text("work IS NOT NULL")),
    Index("vm_boots_idx", "pool_id", "ready_at", postgresql_where=text("boot_seconds IS NOT NULL")),
    Index("vm_paths_idx", "path", "shape", "ready_at", postgresql_where=text("boot_seconds IS NOT NULL")),
    Index("vm_path_idx", "path", "ready_at", postgresql_where=text("boot_seconds IS NOT NULL")),
    Index("vm_source_idx", "source", "ready_at", postgresql_where=text("source IS NOT NULL")),
    Index("vm_ended_idx", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    postgresql_with={"fillfactor": "50"},
)

ready_slot = Table(
    "ready_slot",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("vm_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("node", Text),
    Column("addresses", ARRAY(Text), nullable=False),
    Column("ready_at", _AWARE, nullable=False),
    Column("boot_seconds", Double),
    PrimaryKeyConstraint("pool_id", "seq"),
    Index("ready_slot_vm_id_key", "vm_id", unique=True),
    postgresql_with={
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "5000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)

claim = Table(
    "claim",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("pool_id", Uuid, nullable=False),
    Column("vm_id", Uuid),
    Column("state", Text, nullable=False),
    Column("idem_key", Text),
    Column("request_hash", Text),
    Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
    Column("path", Text),
    Column("lease_seconds", Integer, nullable=False),
    Column("lease_expires_at", _AWARE),
    Column("created_at", _AWARE, nullable=False, server_default=_NOW),
    Column("bound_at", _AWARE),
    Column("ended_at", _AWARE),
    Column("pending_until", _AWARE, comment="pending: failed after it"),
    Column("reason", Text, comment="pending: why it was not warm; ended: why"),
    Column("replacements", JSONB, nullable=False, server_default=text("'[]'"), comment="VMs that were dead on arrival"),
    Column(
        "labelled",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="its VM carries its id in the cluster",
    ),
    Column("label_due_at", _AWARE, nullable=False, server_default=_NOW, comment="a worker labels the VM from then on"),
    Column("label_attempts", Integer, nullable=False, server_default=text("0")),
    Column("shape", Text, comment="of a claim that named no pool: what it asked for"),
    Column("choice", JSONB, comment="likewise: the path that was chosen, and why not each other"),
    Column("allowed", ARRAY(Text), comment="likewise: the paths that it may be served by"),
    CheckConstraint(_one_of("state", ClaimState), name="state"),
    CheckConstraint("state <> 'bound' OR (vm_id IS NOT NULL AND lease_expires_at IS NOT NULL)", name="bound"),
    Index("claim_idem_key_key", "idem_key", unique=True, postgresql_where=text("idem_key IS NOT NULL")),
    Index("claim_lease_idx", "lease_expires_at", postgresql_where=text("state = 'bound'")),
    Index("claim_pool_idx", "pool_id", "id"),
    Index("claim_unlabelled_idx", "label_due_at", postgresql_where=text("state = 'bound' AND NOT labelled")),
    Index("claim_ended_idx", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
)

claim_queue = Table(
    "claim_queue",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("seq", BigInteger, Identity(always=False), nullable=False),
    Column("claim_id", Uuid, nullable=False),
    PrimaryKeyConstraint("pool_id", "seq"),
    Index("claim_queue_claim_id_key", "claim_id", unique=True),
    postgresql_with={
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "1000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)

event = Table(
    "event",
    metadata,
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("at", _AWARE, nullable=False, server_default=_NOW),
    Column("type", Text, nullable=False, comment="pool.*, vm.<state>, claim.<state>"),
    Column("pool_id", Uuid),
    Column("vm_id", Uuid),
    Column("claim_id", Uuid),
    Column("data", JSONB, nullable=False, server_default=text("'{}'")),
    PrimaryKeyConstraint("xid", "id"),
    Index("event_vm_idx", "vm_id", "id", postgresql_where=text("vm_id IS NOT NULL")),
)

lease = Table(
    "lease",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("token", Uuid, nullable=False),
    Column("expires_at", _AWARE, nullable=False),
)

bucket = Table(
    "bucket",
    metadata,
    Column("name", Text, primary_key=True),
    Column("tokens", Double, nullable=False),
    Column("filled_at", _AWARE, nullable=False, server_default=_NOW),
)

watch = Table(
    "watch",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("listed_at", _AWARE),
    Column("heard_at", _AWARE, comment="the last event of any kind"),
    Column("broken_since", _AWARE),
    Column("broken_reason", Text),
)

node_version = Sequence("node_version", metadata=metadata)

node = Table(
    "node",
    metadata,
    Column("name", Text, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("zone", Text),
    Column("facts", JSONB, nullable=False, comment="labels, taints, what it offers, conditions, images"),
    Column("used", JSONB, comment="what the pods on it ask for; NULL: they cannot be seen"),
    Column("vms", ARRAY(Uuid), nullable=False, server_default=text("'{}'"), comment="our VMs whose pods are on it"),
    Column("version", BigInteger, nullable=False, comment="rises with each change of any node"),
    Column("changed_at", _AWARE, nullable=False, server_default=_NOW),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False, comment="SnapshotSpec as written"),
    Column("created_at", _AWARE, nullable=False, server_default=_NOW),
    Column("updated_at", _AWARE, nullable=False, server_default=_NOW),
    Column("deleting_at", _AWARE),
    Column("deleted_at", _AWARE),
    Column("due_at", _AWARE, nullable=False, server_default=_NOW, comment="a worker looks at it from then on"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("lease_token", Uuid),
    Column("lease_expires_at", _AWARE),
    Index("snapshot_name_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("snapshot_due_idx", "due_at", postgresql_where=text("deleted_at IS NULL")),
)

snapshot_take = Table(
    "snapshot_take",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("snapshot_id", Uuid, ForeignKey("snapshot.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False, comment="rises with each refresh"),
    Column("state", Text, nullable=False, server_default=text("'planned'")),
    Column("state_since", _AWARE, nullable=False, server_default=_NOW),
    Column("shape", Text, comment="of the VM that it was taken from"),
    Column("revision", Text, comment="of the pool's template that it was taken for"),
    Column("based_at", _AWARE, comment="when its VM was asked for: what became ready later is not in it"),
    Column("vm_name", Text, comment="the VM that it is taken from"),
    Column("vm_uid", Text),
    Column("claim_id", Uuid, comment="our own claim on that VM, where it was made for this"),
    Column("object_uid", Text, comment="of the VirtualMachineSnapshot"),
    Column("disks", JSONB, nullable=False, server_default=text("'[]'"), comment="SnapshotDisk of each included volume"),
    Column("excluded", JSONB, nullable=False, server_default=text("'[]'"), comment="name and reason of each other"),
    Column("bytes", BigInteger),
    Column("reason", Text, comment="why it failed, or what it waits for"),
    Column("created_at", _AWARE, nullable=False, server_default=_NOW),
    Column("ready_at", _AWARE),
    Column("ended_at", _AWARE),
    CheckConstraint(_one_of("state", TakeState), name="state"),
    Index("snapshot_take_number_key", "snapshot_id", "number", unique=True),
    Index("snapshot_take_shape_idx", "shape", postgresql_where=text("state = 'ready'")),
)

preload = Table(
    "preload",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False, comment="PreloadSpec as written"),
    Column("generation", BigInteger, nullable=False, server_default=text("1")),
    Column("state", Text, nullable=False, server_default=text("'planned'")),
    Column("state_since", _AWARE, nullable=False, server_default=_NOW),
    Column("image_kind", Text, nullable=False),
    Column("image", Text, nullable=False, comment="the reference, as in ImageRef"),
    Column("status", JSONB, nullable=False, server_default=text("'{}'"), comment="what the cluster showed last"),
    Column("reason", Text, comment="why it failed, or what it waits for"),
    Column("used_at", _AWARE, comment="the last start from it"),
    Column("uses", BigInteger, nullable=False, server_default=text("0"), comment="VMs that were started from it"),
    Column(
        "automatic",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="made by a claim that is to be remembered: collected when unused",
    ),
    Column("ready_at", _AWARE),
    Column("created_at", _AWARE, nullable=False, server_default=_NOW),
    Column("updated_at", _AWARE, nullable=False, server_default=_NOW),
    Column("deleting_at", _AWARE),
    Column("deleted_at", _AWARE),
    Column("due_at", _AWARE, nullable=False, server_default=_NOW, comment="a worker looks at it from then on"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("lease_token", Uuid),
    Column("lease_expires_at", _AWARE),
    Index("preload_name_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("preload_due_idx", "due_at", postgresql_where=text("deleted_at IS NULL")),
    Index("preload_image_idx", "image", postgresql_where=text("deleted_at IS NULL")),
)

backing = Table(
    "backing",
    metadata,
    Column("pool_id", Uuid, ForeignKey("pool.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, nullable=False, comment="of the VirtualMachinePool"),
    Column(
        "round",
        Integer,
        nullable=False,
        server_default=text("1"),
        comment="rises each time that somebody deleted it: its name must not come back",
    ),
    Column(
        "adopted", Boolean, nullable=False, server_default=text("false"), comment="it was there before the pool was"
    ),
    Column("uid", Text, comment="NULL: it has not been seen yet"),
    Column("replicas", Integer, comment="as we last wrote or read them"),
    Column(
        "generation", BigInteger, comment="of the object after our last write: another one is somebody else's doing"
    ),
    Column("template", Text, comment="fingerprint of the template as we last wrote it"),
    Column("paused", Boolean, nullable=False, server_default=text("false"), comment="we paused it"),
    Column("reason", Text, comment="what keeps it from what it should be, in words"),
    Column("incident", Text, comment="what somebody else last did to it, in words"),
    Column("incident_at", _AWARE),
    Column("gone_at", _AWARE, comment="its pool is deleted, and it is no more"),
    Column("due_at", _AWARE, nullable=False, server_default=_NOW, comment="a worker looks at it from then on"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("lease_token", Uuid),
    Column("lease_expires_at", _AWARE),
    Index("backing_due_idx", "due_at", postgresql_where=text("gone_at IS NULL")),
)
