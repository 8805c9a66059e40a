"""Documents to requests: what each kind becomes, and what is refused by document, field and reason."""

import pytest

from app.manifests.documents import read_documents
from app.manifests.requests import Resource
from app.manifests.translate import Skipped, order, translate
from tests.support.manifest_documents import (
    DISK,
    DOMAIN,
    VMI,
    annotated,
    as_yaml,
    import_cron,
    machine,
    pool,
    refused,
    request_of,
    snapshot,
    translated,
    volume,
)


def test_a_pool_in_our_words():
    request = request_of(annotated(pool(size=3, minAvailable=2, autoReplenish=False), warm_when="ready", max_vms="9"))
    assert (request.resource, request.name, request.notes) == (Resource.POOL, "web", ())
    assert request.body == {
        "size": 3,
        "min_available": 2,
        "auto_replenish": False,
        "template": VMI,
        "warm_when": "ready",
        "max_vms": 9,
    }


def test_every_setting_of_a_pool_that_no_field_is_for_is_an_annotation():
    request = request_of(annotated(pool(), placement='{"dedicated_cpus": true}', allow_unschedulable="true", max_vms=7))
    assert request.body["placement"] == {"dedicated_cpus": True}
    assert (request.body["allow_unschedulable"], request.body["max_vms"]) == (True, 7)
    assert request.place("placement.dedicated_cpus") == (
        "documents[0].metadata.annotations.emberpool.io/placement.dedicated_cpus"
    )


def test_a_pool_in_kubevirts_words():
    spec = {"runStrategy": "Always", "template": VMI}
    template = {"metadata": {"labels": {"app": "x"}}, "spec": spec}
    request = request_of(
        pool(
            size=None,
            template=None,
            replicas=4,
            virtualMachineTemplate=template,
            selector={"matchLabels": {"app": "x"}},
            paused=False,
            updateStrategy={"unmanaged": {}},
        )
    )
    assert request.body == {"size": 4, "template": template}
    assert any(note.startswith("spec.selector was ignored") for note in request.notes)
    assert any(note.startswith("spec.updateStrategy was ignored") for note in request.notes)
    assert any("spec.replicas became the pool's size" in note for note in request.notes)


def test_replicas_have_kubevirts_default():
    request = request_of(pool(size=None, template=None, virtualMachineTemplate={"spec": {"template": VMI}}))
    assert request.body["size"] == 1
    assert any("size became 1" in note for note in request.notes)


@pytest.mark.parametrize(
    "template",
    [
        {"spec": {**VMI["spec"], "snapshot": {"name": "taken"}}},
        {"template": {"spec": {**VMI["spec"], "snapshot": {"name": "taken"}}}},
        {"spec": {"template": {"spec": {**VMI["spec"], "snapshot": {"name": "taken"}}}}},
    ],
)
def test_a_pools_template_may_start_from_a_snapshot(template):
    request = request_of(pool(template=template))
    assert request.body["start_from"] == {"snapshot": "taken"}
    assert "snapshot" not in str(request.body["template"])
    assert list(request.references) == [(Resource.SNAPSHOT, "taken")]


def test_a_start_may_be_an_annotation():
    request = request_of(annotated(pool(), start_from_preload="near"))
    assert request.body["start_from"] == {"preload": "near"}
    assert request.references == {
        (Resource.PRELOAD, "near"): "documents[0].metadata.annotations.emberpool.io/start-from-preload"
    }
    assert request.place("start_from.preload") == "documents[0].metadata.annotations.emberpool.io/start-from-preload"


def test_a_vm_becomes_a_claim_that_lasts():
    request = request_of(machine())
    assert (request.resource, request.name) == (Resource.CLAIM, "one")
    assert request.body == {
        "vm": {"runStrategy": "Always", "template": VMI},
        "labels": {"name": "one"},
    }
    assert "spec.running: true became runStrategy Always" in request.notes


def test_what_a_vm_has_no_field_for_is_an_annotation():
    request = request_of(
        annotated(
            machine(running=None, runStrategy="Once"),
            lease_seconds="600",
            warm_when="ready",
            paths="snapshot, cold",
            deadline_seconds="30",
            remember="true",
            placement='{"dedicated_cpus": true}',
        )
    )
    assert request.notes == (
        "the service generates the VM's name in the cluster; kubectl get vm -l emberpool.io/name=one finds it",
    )
    assert {key: request.body[key] for key in request.body if key not in {"vm", "labels"}} == {
        "lease_seconds": 600,
        "warm_when": "ready",
        "paths": ["snapshot", "cold"],
        "deadline_seconds": 30,
        "remember": True,
        "placement": {"dedicated_cpus": True},
    }
    assert request.body["vm"]["runStrategy"] == "Once"


def test_a_vm_without_a_disk_can_have_no_agent():
    request = request_of(machine(template={"spec": {"domain": DOMAIN}}))
    assert request.body["warm_when"] == "running"
    assert any("no disk" in note for note in request.notes)
    told = [{"name": "told", "cloudInitNoCloud": {"userData": "#cloud-config"}}]
    assert request_of(machine(template={"spec": {"domain": DOMAIN, "volumes": told}})).body["warm_when"] == "running"
    assert "warm_when" not in request_of(machine(template={"spec": {"domain": DOMAIN, "snapshot": {"name": "s"}}})).body
    asked = annotated(machine(template={"spec": {"domain": DOMAIN}}), warm_when="ready")
    assert request_of(asked).body["warm_when"] == "ready"


def test_a_vms_labels_are_the_claims():
    written = machine()
    written["metadata"]["labels"] = {"app": "x", "name": "one"}
    assert request_of(written).body["labels"] == {"name": "one", "app": "x"}


def test_a_snapshot_of_a_vm_or_a_pool():
    assert request_of(snapshot()).body == {"name": "taken", "source": {"vm": "prepared"}}
    of_pool = request_of(snapshot(source={"apiGroup": "pool.kubevirt.io", "kind": "VirtualMachinePool", "name": "web"}))
    assert of_pool.body["source"] == {"pool": "web"}
    assert list(of_pool.references) == [(Resource.POOL, "web")]
    by_annotation = request_of(
        annotated(snapshot(source=None), source_pool="web", keep="3", refresh="true", quiesce="freeze", memory="true")
    )
    assert by_annotation.body == {
        "name": "taken",
        "source": {"pool": "web"},
        "keep": 3,
        "refresh": True,
        "quiesce": "freeze",
        "memory": True,
    }
    assert by_annotation.place("source.pool").endswith("emberpool.io/source-pool")


@pytest.mark.parametrize(("deadline", "seconds"), [("5m0s", 300), ("1h30m", 5400), ("90s", 90)])
def test_a_snapshots_deadline_is_its_time_limit(deadline, seconds):
    request = request_of(snapshot(failureDeadline=deadline))
    assert request.body["timeout_seconds"] == seconds
    assert request.place("timeout_seconds") == "documents[0].spec.failureDeadline"


def test_a_data_volume_is_a_preload():
    request = request_of(
        annotated(
            volume(
                preloadPolicy="Always",
                pvc=None,
                storage={
                    "storageClassName": "fast-ssd",
                    "accessModes": ["ReadWriteOnce"],
                    "volumeMode": "Block",
                    "resources": {"requests": {"storage": 1073741824}},
                },
                source={"http": {"url": "https://example.com/a", "certConfigMap": "ca", "extraHeaders": ["a: b"]}},
            ),
            ttl_seconds="3600",
        )
    )
    assert (request.resource, request.name) == (Resource.PRELOAD, "near")
    assert request.body == {
        "policy": "Always",
        "image": {"http": {"url": "https://example.com/a", "cert_config_map": "ca", "extra_headers": ["a: b"]}},
        "storage_class": "fast-ssd",
        "access_modes": ["ReadWriteOnce"],
        "volume_mode": "Block",
        "size": "1073741824",
        "ttl_seconds": 3600,
    }
    assert request.place("image.http.cert_config_map") == "documents[0].spec.source.http.certConfigMap"
    assert request.place("size") == "documents[0].spec.storage.resources.requests.storage"


def test_an_import_cron_is_a_preload_with_a_schedule():
    request = request_of(import_cron(importsToKeep=2, garbageCollect="Outdated", retentionPolicy="None"))
    assert request.body == {
        "schedule": "30 2 * * *",
        "keep": 2,
        "data_source": "nightly",
        "image": {"registry": {"url": "docker://registry.local/disk:1"}},
        "size": "1Gi",
    }
    assert any(note.startswith("spec.managedDataSource nightly: no DataSource") for note in request.notes)


def test_what_a_cluster_wrote_is_left_out():
    written = pool()
    written["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": None, "namespace": "default"}
    written["metadata"] |= {"finalizers": ["kubevirt.io/virtualMachineControllerFinalize"], "ownerReferences": []}
    written["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "generateName": "web-", "managedFields": [{}]}
    observed = {"kubevirt.io/latest-observed-api-version": "v1"}
    written["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"} | observed
    written["metadata"]["labels"] = {"app": "x"}
    written["status"] = {"replicas": 1}
    request = request_of(written)
    assert set(request.body) == {"size", "template"}
    assert request.notes == (
        (
            "left out, as the cluster writes it: metadata.uid, metadata.resourceVersion, metadata.finalizers, "
            "metadata.deletionTimestamp, metadata.generateName, metadata.managedFields, "
            "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration, "
            "metadata.annotations.kubevirt.io/latest-observed-api-version, status"
        ),
        "metadata.labels were ignored: a pool has no labels",
    )


def test_an_annotation_of_others_is_not_kept():
    written = pool()
    written["metadata"]["annotations"] = {"mine": "x"}
    assert request_of(written).notes == ("annotations that do not begin with emberpool.io/ are not kept",)


TIMES = {"creationTimestamp": None}
NAMED = {"name": "x", "namespace": "elsewhere", "uid": "u", "labels": {"a": "b"}}
DISKS = [{"metadata": {"name": "d", "uid": "u", **TIMES}, "spec": {"source": {"blank": {}}}, "status": {}}]


def test_templates_lose_their_names_and_what_the_cluster_wrote():
    template = {"metadata": NAMED | TIMES, **VMI, "status": {"ready": True}}
    one = request_of(machine(template=template, dataVolumeTemplates=DISKS))
    kept = {"metadata": {"labels": {"a": "b"}}, **VMI}
    volumes = [{"metadata": {"name": "d"}, "spec": {"source": {"blank": {}}}}]
    assert (one.body["vm"]["template"], one.body["vm"]["dataVolumeTemplates"]) == (kept, volumes)
    assert one.notes[:2] == (
        (
            "left out, as the cluster writes it: spec.template.metadata.uid, spec.template.status, "
            "spec.dataVolumeTemplates[0].metadata.uid"
        ),
        (
            "left out, as in KubeVirt a template has no name of its own: spec.template.metadata.name, "
            "spec.template.metadata.namespace"
        ),
    )

    whole = {"metadata": NAMED, "spec": {"template": template, "dataVolumeTemplates": DISKS}}
    many = request_of(pool(size=None, template=None, replicas=1, virtualMachineTemplate=whole))
    assert many.body["template"]["metadata"] == {"labels": {"a": "b"}}
    assert many.body["template"]["spec"] == {"template": kept, "dataVolumeTemplates": volumes}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "Secret",
            "its VMs can use it: apply it with kubectl, in namespace 'default' if it has one, and pass it over here",
        ),
        ("VirtualMachineInstancetype", "its VMs can use it: apply it with kubectl"),
        (
            "Service",
            "which this service does not apply: apply it with kubectl, and pass it over here with --skip-unknown",
        ),
        ("Namespace", "apply it with kubectl"),
        (
            "VirtualMachineInstance",
            "write a VirtualMachine, whose spec.template has the same fields, or pass it over here",
        ),
        ("VirtualMachineInstanceMigration", "apply it with kubectl, and pass it over here with --skip-unknown"),
        ("VolumeSnapshot", "apply it with kubectl, and pass it over here with --skip-unknown"),
        ("VirtualMachineTemplate", "apply it with kubectl, and pass it over here"),
        ("DataSource", "its VMs can use it: apply it with kubectl"),
    ],
)
def test_a_document_for_the_cluster_is_refused_in_a_sentence_or_passed_over(kind, says):
    other = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}}
    message = refused(other, machine())["documents[0].kind"]
    assert message.startswith(f"is {kind}, which this service does not apply")
    assert says in message
    found = translate(read_documents(as_yaml(other, machine())), namespace="default", skip_unknown=True)
    assert (found.problems, [request.name for request in found.requests]) == ([], ["one"])
    assert found.skipped == [Skipped("documents[0]", kind, "x")]


@pytest.mark.parametrize("written", [{**pool(), "kind": "VirtualMachinPool"}, {"metadata": {}}, {"kind": 7}])
def test_a_mistake_is_not_passed_over(written):
    found = translate(read_documents(as_yaml(written)), namespace="default", skip_unknown=True)
    assert (found.skipped, [problem.field for problem in found.problems]) == ([], ["documents[0].kind"])


@pytest.mark.parametrize(
    ("written", "field", "says"),
    [
        ({"kind": "Pod", "apiVersion": "v1"}, "kind", "known here are: DataImportCron, DataVolume, VirtualMachine,"),
        ({**pool(), "kind": "VirtualMachinPool"}, "kind", "did you mean `VirtualMachinePool`?"),
        ({**pool(), "kind": None}, "kind", "is missing"),
        ({**pool(), "apiVersion": "v1"}, "apiVersion", "must be pool.kubevirt.io/v1 or"),
        ({**pool(), "apiVersion": "pool.kubevirt.io/v2"}, "apiVersion", "it is 'pool.kubevirt.io/v2'"),
        ({**pool(), "apiVersion": None}, "apiVersion", "is missing"),
        ({**pool(), "spek": {}}, "spek", "did you mean `spec`?"),
        ({**pool(), "spec": None}, "spec", "is missing"),
        ({**pool(), "spec": []}, "spec", "must be a mapping, got a list"),
        ({**pool(), "metadata": None}, "metadata", "is missing"),
        ({**pool(), "metadata": {}}, "metadata.name", "is missing"),
        ({**pool(), "metadata": {"name": 7}}, "metadata.name", "must be text, got the number 7; put it in quotes"),
        ({**pool(), "metadata": {"name": "Web"}}, "metadata.name", "lower-case letters"),
        ({**pool(), "metadata": {"generateName": "web-"}}, "metadata.generateName", "write metadata.name"),
        (
            {**pool(), "metadata": {"name": "a", "namespace": "b"}},
            "metadata.namespace",
            "must be 'default', the only namespace",
        ),
        ({**pool(), "metadata": {"name": "a", "nmae": "x"}}, "metadata.nmae", "did you mean `name`?"),
        (
            {**pool(), "metadata": {"name": "a", "labels": {"b": 1}}},
            "metadata.labels.b",
            "must be text in quotes, got 1",
        ),
        (annotated(pool(), max_vm="3"), "metadata.annotations.emberpool.io/max-vm", "did you mean `max-vms`?"),
        (annotated(pool(), size="3"), "metadata.annotations.emberpool.io/size", "is not a known setting"),
        (annotated(pool(), max_vms=[3]), "metadata.annotations.emberpool.io/max-vms", "must be text"),
        (pool(minAvailible=1), "spec.minAvailible", "did you mean `minAvailable`?"),
        (pool(zzz=1), "spec.zzz", "is not a known field; known are: "),
        (pool(replicas=2), "spec.replicas", "means the same as spec.size: keep one of them"),
        (pool(virtualMachineTemplate={}), "spec.virtualMachineTemplate", "means the same as spec.template"),
        (pool(autohealing={"startUpFailureThreshold": 1}), "spec.autohealing", "is not supported"),
        (pool(maxUnavailable=1), "spec.maxUnavailable", "write minAvailable"),
        (pool(paused=True), "spec.paused", "POST /v1/pools/NAME/pause"),
        (pool(updateStrategy={"proactive": {}}), "spec.updateStrategy", "a changed template replaces"),
        (
            annotated(pool(template={"spec": {**VMI["spec"], "snapshot": {"name": "s"}}}), start_from_preload="p"),
            "spec.template.spec.snapshot.name",
            "is a second source: metadata.annotations.emberpool.io/start-from-preload names one already",
        ),
        (
            machine(running=False),
            "spec.running",
            "false asks for a VM that does not run, and a claim hands out one that does: write true",
        ),
        (machine(runStrategy="Halted", running=None), "spec.runStrategy", "'Halted' asks for a VM that does not run"),
        (machine(runStrategy="Always"), "spec.running", "and runStrategy exclude each other"),
        (machine(running="yes"), "spec.running", "must be true or false"),
        (machine(template=None), "spec.template", "is missing"),
        (machine(runing=True), "spec.runing", "did you mean `running`?"),
        (machine(updateVolumesStrategy="Replacement"), "spec.updateVolumesStrategy", "not changed in place"),
        (
            machine(template={"spec": {"domain": DOMAIN, "snapshot": {"nam": "s"}}}),
            "spec.template.spec.snapshot.nam",
            "did you mean `name`?",
        ),
        (machine(template={"spec": {"snapshot": "s"}}), "spec.template.spec.snapshot", "must be a mapping, got text"),
        (
            {**machine(), "metadata": {"name": "a", "labels": {"name": "b"}}},
            "metadata.labels.name",
            "must be 'a', as this label",
        ),
        (
            {**machine(), "metadata": {"name": "a", "labels": {"x" * 64: "b"}}},
            f"metadata.labels.{'x' * 64}",
            "is longer than 63 characters",
        ),
        (
            {**machine(), "metadata": {"name": "a", "labels": {f"l{n}": "" for n in range(40)}}},
            "metadata.labels",
            "are more than 31",
        ),
        (snapshot(source=None), "spec.source", "is missing"),
        (snapshot(source={"kind": "Pod", "name": "x"}), "spec.source.kind", "'Pod' is not a known kind"),
        (snapshot(source={"kind": "VirtualMachine"}), "spec.source.name", "is missing"),
        (
            snapshot(source={"kind": "VirtualMachine", "name": "x", "apiGroup": "apps"}),
            "spec.source.apiGroup",
            "must be kubevirt.io for a VirtualMachine",
        ),
        (snapshot(deletionPolicy="Retain"), "spec.deletionPolicy", "must be Delete"),
        (snapshot(failureDeadline="soon"), "spec.failureDeadline", "such as 10m; it is 'soon'"),
        (annotated(snapshot(failureDeadline="5m"), timeout_seconds="9"), "spec.failureDeadline", "means the same as"),
        (annotated(snapshot(), source_pool="web"), "spec.source", "name two sources; keep one of them"),
        (volume(source=None), "spec.source", "is missing"),
        (volume(source={}), "spec.source", "must name the source of the image"),
        (volume(source={"htp": {}}), "spec.source.htp", "did you mean `http`?"),
        (volume(source={"blank": {}}), "spec.source.blank", "a preload imports an image"),
        (volume(source={"upload": {}}), "spec.source.upload", "write a DataVolume of another name with source: {pvc:"),
        (
            volume(source={"snapshot": {"name": "s"}}),
            "spec.source.snapshot",
            "write it as a dataVolumeTemplate of each VM",
        ),
        (volume(source={"http": {"uri": "x"}}), "spec.source.http.uri", "did you mean `url`?"),
        (volume(source={"registry": {"imageStream": "x"}}), "spec.source.registry.imageStream", "by its url"),
        (
            volume(source={"http": {"url": "https://a"}, "s3": {"url": "s3://a"}}),
            "spec.source.s3",
            "and http exclude each other: an image has one source",
        ),
        (volume(storage={}), "spec.storage", "and pvc exclude each other"),
        (volume(sourceRef={"kind": "DataSource", "name": "x"}, source=None), "spec.sourceRef", "name the image itself"),
        (volume(contentType="archive"), "spec.contentType", "an archive is not a disk"),
        (volume(pvc={"selector": {}}), "spec.pvc.selector", "only the storage class"),
        (
            volume(pvc={"resources": {"limits": {}}}),
            "spec.pvc.resources.limits",
            "requests.storage is the volume's size",
        ),
        (import_cron(schedule=None), "spec.schedule", "is missing"),
        (import_cron(template=None), "spec.template", "is missing"),
        (import_cron(retentionPolicy="All"), "spec.retentionPolicy", "must be None"),
        (import_cron(garbageCollect="Never"), "spec.garbageCollect", "must be Outdated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(written, field, says):
    found = refused(written)
    assert f"documents[0].{field}" in found
    assert says in found[f"documents[0].{field}"]


def test_a_problem_says_its_line():
    documents = [pool(name="a"), pool(name="b", minAvailible=1)]
    line = as_yaml(*documents).decode().splitlines().index("  minAvailible: 1") + 1
    assert refused(*documents)["documents[1].spec.minAvailible"].endswith(f"(line {line})")


def test_every_problem_of_every_document_is_found():
    found = refused(pool(zzz=1, maxUnavailable=1), {"kind": "Pod"}, machine(running=False))
    assert set(found) == {
        "documents[0].spec.zzz",
        "documents[0].spec.maxUnavailable",
        "documents[1].kind",
        "documents[1].apiVersion",
        "documents[2].spec.running",
    }


def test_what_is_missing_is_told_once():
    assert set(refused({**machine(), "spec": None})) == {"documents[0].spec"}


def test_a_name_is_taken_once():
    assert "documents[0] makes pool 'web' already" in refused(pool(), pool())["documents[1].metadata.name"]
    found = refused(volume(name="a"), import_cron(name="a"))
    assert "documents[0] makes preload 'a' already" in found["documents[1].metadata.name"]
    requests, problems = translated(pool(name="a"), machine(name="a"), snapshot(name="a"), volume(name="a"))
    assert (len(requests), problems) == (4, [])


def test_what_is_needed_comes_first():
    from_snapshot = {"spec": {"domain": DOMAIN, "snapshot": {"name": "taken"}}}
    of_pool = snapshot(source={"kind": "VirtualMachinePool", "name": "web"})
    requests, _ = translated(
        machine(name="late", template=from_snapshot),
        of_pool,
        annotated(pool(), start_from_preload="near"),
        volume(),
        machine(),
    )
    ordered, problems = order(requests)
    assert problems == []
    assert [request.name for request in ordered] == ["near", "one", "web", "taken", "late"]


def test_a_circle_is_refused():
    of_pool = snapshot(source={"kind": "VirtualMachinePool", "name": "web"})
    requests, _ = translated(annotated(pool(), start_from_snapshot="taken"), of_pool, machine())
    ordered, (problem,) = order(requests)
    assert ordered == []
    assert "refer to each other in a circle" in problem.message
    assert problem.field in {
        "documents[0].metadata.annotations.emberpool.io/start-from-snapshot",
        "documents[1].spec.source.name",
    }


def test_the_document_itself_stays_as_it_was_written():
    written = machine(template={"spec": {"domain": DOMAIN, "snapshot": {"name": "s"}, "volumes": [DISK]}})
    documents = read_documents(as_yaml(written))
    translate(documents, namespace="default")
    assert documents[0].body == written


def test_only_the_first_of_many_unknown_words_get_a_suggestion():
    """To find a word that is like another one takes long: 10,000 of them would take the processor for seconds."""
    fields = {f"replica{number}": 1 for number in range(100)}
    settings = {f"max_vm{number}": "1" for number in range(100)}
    for document in (pool(**fields), annotated(pool(), **settings)):
        told = refused(document).values()
        assert len(told) == 100
        assert sum("did you mean" in message for message in told) == 20
