"""A table that says how old the programs may be that work on this schema."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE schema_compat (revision TEXT NOT NULL, serves_from TEXT NOT NULL,"
        " CONSTRAINT schema_compat_pkey PRIMARY KEY (revision))"
    )
    op.execute(
        "COMMENT ON COLUMN schema_compat.revision IS"
        " 'the migration that this is said of, in one row: that of alembic_version'"
    )
    op.execute(
        "COMMENT ON COLUMN schema_compat.serves_from IS"
        " 'the newest migration of the oldest program that works on this schema'"
    )


def downgrade() -> None:
    op.execute("DROP TABLE schema_compat")
