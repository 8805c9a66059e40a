"""How far back the schema serves, for programs older than the one that migrated it."""

from sqlalchemy import Column, Table, Text

from app.store.schema.base import metadata

schema_compat = Table(
    "schema_compat",
    metadata,
    Column(
        "revision",
        Text,
        primary_key=True,
        comment="the migration that this is said of, in one row: that of alembic_version",
    ),
    Column(
        "serves_from",
        Text,
        nullable=False,
        comment="the newest migration of the oldest program that works on this schema",
    ),
)
