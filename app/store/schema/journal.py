"""Tables of events, named leases, rate limits, and how current watches are."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Identity,
    Index,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.store.schema.base import AWARE, Xid8, metadata, required

_KIND = text("split_part(type, '.', 1)")

event = Table(
    "event",
    metadata,
    required("xid", Xid8, "pg_current_xact_id()"),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    required("at", AWARE, "now()"),
    Column("type", Text, nullable=False, comment="pool.*, vm.<state>, claim.<state>"),
    Column("pool_id", Uuid),
    Column("vm_id", Uuid),
    Column("claim_id", Uuid),
    required("data", JSONB, "'{}'"),
    PrimaryKeyConstraint("xid", "id"),
    Index("event_vm_idx", "vm_id", "id", postgresql_where=text("vm_id IS NOT NULL")),
    # Neither has an entry of a warm claim, which an index would cost an eighth of what it takes of Postgres. `bound_event` has
    # those by pool; without a pool, claims are in every stretch of the history.
    Index(
        "event_pool_idx",
        *("pool_id", _KIND, "xid", "id"),
        postgresql_where=text("pool_id IS NOT NULL AND type <> 'claim.bound'"),
    ),
    Index("event_kind_idx", _KIND, "xid", "id", postgresql_where=text("split_part(type, '.', 1) <> 'claim'")),
)

bound_event = Table(
    "bound_event",
    metadata,
    Column("pool_id", Uuid, nullable=False, comment="of an event claim.bound that `event_reader` has read"),
    Column("xid", Xid8, nullable=False),
    Column("id", BigInteger, nullable=False),
    PrimaryKeyConstraint("pool_id", "xid", "id"),
)

event_reader = Table(
    "event_reader",
    metadata,
    Column("name", Text, primary_key=True),
    Column("xid", Xid8, nullable=False, comment="it has read all events up to this one"),
    Column("id", BigInteger, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("token", Uuid, nullable=False),
    Column("expires_at", AWARE, nullable=False),
)

bucket = Table(
    "bucket",
    metadata,
    Column("name", Text, primary_key=True),
    Column("tokens", Double, nullable=False),
    required("filled_at", AWARE, "now()"),
)

watch = Table(
    "watch",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("listed_at", AWARE),
    Column("heard_at", AWARE, comment="the last event of any kind"),
    Column("broken_since", AWARE),
    Column("broken_reason", Text),
)

node_version = Sequence("node_version", metadata=metadata)
