"""Fixtures of the store's tests."""

from tests.store.shared import db, shared_database_url

__all__ = ["db", "shared_database_url"]
