"""Bytes to documents: what is read as YAML's users expect, and what is refused in a sentence with its place."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.errors import MalformedBody
from app.manifests import yaml_text
from app.manifests.documents import read_documents
from app.manifests.values import MAX_DEPTH, MAX_DOCUMENTS, MAX_VALUES

BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
)


@pytest.fixture(params=["libyaml", "pure"], autouse=True)
def loader(request, monkeypatch):
    """Both of PyYAML's parsers: a wheel may come without libyaml."""
    if request.param == "pure":
        monkeypatch.setattr(yaml_text, "_LOADER", yaml.SafeLoader)
    elif not yaml.__with_libyaml__:
        pytest.skip("this PyYAML has no libyaml")


def read_json(data):
    return read_documents(data, only_json=True)


def bodies(data):
    return [document.body for document in read_documents(data)]


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"a: 1\nb: 1.5\nc: ~\nd: yes\ne: 0x1F\nf: ''", {"a": 1, "b": 1.5, "c": None, "d": True, "e": 31, "f": ""}),
        (b"a: 2024-01-01\nb: 2024-01-01T10:00:00Z", {"a": "2024-01-01", "b": "2024-01-01T10:00:00Z"}),
        (b"a: 12:30\nb: 12:30.5\nc: 52:54:00:12:34:56", {"a": "12:30", "b": "12:30.5", "c": "52:54:00:12:34:56"}),
        (b"a: 1e3\nb: 2Gi\nc: !!str 5\nd: '5'", {"a": "1e3", "b": "2Gi", "c": "5", "d": "5"}),
        (b"a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        (b"a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        (b"a:\n  <<: [{b: 1}, {b: 2, c: 3}]", {"a": {"b": 1, "c": 3}}),
        (b"'<<': 1\n'on': 2", {"<<": 1, "on": 2}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        (b'{"a": [1, true, null]}', {"a": [1, True, None]}),
    ],
)
def test_what_is_read(data, body):
    assert bodies(data) == [body]


def test_empty_documents_do_not_count():
    found = read_documents(b"# only a comment\n---\n---\na: 1\n---\n# another\n---\nb: 2\n...\n")
    assert [(document.path, document.body) for document in found] == [
        ("documents[0]", {"a": 1}),
        ("documents[1]", {"b": 2}),
    ]


def test_a_document_of_kind_list_is_read_as_its_items():
    found = read_documents(b"kind: List\napiVersion: v1\nitems:\n- a: 1\n- b: 2\n")
    assert [(document.path, document.body, document.line(f"{document.path}.a")) for document in found] == [
        ("documents[0].items[0]", {"a": 1}, 4),
        ("documents[0].items[1]", {"b": 2}, 5),
    ]


def test_each_field_has_the_number_of_its_line():
    (document,) = read_documents(b"a:\n  b:\n    - c: 1\n    - d: 1\n")
    assert [document.line(path) for path in ("documents[0].a", "documents[0].a.b[1].d")] == [1, 4]
    assert document.line("documents[0].a.b[1].missing.below") == 4
    assert document.line("documents[7]") is None


def test_aliases_are_copies():
    (body,) = bodies(b"a: &x {b: [1]}\nc: *x")
    body["a"]["b"].append(2)
    assert body["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a: [1\nb", "the text is not YAML at line "),
        (b"a:\n\tb: 1", "line 2, column 1: found character"),
        (b"a:\n\tb: 1", "indent with spaces, never with tabs"),
        (b"a: 'x", "the text is not YAML at line 1"),
        (b"@", "the text is not YAML at line 1, column 1"),
        (b"1: x", "line 1, column 1: the key 1 is a number; put it in quotes"),
        (b"on: x", "the key on is a boolean in YAML; put it in quotes"),
        (b"~: x", "the key ~ is nothing"),
        (b"? [x]\n: 1", "a key is not text"),
        (b"a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is repeated"),
        (b"a: &a [*a]", "*a does not refer to a value that is complete before it"),
        (b"a: *x", "*x does not refer"),
        (b"a: 1\n---\nb: *a", "*a does not refer"),
        (b"<<: 1", "<< merges mappings, not a number"),
        (b"a: !!binary aGk=", "binary is not supported; leave it out"),
        (b"a: !!set {b}", "set is not supported"),
        (b"a: !!python/object/apply:os.system [x]", "os.system is not supported"),
        (b"a: !mine 1", "!mine is not supported"),
        (b"a: .inf", "line 1, column 4: JSON cannot express inf"),
        (b"a: .nan", "cannot express nan"),
        (b"a: 123456789012345678901234567890", "the number has more than 64 bits"),
        (b"a: " + b"9" * 5000, "is not a valid int"),
        (b"a: !!int x", "'x' is not a valid int"),
        (b"a: !!bool x", "'x' is not a valid bool"),
        (b'a: "\\0"', "a NUL character"),
        (b"a: \x01", "the character U+0001 is not allowed in it"),
        (b"a: 1\nb: \xff", "not UTF-8: byte 8, on line 2, is invalid; save it as UTF-8"),
        (b"\xff\xfea", "not UTF-16: byte 0, on line 1, is invalid"),
        ("a: 1".encode("utf-16-le"), "looks like UTF-16 without a byte order mark; save it as UTF-8"),
        ("a: 1".encode("utf-16-be"), "looks like UTF-16 without"),
        ("a: 1".encode("utf-32-le"), "looks like UTF-32 without"),
        ("a: 1".encode("utf-32-be"), "looks like UTF-32 without"),
        (b'a: "\\ud83d\\ude80"', "write the character itself"),
        (b'{"a": 1', "not JSON at line 1, column 8: a comma or } is missing"),
        (b"", "has no document"),
        (b"# nothing", "has no document"),
        (b"- 1", "documents[0] is a list; a manifest is a mapping"),
        (b"a: 1\n---\ntext", "documents[1] is text; a manifest is a mapping"),
        (b"kind: List\nitems: [1]", "documents[0].items[0] is a number"),
        (b"a: " + b"[" * 1000, f"nested more than {MAX_DEPTH} levels deep"),
        (BOMB, f"more than {MAX_VALUES} values, with aliases expanded"),
        (b"a: [" + b"1," * MAX_VALUES + b"]", f"more than {MAX_VALUES} values"),
        (b"a: &a " + b"x" * 100_000 + b"\nb: [" + b"*a," * 100 + b"]", f"more than {MAX_VALUES} values"),
        (b"a: 1\n---\n" * (MAX_DOCUMENTS + 1), f"more than {MAX_DOCUMENTS} documents"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(data, sentence):
    with pytest.raises(MalformedBody) as raised:
        read_documents(data)
    assert sentence in raised.value.detail


def test_a_deep_alias_is_no_way_around_the_depth():
    half = MAX_DEPTH // 2 + 2
    text = b"a: &a " + b"[" * half + b"]" * half + b"\nb: " + b"[" * half + b"*a" + b"]" * half
    with pytest.raises(MalformedBody, match="nested more than"):
        read_documents(text)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "not JSON at line 1, column 2"),
        (b'{"a"\n 1}', "line 2, column 2: a colon is missing after the key"),
        (b'{"a": 1\n"b": 2}', "line 2, column 1: a comma or } is missing"),
        (b'{"a": 1,}', "a key must be text in double quotes"),
        (b'{"a": [1}', "a comma or ] is missing"),
        (b'{"a": x}', "x is no value; text is in double quotes"),
        (b'{"a": "x}', "unterminated string starting"),
        (b'{"a": 01}', "no value begins like this"),
        (b'{"a": 1} b', "line 1, column 10"),
        (b"[1]", "documents[0] is a list"),
        (b'{"a": 1, "a": 2}', "line 1, column 10: the key 'a' is repeated"),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": 1e999}', "cannot express inf"),
        (b'{"a": ' + b"9" * 30 + b"}", "more than 64 bits"),
        (b'{"a": -' + b"9" * 9000 + b"}", "more than 64 bits"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\u0000": 1}', "a NUL character"),
        (b'{"a":' * 10_000, "nested more than"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than"),
        (b'{"a": [' + b"1," * MAX_VALUES + b"1]}", "values"),
        (b"\xff", "not UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_json_for_us_is_refused(data, sentence):
    with pytest.raises(MalformedBody) as raised:
        read_json(data)
    assert sentence in raised.value.detail


def test_json_is_one_document_or_a_list():
    assert [(each.path, each.body) for each in read_json(b'{"a": "\\ud83d\\ude00"}')] == [("documents[0]", {"a": "😀"})]
    assert [each.path for each in read_json(b'{"kind": "List", "items": [{}, {}]}')] == [
        "documents[0].items[0]",
        "documents[0].items[1]",
    ]


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("text", ["a: é\nb: 🚀\n", '{"a": "é", "b": "\\ud83d\\ude80"}'])
def test_a_byte_order_mark_says_the_encoding(codec, text):
    mark = "\ufeff" if codec.endswith("-be") else ""
    assert bodies((mark + text).encode(codec)) == [{"a": "é", "b": "🚀"}]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1e3}{"b": [2]}',
        '{"a": 1e3}\n\n{"b": [2]}\n',
        '---\n{"a": 1e3}\n---\n{"b": [2]}\n...\n',
        '# exported\n{"a": 1000.0}\n# and\n{"b":\t[2]}',
    ],
)
def test_several_documents_in_json(text):
    found = read_documents(text.encode())
    assert [(each.path, each.body) for each in found] == [("documents[0]", {"a": 1000.0}), ("documents[1]", {"b": [2]})]


def test_text_that_begins_with_a_brace_may_still_be_yaml():
    assert bodies(b"{a: x, b: [y]}\n---\nc: 1\n") == [{"a": "x", "b": ["y"]}, {"c": 1}]
    with pytest.raises(MalformedBody, match="the key 1 is a number"):
        read_documents(b"{1: x}")


def test_json_has_the_numbers_of_its_lines():
    (document,) = read_documents(b'{\n "a": {\n  "b": [\n   1,\n   {"c": 2}\n  ]\n }\n}')
    lines = [document.line(f"documents[0].{path}") for path in ("a", "a.b[0]", "a.b[1].c")]
    assert lines == [2, 4, 5]
    (single,) = read_documents(b'{"a": 1}')
    assert single.line("documents[0].a") is None


def test_a_list_of_one_kind_is_read_as_its_items():
    text = b"kind: VirtualMachineList\napiVersion: kubevirt.io/v1\nitems:\n- a: 1\n- kind: Other\n"
    assert bodies(text) == [
        {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "a": 1},
        {"apiVersion": "kubevirt.io/v1", "kind": "Other"},
    ]
    nested = b"kind: List\nitems:\n- kind: List\n  items: [{a: 1}]\n- b: 2"
    assert [each.path for each in read_documents(nested)] == ["documents[0].items[0].items[0]", "documents[0].items[1]"]


_WORDS = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=8)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | _WORDS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_WORDS, below, max_size=3),
    max_leaves=12,
)


@given(_TREES)
def test_what_is_dumped_is_read_again(tree):
    assert bodies(yaml.safe_dump({"a": tree}, allow_unicode=True).encode()) == [{"a": tree}]


@given(_TREES)
def test_json_is_read_as_python_reads_it(tree):
    for text in (json.dumps({"a": tree}), json.dumps({"a": tree}, ensure_ascii=False, indent=1)):
        assert bodies(text.encode()) == [json.loads(text)]


@given(st.binary(max_size=200) | st.text(alphabet="a:&*<-[]{}!'\"\n \t?|>%@`#,0.~\\x", max_size=60).map(str.encode))
def test_any_bytes_are_documents_or_a_sentence(data):
    for read in (read_documents, read_json):
        try:
            found = read(data)
        except MalformedBody as error:
            assert error.detail  # noqa: PT017 - only some bytes are refused
        else:
            assert all(isinstance(document.body, dict) for document in found)
