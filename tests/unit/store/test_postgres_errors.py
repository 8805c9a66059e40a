"""What each SQLSTATE of Postgres means to whoever asked."""

import asyncpg
import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import DatabaseLost, DatabaseUnavailable, InvalidRequest
from app.store.postgres_errors import is_stale, translate


def error_of(state):
    return asyncpg.PostgresError.new({"C": state, "M": "as Postgres words it"})


# SQLSTATE, words of the sentence, whether the other connections are stale, whether a commit may have been made
MEANINGS = [
    ("08000", "does not answer", True, True),
    ("08006", "does not answer", True, True),
    ("25006", "takes no writes now", True, False),
    ("28000", "refuses the service's user or password", True, False),
    ("28P01", "refuses the service's user or password", True, False),
    ("3D000", "does not exist", True, False),
    ("40001", "other requests were in the way", False, False),
    ("40003", "does not answer", False, True),
    ("40P01", "other requests were in the way", False, False),
    ("42501", "does not permit", False, False),
    ("42703", "run `emberpool migrate`", False, False),
    ("42P01", "run `emberpool migrate`", False, False),
    ("53000", "run out of memory", False, False),
    ("53100", "disk is full", False, False),
    ("53200", "run out of memory", False, False),
    ("53300", "takes no more connections", False, False),
    ("53400", "run out of memory", False, False),
    ("55006", "other requests were in the way", False, False),
    ("55P03", "other requests were in the way", False, False),
    ("57014", "other requests were in the way", False, False),
    ("57P01", "does not answer", True, True),
    ("57P02", "does not answer", True, True),
    ("57P03", "does not answer", True, True),
    ("57P04", "does not answer", True, True),
    ("57P05", "does not answer", True, True),
    ("58000", "failed, and its log has the reason", False, False),
    ("58030", "failed, and its log has the reason", False, False),
    ("F0000", "failed, and its log has the reason", False, False),
    ("XX000", "failed, and its log has the reason", False, False),
    ("XX001", "failed, and its log has the reason", False, False),
]


@pytest.mark.parametrize(("state", "words", "stale", "lost"), MEANINGS)
def test_a_state_of_the_server_is_told_and_may_be_tried_again(state, words, stale, lost):
    error = error_of(state)
    for committing in (False, True):
        ours = translate(error, committing=committing)
        assert isinstance(ours, DatabaseUnavailable)
        assert ours.retry_after
        unknown = lost and committing
        assert isinstance(ours, DatabaseLost) == unknown
        assert ("nothing was changed" in ours.detail) != unknown
        assert unknown or words.lower() in ours.detail.lower()
    assert is_stale(error) == stale


@pytest.mark.parametrize(
    "state", ["0A000", "21000", "22012", "22P02", "23502", "23505", "25P02", "26000", "42601", "42P02"]
)
def test_a_statement_that_is_wrong_is_a_bug(state):
    assert translate(error_of(state), committing=True) is None
    assert not is_stale(error_of(state))


@pytest.mark.parametrize("state", ["22021", "22P05"])
def test_text_that_cannot_be_stored_is_the_fault_of_the_request(state):
    assert isinstance(translate(error_of(state)), InvalidRequest)


@pytest.mark.parametrize(
    ("error", "stale", "lost"),
    [
        (ConnectionRefusedError(), True, True),
        (TimeoutError(), False, True),  # slow or hung: the others may be well
        (PoolTimeoutError(), False, True),
        (asyncpg.InterfaceError("the connection is closed"), True, True),
        (asyncpg.InternalClientError("unexpected"), True, True),
        (asyncpg.InvalidCachedStatementError("the schema has changed"), False, False),
        (ValueError("a bug"), False, None),
    ],
)
def test_errors_of_the_driver_itself(error, stale, lost):
    ours = translate(error, committing=True)
    assert isinstance(ours, DatabaseLost) == bool(lost)
    assert (ours is None) == (lost is None)
    assert is_stale(error) == stale
