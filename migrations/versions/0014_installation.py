"""The installation's id, which its objects in the cluster carry, and what it knows of its Lease."""

from alembic import op

revision = "0014"
down_revision = "0013"

_UP = """
CREATE TABLE installation (
    single BOOLEAN DEFAULT true NOT NULL,
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    sequence BIGINT DEFAULT 0 NOT NULL,
    writer UUID,
    home OID,
    namespace TEXT,
    instance TEXT,
    confirmed_at TIMESTAMP WITH TIME ZONE,
    waits TEXT,
    waits_since TIMESTAMP WITH TIME ZONE,
    findings JSONB DEFAULT '{}' NOT NULL,
    held JSONB DEFAULT '{}' NOT NULL,
    decision TEXT,
    outcome TEXT,
    adopted UUID[] DEFAULT '{}' NOT NULL,
    disowned UUID[] DEFAULT '{}' NOT NULL,
    left_alone TEXT[] DEFAULT '{}' NOT NULL,
    given_up TEXT[] DEFAULT '{}' NOT NULL,
    CONSTRAINT installation_pkey PRIMARY KEY (single),
    CONSTRAINT installation_single_check CHECK (single),
    CONSTRAINT installation_decision_check CHECK (decision IN ('adopt', 'disown'))
);
COMMENT ON COLUMN installation.single IS 'there is one row';
COMMENT ON COLUMN installation.id IS 'carried by everything that is made in the cluster';
COMMENT ON COLUMN installation.sequence IS 'rises with each renewal of the Lease in the cluster';
COMMENT ON COLUMN installation.writer IS 'the process that made the last renewal';
COMMENT ON COLUMN installation.home IS 'the database in which that was written: a copy of it is another one';
COMMENT ON COLUMN installation.namespace IS 'where the objects are';
COMMENT ON COLUMN installation.instance IS 'the EMBERPOOL_INSTANCE that they carry';
COMMENT ON COLUMN installation.confirmed_at IS 'when a worker last found the objects in the cluster to be ours; NULL: never';
COMMENT ON COLUMN installation.waits IS 'why nothing is done in the cluster until an operator decides; NULL: it is';
COMMENT ON COLUMN installation.findings IS 'what each decision would do';
COMMENT ON COLUMN installation.held IS 'objects without a row that are not removed without a word, by kind';
COMMENT ON COLUMN installation.decision IS 'the operator''s word, until a worker has carried it out';
COMMENT ON COLUMN installation.outcome IS 'what the last decision did, in words';
COMMENT ON COLUMN installation.adopted IS 'installations whose objects are ours by an operator''s word';
COMMENT ON COLUMN installation.disowned IS 'installations whose objects are left alone';
COMMENT ON COLUMN installation.left_alone IS 'UIDs of objects that are left alone';
COMMENT ON COLUMN installation.given_up IS 'UIDs of objects that an operator has given up';
INSERT INTO installation DEFAULT VALUES;
"""


def upgrade() -> None:
    for statement in _UP.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """The id is lost, and with it what tells these objects from those of another database: the next upgrade makes a new one."""
    op.execute("DROP TABLE installation")
