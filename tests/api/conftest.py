"""One service for the tests of a module; those that break something have their own (`tests.support.service.serve`)."""

from tests.support.clusters import dev_cluster
from tests.support.module_service import cluster, server
from tests.support.postgres import database_url, empty_database_url, postgres, template_database

__all__ = ["cluster", "database_url", "dev_cluster", "empty_database_url", "postgres", "server", "template_database"]
