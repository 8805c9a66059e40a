"""The URL of the database: read in one way or refused, shown without anything secret."""

import inspect
from urllib.parse import quote

import asyncpg
import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args as parse
from hypothesis import given
from hypothesis import strategies as st

from app.store.database import describe_failure, driver_dsn
from app.store.database_url import UrlInvalid, check, has_password, shown


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://localhost/emberpool", "postgresql://localhost/emberpool"),
        ("postgres://me:pw@db.example:5433/d?sslmode=require", "postgresql://db.example:5433/d"),
        ("postgresql://me:pw@[2001:db8::1]:5433/d", "postgresql://[2001:db8::1]:5433/d"),
        ("postgresql://me:pw@a:1,b:2/d?target_session_attrs=primary", "postgresql://a:1,b:2/d"),
        ("postgresql://me:pw@/d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql"),
        ("postgresql://", "postgresql://"),
        ("postgresql://me:a:b@h", "postgresql://h"),
    ],
)
def test_what_can_be_read_in_one_way_is_taken_and_its_place_is_shown(url, place):
    check(url)
    assert shown(url) == place


@given(st.text(min_size=1).map(lambda text: text.encode("utf-8", "ignore").decode()).filter(bool))
def test_any_password_can_be_written_with_escapes_and_reaches_the_driver_whole(password):
    url = f"postgresql://me:{quote(password, safe='')}@127.0.0.1:5433/d"
    check(url)
    addresses, parameters = _read(url)
    assert (addresses, parameters.user, parameters.password) == ([("127.0.0.1", 5433)], "me", password)
    assert shown(url) == "postgresql://127.0.0.1:5433/d"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="%"), min_size=1))
def test_a_password_that_is_not_escaped_is_whole_or_refused(password):
    url = f"postgresql://me:{password}@127.0.0.1:5433/d"
    try:
        check(url)
    except UrlInvalid:
        return
    addresses, parameters = _read(url)
    assert (addresses, parameters.password) == ([("127.0.0.1", 5433)], password)


@pytest.mark.parametrize(
    ("url", "has"),
    [
        ("postgresql://me:pw@h/d", True),
        ("postgresql://h/d?password=pw", True),
        ("postgresql://h/d?sslpassword=pw", True),
        ("postgresql://me@h/d?sslmode=require", False),
        ("postgresql://me@/d?host=/run/postgresql", False),
    ],
)
def test_a_password_is_seen_wherever_it_stands(url, has):
    assert has_password(url) is has


def test_a_url_without_a_password_takes_it_from_the_file_that_libpq_uses(monkeypatch, tmp_path):
    passfile = tmp_path / "pgpass"
    passfile.write_text("db.example:5432:things:me:s3cr3t\n", encoding="utf-8")
    passfile.chmod(0o600)  # the driver passes over one that others may read
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    _, parameters = _read("postgresql://me@db.example/things")
    assert parameters.password == "s3cr3t"


def test_of_an_error_that_may_quote_the_url_the_kind_alone_is_told():
    assert describe_failure(ValueError("bad query field: 's3cr3t'")) == "ValueError"
    assert describe_failure(ConnectionRefusedError(111, "Connection refused")) == "[Errno 111] Connection refused"
    assert describe_failure(asyncpg.InvalidPasswordError("password authentication failed")) == (
        "password authentication failed"
    )


def _read(url):
    """As the driver does."""
    names = list(inspect.signature(parse).parameters)
    return parse(**{**dict.fromkeys(names), "dsn": driver_dsn(url)})
