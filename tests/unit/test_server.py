"""What a process says of itself when it begins to listen."""

import pytest
from structlog.testing import capture_logs

from app import server
from app.config import Role, Settings


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
