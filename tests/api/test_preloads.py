"""Preloads over HTTP, down to the dev cluster: written, followed, started from, refreshed, deleted."""

import pytest
import pytest_asyncio

from app.devcluster.apiserver.registry import CLAIMS, DAEMON_SETS, DATA_IMPORT_CRONS, DATA_VOLUMES
from tests.support.postgres import clone_database
from tests.support.preload_work import keep_as_snapshots
from tests.support.service import Refused, check, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://images.example/a.qcow2"
DISK = {"image": {"http": {"url": URL}}, "size": "10Gi", "storage_class": "fast-ssd", "policy": "Always"}
IMAGE = {"image": {"container": "registry.example/near:1"}}
NIGHTLY = {"image": {"registry": {"url": "docker://registry.example/a:1"}}, "size": "10Gi", "schedule": "30 2 * * *"}
QUICK = {"preload_poll_seconds": 0.05, "preload_idle_seconds": 1, "preload_stall_seconds": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(postgres, template_database, cluster, tmp_path_factory):
    """As the other modules' service, but one that looks at preloads often."""
    folder = tmp_path_factory.mktemp("service")
    async with clone_database(postgres, template_database) as url, serve(url, cluster, folder, **QUICK) as server:
        yield server


async def put(server, name, body, **changed):
    answer = await server.client.put(f"/v1/preloads/{name}", json={**body, **changed})
    assert answer.status_code in {200, 201}, answer.text
    return answer


async def get(server, name):
    answer = await server.client.get(f"/v1/preloads/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def once(server, name, holds):
    async def look():
        found = await get(server, name)
        return found if holds(found) else None

    return await until(look)


async def ready(server, name, body, **changed):
    await put(server, name, body, **changed)
    return await once(server, name, lambda found: found["state"] == "ready")


async def gone(server, name):
    async def look():
        return (await server.client.get(f"/v1/preloads/{name}")).status_code == 404

    await until(look)


def objects(cluster, *resources):
    return [each.obj["metadata"]["name"] for resource in resources for each in cluster.store.rows(resource)]


async def test_a_write_that_names_an_older_version_is_refused(server):
    first = (await put(server, "matched", DISK)).headers["etag"]
    await once(server, "matched", lambda found: found["state"] == "ready")
    read = await server.client.get("/v1/preloads/matched")
    assert read.headers["etag"] == first, "an import is no change"
    assert (await server.client.post("/v1/preloads/matched/refresh")).headers["etag"] == first
    body = {**DISK, "ttl_seconds": 3600}
    changed = await server.client.put("/v1/preloads/matched", json=body, headers={"If-Match": first})
    assert changed.status_code == 200
    second = changed.headers["etag"]
    assert second != first
    stale = await server.client.put("/v1/preloads/matched", json=DISK, headers={"If-Match": first})
    check(stale, Refused(412, "precondition-failed", "If-Match", says=second.strip('"')))
    assert stale.headers["etag"] == second
    assert (await get(server, "matched"))["spec"]["ttl_seconds"] == 3600


async def test_it_is_created_once_and_then_changed(server):
    created = await put(server, "written", DISK)
    assert (created.status_code, created.headers["emberpool-outcome"]) == (201, "created")
    assert created.json()["state"] == "planned"
    again = await put(server, "written", DISK)
    assert (again.status_code, again.headers["emberpool-outcome"]) == (200, "unchanged")
    kept = await put(server, "written", DISK, ttl_seconds=3600)
    assert (kept.headers["emberpool-outcome"], kept.json()["generation"]) == ("changed", 1)
    larger = await put(server, "written", DISK, ttl_seconds=3600, size="20Gi")
    assert (larger.headers["emberpool-outcome"], larger.json()["generation"]) == ("changed", 2)


async def test_the_progress_of_a_preload_is_followed_until_it_is_ready(server):
    found = await ready(server, "followed", DISK)
    progress, volume = found["progress"], found["volume"]
    assert (progress["percent"], progress["bytes_done"], progress["bytes_total"]) == (100.0, 10 * 2**30, 10 * 2**30)
    assert (volume["size"], volume["storage_class"], volume["adopted"]) == ("10Gi", "fast-ssd", False)
    assert (found["ready"], found["reason"], found["failures"]) == (True, None, 0)
    assert (found["used"], found["automatic"]) == (0, False)
    events = (await server.client.get("/v1/events", params={"kind": "preload"})).json()["items"]
    told = [each["type"] for each in events if each["data"]["preload"] == "followed"]
    assert told == ["preload.created", "preload.importing", "preload.ready"]


async def test_a_pool_starts_from_it_and_counts_as_its_use(server, cluster):
    found = await ready(server, "golden", DISK)
    template = {"memory": "64Mi"}
    await server.fill("from-golden", size=2, template=template, start_from={"preload": "golden"})
    volumes = [each.obj for each in cluster.store.rows(DATA_VOLUMES)]
    sources = [each["spec"]["source"].get("pvc", {}).get("name") for each in volumes]
    assert sources.count(found["volume"]["name"]) == 2
    found = await get(server, "golden")
    assert found["used"] == 2
    assert found["used_at"] is not None

    refused = await server.client.delete("/v1/preloads/golden")
    check(refused, Refused(409, "preload-in-use", says="pool from-golden starts from"))
    forced = await server.client.delete("/v1/preloads/golden", params={"force": "true"})
    assert (forced.status_code, forced.json()["state"]) == (202, "deleting")
    await gone(server, "golden")
    assert found["volume"]["name"] not in objects(cluster, DATA_VOLUMES, CLAIMS)


async def test_vms_wait_for_one_that_is_not_ready_and_the_pool_says_so(server, cluster):
    fault = cluster.faults.order(kind="import-stalls", resource="datavolumes", name="slow-*")
    await put(server, "slow", DISK)
    template = {"image": URL, "memory": "64Mi"}
    assert (await server.put("patient", template=template, start_from={"preload": "slow"})).status_code == 201

    async def told():
        return (await server.pool("patient"))["status"]["reason"]

    reason = await until(told)
    await once(server, "slow", lambda found: found["progress"]["percent"] == 60)
    assert "preload 'slow' is not ready" in reason
    cluster.faults.lift(fault.id)
    await server.fill("patient", template=template, start_from={"preload": "slow"})


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"image": "registry.example/other:1", "memory": "64Mi"}, "registry.example/other:1"),
        ({"image": "https://images.example/b.qcow2", "memory": "64Mi"}, "https://images.example/b.qcow2"),
    ],
)
async def test_a_pool_of_another_image_is_refused(server, template, says):
    await put(server, "elsewhere", DISK)
    answer = await server.put("strange", template=template, start_from={"preload": "elsewhere"})
    check(answer, Refused(422, "invalid-request", "start_from.preload", says))
    answer = await server.put("strange", template=template, start_from={"preload": "nowhere"})
    check(answer, Refused(422, "invalid-request", "start_from.preload", "there is no preload 'nowhere'"))


async def test_an_import_that_fails_says_why_is_tried_anew_and_leaves_nothing(server, cluster):
    fault = cluster.faults.order(kind="import-fails", name="broken-*", settings={"percent": 60, "message": "got 404"})
    await put(server, "broken", DISK)
    found = await once(server, "broken", lambda found: found["last_failure"])
    assert "restarts did not help: Error: got 404" in found["last_failure"]
    cluster.faults.lift(fault.id)
    found = await once(server, "broken", lambda found: found["state"] == "ready")
    assert found["generation"] > 1
    assert (found["last_failure"], found["failures"]) == (None, 0)

    async def one():
        return [name for name in objects(cluster, DATA_VOLUMES) if name.startswith("broken-")] == [
            found["volume"]["name"]
        ]

    await until(one)


async def test_an_import_that_stalls_or_never_binds_is_given_up(server, cluster):
    faults = [
        cluster.faults.order(kind="import-stalls", name="stalls-*"),
        cluster.faults.order(kind="claim-never-binds", name="binds-*"),
    ]
    for name in ("stalls", "binds"):
        await put(server, name, DISK)
    found = await once(server, "stalls", lambda found: found["last_failure"])
    assert "made no progress at 60 % in phase ImportInProgress" in found["last_failure"]
    found = await once(server, "binds", lambda found: found["last_failure"])
    assert "in phase Pending" in found["last_failure"]
    for fault in faults:
        cluster.faults.lift(fault.id)
    for name in ("stalls", "binds"):
        await once(server, name, lambda found: found["state"] == "ready")
        await server.client.delete(f"/v1/preloads/{name}")
        await gone(server, name)
    left = objects(cluster, DATA_VOLUMES, CLAIMS)
    assert [name for name in left if name.startswith(("stalls-", "binds-"))] == []


async def test_a_refresh_replaces_the_volume_behind_those_who_use_it(server, cluster):
    before = (await ready(server, "fresh", DISK))["volume"]["name"]
    answer = await server.client.post("/v1/preloads/fresh/refresh")
    assert (answer.status_code, answer.json()["ready"], answer.json()["generation"]) == (202, True, 2)
    found = await once(server, "fresh", lambda found: found["volume"]["name"] != before and found["state"] == "ready")
    assert found["ready"]

    async def removed():
        return before not in objects(cluster, DATA_VOLUMES, CLAIMS)

    await until(removed)


async def test_a_schedule_brings_a_volume_and_takes_it_along(server, cluster):
    found = await ready(server, "nightly", NIGHTLY)
    assert found["volume"]["name"].startswith("nightly-")
    cron = next(name for name in objects(cluster, DATA_IMPORT_CRONS) if name.startswith("nightly-"))
    await server.client.delete("/v1/preloads/nightly")
    await gone(server, "nightly")

    async def nothing():
        return not [name for name in objects(cluster, DATA_VOLUMES, CLAIMS) if name.startswith(cron)]

    await until(nothing)


async def test_a_pool_starts_from_what_a_schedule_keeps_as_a_snapshot(server, cluster):
    keep_as_snapshots(cluster, "fast-ssd")
    found = await ready(server, "snapped", {**NIGHTLY, "storage_class": "fast-ssd"})
    assert found["volume"]["kind"] == "VolumeSnapshot"
    await server.fill("from-snapped", template={"memory": "64Mi"}, start_from={"preload": "snapped"})
    sources = [each.obj["spec"].get("source") or {} for each in cluster.store.rows(DATA_VOLUMES)]
    assert found["volume"]["name"] in [source.get("snapshot", {}).get("name") for source in sources]


async def test_a_container_disk_is_on_every_node_and_told_by_node(server, cluster):
    found = await ready(server, "near", IMAGE)
    assert (found["nodes"]["pulled"], found["nodes"]["desired"], found["volume"]) == (3, 3, None)
    assert {each["node"]: each["state"] for each in found["nodes"]["items"]} == dict.fromkeys(
        ("node1", "node2", "node3"), "pulled"
    )
    await server.fill("of-image", template={"memory": "64Mi"}, start_from={"preload": "near"})
    await server.client.delete("/v1/preloads/near", params={"force": "true"})
    await gone(server, "near")
    assert objects(cluster, DAEMON_SETS) == []


async def test_they_are_listed_by_name_a_page_at_a_time(server):
    for name in ("page-a", "page-b", "page-c"):
        await put(server, name, DISK)
    seen, after = [], {}
    while True:
        page = (await server.client.get("/v1/preloads", params={"limit": 2, **after})).json()
        assert len(page["items"]) <= 2
        seen += [preload["name"] for preload in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == sorted(seen)
    assert [name for name in seen if name.startswith("page-")] == ["page-a", "page-b", "page-c"]


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"image": {"http": {"url": URL}}}, "size", "how large"),
        ({"image": {"ftp": {}}}, "image.ftp", ""),
        ({**DISK, "schedule": "0 3 * * *"}, "schedule", "image.registry"),
        ({**IMAGE, "size": "1Gi"}, "size", "container image"),
        ({"image": {"http": {"url": "ftp://a"}}, "size": "1Gi"}, "image.http.url", "begins with http:// or https://"),
        ({**DISK, "schedule": "daily"}, "schedule", "if it is not in UTC; it is 'daily'"),
    ],
)
async def test_a_wrong_body_is_refused_with_its_field(server, body, field, says):
    answer = await server.client.put("/v1/preloads/wrong", json=body)
    check(answer, Refused(422, "invalid-request", field, says))
    missing = await server.client.get("/v1/preloads/wrong")
    check(missing, Refused(404, "preload-not-found", says="PUT /v1/preloads/wrong creates it"))


async def test_one_that_is_not_there_is_said_so_by_every_route(server):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/refresh")):
        answer = await server.client.request(method, f"/v1/preloads/nope{path}")
        check(answer, Refused(404, "preload-not-found"))
