"""Manifests over HTTP: all documents of a body or none, and the same body again changes nothing."""

import asyncio
import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import ClusterUnavailable
from app.manifests.requests import Resource
from tests.support.manifest_documents import (
    DOMAIN,
    VMI,
    annotated,
    as_yaml,
    import_cron,
    machine,
    pool,
    snapshot,
    volume,
)
from tests.support.service import Refused, check, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
YAML = "application/yaml"
OWN_DISK = {
    "metadata": {"name": "root"},
    "spec": {
        "source": {"http": {"url": "https://example.com/disk.qcow2"}},
        "storage": {"resources": {"requests": {"storage": "1Gi"}}},
    },
}
ON_DISK = {"spec": {"domain": DOMAIN, "volumes": [{"name": "root", "dataVolume": {"name": "root"}}]}}
REFUSED = Refused(422, "manifest-refused", says="nothing was changed")


async def apply(server, *documents, dry_run=False, kind=YAML, body=None):
    return await server.client.post(
        "/v1/manifests",
        content=as_yaml(*documents) if body is None else body,
        headers={"Content-Type": kind},
        params={"dry_run": "true"} if dry_run else {},
    )


async def applied(server, *documents, dry_run=False):
    answer = await apply(server, *documents, dry_run=dry_run)
    assert answer.status_code == 200, answer.text
    assert answer.json()["dry_run"] is dry_run
    return answer.json()["documents"]


async def actions(server, *documents, dry_run=False):
    return [document["action"] for document in await applied(server, *documents, dry_run=dry_run)]


async def refused(server, *documents, expected=REFUSED):
    """What is wrong, by field; and that nothing was changed by it."""
    before = await stored(server)
    problem = check(await apply(server, *documents), expected)
    assert await stored(server) == before
    return {each["field"]: each["message"] for each in problem["errors"]}


async def stored(server):
    """Everything that a body of manifests could change."""
    found = {}
    for kind in ("pools", "snapshots", "preloads", "claims"):
        items = (await server.client.get(f"/v1/{kind}", params={"limit": 500})).json()["items"]
        found[kind] = [(item.get("id"), item.get("name"), item.get("generation")) for item in items]
    return found


@pytest.mark.parametrize("kind", [YAML, "text/yaml", "application/x-yaml; charset=utf-8", "Application/YAML"])
async def test_yaml_is_taken_under_each_of_its_names(server, kind):
    answer = await apply(server, pool(name="typed", size=0), kind=kind, dry_run=True)
    assert answer.status_code == 200, answer.text


async def test_a_manifest_may_be_json(server):
    one = await apply(server, kind="application/json", body=json.dumps(pool(name="json", size=0)), dry_run=True)
    assert [each["document"] for each in one.json()["documents"]] == ["documents[0]"]
    many = json.dumps({"apiVersion": "v1", "kind": "List", "items": [pool(name="a", size=0), pool(name="b", size=0)]})
    answer = await apply(server, kind="application/json", body=many, dry_run=True)
    assert [each["document"] for each in answer.json()["documents"]] == [
        "documents[0].items[0]",
        "documents[0].items[1]",
    ]


async def test_a_body_that_is_neither_yaml_nor_json_is_refused(server):
    answer = await apply(server, kind="text/plain", body=b"a: 1")
    check(answer, Refused(415, "unsupported-media-type", says="send YAML as application/yaml"))
    for body, says in ((b"", "has no document"), (b"a: [", "not YAML at line "), (b"\xff", "not UTF-8")):
        check(await apply(server, body=body), Refused(400, "malformed-body", says=says))
    check(
        await apply(server, body=b"{", kind="application/json"),
        Refused(400, "malformed-body", says="not JSON at line 1"),
    )
    check(await apply(server, body=b"a: " + b"x" * 2_000_000), Refused(413, "body-too-large"))


async def test_a_pool_is_created_changed_and_unchanged(server):
    assert await actions(server, pool(name="cycle", size=0), dry_run=True) == ["created"]
    assert (await server.client.get("/v1/pools/cycle")).status_code == 404
    (created,) = await applied(server, pool(name="cycle", size=0))
    assert created["action"] == "created"
    assert created["resource"] == {"type": "pools", "name": "cycle", "href": "/v1/pools/cycle", "state": None}
    assert await actions(server, pool(name="cycle", size=0)) == ["unchanged"]
    changed = annotated(pool(name="cycle", size=0), max_vms="7", default_lease_seconds="60")
    assert await actions(server, changed, dry_run=True) == ["changed"]
    assert (await server.pool("cycle"))["generation"] == 1
    assert await actions(server, changed) == ["changed"]
    spec = (await server.pool("cycle"))["spec"]
    assert (spec["max_vms"], spec["default_lease_seconds"]) == (7, 60)
    assert await actions(server, changed) == ["unchanged"]


async def test_one_refused_document_refuses_them_all(server):
    wrong = pool(name="wrong", size=-1)
    found = await refused(server, pool(name="right", size=0), wrong, volume(name="fine"), machine(name="fine"))
    assert set(found) == {"documents[1].spec.size"}
    assert "must be 0 or more; it is -1" in found["documents[1].spec.size"]


async def test_each_refusal_is_told_where_its_author_wrote_it(server):
    unknown = {"spec": {"domain": {**DOMAIN, "memmory": {}}, "volumes": VMI["spec"]["volumes"]}}
    no_memory = {"spec": {"template": {"spec": {"domain": {"cpu": {"cores": 1}}}}}}
    found = await refused(
        server,
        pool(name="ours", minAvailable=5),
        annotated(pool(name="annotated"), boot_timeout_seconds="1"),
        pool(name="cluster", template=unknown),
        pool(name="upstream", size=None, template=None, replicas=1, virtualMachineTemplate=no_memory),
        machine(name="unknown", template=unknown),
        machine(name="taken", template={"spec": {"domain": DOMAIN, "snapshot": {"name": "nowhere"}}}),
        annotated(machine(name="asked"), paths="pool,warp"),
        snapshot(name="none", source={"kind": "VirtualMachine", "name": "nowhere"}),
        snapshot(name="poolless", source={"kind": "VirtualMachinePool", "name": "nowhere"}),
        volume(name="sized", pvc={"resources": {"requests": {"storage": "lots"}}}),
        import_cron(name="cron", schedule="at night"),
    )
    assert set(found) == {
        "documents[0].spec.minAvailable",
        "documents[1].metadata.annotations.emberpool.io/boot-timeout-seconds",
        "documents[2].spec.template.spec.domain.memmory",
        "documents[3].spec.virtualMachineTemplate.spec.template.spec.domain.memory.guest",
        "documents[4].spec.template.spec.domain.memmory",
        "documents[5].spec.template.spec.snapshot.name",
        "documents[6].metadata.annotations.emberpool.io/paths.1",
        "documents[7].spec.source.name",
        "documents[8].spec.source.name",
        "documents[9].spec.pvc.resources.requests.storage",
        "documents[10].spec.schedule",
    }
    for place in ("documents[2].spec.template.spec.domain.memmory", "documents[4].spec.template.spec.domain.memmory"):
        assert "did you mean `memory`?" in found[place]
    assert "there is no snapshot 'nowhere'" in found["documents[5].spec.template.spec.snapshot.name"]
    assert "(line " in found["documents[10].spec.schedule"]


@pytest.mark.parametrize(
    ("image", "changed", "field", "place"),
    [
        ("docker://registry.example/a:1", {"schedule": "at night"}, "schedule", "spec.schedule"),
        (f"docker://registry.example/a@sha256:{'0' * 64}", {}, "schedule", "spec.schedule"),
        ("ftp://registry.example/a:1", {}, "image.registry.url", "spec.template.spec.source.registry.url"),
    ],
)
async def test_a_manifest_and_a_put_refuse_a_preload_with_the_same_sentence(server, image, changed, field, place):
    schedule = {"schedule": "@daily", **changed}
    template = {
        "spec": {
            "source": {"registry": {"url": image, "secretRef": ""}},
            "storage": {"resources": {"requests": {"storage": "1Gi"}}},
        }
    }
    found = await refused(server, import_cron(name="same", template=template, **schedule))
    body = {"image": {"registry": {"url": image, "secret_ref": ""}}, "size": "1Gi", **schedule}
    put = (await server.client.put("/v1/preloads/same", json=body)).json()
    told = {error["field"]: error["message"] for error in put["errors"]}
    assert found.keys() == {f"documents[0].{place}"}
    assert found[f"documents[0].{place}"].startswith(f"{told[field]} (line ")
    assert "^" not in told[field]


async def test_a_disk_that_no_snapshot_takes_is_refused_with_its_reason(server):
    of_pool = snapshot(name="shallow", source={"kind": "VirtualMachinePool", "name": "shallow"})
    found = await refused(server, pool(name="shallow", size=0), of_pool)
    assert "boot: " in found["documents[1].spec.source.name"]


async def test_what_no_node_could_take_is_refused_where_it_asks_for_it(server):
    async def nodes_are_seen():
        return (await server.client.get("/v1/nodes")).json()["items"]

    await until(nodes_are_seen)
    huge = {"spec": {**VMI["spec"], "domain": {"memory": {"guest": "900Ti"}}}}
    from_snapshot = {"spec": {"domain": {"memory": {"guest": "900Ti"}}, "snapshot": {"name": "after"}}}
    on_disk = {"spec": {"template": ON_DISK, "dataVolumeTemplates": [OWN_DISK]}}
    found = await refused(
        server,
        pool(name="huge", template=huge),
        machine(name="huge", template=huge),
        machine(name="later", template=from_snapshot),
        snapshot(name="after", source={"kind": "VirtualMachinePool", "name": "calm"}),
        pool(name="calm", template=on_disk),
    )
    for place in ("documents[0].spec.template", "documents[1].spec", "documents[2].spec"):
        assert found[place].startswith("no node could take ")
        assert "memory" in found[place]
        assert "Ask for less, or for what the nodes have" in found[place]


async def test_a_field_in_the_wrong_place_is_told_once_and_for_itself(server):
    networks = [{"name": "default", "multus": {"networkName": "lan", "disks": [], "rng": {}}}]
    found = await refused(server, machine(template={"spec": {**VMI["spec"], "networks": networks}}))
    at = "documents[0].spec.template.spec.networks[0].multus"
    assert set(found) == {f"{at}.disks", f"{at}.rng"}
    assert found[f"{at}.rng"].startswith(
        'unknown field "spec.template.spec.networks[0].multus.rng": `rng` is a field, but not of multus (line '
    )


async def test_what_needs_a_refused_document_is_not_refused_for_that(server):
    found = await refused(
        server,
        pool(name="refused", template={"spec": {}}),
        snapshot(name="refused", source={"kind": "VirtualMachinePool", "name": "refused"}),
        machine(name="refused", template={"spec": {"domain": DOMAIN, "snapshot": {"name": "refused"}}}),
        annotated(pool(name="after"), start_from_preload="refused"),
        volume(name="refused", contentType="archive"),
    )
    assert set(found) == {"documents[0].spec.template.spec", "documents[4].spec.contentType"}


async def test_a_preload_of_another_image_is_refused_before_it_is_there(server):
    found = await refused(
        server, annotated(pool(name="other", size=0), start_from_preload="foreign"), volume(name="foreign")
    )
    assert (
        "name that image in the template" in found["documents[0].metadata.annotations.emberpool.io/start-from-preload"]
    )


async def test_a_vm_is_one_claim_until_it_is_released(server):
    written = machine(name="single")
    (first,) = await applied(server, written)
    assert (first["action"], first["resource"]["state"]) == ("created", "pending")
    href = first["resource"]["href"]

    async def bound():
        claim = (await server.client.get(href)).json()
        return claim if claim["state"] == "bound" else None

    claim = await until(bound)
    assert (claim["labels"], claim["path"], claim["pool"]) == ({"name": "single"}, "cold", None)
    for dry_run in (True, False):
        (again,) = await applied(server, written, dry_run=dry_run)
        assert (again["action"], again["resource"]["href"], again["resource"]["state"]) == ("unchanged", href, "bound")
    assert any("its lease ends at" in note for note in again["notes"])

    found = await refused(server, annotated(written, lease_seconds="60"))
    assert "a VM is not changed in place: release claim" in found["documents[0]"]
    assert "emberpool release single" in found["documents[0]"]

    await server.client.delete(href)
    (new,) = await applied(server, annotated(written, lease_seconds="60"))
    assert new["action"] == "created"
    assert new["resource"]["href"] != href
    assert (await server.client.get(new["resource"]["href"])).json()["lease_seconds"] == 60


@pytest.fixture
def gateway_calls(server, monkeypatch):
    """The expansions and dry runs that the gateway is asked for, in order."""
    calls = []

    def count(owner, name, call):
        inner = getattr(owner, name)

        def counted(*arguments, **more):
            calls.append(call)
            return inner(*arguments, **more)

        monkeypatch.setattr(owner, name, counted)

    gateway = server.services.gateway
    count(gateway, "expand", "expand")
    count(gateway, "check", "dry run")
    count(gateway.preloads, "check", "dry run")
    return calls


async def test_a_pool_is_expanded_and_dry_run_once_for_each_change(server, gateway_calls):
    written = pool(name="counted", size=0)
    assert await actions(server, written) == ["created"]
    assert gateway_calls == ["expand", "dry run"]
    gateway_calls.clear()
    assert await actions(server, written) == ["unchanged"]
    assert gateway_calls == ["expand"]
    gateway_calls.clear()
    more_memory = {"spec": {**VMI["spec"], "domain": {"memory": {"guest": "3Gi"}}}}
    assert await actions(server, pool(name="counted", size=0, template=more_memory)) == ["changed"]
    assert gateway_calls == ["expand", "dry run"]


async def test_a_preload_is_dry_run_once_for_each_change(server, gateway_calls):
    written = volume(name="counted")
    assert await actions(server, written) == ["created"]
    assert gateway_calls == ["dry run"]
    gateway_calls.clear()
    assert await actions(server, written) == ["unchanged"]
    assert gateway_calls == []
    assert await actions(server, volume(name="counted", preloadPolicy="Always")) == ["changed"]
    assert gateway_calls == ["dry run"]


async def test_a_snapshot_of_a_new_pool_is_judged_by_the_pools_own_expansion(server, gateway_calls):
    on_disk = {"spec": {"template": ON_DISK, "dataVolumeTemplates": [OWN_DISK]}}
    documents = [
        snapshot(name="counted", source={"kind": "VirtualMachinePool", "name": "counted-source"}),
        pool(name="counted-source", size=0, template=on_disk),
    ]
    assert await actions(server, *documents) == ["created", "created"]
    assert gateway_calls == ["expand", "dry run"]
    gateway_calls.clear()
    assert await actions(server, *documents) == ["unchanged", "unchanged"]
    assert gateway_calls == ["expand"]


async def test_a_vm_is_expanded_and_dry_run_once(server, gateway_calls):
    own_shape = {"spec": {**VMI["spec"], "domain": {"memory": {"guest": "1234Mi"}}}}
    written = machine(name="counted", template=own_shape)
    assert await actions(server, written) == ["created"]
    assert gateway_calls == ["expand", "dry run"]
    gateway_calls.clear()
    assert await actions(server, written) == ["unchanged"]
    assert gateway_calls == []


async def test_a_pool_that_changes_between_prepare_and_commit_is_prepared_again(server, monkeypatch, gateway_calls):
    handler = server.services.manifests._handlers[Resource.POOL]
    commit = handler.commit
    await actions(server, pool(name="contested", size=0))
    gateway_calls.clear()

    async def overtaken(prepared):
        monkeypatch.setattr(handler, "commit", commit)
        await actions(server, pool(name="contested", size=1))
        return await commit(prepared)

    monkeypatch.setattr(handler, "commit", overtaken)
    assert await actions(server, annotated(pool(name="contested", size=0), max_vms="7")) == ["changed"]
    found = await server.pool("contested")
    assert (found["generation"], found["spec"]["size"], found["spec"]["max_vms"]) == (3, 0, 7)
    assert gateway_calls == ["expand"] * 3


async def test_many_at_once_make_one_claim(server):
    written = machine(name="raced")
    made = await asyncio.gather(*(applied(server, written) for _ in range(6)))
    assert sorted(documents[0]["action"] for documents in made) == ["created", *["unchanged"] * 5]
    assert len({documents[0]["resource"]["href"] for documents in made}) == 1
    found = await server.client.get("/v1/claims", params={"label": "name=raced"})
    assert len(found.json()["items"]) == 1


async def test_a_vm_of_a_pools_shape_is_served_warm(server):
    warm = annotated(pool(name="shaped", size=1), max_lease_seconds=str(30 * 86400))
    assert await actions(server, warm) == ["created"]

    async def full():
        return (await server.pool("shaped"))["status"]["counts"]["ready"] == 1

    await until(full)
    (made,) = await applied(server, machine(name="quick"))
    assert made["resource"]["state"] == "bound"
    assert "it was served warm, by pool 'shaped'" in made["notes"]
    assert await actions(server, machine(name="quick")) == ["unchanged"]


async def test_a_vm_gets_the_longest_lease_of_its_pool(server):
    template = {"spec": {**VMI["spec"], "terminationGracePeriodSeconds": 7}}
    assert await actions(server, pool(name="daily", size=1, template=template)) == ["created"]

    async def full():
        return (await server.pool("daily"))["status"]["counts"]["ready"] == 1

    await until(full)
    asked = annotated(machine(name="long", template=template), lease_seconds="172800")
    (cold,) = await applied(server, asked)
    why = "it does not come from a pool: pool 'daily' gives leases of up to 1 day, and 2 days are asked for"
    assert why in cold["notes"]
    (warm,) = await applied(server, machine(name="daily", template=template))
    assert warm["resource"]["state"] == "bound"
    assert "its lease is 1 day, the longest that this pool gives" in warm["notes"]
    claim = (await server.client.get(warm["resource"]["href"])).json()
    assert (claim["path"], claim["lease_seconds"]) == ("pool", 86_400)


async def test_documents_may_refer_to_what_comes_after_them(server):
    near = volume(name="image", pvc={"resources": {"requests": {"storage": "1Gi"}}})
    on_image = {"spec": {"domain": DOMAIN, "volumes": [{"name": "root", "dataVolume": {"name": "image"}}]}}
    from_snapshot = {"spec": {"domain": DOMAIN, "snapshot": {"name": "booted"}}}
    documents = [
        machine(name="last", template=from_snapshot),
        snapshot(name="booted", source={"kind": "VirtualMachinePool", "name": "cloned"}),
        pool(name="cloned", template=on_image),
        near,
    ]
    assert await actions(server, *documents, dry_run=True) == ["created"] * 4
    made = await applied(server, *documents)
    assert [each["name"] for each in made] == ["last", "booted", "cloned", "image"]
    assert (await server.pool("cloned"))["spec"]["start_from"] == {"snapshot": None, "preload": "image"}
    assert await actions(server, *documents) == ["unchanged"] * 4

    async def bound():
        claim = (await server.client.get(made[0]["resource"]["href"])).json()
        assert claim["state"] in {"pending", "bound"}, claim
        return claim if claim["state"] == "bound" else None

    claim = await until(bound)
    assert (claim["path"], claim["choice"]["source"]) == ("snapshot", "booted")
    # The preload is there by now: a VM that names its volume needs it in no body.
    assert await actions(server, machine(name="later", template=on_image), dry_run=True) == ["created"]


async def test_a_vm_of_a_manifest_can_be_snapshotted_by_its_name(server):
    source = machine(name="source", template=ON_DISK, dataVolumeTemplates=[OWN_DISK])
    copied = snapshot(name="copied", source={"kind": "VirtualMachine", "name": "source"})
    found = await refused(server, source, copied)
    assert "is made by documents[0] and does not exist yet" in found["documents[1].spec.source.name"]
    (made,) = await applied(server, source)

    async def bound():
        claim = (await server.client.get(made["resource"]["href"])).json()
        return claim if claim["state"] == "bound" else None

    claim = await until(bound)
    both = await applied(server, source, copied)
    assert [each["action"] for each in both] == ["unchanged", "created"]
    assert f"it is taken of VM {claim['vm']['name']}" in both[1]["notes"]
    assert await actions(server, source, copied) == ["unchanged", "unchanged"]


async def test_what_breaks_off_says_what_was_done(server, monkeypatch):
    handler = server.services.manifests._handlers[Resource.CLAIM]

    async def away(prepared):
        raise ClusterUnavailable("The cluster does not answer in time.", retry_after=7)

    with monkeypatch.context() as broken:
        broken.setattr(handler, "commit", away)
        answer = await apply(server, pool(name="first", size=0), machine(name="second"))
    problem = check(answer, Refused(503, "cluster-unavailable", says="documents[1] could not be applied"))
    assert "documents[0] (created) was applied before it" in problem["detail"]
    assert answer.headers["retry-after"] == "7"
    assert await actions(server, pool(name="first", size=0), machine(name="second")) == ["unchanged", "created"]


async def test_a_cluster_that_is_away_is_no_fault_of_the_documents(server, monkeypatch):
    before = await stored(server)

    async def away(template):
        raise ClusterUnavailable("The cluster does not answer in time.")

    with monkeypatch.context() as broken:
        broken.setattr(server.services.gateway, "check", away)
        answer = await apply(server, pool(name="away"), machine(name="away"))
    check(
        answer, Refused(503, "cluster-unavailable", says="documents[0] could not be checked, and nothing was changed")
    )
    assert await stored(server) == before


_WRITTEN = [
    pool(name="mangled", size=0),
    machine(name="mangled"),
    snapshot(name="mangled"),
    volume(name="mangled"),
    import_cron(name="mangled"),
]
_JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        10**18,
        1.5,
        "",
        "x",
        "\U0001f600",
        "2Gi",
        [],
        [None],
        {},
        {"": None},
        {"a": {"b": []}},
        ["x"],
        {"name": "x"},
    ]
)


def _paths(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


@st.composite
def mangled(draw):
    """Documents in which something is missing, of another type, or too much."""
    documents = copy.deepcopy(draw(st.lists(st.sampled_from(_WRITTEN), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 3))):
        document = draw(st.sampled_from(documents))
        path = draw(st.sampled_from(list(_paths(document)) or [("kind",)]))
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["drop", "replace", "add"])):
            case "drop":
                del parent[path[-1]]
            case "replace":
                parent[path[-1]] = copy.deepcopy(draw(_JUNK))  # later steps may change it
            case "add" if isinstance(parent, dict):
                parent[draw(st.text("abcXYZ-./ ", max_size=6))] = copy.deepcopy(draw(_JUNK))
    return documents


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mangled())
async def test_no_mangled_document_is_more_than_refused(server, documents):
    before = await stored(server)
    tried = await apply(server, *documents, dry_run=True)
    assert await stored(server) == before
    assert tried.status_code in {200, 400, 422}, tried.text
    if tried.status_code == 422:
        assert (await apply(server, *documents)).status_code == 422
        assert all(each["field"].startswith("documents[") for each in tried.json()["errors"])
    assert await stored(server) == before


def sourced(name, source):
    """A VM that clones the DataSource."""
    spec = {
        "sourceRef": {"kind": "DataSource", "name": source},
        "storage": {"resources": {"requests": {"storage": "2Gi"}}},
    }
    disk = {"name": "root", "dataVolume": {"name": "root"}}
    written = machine(
        name=name,
        template={"spec": {"domain": DOMAIN, "volumes": [disk]}},
        dataVolumeTemplates=[{"metadata": {"name": "root"}, "spec": spec}],
    )
    return annotated(written, warm_when="running")


async def path_of(server, name):
    async def bound():
        claims = (await server.client.get("/v1/claims")).json()["items"]
        return [each for each in claims if each["labels"].get("name") == name and each["state"] == "bound"]

    (claim,) = await until(bound)
    return claim["path"]


async def test_a_vm_that_clones_the_data_source_of_an_import_cron_starts_from_its_preload(server):
    answer = await server.client.post(
        "/v1/manifests",
        content=as_yaml(import_cron(name="golden-cron", managedDataSource="golden"), sourced("sourced", "golden")),
        headers={"content-type": "application/yaml"},
    )
    assert answer.status_code == 200, answer.text
    assert await path_of(server, "sourced") == "preload"


async def test_a_data_source_is_known_to_what_is_applied_after_its_import_cron(server):
    cron = import_cron(name="earlier-cron", managedDataSource="earlier")
    assert (await apply(server, cron)).status_code == 200
    preload = (await server.client.get("/v1/preloads/earlier-cron")).json()
    assert preload["spec"]["data_source"] == "earlier"
    again = (await apply(server, cron)).json()["documents"][0]
    assert again["action"] == "unchanged"
    assert (await apply(server, sourced("later", "earlier"))).status_code == 200
    assert await path_of(server, "later") == "preload"


async def test_a_preload_says_for_which_data_source_it_stands_without_another_import(server):
    spec = {"image": {"http": {"url": "https://example.com/stands"}}, "size": "1Gi"}
    first = await server.client.put("/v1/preloads/stands", json=spec)
    named = await server.client.put("/v1/preloads/stands", json={**spec, "data_source": "windows"})
    assert (first.status_code, named.status_code) == (201, 200)
    assert named.json()["spec"]["data_source"] == "windows"
    assert named.json()["generation"] == first.json()["generation"]
    container = {"image": {"container": "registry.local/vm:1"}, "data_source": "windows"}
    assert (await server.client.put("/v1/preloads/pulled", json=container)).status_code == 422


async def test_a_blank_volume_is_refused_with_what_to_write_instead(server):
    found = await refused(server, volume(name="blank", source={"blank": {}}))
    assert "write it as a dataVolumeTemplate of each VM" in found["documents[0].spec.source.blank"]
