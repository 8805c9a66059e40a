"""What puts the creates of pools off."""

from alembic import op

revision = "0010"
down_revision = "0009"

_UP = """
CREATE TABLE put_off (
    pool_id UUID NOT NULL,
    reason TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT put_off_pkey PRIMARY KEY (pool_id)
);
COMMENT ON COLUMN put_off.pool_id IS 'the pool whose creates are put off, or the UUID 0: no create of any pool succeeds';
COMMENT ON COLUMN put_off.reason IS 'what the cluster said last';
COMMENT ON COLUMN put_off.since IS 'of the first create in a row that was put off';
COMMENT ON COLUMN put_off.until IS 'the cluster is asked again from then on';
"""


def upgrade() -> None:
    for statement in _UP.split(";"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE put_off")
