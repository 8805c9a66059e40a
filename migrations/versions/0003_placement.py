"""Nodes as the cluster shows them, and pools whose VMs no node can take."""

from alembic import op

revision = "0003"
down_revision = "0002"

_UP = """
CREATE SEQUENCE node_version;
CREATE TABLE node (
    name TEXT NOT NULL,
    uid TEXT NOT NULL,
    zone TEXT,
    facts JSONB NOT NULL,
    used JSONB,
    vms UUID[] DEFAULT '{}' NOT NULL,
    version BIGINT NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT node_pkey PRIMARY KEY (name)
);
COMMENT ON COLUMN node.facts IS 'labels, taints, what it offers, conditions, images';
COMMENT ON COLUMN node.used IS 'what the pods on it ask for; NULL: they cannot be seen';
COMMENT ON COLUMN node.vms IS 'our VMs whose pods are on it';
COMMENT ON COLUMN node.version IS 'rises with each change of any node';
ALTER TABLE pool_plan ADD COLUMN unfit TEXT;
COMMENT ON COLUMN pool_plan.unfit IS 'why the nodes could never take as many of its VMs as its size, even with nothing else on them; NULL: they could, or nothing is known';
ALTER TABLE pool_plan ADD COLUMN waits_for_room BOOLEAN DEFAULT false NOT NULL;
COMMENT ON COLUMN pool_plan.waits_for_room IS 'it is planned again as soon as a node has more room';
"""

_DOWN = """
ALTER TABLE pool_plan DROP COLUMN waits_for_room;
ALTER TABLE pool_plan DROP COLUMN unfit;
DROP TABLE node;
DROP SEQUENCE node_version;
"""


def upgrade() -> None:
    _run(_UP)


def downgrade() -> None:
    _run(_DOWN)


def _run(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)
