"""Fixtures that more than one part of the tests uses."""

import os

from tests.clusters import dev_cluster
from tests.postgres import database_url, empty_database_url, postgres, template_database

__all__ = ["database_url", "dev_cluster", "empty_database_url", "postgres", "template_database"]

# Settings read these; what the developer's shell sets must not change what a test sees.
for _name in [name for name in os.environ if name.startswith("EMBERPOOL_")]:
    del os.environ[_name]
