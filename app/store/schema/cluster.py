"""Tables of nodes, and of what the cluster has for us besides VMs: snapshots, preloads and VirtualMachinePools."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.snapshots import TakeState
from app.store.schema.base import AWARE, lease_columns, lifetime_columns, metadata, one_of, required

node = Table(
    "node",
    metadata,
    Column("name", Text, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("zone", Text),
    Column("facts", JSONB, nullable=False, comment="labels, taints, what it offers, conditions, images"),
    Column("used", JSONB, comment="what the pods on it ask for; NULL: they cannot be seen"),
    required("vms", ARRAY(Uuid), "'{}'", "our VMs whose pods are on it"),
    Column("version", BigInteger, nullable=False, comment="rises with each change of any node"),
    required("changed_at", AWARE, "now()"),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False, comment="SnapshotSpec as written"),
    Column("used_at", AWARE, comment="the last start from it"),
    required("uses", BigInteger, "0", "VMs that were started from it"),
    *lifetime_columns(),
    *lease_columns(),
    required("memory", Boolean, "false", "it keeps the memory of its VM too"),
    Index("snapshot_name_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("snapshot_due_idx", "due_at", postgresql_where=text("deleted_at IS NULL")),
)

snapshot_take = Table(
    "snapshot_take",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("snapshot_id", Uuid, ForeignKey("snapshot.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False, comment="rises with each refresh"),
    required("state", Text, "'planned'"),
    required("state_since", AWARE, "now()"),
    Column("shape", Text, comment="of the VM that it was taken from"),
    Column("revision", Text, comment="of the pool's template that it was taken for"),
    Column("based_at", AWARE, comment="when its VM was asked for: what became ready later is not in it"),
    Column("vm_name", Text, comment="the VM that it is taken from"),
    Column("vm_uid", Text),
    Column("claim_id", Uuid, comment="our own claim on that VM, where it was made for this"),
    Column("object_uid", Text, comment="of the VirtualMachineSnapshot"),
    required("disks", JSONB, "'[]'", "SnapshotDisk of each included volume"),
    required("excluded", JSONB, "'[]'", "name and reason of each other"),
    Column("bytes", BigInteger),
    Column("reason", Text, comment="why it failed, or what it waits for"),
    required("created_at", AWARE, "now()"),
    Column("ready_at", AWARE),
    Column("ended_at", AWARE),
    Column("memory_bytes", BigInteger, comment="what the memory of its VM takes; NULL: it has none"),
    Column("fingerprint", Text, comment="what its memory can be restored with"),
    Column("stale_reason", Text, comment="why its memory cannot be restored any more; NULL: it can"),
    Column("vm_spec", JSONB, comment="of the VM whose memory it has, expanded"),
    CheckConstraint(one_of("state", TakeState), name="state"),
    Index("snapshot_take_number_key", "snapshot_id", "number", unique=True),
    Index("snapshot_take_open_idx", "snapshot_id", postgresql_where=text("ended_at IS NULL")),
    Index("snapshot_take_shape_idx", "shape", postgresql_where=text("state = 'ready'")),
)

preload = Table(
    "preload",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False, comment="PreloadSpec as written"),
    required("generation", BigInteger, "1"),
    required("state", Text, "'planned'"),
    required("state_since", AWARE, "now()"),
    Column("image_kind", Text, nullable=False),
    Column("image", Text, nullable=False, comment="the reference, as in ImageRef"),
    required("status", JSONB, "'{}'", "what the cluster showed last"),
    Column("reason", Text, comment="why it failed, or what it waits for"),
    Column("used_at", AWARE, comment="the last start from it"),
    required("uses", BigInteger, "0", "VMs that were started from it"),
    required("automatic", Boolean, "false", "made by a claim that is to be remembered: collected when unused"),
    Column("ready_at", AWARE),
    *lifetime_columns(),
    *lease_columns(),
    Index("preload_name_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("preload_due_idx", "due_at", postgresql_where=text("deleted_at IS NULL")),
    Index("preload_image_idx", "image", postgresql_where=text("deleted_at IS NULL")),
)

vm_pool = Table(
    "vm_pool",
    metadata,
    Column("pool_id", Uuid, ForeignKey("pool.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, nullable=False, comment="of the VirtualMachinePool"),
    required("round", Integer, "1", "rises each time that somebody deleted it: its name must not come back"),
    required("adopted", Boolean, "false", "it was there before the pool was"),
    Column("uid", Text, comment="NULL: it has not been seen yet"),
    Column("replicas", Integer, comment="as we last wrote or read them"),
    Column(
        "generation", BigInteger, comment="of the object after our last write: another one is somebody else's doing"
    ),
    Column("template", Text, comment="fingerprint of the template as we last wrote it"),
    required("paused", Boolean, "false", "we paused it"),
    Column("reason", Text, comment="what keeps it from what it should be, in words"),
    Column("incident", Text, comment="what somebody else last did to it, in words"),
    Column("incident_at", AWARE),
    Column("deleted_at", AWARE, comment="its pool is deleted, and it is no more"),
    *lease_columns(),
    Index("vm_pool_due_idx", "due_at", postgresql_where=text("deleted_at IS NULL")),
)
