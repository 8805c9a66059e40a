"""What a process says of itself when it begins to listen, and how many connections it takes where its open files are limited."""

import resource

import pytest
from structlog.testing import capture_logs

from app import server
from app.config import Role, Settings

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "emberpool.example"}, True),
        ({"host": "0.0.0.0", "api_token": "t0ken"}, False),
        ({"host": "0.0.0.0", "role": Role.WORKER}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
    ],
)
def test_an_api_that_others_reach_without_a_token_says_so_in_its_log(settings, warned):
    with capture_logs() as logs:
        server._warn_if_open(Settings(**settings))
    assert [(each["event"], each["log_level"]) for each in logs] == [("serving.open", "warning")] * warned


@pytest.mark.parametrize(
    ("limits", "raised", "connections"),
    [
        ((1024, UNLIMITED), (4200, UNLIMITED), 4000),
        ((1024, 1_048_576), (4200, 1_048_576), 4000),
        ((1024, 2048), (2048, 2048), 1848),
        ((1024, 1024), (1024, 1024), 824),
        ((100, 100), (100, 100), 1),
        ((8192, 8192), None, 4000),
        ((UNLIMITED, UNLIMITED), None, 4000),
    ],
)
def test_connections_leave_files_to_the_database_and_the_cluster(monkeypatch, limits, raised, connections):
    written = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: written.append(wanted))
    assert server._fit_open_files(Settings()).max_connections == connections
    assert written == ([raised] if raised else [])
