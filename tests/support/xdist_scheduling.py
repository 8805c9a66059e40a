"""Which tests go to one process together, under `pytest -n`.

What shares a module's service, cluster or build stays in one process and in order: it sees what earlier tests left there.
All else goes, one by one, to whoever is free. xdist's own marks for this say it in a test's id, which pytest 9.2 does not
let them change.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.scheduler.protocol import Scheduling

_TOGETHER = (
    "tests/api/",
    "tests/integration/cli/",
    "tests/integration/embedded/test_postgres.py",
    "tests/system/packaging/",
    "tests/system/test_cluster_faults.py",
)


# Begun first, so that no process is left alone at the end with a test of a minute.
_FIRST = ("tests/system/", "tests/integration/services/claims/", "tests/api/")


class SharedModules(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0] if nodeid.startswith(_TOGETHER) else nodeid


@pytest.hookimpl(optionalhook=True)  # without xdist nothing is scheduled
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """For `--dist loadscope`, as `make pytest` runs it; another `--dist` is served as it is asked for."""
    return SharedModules(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `-n` only: who runs tests by hand gets them in the order of the files."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))
