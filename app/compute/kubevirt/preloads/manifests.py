"""Builds the DataVolume, DataImportCron or DaemonSet of one generation of a preload. Pure.

The image of a container disk contains no program, so a pod cannot run it as it is. As KubeVirt itself does for such disks, an init
container copies a static binary into a volume that the pod shares, and the image's container runs that binary. It runs as long as
the preload exists: a kubelet never deletes an image that a running pod uses.
"""

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import DAEMON_SETS, DATA_IMPORT_CRONS, DATA_VOLUMES, Kind, Manifest
from app.compute.preloads import PreloadOrder
from app.ids import preload_object_name

IMAGE_CONTAINER = "image"
_BINARY = "busybox"
_SHARED = "/emberpool"
_ANNOTATIONS = {
    # Otherwise a storage class that binds late waits for a VM and imports only then (CDI v1.66.0).
    "cdi.kubevirt.io/storage.bind.immediate.requested": "true",
    # Until about v1.62 CDI could be configured to delete a DataVolume once it is complete; we find the volume by its DataVolume.
    "cdi.kubevirt.io/storage.deleteAfterCompletion": "false",
}
_NODES_FOR_VMS = {"kubevirt.io/schedulable": "true"}
_SLEEP_SECONDS = "2147483647"
_NOBODY = 65534
_UNPRIVILEGED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_NEXT_TO_NOTHING: Manifest = {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "32Mi"}}


def build(order: PreloadOrder, *, namespace: str, instance: str, helper_image: str) -> tuple[Kind, Manifest]:
    """The object and its kind. `helper_image` contains the static binary for container images."""
    if order.spec.is_container:
        kind, spec = DAEMON_SETS, _daemon_set(order, instance, helper_image)
    elif order.spec.schedule is not None:
        kind, spec = DATA_IMPORT_CRONS, _import_cron(order, namespace)
    else:
        kind, spec = DATA_VOLUMES, order.spec.data_volume(namespace)
    metadata: Manifest = {
        "name": preload_object_name(order.name, order.preload_id, order.generation),
        "namespace": namespace,
        "labels": _labels(order, instance),
    }
    if kind is DATA_VOLUMES:
        metadata["annotations"] = dict(_ANNOTATIONS)
    return kind, kind.manifest(metadata, spec)


def _labels(order: PreloadOrder, instance: str) -> dict[str, str]:
    return {
        **labels.ours(instance),
        labels.PRELOAD: str(order.preload_id),
        labels.GENERATION: str(order.generation),
    }


def _import_cron(order: PreloadOrder, namespace: str) -> Manifest:
    spec = order.spec
    return {
        "schedule": spec.schedule,
        "managedDataSource": preload_object_name(order.name, order.preload_id, order.generation),
        "garbageCollect": "Outdated",
        "retentionPolicy": "None",  # its imports are deleted with it
        **({"importsToKeep": spec.keep} if spec.keep is not None else {}),
        # No annotations: the schema has none here (CDI v1.66.0), and CDI itself lets these imports bind at once.
        "template": {"spec": spec.data_volume(namespace)},
    }


def _daemon_set(order: PreloadOrder, instance: str, helper_image: str) -> Manifest:
    spec, ours = order.spec, _labels(order, instance)
    shared = {"name": "shared", "mountPath": _SHARED}
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": dict(_NODES_FOR_VMS if spec.node_selector is None else spec.node_selector),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _NOBODY,
            "runAsGroup": _NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [
            {
                "name": "hand-over",
                "image": helper_image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["cp", f"/bin/{_BINARY}", f"{_SHARED}/{_BINARY}"],
                "resources": dict(_NEXT_TO_NOTHING),
                "securityContext": dict(_UNPRIVILEGED),
                "volumeMounts": [shared],
            }
        ],
        "containers": [
            {
                "name": IMAGE_CONTAINER,
                "image": spec.image.container,
                "imagePullPolicy": spec.policy,
                "command": [f"{_SHARED}/{_BINARY}", "sleep", _SLEEP_SECONDS],
                "resources": dict(_NEXT_TO_NOTHING),
                "securityContext": dict(_UNPRIVILEGED),
                "volumeMounts": [{**shared, "readOnly": True}],
            }
        ],
        "volumes": [{"name": "shared", "emptyDir": {"sizeLimit": "16Mi"}}],
    }
    if spec.tolerations:
        pod["tolerations"] = [dict(each) for each in spec.tolerations]
    if spec.pull_secret is not None:
        pod["imagePullSecrets"] = [{"name": spec.pull_secret}]
    mine = {key: ours[key] for key in (labels.PRELOAD, labels.GENERATION)}
    return {"selector": {"matchLabels": mine}, "template": {"metadata": {"labels": ours}, "spec": pod}}
