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

from app.store.schema.base import AWARE, NOW, Xid8, metadata

event = Table(
    "event",
    metadata,
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("at", AWARE, nullable=False, server_default=NOW),
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
    Column("expires_at", AWARE, nullable=False),
)

bucket = Table(
    "bucket",
    metadata,
    Column("name", Text, primary_key=True),
    Column("tokens", Double, nullable=False),
    Column("filled_at", AWARE, nullable=False, server_default=NOW),
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
