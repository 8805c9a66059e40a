"""Fixtures that more than one part of the tests uses."""

from tests.postgres import database_url, empty_database_url, postgres, template_database

__all__ = ["database_url", "empty_database_url", "postgres", "template_database"]
