"""Heads that are not as they should be."""

import httptools
import pytest
from structlog.testing import capture_logs

from app.api.connections.heads import describe, without_upgrade


@pytest.mark.parametrize(
    ("connection", "kept"),
    [
        (b"Upgrade, HTTP2-Settings", []),
        (b"close, upgrade", [b"connection: close"]),
        (b"keep-alive,Upgrade", [b"connection: keep-alive"]),
    ],
)
def test_an_offer_is_left_out_and_nothing_else(connection, kept):
    headers = [
        (b"host", b"a"),
        (b"connection", connection),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"AA"),
        (b"x", b"1"),
    ]
    lines = without_upgrade(b"POST", b"/a?b", headers).split(b"\r\n")
    assert lines == [b"POST /a?b HTTP/1.1", b"host: a", *kept, b"x: 1", b"", b""]


def test_a_bug_of_ours_is_told_as_one():
    error = httptools.HttpParserCallbackError("the callback failed")
    error.__context__ = RuntimeError("something private")
    with capture_logs() as logged:
        found = describe(error, b"GET", [])
    assert (found.status, found.code) == (500, "internal-error")
    assert "private" not in found.detail
    assert [str(each["exc_info"]) for each in logged] == ["something private"]


@pytest.mark.parametrize(
    ("coding", "status"), [(b"gzip", 501), (b"Chunked , gzip", 501), (b"chunked, chunked", 400), (b"identity", 400)]
)
def test_a_coding_that_nobody_knows_is_told_apart_from_a_wrong_one(coding, status):
    error = httptools.HttpParserError("Request has invalid `Transfer-Encoding`")
    assert describe(error, b"POST", [(b"transfer-encoding", coding)]).status == status
