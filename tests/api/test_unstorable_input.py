"""Values that no layer could hold, and answers that would grow with what is asked: refused once, for all routes alike."""

import pytest

from tests.support.service import Refused, check, stored

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("/v1/vms?pool=%00", Refused(422, "invalid-request", "pool", says="NUL")),
        ("/v1/claims?label=a=%00", Refused(422, "invalid-request", "label", says="NUL")),
        (
            "/v1/claims?limit=1&%00=1",
            Refused(422, "invalid-request", says="the name of a query parameter: contains a NUL"),
        ),
        ("/v1/events?pool=%ed%a0%80", Refused(422, "invalid-request", "pool", says="not UTF-8")),
        ("/v1/nodes/a%00b", Refused(422, "invalid-request", "path", says="NUL")),
        ("/v1/nodes/%ff", Refused(422, "invalid-request", "path", says="not UTF-8")),
        ("/v1/claims/%00/renew", Refused(422, "invalid-request", "path", says="NUL")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_no_text_can_hold_is_refused_in_path_and_query(server, path, refused):
    check(await server.client.get(path), refused)


PLACES = [
    ("POST", "/v1/claim", '{"pool": "a", "labels": {"a": %s}}', "labels.a"),
    ("POST", "/v1/claim", '{"vm": {"image": "a", "spec": [{"b": %s}]}}', "vm.spec[0].b"),
    ("POST", "/v1/claim", '{"pool": "a", "placement": {"tolerations": [{"key": %s}]}}', "placement.tolerations[0].key"),
    ("POST", "/v1/claim/batch", '{"pool": "a", "count": 1, "labels": {"a": %s}}', "labels.a"),
    ("POST", "/v1/claims/01a206d8-517b-7231-a079-9e6d21989c09/renew", '{"lease_seconds": %s}', "lease_seconds"),
    ("PUT", "/v1/pools/odd", '{"size": 0, "template": {"labels": {"a": %s}}}', "template.labels.a"),
    ("PATCH", "/v1/pools/odd", '{"template": {"labels": {"a": %s}}}', "template.labels.a"),
    ("POST", "/v1/pools/import", '{"vm_pool": %s}', "vm_pool"),
    ("PUT", "/v1/preloads/odd", '{"image": {"http": {"url": %s}}}', "image.http.url"),
    ("PUT", "/v1/preloads/odd", '{"image": {"http": {"extra_headers": [%s]}}}', "image.http.extra_headers[0]"),
    ("POST", "/v1/snapshots", '{"name": "a", "source": {"vm": %s}}', "source.vm"),
    ("POST", "/v1/placements/check", '{"template": {"image": %s}}', "template.image"),
    ("POST", "/v1/manifests", '{"kind": "Pool", "spec": {"a": [%s]}}', "documents[0].spec.a[0]"),
]
UNSTORABLE = [
    ('"a\\u0000b"', "NUL character"),
    ('"\\ud83d"', "half a surrogate pair"),
    ('"\\ude00\\ud83d"', "half a surrogate pair"),
    ('{"\\u0000": 1}', "NUL character"),
    ('{"\\udfff": 1}', "half a surrogate pair"),
    ("9223372036854775808", "more than 64 bits"),
    ("-" + "9" * 5000, "more than 64 bits"),
    ("NaN", "NaN is not a number"),
    ("-Infinity", "-Infinity is not a number"),
    ("1e999", "cannot express inf"),
]


@pytest.mark.parametrize(("value", "says"), UNSTORABLE, ids=[value[:12] for value, _ in UNSTORABLE])
async def test_what_cannot_be_stored_is_refused_on_every_route_with_its_place(server, value, says):
    before = await stored(server)
    for method, path, body, field in PLACES:
        answer = await server.client.request(method, path, content=(body % value).encode(), headers=JSON)
        check(answer, Refused(400, "malformed-body", field, says=says))
    assert await stored(server) == before


async def test_a_key_that_is_repeated_is_refused_on_every_route_with_its_place(server):
    before = await stored(server)
    for method, path, body, field in PLACES:
        content = (body % '{"b": 1, "c": [{"b": 2}], "b": 3}').encode()
        answer = await server.client.request(method, path, content=content, headers=JSON)
        check(answer, Refused(400, "malformed-body", f"{field}.b", says="line 1, column"))
    assert await stored(server) == before


@pytest.mark.parametrize("text", ['a: "\\0"', "a: {b: [.inf]}", "a: 1\na: 2", '"\\0": 1', "a: 9223372036854775808"])
async def test_what_cannot_be_stored_is_refused_in_yaml_too(server, text):
    headers = {"Content-Type": "application/yaml"}
    answer = await server.client.post("/v1/manifests", content=f"kind: Pool\nspec: 1\n{text}".encode(), headers=headers)
    (problem,) = check(answer, Refused(400, "malformed-body", says="line "))["errors"]
    assert problem["field"].startswith("documents[0]")


async def test_a_number_without_a_fraction_is_a_whole_number(server):
    await server.put("whole", size=0.0, max_lease_seconds=600.0, default_lease_seconds=60)
    assert (await server.pool("whole"))["spec"]["max_lease_seconds"] == 600
    for labels in ({}, {"a": "\u00e9"}):  # the second body is read by the parser for unusual ones
        claim = (await server.claim("whole", lease_seconds=311.0, labels=labels)).json()
        assert claim["lease_seconds"] == 311
        renewed = await server.client.post(f"/v1/claims/{claim['id']}/renew", json={"lease_seconds": 311.0})
        check(renewed, Refused(409, "conflict"))
        refused = await server.claim("whole", lease_seconds=311.5, labels=labels)
        check(refused, Refused(422, "invalid-request", "lease_seconds", says="must be a whole number; it is 311.5"))
    batch = {"pool": "whole", "count": 2.0, "lease_seconds": 3.11e2}
    check(await server.client.post("/v1/claim/batch", json=batch), Refused(503, "no-warm-vm"))


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/claim"), ("PUT", "/v1/pools/zipped"), ("GET", "/v1/pools")])
@pytest.mark.parametrize("coding", ["gzip", "br, gzip", "nonsense"])
async def test_an_encoded_body_is_refused(server, method, path, coding):
    headers = {**JSON, "Content-Encoding": coding}
    answer = await server.client.request(method, path, content=b'{"pool": "a"}', headers=headers)
    check(answer, Refused(415, "unsupported-media-type", says=f"encoded ({coding})"))
    plain = {**JSON, "Content-Encoding": "Identity"}
    answer = await server.client.post("/v1/claim", content=b'{"pool": "nowhere"}', headers=plain)
    check(answer, Refused(404, "pool-not-found"))


async def test_an_answer_tells_a_few_problems_each_shortened_and_how_many_more_there_are(server):
    long = "x" * 5000
    many = {f"{long}{n}": 1 for n in range(60)}
    for method, path, body in (
        ("POST", "/v1/claim", {"pool": long, **many}),
        ("PUT", "/v1/pools/wordy", {"size": long, "template": {}, **many}),
        ("PATCH", "/v1/pools/edited", {"warm_when": long, **many}),
        ("PUT", "/v1/pools/wordy", {"size": 0, "template": {"image": "a", "memory": long, **many}}),
    ):
        await server.put("edited", size=0)
        answer = await server.client.request(method, path, json=body)
        problem = check(answer, Refused(422, answer.json()["code"], says="more"))
        assert (len(problem["errors"]), problem["more_errors"]) == (20, 41), path
        assert len(answer.content) < 20_000
