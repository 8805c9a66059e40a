"""Fixtures of the store's tests."""

from tests.support.shared_database import db, shared_database_url

__all__ = ["db", "shared_database_url"]
