"""Images brought near, against the dev cluster over HTTP; each object that is made held against CDI's own schema too."""

import pytest

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import DAEMON_SETS, DATA_IMPORT_CRONS, DATA_VOLUMES, PVCS
from app.compute.kubevirt.preloads.manifests import build
from app.compute.kubevirt.preloads.specs import specs_of
from app.compute.kubevirt.preloads.status import clones_from, read_claim, read_cron, read_volume_object
from app.compute.kubevirt.templates.expand import expand
from app.compute.preloads import PreloadOrder
from app.domain.observation import WarmWhen
from app.domain.preload_lifecycle import ObjectKind, PullState, Volume
from app.domain.preloads import PreloadSpec
from app.errors import ClusterConflict, ClusterError, ClusterUnavailable, PreloadRefused
from app.ids import new_id, preload_object_name
from tests.support.crd_schemas import complaints
from tests.support.kubevirt_documents import WITH_DATA_VOLUME
from tests.support.preload_work import keep_as_snapshots
from tests.support.rows import eventually

HTTP = {"image": {"http": {"url": "https://images.example/a.qcow2"}}, "size": "10Gi"}
REGISTRY = {"image": {"registry": {"url": "docker://registry.example/a:1"}}, "size": "10Gi"}
NIGHTLY = {**REGISTRY, "schedule": "30 2 * * *"}
IMAGE = {"image": {"container": "registry.example/a:1"}}
EVERYTHING = {
    "storage_class": "fast-ssd",
    "access_modes": ["ReadWriteOnce"],
    "volume_mode": "Block",
    "policy": "Always",
}
SPECS = [
    HTTP,
    {**HTTP, **EVERYTHING},
    {
        "image": {
            "http": {"url": "https://i.example/a", "secret_ref": "s", "extra_headers": ["A: b"], "checksum": "md5:0"}
        }
    },
    REGISTRY,
    {"image": {"registry": {"url": "docker://r.example/a", "pull_method": "node", "cert_config_map": "c"}}},
    {"image": {"s3": {"url": "https://bucket.example/a", "secret_ref": "keys"}}},
    {"image": {"gcs": {"url": "gs://bucket/a"}}},
    {"image": {"pvc": {"name": "golden"}}},
    NIGHTLY,
    {**NIGHTLY, **EVERYTHING, "keep": 2},
    IMAGE,
]


def order(spec=HTTP, name="fedora", generation=1, preload_id=None):
    body = {"size": "10Gi", **spec} if {"container", "pvc"}.isdisjoint(spec["image"]) else spec
    return PreloadOrder(preload_id or new_id(), name, generation, PreloadSpec.model_validate(body))


def built(given):
    return build(given, namespace="vms", instance="emberpool", helper_image="helper.example/busybox:musl")


@pytest.mark.parametrize("spec", SPECS)
def test_every_object_is_one_of_cdis_schema(spec):
    kind, body = built(order(spec))
    if kind is not DAEMON_SETS:
        assert complaints(f"cdi.kubevirt.io/{kind.plural}", body) == []


class TestWhatIsMade:
    def test_a_volume_is_imported_at_once_and_stays(self):
        kind, body = built(order({**HTTP, **EVERYTHING}))
        assert kind is DATA_VOLUMES
        assert body["metadata"]["annotations"] == {
            "cdi.kubevirt.io/storage.bind.immediate.requested": "true",
            "cdi.kubevirt.io/storage.deleteAfterCompletion": "false",
        }
        assert body["spec"] == {
            "source": {"http": {"url": "https://images.example/a.qcow2"}},
            "storage": {
                "resources": {"requests": {"storage": "10Gi"}},
                "storageClassName": "fast-ssd",
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Block",
            },
        }

    def test_a_schedule_is_cdis_affair_and_its_imports_go_with_it(self):
        kind, body = built(order({**NIGHTLY, "keep": 2}))
        assert kind is DATA_IMPORT_CRONS
        spec = body["spec"]
        assert (spec["schedule"], spec["importsToKeep"], spec["retentionPolicy"]) == ("30 2 * * *", 2, "None")
        assert spec["managedDataSource"] == body["metadata"]["name"]
        assert spec["template"]["spec"]["source"] == {"registry": {"url": "docker://registry.example/a:1"}}

    def test_a_container_disk_is_held_on_the_nodes_by_a_binary_that_it_has_not_itself(self):
        secrets = {"pull_secret": "opens", "tolerations": [{"operator": "Exists"}], "policy": "Always"}
        kind, body = built(order({**IMAGE, **secrets}))
        assert kind is DAEMON_SETS
        pod = body["spec"]["template"]["spec"]
        (first,), (main,) = pod["initContainers"], pod["containers"]
        assert (first["image"], main["image"]) == ("helper.example/busybox:musl", "registry.example/a:1")
        assert first["command"][-1] == main["command"][0]
        assert (first["imagePullPolicy"], main["imagePullPolicy"]) == ("IfNotPresent", "Always")
        assert pod["nodeSelector"] == {"kubevirt.io/schedulable": "true"}
        assert (pod["imagePullSecrets"], pod["tolerations"]) == ([{"name": "opens"}], [{"operator": "Exists"}])
        found = body["spec"]["template"]["metadata"]["labels"]
        assert body["spec"]["selector"]["matchLabels"].items() <= found.items()

    def test_a_node_selector_takes_the_place_of_ours(self):
        _, body = built(order({**IMAGE, "node_selector": {"disk": "ssd"}}))
        assert body["spec"]["template"]["spec"]["nodeSelector"] == {"disk": "ssd"}

    @pytest.mark.parametrize("name", ["a", "a" * 63, f"{'b' * 16}-{'c' * 30}"])
    def test_names_stay_short_enough_for_what_cdi_puts_behind_them(self, name):
        preload_id = new_id()
        names = {preload_object_name(name, preload_id, generation) for generation in (1, 2, 99_999)}
        assert len(names) == 3
        assert all(len(each) <= 50 and "--" not in each for each in names)


@pytest.fixture
async def preloads(gateway):
    return gateway.preloads


async def made(preloads, given):
    await preloads.make(given)

    async def look():
        seen = await preloads.look(given.preload_id)
        return seen[0] if seen else None

    return look


async def until(look, holds):
    async def check():
        seen = await look()
        return seen if seen is not None and holds(seen) else None

    return await eventually(check)


async def test_an_import_is_followed_until_it_can_be_cloned(preloads):
    given = order({**HTTP, **EVERYTHING})
    look = await made(preloads, given)
    seen = await until(look, lambda seen: seen.progress is not None)
    assert (seen.kind, seen.preload_id, seen.generation) == (ObjectKind.VOLUME, given.preload_id, 1)
    assert seen.bytes_total == 10 * 2**30
    seen = await until(look, lambda seen: seen.volume)
    assert (seen.phase, seen.progress, seen.trouble) == ("Succeeded", 100.0, None)
    assert seen.volume == Volume(seen.name, "10Gi", "fast-ssd", ("ReadWriteOnce",), "Block")


async def test_making_a_preload_twice_makes_one_object(preloads):
    given = order()
    look = await made(preloads, given)
    first = await look()
    await preloads.make(given)
    assert (await look()).uid == first.uid
    assert len(await preloads.all()) == 1


async def test_a_name_that_others_have_is_left_to_them(preloads, gateway):
    given = order()
    kind, body = built(given)
    body["metadata"] |= {"namespace": "default", "labels": {}}
    theirs = await gateway._client.create(kind, body)
    with pytest.raises(ClusterConflict, match="not ours"):
        await preloads.make(given)
    assert (await gateway._client.get(kind, body["metadata"]["name"]))["metadata"]["uid"] == theirs["metadata"]["uid"]


async def test_an_import_that_fails_says_why_and_how_often(cluster, preloads):
    cluster.faults.order(kind="import-fails", settings={"percent": 60, "message": "expected status 200, got 404"})
    look = await made(preloads, order())
    seen = await until(look, lambda seen: seen.trouble == "Error: expected status 200, got 404")
    assert (seen.progress, seen.failed) == (60.0, False)
    assert (await until(look, lambda seen: seen.restarts and seen.trouble)).restarts >= 1


async def test_a_fatal_one_has_failed_for_good(cluster, preloads):
    cluster.faults.order(kind="import-fails", settings={"fatal": True, "message": "no such sum"})
    look = await made(preloads, order())
    seen = await until(look, lambda seen: seen.failed)
    assert seen.trouble == "ChecksumError: no such sum"


async def test_one_that_never_binds_says_so(cluster, preloads):
    cluster.faults.order(kind="claim-never-binds")
    seen = await until(await made(preloads, order()), lambda seen: seen.trouble)
    assert (seen.phase, seen.volume) == ("Pending", None)
    assert "Pending" in seen.trouble


async def test_a_class_that_waits_for_a_consumer_does_not_keep_it_waiting(preloads):
    look = await made(preloads, order({**HTTP, "storage_class": "local-wait"}))
    assert (await until(look, lambda seen: seen.volume)).volume.storage_class == "local-wait"


async def test_a_schedule_imports_at_once_and_is_followed(preloads):
    look = await made(preloads, order(NIGHTLY))
    seen = await until(look, lambda seen: seen.progress is not None)
    assert seen.kind is ObjectKind.CRON
    seen = await until(look, lambda seen: seen.volume)
    assert seen.volume.claim.startswith(f"{seen.name}-")
    assert not seen.volume.is_snapshot


async def test_what_a_schedule_imports_may_be_kept_as_a_snapshot(cluster, preloads):
    keep_as_snapshots(cluster, "fast-ssd")
    look = await made(preloads, order({**NIGHTLY, "storage_class": "fast-ssd", "access_modes": ["ReadWriteOnce"]}))
    held = (await until(look, lambda seen: seen.volume)).volume
    assert (held.is_snapshot, held.storage_class, held.access_modes) == (True, "fast-ssd", ("ReadWriteOnce",))
    assert await preloads.clones(held) == ()


async def test_a_schedule_whose_import_fails_says_why(cluster, preloads):
    cluster.faults.order(kind="cron-import-fails", settings={"message": "no such tag"})
    await until(await made(preloads, order(NIGHTLY)), lambda seen: "no such tag" in (seen.trouble or ""))


async def test_what_a_schedule_imported_goes_with_it(preloads, gateway):
    look = await made(preloads, order(NIGHTLY))
    seen = await until(look, lambda seen: seen.volume)
    await preloads.remove(seen)

    async def gone():
        return not (await gateway._client.list_all(PVCS, selector=""))[0]

    await eventually(gone)
    assert await look() is None


async def test_an_image_is_pulled_node_by_node(cluster, preloads):
    look = await made(preloads, order(IMAGE))
    seen = await until(look, lambda seen: seen.wanted > 0)
    assert {each.state for each in seen.nodes} <= {PullState.PULLING, PullState.PULLED}
    seen = await until(look, lambda seen: all(each.state is PullState.PULLED for each in seen.nodes) and seen.nodes)
    assert [each.node for each in seen.nodes] == ["node1", "node2", "node3"]
    assert seen.wanted == 3
    assert all("registry.example/a:1" in held for held in cluster.images.held().values())


async def test_a_node_that_cannot_pull_says_why(cluster, preloads):
    cluster.faults.order(kind="image-error", resource="pods", settings={"message": "no such image"})
    seen = await until(await made(preloads, order(IMAGE)), lambda seen: seen.trouble)
    assert any(each.state is PullState.FAILED and "no such image" in each.reason for each in seen.nodes)


async def test_an_image_that_must_not_be_pulled_is_not_present(preloads):
    look = await made(preloads, order({**IMAGE, "policy": "Never"}))
    seen = await until(look, lambda seen: seen.trouble)
    assert "ErrImageNeverPull" in seen.trouble


async def test_no_node_of_that_label_is_no_node_wanted(preloads):
    look = await made(preloads, order({**IMAGE, "node_selector": {"no": "such"}}))
    assert (await until(look, lambda seen: seen.wanted == 0)).nodes == ()


@pytest.mark.parametrize("spec", [HTTP, IMAGE], ids=["volume", "nodes"])
async def test_removing_it_leaves_nothing(preloads, gateway, spec):
    look = await made(preloads, order(spec))
    seen = await until(look, lambda seen: seen.volume or seen.nodes)
    await preloads.remove(seen)

    async def gone():
        return await look() is None

    await eventually(gone)
    await preloads.remove(seen)  # it is gone, which is what is wanted
    assert (await gateway._client.list_all(PVCS, selector=""))[0] == []


async def test_another_object_of_the_name_is_not_removed(preloads):
    look = await made(preloads, order())
    seen = await look()
    await preloads.remove(type(seen)(seen.kind, seen.name, "another-uid", seen.preload_id, 1))
    assert (await look()).uid == seen.uid


class TestWhatStandsThere:
    async def test_nothing(self, preloads):
        found = await preloads.find_present("golden")
        assert found.volume is None
        assert "no PVC golden" in found.reason

    async def test_a_volume_that_others_import(self, preloads, gateway):
        body = built(order())[1]
        metadata = {"name": "golden", "namespace": "default"}
        await gateway._client.create(DATA_VOLUMES, {**body, "metadata": metadata})
        found = await preloads.find_present("golden")
        assert found.volume is None

        async def complete():
            found = await preloads.find_present("golden")
            assert found.volume or "not complete" in found.reason or "not bound" in found.reason
            return found.volume

        assert (await eventually(complete)).claim == "golden"
        assert await preloads.all() == ()

    async def test_clones_that_are_under_way(self, cluster, preloads, gateway):
        look = await made(preloads, order())
        seen = await until(look, lambda seen: seen.volume)
        cluster.faults.order(kind="clone-hangs", name="copy")
        source = {"pvc": {"name": seen.volume.claim, "namespace": "default"}}
        copy = {"metadata": {"name": "copy", "namespace": "default"}, "spec": {"source": source, "storage": {}}}
        await gateway._client.create(DATA_VOLUMES, {**built(order())[1], **copy})
        assert await preloads.clones(seen.volume) == ("copy",)
        cluster.faults.lift_all()

        async def over():
            return not await preloads.clones(seen.volume)

        await eventually(over)


class TestTheCheck:
    async def test_what_the_cluster_takes_passes_and_is_not_made(self, preloads):
        for spec in (HTTP, NIGHTLY, IMAGE):
            await preloads.check(order(spec))
        assert await preloads.all() == ()

    async def test_a_refusal_names_the_field_as_it_was_written(self, cluster, preloads):
        message = (
            'admission webhook "datavolume-validate.cdi.kubevirt.io" denied the request: '
            "spec.source.http.secretRef is not a valid name"
        )
        cluster.faults.order(
            kind="error", verbs=["create"], settings={"status": 422, "reason": "Invalid", "message": message}
        )
        with pytest.raises(PreloadRefused) as refused:
            await preloads.check(order())
        assert [problem.field for problem in refused.value.problems] == ["image.http.secret_ref"]
        assert message in refused.value.detail

    async def test_a_cluster_that_is_away_is_no_refusal(self, cluster, preloads):
        cluster.faults.order(kind="error", verbs=["create"], settings={"status": 503})
        with pytest.raises(ClusterUnavailable):
            await preloads.check(order())

    async def test_a_cluster_without_cdi_is_told_as_that(self, cluster, preloads):
        cluster.faults.order(kind="error", resource="datavolumes", settings={"status": 404, "reason": "NotFound"})
        for ask in (preloads.check, preloads.make):
            with pytest.raises(ClusterError, match="is CDI installed"):
                await ask(order())
        look = await made(preloads, order(IMAGE))
        assert (await look()).kind is ObjectKind.NODES


META = {"name": "a", "uid": "u", "labels": {labels.PRELOAD: str(new_id()), labels.GENERATION: "3"}}


class TestWhatIsRead:
    @pytest.mark.parametrize(("told", "percent"), [("43.2%", 43.2), ("N/A", None), (None, None), ("120%", 100.0)])
    def test_progress(self, told, percent):
        status = {"progress": told}
        assert read_volume_object({"metadata": META, "spec": {}, "status": status}, None).progress == percent

    def test_the_size_is_the_larger_of_what_it_has_and_what_was_asked(self):
        spec = {"resources": {"requests": {"storage": "10Gi"}}, "accessModes": ["ReadWriteOnce"]}
        claim = {"metadata": {"name": "a"}, "spec": spec, "status": {"capacity": {"storage": "12884901888"}}}
        assert read_claim(claim).size == "12884901888"

    def test_a_label_of_no_preload_is_none_of_ours(self):
        meta = {"name": "a", "uid": "u", "labels": {labels.PRELOAD: "strange", labels.GENERATION: "x"}}
        seen = read_volume_object({"metadata": meta, "spec": {}}, None)
        assert (seen.preload_id, seen.generation) == (None, 0)

    def test_a_cron_that_finds_no_image_says_so(self):
        spec = {"template": {"spec": {}}}
        condition = {"type": "UpToDate", "status": "False", "reason": "NoDigest", "message": "No source digest"}
        cron = {"metadata": META, "spec": spec, "status": {"conditions": [condition]}}
        assert read_cron(cron, None, None).trouble == "NoDigest: No source digest"

    def test_only_clones_under_way_count(self):
        def clone(name, phase, source):
            return {"metadata": {"name": name}, "spec": {"source": source}, "status": {"phase": phase}}

        of = {"pvc": {"name": "a", "namespace": "n"}}
        volumes = [
            clone("runs", "CSICloneInProgress", of),
            clone("done", "Succeeded", of),
            clone("of another", "CSICloneInProgress", {"pvc": {"name": "b", "namespace": "n"}}),
            clone("of a snapshot", "CloneInProgress", {"snapshot": {"name": "a", "namespace": "n"}}),
        ]
        plain = Volume("a", "1Gi", None, (), None)
        assert clones_from(volumes, plain) == ["runs"]
        assert clones_from(volumes, Volume("a", "1Gi", None, (), None, is_snapshot=True)) == ["of a snapshot"]


def test_the_images_of_a_template_become_preloads_as_large_as_it_asks():
    found = specs_of(expand(WITH_DATA_VOLUME, WarmWhen.RUNNING).spec)
    source = WITH_DATA_VOLUME["dataVolumeTemplates"][0]["spec"]
    (kind,) = source["source"]
    assert [each.image.source("n")[kind]["url"] for each in found] == [source["source"][kind]["url"]]
    assert found[0].size == source["storage"]["resources"]["requests"]["storage"]


def test_a_container_disk_is_preloaded_where_its_vms_may_run():
    template = {"spec": {"domain": {"memory": {"guest": "1Gi"}}, "nodeSelector": {"zone": "a"}, "volumes": []}}
    disk = {"image": "registry.example/a:1", "imagePullPolicy": "Always", "imagePullSecret": "opens"}
    template["spec"]["volumes"] = [{"name": "boot", "containerDisk": disk}, {"name": "again", "containerDisk": disk}]
    (found,) = specs_of(expand(template, WarmWhen.RUNNING).spec)
    assert (found.image.container, found.policy, found.pull_secret) == ("registry.example/a:1", "Always", "opens")
    assert found.node_selector == {"kubevirt.io/schedulable": "true", "zone": "a"}
