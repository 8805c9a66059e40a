"""The reading of a JSON body: the same values by both parsers, the same sentence for all that is refused, and large ones in a thread."""

import asyncio
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import app as api
from app.api.bodies import LARGE, BodyRoute, in_thread, in_turn, read_json
from app.api.claims.bodies import ClaimBody
from app.api.claims.fast_path import route as claim_route
from app.errors import MalformedBody
from app.manifests import json_text
from app.manifests.values import MAX_DEPTH, MAX_VALUES_OF_BODY

_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_TEXTS, below, max_size=3),
    max_leaves=12,
)


@given(_TREES, st.booleans())
def test_what_is_json_is_read_as_it_is(tree, escaped):
    text = json.dumps(tree, ensure_ascii=escaped)
    assert read_json(text.encode()) == tree == json_text.read_value(text)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]:,"\\u0aedtrufalsn-+.E 1\n\t', max_size=40).map(str.encode))
def test_any_bytes_are_a_value_that_json_can_express_or_a_sentence(raw):
    try:
        found = read_json(raw)
    except MalformedBody as error:
        assert error.detail  # noqa: PT017 - only some bytes are refused
    else:
        assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("raw", "field", "sentence"),
    [
        (b'{"a": {"b": [0, {"c": 1, "c": 2}]}}', "a.b[1].c", "a.b[1].c, line 1, column 26: the key 'c' is repeated"),
        (b'{"a": 1, "\\u0061": 2}', "a", "the key 'a' is repeated; keep one of them"),
        (b'{"a":\n "\\u0000"}', "a", "a, line 2, column 2: no field may contain a NUL character"),
        (b'["\\ud800"]', "[0]", "half a surrogate pair"),
        (b'{"a": [NaN]}', "a[0]", "NaN is not a number in JSON"),
        (b'{"a": -1e400}', "a", "JSON cannot express -inf"),
        (b'{"a": 18446744073709551616}', "a", "more than 64 bits"),
        (b'"abc\x00"', None, "line 1, column 5: invalid control character"),
        (b'{"a": "\xff"}', None, "the text is not UTF-8: byte 7, on line 1, is invalid; save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), None, "looks like UTF-16 without a byte order mark; save it as UTF-8"),
        (b"1 2", None, "not JSON at line 1, column 3: there is more behind its end"),
        (b"", None, "not JSON at line 1, column 1: the text ends too early"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), None, f"nested more than {MAX_DEPTH} levels"),
        (b"[" + b"1," * MAX_VALUES_OF_BODY + b"1]", None, f"more than {MAX_VALUES_OF_BODY} values"),
        (b'{"%s": {"%s": 1, "\\u0061": 1}}' % (b"x" * 1500, b"y" * 1500), None, "have more than 2048 characters"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused_is_told_with_its_place(raw, field, sentence):
    with pytest.raises(MalformedBody) as raised:
        read_json(raw)
    assert sentence in raised.value.detail
    assert [problem.field for problem in raised.value.problems] == ([] if field is None else [field])


@pytest.mark.parametrize("raw", [b"[311.0, 3.11e2, 311]", b'[311.0, 3.11e2, 311, "\\u0061"]'])
def test_a_number_without_a_fraction_is_an_integer(raw):
    found = read_json(raw)[:3]
    assert [(type(number), number) for number in found] == [(int, 311)] * 3
    assert [type(number) for number in read_json(b"[0.5, 1e300, 9007199254740993.0]")] == [float] * 3


async def test_a_large_body_is_read_in_a_thread_one_at_a_time():
    running, most, names = 0, 0, set()
    lock = threading.Lock()

    def read():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        names.add(threading.current_thread().name)
        with lock:
            running -= 1

    await asyncio.gather(*(in_turn(LARGE + 1, read) for _ in range(20)), *(in_thread(read) for _ in range(20)))
    assert (most, threading.current_thread().name in names) == (1, False)
    await in_turn(LARGE, read)
    assert threading.current_thread().name in names


def test_every_route_with_a_body_reads_it_this_way():
    with_body = [route for routes in api._ROUTES for route in routes.router.routes if route.body_field is not None]
    assert len(with_body) > 6
    assert {route.path for route in with_body if not isinstance(route, BodyRoute)} == {claim_route.PATH}
    assert claim_route._FORM._model is ClaimBody  # it reads its body by the same means, without the framework
