"""Fixtures of the tests that hold the claim path to its guarantees."""

from tests.store.shared import db, shared_database_url
from tests.usecases.conftest import make_desk

__all__ = ["db", "make_desk", "shared_database_url"]
