"""The table of the installation: one row, made with the database."""

from sqlalchemy import ARRAY, BigInteger, Boolean, CheckConstraint, Column, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB, OID

from app.domain.ownership import Word
from app.store.schema.base import AWARE, metadata, one_of, required

installation = Table(
    "installation",
    metadata,
    Column("single", Boolean, primary_key=True, server_default="true", comment="there is one row"),
    required("id", Uuid, "gen_random_uuid()", "carried by everything that is made in the cluster"),
    required("created_at", AWARE, "now()"),
    required("sequence", BigInteger, "0", "rises with each renewal of the Lease in the cluster"),
    Column("writer", Uuid, comment="the process that made the last renewal"),
    Column("home", OID, comment="the database in which that was written: a copy of it is another one"),
    Column("namespace", Text, comment="where the objects are"),
    Column("instance", Text, comment="the EMBERPOOL_INSTANCE that they carry"),
    Column(
        "confirmed_at", AWARE, comment="when a worker last found the objects in the cluster to be ours; NULL: never"
    ),
    Column("waits", Text, comment="why nothing is done in the cluster until an operator decides; NULL: it is"),
    Column("waits_since", AWARE),
    required("findings", JSONB, "'{}'", "what each decision would do"),
    required("held", JSONB, "'{}'", "objects without a row that are not removed without a word, by kind"),
    Column("decision", Text, comment="the operator's word, until a worker has carried it out"),
    Column("outcome", Text, comment="what the last decision did, in words"),
    required("adopted", ARRAY(Uuid), "'{}'", "installations whose objects are ours by an operator's word"),
    required("disowned", ARRAY(Uuid), "'{}'", "installations whose objects are left alone"),
    required("left_alone", ARRAY(Text), "'{}'", "UIDs of objects that are left alone"),
    required("given_up", ARRAY(Text), "'{}'", "UIDs of objects that an operator has given up"),
    CheckConstraint("single", name="single"),
    CheckConstraint(one_of("decision", Word), name="decision"),
)
