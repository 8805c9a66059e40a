"""Tables of pools, their VMs and claims, and the two queues."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.paths import StartPath
from app.domain.states import ClaimState, VmState
from app.store.schema.base import AWARE, lease_columns, lifetime_columns, metadata, one_of, required, vacuumed_after

ready_seq = Sequence("ready_seq", metadata=metadata)

pool = Table(
    "pool",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False, comment="PoolSpec as written"),
    Column("vm_spec", JSONB, nullable=False, comment="the template, expanded"),
    Column("revision", Text, nullable=False, comment="fingerprint of vm_spec"),
    required("generation", BigInteger, "1"),
    required("paused", Boolean, "false"),
    required("refilled_at", AWARE, "now()", "claims since then drain a pool without auto_replenish"),
    required("consecutive_failures", Integer, "0"),
    Column("last_failure", Text),
    Column("last_failure_at", AWARE),
    Column("backoff_until", AWARE),
    Column("stalled_at", AWARE),
    Column("rotated_at", AWARE, comment="VMs that the cluster was asked for until then are to be replaced"),
    *lifetime_columns(),
    required(
        "kind",
        Text,
        "'pool'",
        "pool; on_demand: size 0 and not listed, its VMs are made for claims that describe their VM",
    ),
    Column("shape", Text, comment="fingerprint of what its VMs boot"),
    required("path", Text, "'cold'", "how its VMs start"),
    Column("source", Text, comment="the snapshot or preload that they start from"),
    CheckConstraint("kind IN ('pool', 'on_demand')", name="kind"),
    CheckConstraint(one_of("path", StartPath), name="path"),
    Index("pool_name_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("pool_shape_idx", "shape", postgresql_where=text("deleted_at IS NULL")),
    Index("pool_source_idx", "source", postgresql_where=text("deleted_at IS NULL AND source IS NOT NULL")),
    Index("pool_history_idx", "name", postgresql_where=text("kind = 'pool'")),
)

pool_plan = Table(
    "pool_plan",
    metadata,
    Column("pool_id", Uuid, ForeignKey("pool.id", ondelete="CASCADE"), primary_key=True),
    required("due_at", AWARE, "now()"),
    Column("planned_at", AWARE),
    required("notes", JSONB, "'[]'", "what the last plan waits for, in words"),
    Column("held", Text, comment="why VMs that are to be replaced are not; NULL: they are, or there are none"),
    Column(
        "capacity_problem",
        Text,
        comment=(
            "why the nodes could never take as many of its VMs as its size, even with nothing else on them; "
            "NULL: they could, or nothing is known"
        ),
    ),
    required("waits_for_room", Boolean, "false", "it is planned again as soon as a node has more room"),
    Index("pool_plan_due_idx", "due_at"),
    postgresql_with={"fillfactor": "50"},
)

# Rows of their own, so that whoever asks never waits for a planner that has locked the pool's row, and is never overlooked by it.
plan_request = Table(
    "plan_request",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("pool_id", Uuid, nullable=False, comment="it is to be planned: something of it has changed"),
    Index("plan_request_pool_id_idx", "pool_id"),
    postgresql_with=vacuumed_after(1000),
)

vm = Table(
    "vm",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("pool_id", Uuid, ForeignKey("pool.id"), nullable=False),
    Column("name", Text, nullable=False),
    required("state", Text, "'planned'"),
    required("state_since", AWARE, "now()"),
    Column("revision", Text, nullable=False),
    required("urgent", Boolean, "false", "its pool is below its floor"),
    Column("uid", Text),
    Column("vmi_uid", Text),
    Column("node", Text),
    required("addresses", ARRAY(Text), "'{}'"),
    Column("health", Text, comment="what ails it, in words; NULL: nothing known"),
    Column("unhealthy_since", AWARE),
    required("created_at", AWARE, "now()"),
    Column("asked_at", AWARE, comment="when the cluster was first asked for it"),
    Column("ready_at", AWARE),
    Column("claimed_at", AWARE),
    Column("ended_at", AWARE),
    Column("boot_seconds", Double, comment="asked_at to the first ready"),
    Column("stages", JSONB, comment="seconds by stage, from the cluster's own timestamps"),
    Column("reason", Text, comment="why it failed, was lost, or is released"),
    Column("claim_id", Uuid),
    Column("deadline_at", AWARE, comment="booting: failed after it"),
    *lease_columns(),
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
    required("whole", Boolean, "true", "false: its disks are made after it, and may be missing while it is creating"),
    required("stopped", Boolean, "false", "we stopped it, for a snapshot: it is well without an instance"),
    required(
        "member", Boolean, "false", "a VirtualMachinePool owns it: it is detached before anything else is done to it"
    ),
    required("lost", Boolean, "false", "it ended as lost: `state` itself is in no index"),
    CheckConstraint(one_of("state", VmState), name="state"),
    CheckConstraint("state <> 'claimed' OR claim_id IS NOT NULL", name="claimed"),
    # No index on what a claim changes (state, claim_id): Postgres then updates the row within its page and no index, which
    # halves the cost of a claim. Half of each page is left free for that, because a batch changes all rows of a page at once.
    # A VirtualMachinePool uses the names of its VMs again, so only the UIDs of live VMs are unique.
    Index("vm_name_idx", "name", postgresql_where=text("ended_at IS NULL")),
    Index("vm_uid_key", "uid", unique=True, postgresql_where=text("ended_at IS NULL AND uid IS NOT NULL")),
    Index("vm_live_idx", "id", postgresql_where=text("ended_at IS NULL")),
    Index("vm_live_pool_idx", "pool_id", "id", postgresql_where=text("ended_at IS NULL")),
    Index("vm_deadline_idx", "deadline_at", postgresql_where=text("deadline_at IS NOT NULL")),
    Index("vm_work_idx", "work", "due_at", postgresql_where=text("work IS NOT NULL")),
    Index(
        "vm_boot_times_idx",
        "pool_id",
        "ready_at",
        postgresql_include=["boot_seconds"],
        postgresql_where=text("boot_seconds IS NOT NULL"),
    ),
    Index("vm_paths_idx", "path", "shape", "ready_at", postgresql_where=text("boot_seconds IS NOT NULL")),
    Index("vm_path_idx", "path", "ready_at", postgresql_where=text("boot_seconds IS NOT NULL")),
    Index("vm_source_idx", "source", "ready_at", postgresql_where=text("source IS NOT NULL")),
    Index("vm_ended_idx", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index("vm_history_idx", "lost", "id", postgresql_where=text("ended_at IS NOT NULL")),
    Index("vm_pool_history_idx", "pool_id", "lost", "id", postgresql_where=text("ended_at IS NOT NULL")),
    postgresql_with={"fillfactor": "50"},
)

put_off = Table(
    "put_off",
    metadata,
    Column(
        "pool_id",
        Uuid,
        primary_key=True,
        comment="the pool whose creates are put off, or the UUID 0: no create of any pool succeeds",
    ),
    Column("reason", Text, nullable=False, comment="what the cluster said last"),
    required("since", AWARE, "now()", "of the first create in a row that was put off"),
    Column("until", AWARE, nullable=False, comment="the cluster is asked again from then on"),
)

exclusive_use = Table(
    "exclusive_use",
    metadata,
    Column("key", Text, primary_key=True, comment="something in the cluster that exists once, such as a volume"),
    Column(
        "vm_id",
        Uuid,
        ForeignKey("vm.id", ondelete="CASCADE"),
        nullable=False,
        comment="the only VM that may write to it, until it has ended",
    ),
    Index("exclusive_use_vm_id_idx", "vm_id"),
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
    Column("ready_at", AWARE, nullable=False),
    Column("boot_seconds", Double),
    PrimaryKeyConstraint("pool_id", "seq"),
    Index("ready_slot_vm_id_key", "vm_id", unique=True),
    postgresql_with=vacuumed_after(5000),
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
    required("labels", JSONB, "'{}'"),
    Column("path", Text),
    Column("lease_seconds", Integer, nullable=False),
    Column("lease_expires_at", AWARE),
    required("created_at", AWARE, "now()"),
    Column("bound_at", AWARE),
    Column("ended_at", AWARE),
    Column("pending_until", AWARE, comment="pending: failed after it"),
    Column("reason", Text, comment="pending: why it was not warm; ended: why"),
    required("replacements", JSONB, "'[]'", "VMs that were dead on arrival"),
    Column(
        "restarts", JSONB, comment="restarts of its VM, the last of them not over yet while to_node is null; NULL: none"
    ),
    required("labelled", Boolean, "false", "its VM carries its id in the cluster"),
    required("label_due_at", AWARE, "now()", "a worker labels the VM from then on"),
    required("label_attempts", Integer, "0"),
    Column("shape", Text, comment="of a claim that named no pool: what it asked for"),
    Column("choice", JSONB, comment="likewise: the path that was chosen, and why not each other"),
    Column("allowed", ARRAY(Text), comment="likewise: the paths that it may be served by"),
    Column("marks", JSONB, comment="likewise: the labels and annotations that its VM gets"),
    CheckConstraint(one_of("state", ClaimState), name="state"),
    CheckConstraint("state <> 'bound' OR (vm_id IS NOT NULL AND lease_expires_at IS NOT NULL)", name="bound"),
    Index("claim_idem_key_key", "idem_key", unique=True, postgresql_where=text("idem_key IS NOT NULL")),
    Index("claim_lease_idx", "lease_expires_at", postgresql_where=text("state = 'bound'")),
    Index("claim_pool_idx", "pool_id", "id"),
    Index("claim_unlabelled_idx", "label_due_at", postgresql_where=text("state = 'bound' AND NOT labelled")),
    Index("claim_ended_idx", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    # For lists. None of them has an entry of a claim on a warm VM before it ends, so that they cost such a claim nothing.
    Index("claim_history_idx", "state", "id", postgresql_where=text("ended_at IS NOT NULL")),
    Index("claim_pool_history_idx", "pool_id", "state", "id", postgresql_where=text("ended_at IS NOT NULL")),
    Index("claim_shape_idx", "shape", "state", "id", postgresql_where=text("shape IS NOT NULL")),
    Index("claim_pool_shape_idx", "pool_id", "shape", "state", "id", postgresql_where=text("shape IS NOT NULL")),
)

# A trigger of `claim` writes them, whatever version of the program ends the claim.
claim_label = Table(
    "claim_label",
    metadata,
    Column("claim_id", Uuid, nullable=False, comment="a claim that has ended"),
    Column("label", Text, nullable=False, comment="name=value"),
    Column("pool_id", Uuid, nullable=False),
    Column("shape", Text),
    Column("state", Text, nullable=False),
    PrimaryKeyConstraint("claim_id", "label"),
    Index("claim_label_idx", "label", "state", "claim_id"),
    Index("claim_label_pool_idx", "label", "pool_id", "state", "claim_id"),
    Index("claim_label_shape_idx", "label", "shape", "state", "claim_id", postgresql_where=text("shape IS NOT NULL")),
    Index(
        "claim_label_pool_shape_idx",
        *("label", "pool_id", "shape", "state", "claim_id"),
        postgresql_where=text("shape IS NOT NULL"),
    ),
)

claim_queue = Table(
    "claim_queue",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("seq", BigInteger, Identity(always=False), nullable=False),
    Column("claim_id", Uuid, nullable=False),
    PrimaryKeyConstraint("pool_id", "seq"),
    Index("claim_queue_claim_id_key", "claim_id", unique=True),
    postgresql_with=vacuumed_after(1000),
)
