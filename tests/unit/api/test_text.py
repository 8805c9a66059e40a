"""Text outside of bodies: what is no UTF-8, and what nothing can store."""

import pytest

from app.api.text import MAX_KEY, check_address, idempotency_key
from app.errors import InvalidRequest


@pytest.mark.parametrize("key", ["k", "01a206d8-517b", "clé €", "鍵" * MAX_KEY, "🚀"])
def test_a_key_is_text_in_utf_8(key):
    assert idempotency_key([(b"host", b"h"), (b"idempotency-key", key.encode())]) == key


@pytest.mark.parametrize(
    "value", [b"", b"k" * (MAX_KEY + 1), b"\xe9", b"a\x00", b"\xed\xa0\x80", "\u200b".encode(), b"a\tb"]
)
def test_what_is_no_key_is_refused_with_what_one_is(value):
    with pytest.raises(InvalidRequest, match="must be between 1 and 255 printable characters in UTF-8") as raised:
        idempotency_key([(b"idempotency-key", value)])
    assert [problem.field for problem in raised.value.problems] == ["Idempotency-Key"]


def test_without_a_header_there_is_no_key():
    assert idempotency_key([(b"host", b"h")]) is None


@pytest.mark.parametrize(
    ("path", "query"), [(b"/v1/pools", b""), (b"/a%C3%A9", b"label=a%3Dcl%C3%A9"), (b"/%2f", b"a&&=&b=")]
)
def test_an_address_in_utf_8_is_taken(path, query):
    check_address(path, query)


@pytest.mark.parametrize(
    ("path", "query", "field", "message"),
    [
        (b"/a%00", b"", "path", "NUL"),
        (b"/a%c3", b"", "path", "not UTF-8"),
        ("/é".encode(), b"", "path", "percent-encoded"),
        (b"/", b"pool=a&label=%00", "label", "NUL"),
        (b"/", b"l%61bel=%ff", "label", "not UTF-8"),
        (b"/", b"label=\xff", "label", "percent-encoded"),
        (b"/", b"%ff=1", "the name of a query parameter", "not UTF-8"),
    ],
)
def test_an_address_that_nothing_can_hold_is_refused_with_its_part(path, query, field, message):
    with pytest.raises(InvalidRequest, match=message) as raised:
        check_address(path, query)
    assert [problem.field for problem in raised.value.problems] == [field]
