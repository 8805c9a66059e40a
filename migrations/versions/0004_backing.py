"""Pools that are VirtualMachinePools of the cluster, and VMs whose names come back."""

from alembic import op

revision = "0004"
down_revision = "0003"

_UP = """
CREATE TABLE backing (
    pool_id UUID NOT NULL,
    name TEXT NOT NULL,
    round INTEGER DEFAULT 1 NOT NULL,
    adopted BOOLEAN DEFAULT false NOT NULL,
    uid TEXT,
    replicas INTEGER,
    generation BIGINT,
    template TEXT,
    paused BOOLEAN DEFAULT false NOT NULL,
    reason TEXT,
    incident TEXT,
    incident_at TIMESTAMP WITH TIME ZONE,
    gone_at TIMESTAMP WITH TIME ZONE,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    lease_token UUID,
    lease_expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT backing_pkey PRIMARY KEY (pool_id),
    CONSTRAINT backing_pool_id_fkey FOREIGN KEY (pool_id) REFERENCES pool (id) ON DELETE CASCADE
);
CREATE INDEX backing_due_idx ON backing (due_at) WHERE gone_at IS NULL;
COMMENT ON COLUMN backing.name IS 'of the VirtualMachinePool';
COMMENT ON COLUMN backing.round IS 'rises each time that somebody deleted it: its name must not come back';
COMMENT ON COLUMN backing.adopted IS 'it was there before the pool was';
COMMENT ON COLUMN backing.uid IS 'NULL: it has not been seen yet';
COMMENT ON COLUMN backing.replicas IS 'as we last wrote or read them';
COMMENT ON COLUMN backing.generation IS 'of the object after our last write: another one is somebody else''s doing';
COMMENT ON COLUMN backing.template IS 'fingerprint of the template as we last wrote it';
COMMENT ON COLUMN backing.paused IS 'we paused it';
COMMENT ON COLUMN backing.reason IS 'what keeps it from what it should be, in words';
COMMENT ON COLUMN backing.incident IS 'what somebody else last did to it, in words';
COMMENT ON COLUMN backing.gone_at IS 'its pool is deleted, and it is no more';
COMMENT ON COLUMN backing.due_at IS 'a worker looks at it from then on';
ALTER TABLE vm ADD COLUMN member BOOLEAN DEFAULT false NOT NULL;
COMMENT ON COLUMN vm.member IS 'a VirtualMachinePool owns it: it is detached before anything else is done to it';
ALTER TABLE vm DROP CONSTRAINT vm_name_key;
CREATE INDEX vm_name_idx ON vm (name) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX vm_uid_key ON vm (uid) WHERE ended_at IS NULL AND uid IS NOT NULL;
"""

# Where names came back there is no way to one row a name: the older rows go, they are history.
_DOWN = """
DROP INDEX vm_uid_key;
DROP INDEX vm_name_idx;
DELETE FROM vm USING vm newer WHERE vm.name = newer.name AND vm.id < newer.id;
ALTER TABLE vm ADD CONSTRAINT vm_name_key UNIQUE (name);
ALTER TABLE vm DROP COLUMN member;
DROP TABLE backing;
"""


def upgrade() -> None:
    _run(_UP)


def downgrade() -> None:
    _run(_DOWN)


def _run(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)
