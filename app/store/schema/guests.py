"""Tables of guests that have a channel to the service, and of what claims hand over to them."""

from sqlalchemy import ARRAY, Boolean, CheckConstraint, Column, Index, Integer, LargeBinary, Table, Text, Uuid, text

from app.domain.handovers import HandoverState
from app.store.schema.base import AWARE, metadata, one_of, required

guest = Table(
    "guest",
    metadata,
    Column("vm_id", Uuid, primary_key=True, comment="a VM with an identity disk"),
    Column("token_hash", LargeBinary, nullable=False, comment="SHA-256 of the token on that disk"),
    Column("identity_uid", Text, comment="of its object in the cluster; NULL: the cluster has not answered yet"),
    required("identity_gone", Boolean, "false", "the identity was removed from the cluster"),
    required("made_at", AWARE, "now()"),
    Column("boot_id", Text, comment="of the guest that said hello last"),
    required("former_boots", ARRAY(Text), "'{}'", "those before it, the last first"),
    Column("hello_at", AWARE),
    Column("claim_id", Uuid, comment="the claim that the guest was last told of"),
    Column("settled_id", Uuid, comment="the claim whose hand-over the guest has acknowledged"),
    required("release_seconds", Integer, "0", "how long its VM is kept after such a claim"),
    Column("conflict", Text, comment="why nothing is handed over any more; NULL: it is"),
    Column("refused_at", AWARE, comment="when a refusal was last written down"),
    Index("guest_token_hash_key", "token_hash", unique=True),
    Index("guest_identity_idx", "vm_id", postgresql_where=text("NOT identity_gone")),
)

handover = Table(
    "handover",
    metadata,
    Column("claim_id", Uuid, primary_key=True),
    required("state", Text, "'pending'"),
    Column("sealed", LargeBinary, comment="the data, encrypted; NULL: there was none, or it is erased"),
    required("created_at", AWARE, "now()"),
    Column("taken_at", AWARE, comment="when the guest first got it"),
    Column("done_at", AWARE),
    Column("exit_code", Integer, comment="of the guest's hooks"),
    Column("output", Text, comment="what they printed, cut"),
    Column("reason", Text, comment="why it waits, or why it failed"),
    CheckConstraint(one_of("state", HandoverState), name="state"),
    CheckConstraint("state IN ('pending', 'taken') OR sealed IS NULL", name="erased"),
    Index("handover_pending_idx", "claim_id", postgresql_where=text("state = 'pending'")),
)
