"""Bad input, line by line: a problem with a stable code, the field and what to do, and nothing stored."""

import json
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.claims.bodies import BatchBody
from app.api.placements.schemas import CheckBody
from app.api.pools.schemas import ImportBody
from app.api.problems import MEDIA_TYPE
from app.config import MAX_LEASE_SECONDS, MAX_POOL_SIZE
from app.domain.placement import Placement
from app.domain.pools import PoolSpec
from app.domain.preloads import PreloadSpec
from app.domain.snapshot_specs import SnapshotSpec
from tests.support.service import TEMPLATE, Refused, check, listen, stored

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = {"Content-Type": "application/json"}
DOMAIN = {"memory": {"guest": "64Mi"}}


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"sizes": 3}, Refused(422, "invalid-request", "sizes", says="did you mean `size`? Nothing was changed")),
        ({"minAvailable": 0}, Refused(422, "invalid-request", "minAvailable", says="did you mean `min_available`?")),
        ({"colour": "red"}, Refused(422, "invalid-request", "colour", says="check its spelling (/docs lists")),
        (
            {"placement": {"hugepage": "2Mi"}},
            Refused(422, "invalid-request", "placement.hugepage", says="did you mean `hugepages`?"),
        ),
        (
            {"start_from": {"snapshots": "a"}},
            Refused(422, "invalid-request", "start_from.snapshots", says="did you mean `snapshot`?"),
        ),
        ({"size": -1}, Refused(422, "invalid-request", "size", says="must be 0 or more; it is -1")),
        (
            {"size": MAX_POOL_SIZE + 1},
            Refused(422, "invalid-request", "size", says=f"must be {MAX_POOL_SIZE} or less"),
        ),
        ({"size": "many"}, Refused(422, "invalid-request", "size", says="must be a whole number")),
        ({"size": True}, Refused(422, "invalid-request", "size", says="must be a whole number")),
        ({"size": "3"}, Refused(422, "invalid-request", "size", says="must be a whole number")),
        ({"default_lease_seconds": 90_000}, Refused(422, "invalid-request", "max_lease_seconds", says="is above")),
        ({"size": None}, Refused(422, "invalid-request", "size")),
        (
            {"size": 2, "min_available": 3},
            Refused(422, "invalid-request", "min_available", says="lower it or raise size"),
        ),
        ({"size": 2, "max_vms": 1}, Refused(422, "invalid-request", "max_vms", says="raise it or lower size")),
        ({"min_available": -1}, Refused(422, "invalid-request", "min_available")),
        ({"max_ready_age_seconds": 59}, Refused(422, "invalid-request", "max_ready_age_seconds", says="60")),
        ({"max_concurrent_creates": 0}, Refused(422, "invalid-request", "max_concurrent_creates")),
        (
            {"warm_when": "maybe"},
            Refused(422, "invalid-request", "warm_when", says="'agent', 'ready', 'running' or 'hello'"),
        ),
        ({"max_lease_seconds": MAX_LEASE_SECONDS + 1}, Refused(422, "invalid-request", "max_lease_seconds")),
        (
            {"max_lease_seconds": 60},
            Refused(422, "invalid-request", "max_lease_seconds", says="is above max_lease_seconds"),
        ),
        (
            {"template": "ubuntu"},
            Refused(422, "invalid-request", "template", says="must be an object; it is 'ubuntu'"),
        ),
        ({"template": {}}, Refused(422, "template-refused", "template", says="is empty")),
        ({"template": {"image": "a"}}, Refused(422, "template-refused", "template.memory")),
        ({"template": {**TEMPLATE, "memory": "2Gx"}}, Refused(422, "template-refused", "template.memory", says="2Gx")),
        ({"template": {**TEMPLATE, "image": "a\0b"}}, Refused(400, "malformed-body", "template.image", says="NUL")),
        ({"template": {**TEMPLATE, "cpu": 10**30}}, Refused(400, "malformed-body", "template.cpu", says="64 bits")),
        (
            {"template": {"spec": {"domain": {**DOMAIN, "devices": {"disks": [{"name": "x", "disk": {}}]}}}}},
            Refused(
                422,
                "template-refused",
                "template.spec.domain.devices.disks[0].name",
                says='admission webhook "virtualmachine-validator.kubevirt.io" denied the request',
            ),
        ),
        (
            {"template": {"spec": {"domain": {**DOMAIN, "colour": "red"}}}},
            Refused(422, "template-refused", "template.spec.domain.colour", says="unknown field"),
        ),
    ],
    ids=str,
)
async def test_a_wrong_pool_is_refused(server, spec, refused):
    before = await stored(server)
    check(await server.put("wrong", **spec), refused)
    assert await stored(server) == before


async def test_a_wrong_edit_leaves_the_pool_as_it_was(server):
    await server.put("edited", size=0)
    before = await server.pool("edited")
    check(await server.put("edited", size=0, template={}), Refused(422, "template-refused"))
    check(await server.put("edited", size=-1), Refused(422, "invalid-request"))
    assert await server.pool("edited") == before


@pytest.mark.parametrize("name", ["Upper", "-a", "a-", "a.b", "a_b", "ä", "x" * 64, "a%20b"])
async def test_a_name_that_no_cluster_would_take_is_refused(server, name):
    before = await stored(server)
    rule = "lower-case letters, digits and '-'" if len(name) < 64 else "63"
    for method in ("GET", "DELETE"):
        answer = await server.client.request(method, f"/v1/pools/{name}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
        assert rule in answer.json()["errors"][0]["message"]
        assert answer.json()["errors"][0]["field"] == "name"
    assert (await server.put(name)).status_code == 422
    assert (await server.claim(name)).json()["errors"][0]["field"] == "pool"
    assert await stored(server) == before


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"pool": "nowhere"}, Refused(404, "pool-not-found", says="PUT /v1/pools/nowhere creates it")),
        ({}, Refused(422, "invalid-request", "pool", says="this field is required")),
        ({"pool": "target", "path": ["pool"]}, Refused(422, "invalid-request", "path", says="did you mean `paths`?")),
        (
            {"pool": "target", "paths": ["cold"]},
            Refused(422, "invalid-request", "paths", says="only 'pool' is allowed"),
        ),
        ({"pool": "target", "paths": ["warm"]}, Refused(422, "invalid-request", "paths.0", says="'pool'")),
        ({"pool": "target", "vm": {"image": "a"}}, Refused(422, "invalid-request", "vm", says="not both")),
        (
            {"pool": "target", "remember": True},
            Refused(422, "invalid-request", "remember", says="only for a claim with `vm`"),
        ),
        ({"pool": "target", "deadline_seconds": 5.0}, Refused(422, "invalid-request", "deadline_seconds")),
        ({"pool": "target", "warm_when": "ready"}, Refused(422, "invalid-request", "warm_when")),
        ({"pool": "target", "start_from": {"snapshot": "s"}}, Refused(422, "invalid-request", "start_from")),
        ({"vm": {"image": "a"}, "deadline_seconds": 0}, Refused(422, "invalid-request", "deadline_seconds")),
        ({"vm": {}}, Refused(422, "template-refused", "vm")),
        (
            {"vm": {"image": "a", "memory": "64Mi", "cpus": 1}},
            Refused(422, "template-refused", "vm.cpus", says="vm.cpus"),
        ),
        (
            {"vm": {"memory": "64Mi"}, "start_from": {"snapshot": "none"}},
            Refused(422, "invalid-request", "start_from.snapshot", says="there is no snapshot 'none'"),
        ),
        ({"pool": "target", "paths": []}, Refused(422, "invalid-request", "paths")),
        ({"pool": "target", "wait_seconds": 61}, Refused(422, "invalid-request", "wait_seconds", says="60")),
        ({"pool": "target", "wait_seconds": -1}, Refused(422, "invalid-request", "wait_seconds")),
        ({"pool": "target", "lease_seconds": 0}, Refused(422, "invalid-request", "lease_seconds")),
        ({"pool": "target", "lease_seconds": 61}, Refused(422, "lease-too-long", "lease_seconds", says="up to 60 s")),
        (
            {"pool": "target", "lease_seconds": MAX_LEASE_SECONDS + 1},
            Refused(422, "invalid-request", "lease_seconds", says="or less; it is"),
        ),
        ({"pool": "target", "labels": {"": "x"}}, Refused(422, "invalid-request", says="labels")),
        ({"pool": "target", "labels": {"a": "x" * 256}}, Refused(422, "invalid-request", "labels.a")),
        ({"pool": "target", "labels": {"a": "\0"}}, Refused(400, "malformed-body", "labels.a", says="NUL")),
        ({"pool": "target", "labels": {str(n): "" for n in range(33)}}, Refused(422, "invalid-request", "labels")),
    ],
    ids=str,
)
async def test_a_wrong_claim_is_refused(server, body, refused):
    await server.put("target", size=0, max_lease_seconds=60, default_lease_seconds=60)
    before = await stored(server)
    check(await server.client.post("/v1/claim", json=body), refused)
    assert await stored(server) == before


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {"pool": "target", "paths": ["warm"]},
            ("paths.0", "must be 'pool', 'memory', 'snapshot', 'preload' or 'cold'; it is 'warm'"),
        ),
        ({"pool": "target", "labels": "x"}, ("labels", "must be an object; it is 'x'")),
        ({"pool": "target", "paths": []}, ("paths", "needs at least 1, has 0")),
        (
            {"pool": "target", "labels": {str(n): "" for n in range(33)}},
            ("labels", "takes at most 32; give fewer"),
        ),
        (
            {"pool": "target", "labels": {"": "x"}},
            ("labels", "name '': must not be empty"),
        ),
    ],
    ids=["a wrong path", "no object", "no path", "too many labels", "a label without a name"],
)
async def test_what_is_wrong_is_told_once_and_of_a_field_that_was_written(server, body, told):
    problem = (await server.client.post("/v1/claim", json=body)).json()
    assert [(each["field"], each["message"]) for each in problem["errors"]] == [told]


@pytest.mark.parametrize(
    "body", [b"{", b"[", b"nonsense", b"\xff\xfe", b'{"pool": "\xff"}', b'{"pool": "a', b'"\\ud800"', b"[" * 100_000]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/claim"), ("PUT", "/v1/pools/broken")])
async def test_what_is_no_json_is_refused(server, method, path, body):
    before = await stored(server)
    answer = await server.client.request(method, path, content=body, headers=JSON)
    check(answer, Refused(400, "malformed-body"))
    assert await stored(server) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/yaml", "application/x-www-form-urlencoded", "", "json"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/claim"), ("PUT", "/v1/pools/yaml")])
async def test_another_content_type_is_refused(server, method, path, kind):
    answer = await server.client.request(method, path, content=b'{"pool": "a"}', headers={"Content-Type": kind})
    check(answer, Refused(415, "unsupported-media-type", says=f"is {kind or 'none'}; send JSON as application/json"))


async def test_a_parameter_of_the_content_type_is_taken(server):
    body = json.dumps({"size": 0, "template": TEMPLATE}).encode()
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = await server.client.put("/v1/pools/charset", content=body, headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/claim"), ("PUT", "/v1/pools/large"), ("POST", "/v1/none")])
async def test_a_body_over_the_limit_is_refused_whether_it_tells_its_length_or_not(server, method, path):
    body = b'{"pool": "%s"}' % (b"x" * server.services.settings.max_body_bytes)

    async def in_pieces():
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    before = await stored(server)
    async with listen(server.app) as client:
        for content in (body, in_pieces()):
            answer = await client.request(method, path, content=content, headers=JSON)
            check(answer, Refused(413, "body-too-large", says="limit of 1048576 bytes"))
    assert await stored(server) == before


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/pools?limit=0", "limit"),
        ("/v1/pools?limit=501", "limit"),
        ("/v1/pools?after=%21", "after"),
        ("/v1/pools?after=AA", "after"),
        ("/v1/vms?after=AAAA", "after"),
        ("/v1/vms?state=asleep", "state"),
        ("/v1/claims?state=asleep", "state"),
        ("/v1/claims?after=" + "A" * 201, "after"),
        ("/v1/claims/7", "claim_id"),
        ("/v1/claims/7?wait_seconds=61", "wait_seconds"),
        ("/v1/vms/7", "vm_id"),
    ],
)
async def test_a_wrong_parameter_is_named(server, path, field):
    check(await server.client.get(path), Refused(422, "invalid-request", field))


@pytest.mark.parametrize(
    ("method", "path", "field", "says"),
    [
        ("GET", "/v1/claims?stat=bound", "stat", "no such query parameter; write `state`"),
        ("GET", "/v1/claims?limit=1&x", "x", "there are `after`, `label`, `limit`, `pool`, `shape`, `state`"),
        ("DELETE", "/v1/pools/kept?forced=true", "forced", "write `force`. Nothing was changed"),
        ("POST", "/v1/manifests?dryrun=true", "dryrun", "write `dry_run`"),
        ("POST", "/v1/pools/kept/pause?Force=1", "Force", "this operation has none"),
        ("POST", "/v1/claim?wait_seconds=30", "wait_seconds", "this operation has none"),
    ],
)
async def test_a_query_parameter_that_there_is_not_is_refused_and_nothing_done(server, method, path, field, says):
    await server.fill("kept", size=0)
    before = await stored(server)
    body = {"apiVersion": "pool.kubevirt.io/v1beta1", "kind": "VirtualMachinePool"} if method == "POST" else None
    check(await server.client.request(method, path, json=body), Refused(422, "invalid-request", field, says=says))
    assert await stored(server) == before


async def test_a_path_and_a_method_that_are_not_served(server):
    check(await server.client.get("/v1/nothing"), Refused(404, "not-found", says="/docs lists"))
    check(
        await server.client.patch("/v1/preloads/a"), Refused(405, "method-not-allowed", says="does not support PATCH")
    )
    check(await server.client.get("/v1/claim"), Refused(405, "method-not-allowed", says="GET, but POST;"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["size", "template", "min_available", "max_vms", "boot_timeout_seconds", "warm_when", "default_lease_seconds"]
PARTS = ["image", "cpu", "memory", "disk", "spec", "metadata", "domain", "volumes", "template", "runStrategy"]


@given(
    spec=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), JSON_VALUES, max_size=3),
    template=st.dictionaries(
        st.sampled_from(PARTS), JSON_VALUES | st.dictionaries(st.sampled_from(PARTS), JSON_VALUES)
    ),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_pool_body_makes_the_service_fail(server, spec, template):
    body = json.dumps({"size": 0, "template": template, **spec})
    answer = await server.client.put("/v1/pools/fuzzed", content=body.encode(), headers=JSON)
    assert answer.status_code in {200, 201, 400, 422}, (body, answer.text)
    if answer.is_error:
        assert answer.headers["content-type"] == MEDIA_TYPE
    elif answer.json()["spec"]["size"]:
        await server.put("fuzzed", size=0)


@given(body=st.dictionaries(st.sampled_from(["wait_seconds", "lease_seconds", "paths", "labels"]), JSON_VALUES))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_claim_body_makes_the_service_fail(server, body):
    answer = await server.client.post("/v1/claim", content=json.dumps({"pool": "none", **body}).encode(), headers=JSON)
    assert answer.status_code in {400, 404, 422}, (body, answer.text)
    assert answer.headers["content-type"] == MEDIA_TYPE


OTHER_BODIES = [
    ("PUT", "/v1/preloads/fuzzed", {"image": {"http": {"url": "https://a/b"}}, "size": "1Gi"}, PreloadSpec),
    ("PUT", "/v1/preloads/fuzzed-image", {"image": {"container": "a/b:1"}}, PreloadSpec),
    ("POST", "/v1/snapshots", {"name": "fuzzed", "source": {"pool": "none"}}, SnapshotSpec),
    ("POST", "/v1/pools/import", {"vm_pool": "fuzzed"}, ImportBody),
    ("POST", "/v1/placements/check", {"template": TEMPLATE}, CheckBody),
    ("POST", "/v1/claim/batch", {"pool": "none", "count": 1}, BatchBody),
    ("PATCH", "/v1/pools/fuzzed", {}, PoolSpec),
]


@given(st.sampled_from(OTHER_BODIES), st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_body_of_another_route_makes_the_service_fail(server, route, data):
    method, path, body, model = route
    placement = st.dictionaries(st.sampled_from(sorted(Placement.model_fields)), JSON_VALUES, max_size=2)
    fields = st.sampled_from(sorted(model.model_fields))
    body = body | data.draw(st.dictionaries(fields, JSON_VALUES | placement, max_size=3))
    answer = await server.client.request(method, path, content=json.dumps(body).encode(), headers=JSON)
    assert answer.status_code < 500, (body, answer.text)


@given(st.sampled_from(["pools", "claims", "vms", "events", "nodes", "paths", "snapshots", "preloads"]), st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_address_makes_the_service_fail(server, resource, data):
    def encoded():
        return "".join(
            f"%{byte:02x}" for byte in data.draw(st.binary(max_size=6) | st.text(max_size=4).map(str.encode))
        )

    names = ("limit", "after", "pool", "kind", "label", "shape", "state", "order", "path", "ended")
    query = "&".join(f"{data.draw(st.sampled_from(names))}={encoded()}" for _ in range(2))
    for path in (f"/v1/{resource}?{query}", f"/v1/{resource}/{encoded()}"):
        answer = await server.client.get(path)
        assert answer.status_code < 500, (path, answer.text)


VM_FIELDS = [
    "wait_seconds",
    "lease_seconds",
    "paths",
    "labels",
    "start_from",
    "placement",
    "warm_when",
    "deadline_seconds",
]


@given(
    body=st.dictionaries(st.sampled_from([*VM_FIELDS, "remember"]), JSON_VALUES, max_size=2),
    vm=st.dictionaries(st.sampled_from(PARTS), JSON_VALUES | st.dictionaries(st.sampled_from(PARTS), JSON_VALUES)),
    keyed=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_described_vm_makes_the_service_fail(server, body, vm, keyed):
    headers = {**JSON, **({"Idempotency-Key": str(uuid.uuid4())} if keyed else {})}
    content = json.dumps({"vm": vm, **body}).encode()
    answer = await server.client.post("/v1/claim", content=content, headers=headers)
    assert answer.status_code in {201, 202, 400, 422, 503}, (content, answer.text)
    if answer.is_error:
        assert answer.headers["content-type"] == MEDIA_TYPE
    else:
        await server.client.delete(f"/v1/claims/{answer.json()['id']}")


@pytest.mark.parametrize("value", ["\ud800", 2**70])
async def test_a_vm_that_cannot_be_told_is_refused(server, value):
    content = json.dumps({"vm": {"image": "a", "memory": "64Mi", "labels": {"a": value}}}).encode()
    for headers in (JSON, {**JSON, "Idempotency-Key": "odd"}):
        answer = await server.client.post("/v1/claim", content=content, headers=headers)
        assert answer.status_code in {400, 422}, answer.text
