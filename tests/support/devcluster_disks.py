"""VMs with disks, claims, snapshots and DataVolumes, as a client writes them."""

from tests.support.devcluster_bench import machine

CORE = "/api/v1/namespaces/default"
CLAIMS = f"{CORE}/persistentvolumeclaims"
CDI = "/apis/cdi.kubevirt.io/v1beta1"
DATA_VOLUMES = f"{CDI}/namespaces/default/datavolumes"
DATA_SOURCES = f"{CDI}/namespaces/default/datasources"
CRONS = f"{CDI}/namespaces/default/dataimportcrons"
PROFILES = f"{CDI}/storageprofiles"
KUBEVIRT_SNAPSHOTS = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default"
SNAPSHOTS = f"{KUBEVIRT_SNAPSHOTS}/virtualmachinesnapshots"
CONTENTS = f"{KUBEVIRT_SNAPSHOTS}/virtualmachinesnapshotcontents"
CSI = "/apis/snapshot.storage.k8s.io/v1"
VOLUME_SNAPSHOTS = f"{CSI}/namespaces/default/volumesnapshots"
VOLUME_SNAPSHOT_CONTENTS = f"{CSI}/volumesnapshotcontents"
VOLUMES = "/api/v1/persistentvolumes"
URL = "https://images.example.com/fedora.qcow2"
CONTAINER_DISK = "docker://quay.io/containerdisks/fedora:42"


def claim(name, *, storage_class="standard", size="10Gi", owner=None, blocking=False, snapshot="", source=""):
    """A claim, empty or from a VolumeSnapshot or another claim; `owner` is the VM it goes with."""
    metadata = {"name": name}
    if owner:
        reference = {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata["ownerReferences"] = [
            {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "blockOwnerDeletion": blocking, **reference}
        ]
    spec = {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "resources": {"requests": {"storage": size}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    if snapshot:
        spec["dataSource"] = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}
    if source:
        spec["dataSource"] = {"kind": "PersistentVolumeClaim", "name": source}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def disk_machine(name, *volumes, strategy="Always", templates=(), **options):
    """A VM that boots from the first of its volumes."""
    obj = machine(name, strategy=strategy, **options)
    spec = obj["spec"]["template"]["spec"]
    spec["domain"]["devices"]["disks"] = [{"name": item["name"], "disk": {"bus": "virtio"}} for item in volumes]
    spec["volumes"] = list(volumes)
    if templates:
        obj["spec"]["dataVolumeTemplates"] = list(templates)
    return obj


def on_claim(name, claim_name=None):
    return {"name": name, "persistentVolumeClaim": {"claimName": claim_name or name}}


def on_data_volume(name):
    return {"name": name, "dataVolume": {"name": name}}


def on_image(name):
    return {"name": name, "containerDisk": {"image": "quay.io/containerdisks/fedora:42"}}


def vm_snapshot(name, source, **spec):
    whole = {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": source}, **spec}
    return {
        "apiVersion": "snapshot.kubevirt.io/v1beta1",
        "kind": "VirtualMachineSnapshot",
        "metadata": {"name": name},
        "spec": whole,
    }


def data_volume(name, source=None, *, storage=None, pvc=None, immediate=False, labels=None, reference=None):
    """A DataVolume; by default an import over HTTP into 10Gi of whatever class is the default."""
    spec = {"sourceRef": reference} if reference else {"source": source or {"http": {"url": URL}}}
    if pvc is not None:
        spec["pvc"] = {"resources": {"requests": {"storage": "10Gi"}}, **pvc}
    else:
        spec["storage"] = {"resources": {"requests": {"storage": "10Gi"}}, **(storage or {})}
    metadata = {"name": name, "labels": labels or {}}
    if immediate:
        metadata["annotations"] = {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}
    return {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": metadata, "spec": spec}


async def make(bench, path, *objects):
    """Create each; gives the last as it was stored."""
    body = None
    for obj in objects:
        status, body = await bench.call("POST", path + "?fieldValidation=Strict", obj)
        assert status == 201, body
    return body


def condition(obj, kind):
    found = next((item for item in obj["status"].get("conditions", ()) if item["type"] == kind), None)
    return found and (found["status"], found.get("reason", ""), found.get("message", ""))


async def remove(bench, path, **body):
    status, answer = await bench.call("DELETE", path, body)
    assert status in {200, 202}, answer
    return answer


async def exists(bench, path):
    return (await bench.call("GET", path))[0] == 200


def cron(name="fedora", source=None, **spec):
    storage = {"resources": {"requests": {"storage": "10Gi"}}}
    template = {"spec": {"source": source or {"registry": {"url": CONTAINER_DISK}}, "storage": storage}}
    whole = {"schedule": "0 * * * *", "managedDataSource": "image", "template": template, **spec}
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataImportCron",
        "metadata": {"name": name},
        "spec": whole,
    }


def of_claim(name):
    return {"pvc": {"namespace": "default", "name": name}}


def of_snapshot(name):
    return {"snapshot": {"namespace": "default", "name": name}}


async def progress_of(bench, name):
    """Phase and progress of a DataVolume."""
    volume = await bench.get(f"{DATA_VOLUMES}/{name}")
    return volume.get("status", {}).get("phase"), volume.get("status", {}).get("progress")


async def import_image(bench, name="image", **options):
    """An image that has been imported."""
    await make(bench, DATA_VOLUMES, data_volume(name, **options))
    await bench.clock.advance(45)
    assert await progress_of(bench, name) == ("Succeeded", "100.0%")
