"""Examples of answers, for the OpenAPI document. A test holds each to the shape that it is an example of."""

from typing import Any, Final

Json = dict[str, Any]

_POOL_NAME: Final = "fast-start-pool"
_VM_ID: Final = "01a206d8-3b1d-7264-9eb0-d92e221c920a"
_VM_NAME: Final = f"{_POOL_NAME}-agranwb3dvzgjhvq3excehesbi"
_CLAIM_ID: Final = "01a206d8-517b-7231-a079-9e6d21989c09"

_SHAPE: Final = "7b9084e84b48878f3a8d55b47cb3cf9746710bfece57b2d18de35d7f4b02d32a"
_STAGES: Final[Json] = {
    "queue": 0.1,
    "disk": 0.0,
    "schedule": 1.1,
    "image": 10.4,
    "start": 3.5,
    "boot": 14.9,
    "agent": 1.2,
}

POOL: Final[Json] = {
    "name": _POOL_NAME,
    "spec": {
        "size": 10,
        "template": {"image": "quay.io/containerdisks/ubuntu:22.04", "cpu": 2, "memory": "2Gi"},
        "start_from": None,
        "backing": "VirtualMachine",
        "placement": None,
        "allow_unschedulable": False,
        "min_available": 5,
        "auto_replenish": True,
        "max_vms": None,
        "max_ready_age_seconds": None,
        "max_concurrent_creates": 10,
        "boot_timeout_seconds": 600,
        "warm_when": "agent",
        "default_lease_seconds": 3600,
        "max_lease_seconds": 86400,
    },
    "revision": "8c080a68d73e",
    "generation": 1,
    "created_at": "2026-01-12T09:00:00.000000Z",
    "updated_at": "2026-01-12T09:00:00.000000Z",
    "status": {
        "phase": "filling",
        "reason": None,
        "notes": [],
        "fill": 0.9,
        "counts": {
            "planned": 0,
            "creating": 0,
            "booting": 1,
            "ready": 9,
            "claimed": 1,
            "releasing": 0,
            "failed": 0,
            "waiting": 0,
        },
        "refill_per_minute": 2.4,
        "boot_seconds": {"count": 12, "p50": 31.2, "p95": 38.7},
        "last_failure": None,
        "last_failure_at": None,
    },
}

IMPORTED: Final[Json] = {
    "vm_pool": "web-servers",
    "pool": "web",
    "imported": False,
    "spec": {
        **POOL["spec"],
        "size": 2,
        "min_available": 0,
        "backing": "VirtualMachinePool",
        "template": {"spec": {"runStrategy": "Always", "template": {"spec": {"domain": {}}}}},
    },
    "changes": [
        "scaleInStrategy becomes unmanaged: the cluster creates VMs, and no longer changes or deletes them",
        "2 VMs become warm VMs of pool 'web' as they run; none is restarted or removed",
    ],
    "vms": ["web-servers-0", "web-servers-1"],
}
CLAIM: Final[Json] = {
    "id": _CLAIM_ID,
    "pool": _POOL_NAME,
    "shape": None,
    "state": "bound",
    "path": "pool",
    "choice": None,
    "remembered": None,
    "vm": {
        "id": _VM_ID,
        "name": _VM_NAME,
        "namespace": "default",
        "node": "node1",
        "addresses": ["10.244.0.8"],
        "health": None,
    },
    "labels": {"job": "ci-4711"},
    "lease_seconds": 3600,
    "lease_expires_at": "2026-01-12T10:05:00.000000Z",
    "created_at": "2026-01-12T09:05:00.000000Z",
    "bound_at": "2026-01-12T09:05:00.000000Z",
    "ended_at": None,
    "reason": None,
    "replacements": [],
    "estimate": None,
    "timings": {
        "wait": 0.0,
        "boot": 31.2,
        "warm": 268.8,
        "stages": None,
    },
}
PATH: Final[Json] = {
    "path": "preload",
    "shape": _SHAPE,
    "count": 8,
    "p50": 12.9,
    "p95": 15.1,
    "saving": 0.5879,
    "expected": 0.6,
    "basis": (
        "the last 8 starts of this shape, from the plan to the first ready; against the last 12 cold starts of this shape"
    ),
}
BATCH: Final[Json] = {"claims": [CLAIM], "requested": 3, "missing": 2}
VM_CLAIM: Final[Json] = {
    **CLAIM,
    "pool": None,
    "shape": _SHAPE,
    "path": "cold",
    "choice": {
        "path": "cold",
        "source": None,
        "reason": "cold, from its template alone: the fastest way there is (about 31.3 s, measured for this shape 12 times)",
        "at": "2026-01-12T09:05:00.000000Z",
        "deadline_at": None,
        "considered": [
            {
                "path": "pool",
                "source": None,
                "available": False,
                "why": "no pool has this shape",
                "estimate": {"p50": None, "p95": None, "count": 0, "basis": "no data"},
            },
            {
                "path": "snapshot",
                "source": None,
                "available": False,
                "why": "no snapshot of this shape",
                "estimate": {"p50": None, "p95": None, "count": 0, "basis": "no data"},
            },
            {
                "path": "preload",
                "source": None,
                "available": False,
                "why": "no preload brings quay.io/containerdisks/ubuntu:22.04 near",
                "estimate": {
                    "p50": 12.9,
                    "p95": 15.1,
                    "count": 8,
                    "basis": "measured for this path 8 times, over all shapes",
                },
            },
            {
                "path": "cold",
                "source": None,
                "available": True,
                "why": None,
                "estimate": {"p50": 31.3, "p95": 38.8, "count": 12, "basis": "measured for this shape 12 times"},
            },
        ],
        "tried": [],
    },
    "remembered": {"pool": "remembered-7b9084e84b", "preloads": ["ubuntu-22-04-1f0c6a"], "reason": None},
    "bound_at": "2026-01-12T09:05:31.300000Z",
    "timings": {"wait": 31.3, "boot": 31.2, "warm": 0.0, "stages": _STAGES},
}
PENDING_CLAIM: Final[Json] = {
    **CLAIM,
    "state": "pending",
    "path": None,
    "vm": None,
    "lease_expires_at": None,
    "bound_at": None,
    "reason": f"pool '{_POOL_NAME}' has no ready VM (2 on their way, 10 claimed)",
    "estimate": {"seconds": 12.4, "basis": "the median of the pool's last 12 boots, 31.2 s; 2 VMs on their way"},
    "timings": {"wait": None, "boot": None, "warm": None, "stages": None},
}
ENDED_CLAIM: Final[Json] = {
    **CLAIM,
    "state": "released",
    "ended_at": "2026-01-12T09:20:00.000000Z",
    "reason": "released by its client",
}
VM: Final[Json] = {
    "id": _VM_ID,
    "pool": _POOL_NAME,
    "name": _VM_NAME,
    "namespace": "default",
    "state": "claimed",
    "state_since": "2026-01-12T09:05:00.000000Z",
    "revision": "8c080a68d73e",
    "uid": "6d0e7556-b7b6-4e5a-ae29-66783b8b5c55",
    "node": "node1",
    "addresses": ["10.244.0.8"],
    "health": None,
    "reason": None,
    "claim_id": _CLAIM_ID,
    "created_at": "2026-01-12T09:00:00.000000Z",
    "ready_at": "2026-01-12T09:00:31.200000Z",
    "claimed_at": "2026-01-12T09:05:00.000000Z",
    "ended_at": None,
    "boot_seconds": 31.2,
    "path": "cold",
    "source": None,
    "shape": _SHAPE,
    "stages": _STAGES,
}
EVENT: Final[Json] = {
    "cursor": "7701-42",
    "at": "2026-01-12T09:00:31.200000Z",
    "type": "vm.ready",
    "pool": _POOL_NAME,
    "vm_id": _VM_ID,
    "claim_id": None,
    "data": {"boot_seconds": 31.2},
}
APPLIED: Final[Json] = {
    "dry_run": False,
    "documents": [
        {
            "document": "documents[0]",
            "kind": "VirtualMachinePool",
            "name": _POOL_NAME,
            "action": "created",
            "became": {"resource": "pools", "name": _POOL_NAME, "href": f"/v1/pools/{_POOL_NAME}", "state": None},
            "notes": [],
        },
        {
            "document": "documents[1]",
            "kind": "VirtualMachine",
            "name": "fast-vm",
            "action": "unchanged",
            "became": {"resource": "claims", "name": "fast-vm", "href": f"/v1/claims/{_CLAIM_ID}", "state": "bound"},
            "notes": ["spec.running: true became runStrategy Always"],
        },
    ],
}
RENEWAL: Final[Json] = {"lease_seconds": 7200}
READINESS: Final[Json] = {
    "status": "ready",
    "database": {"ok": True, "detail": "answers", "age_seconds": None},
    "migrations": {"ok": True, "detail": "at 0001, this program needs 0001", "age_seconds": None},
    "cluster_watch": {"ok": True, "detail": "watched by worker-1:7", "age_seconds": 2.0},
}
UNREADINESS: Final[Json] = {
    **READINESS,
    "status": "unready",
    "migrations": {
        "ok": False,
        "detail": "at nothing, this program needs 0001: run `emberpool migrate`",
        "age_seconds": None,
    },
    "cluster_watch": {
        "ok": False,
        "detail": "the cluster has not been listed yet; does a worker run?",
        "age_seconds": None,
    },
}

DETAILS: Final[dict[str, str]] = {
    "unschedulable": (
        "at most 1 of the 2 VMs of this pool fit on these nodes, even with nothing else on them: node1: takes 1, and for one "
        "more 1Gi hugepages: 2 free of 8, 6 needed. Ask for fewer, for less, or for what the nodes have; allow_unschedulable takes the pool all the same"
    ),
    "node-not-found": "no node is named 'node9'; GET /v1/nodes lists those that there are",
    "invalid-request": "size: Input should be greater than or equal to 0; it is -1. Nothing was changed",
    "malformed-body": "the body is not JSON: EOF while parsing a string at line 1 column 13",
    "unsupported-media-type": "the content type is text/plain; send JSON as application/json",
    "body-too-large": "the body is above 1048576 bytes, the most that is taken here",
    "template-refused": (
        "The cluster refuses a VM of this template: admission webhook "
        '"virtualmachine-validator.kubevirt.io" denied the request: spec.template.spec.volumes[0] must have exactly one source set'
    ),
    "manifest-refused": (
        "1 of 2 documents is refused, and nothing was changed. "
        "documents[1].spec.minAvailible: there is no such field; did you mean `minAvailable`? (line 21)"
    ),
    "preload-refused": (
        "The cluster refuses what would bring the image near: admission webhook "
        '"datavolume-validate.cdi.kubevirt.io" denied the request: Invalid URL scheme'
    ),
    "lease-too-long": (
        f"a lease of 90000 s is too long: pool '{_POOL_NAME}' gives leases of up to 86400 s; "
        "ask for less and renew, or raise max_lease_seconds"
    ),
    "idempotency-key-reused": (
        f"this Idempotency-Key belongs to claim {_CLAIM_ID}, which was made with another body; "
        "send the same body to get that claim, or a new key to make a new one"
    ),
    "unauthenticated": "send the API token as `Authorization: Bearer <token>`",
    "pool-not-found": "no pool is named 'nope'; GET /v1/pools lists them, PUT /v1/pools/nope makes one",
    "preload-not-found": "no preload is named 'nope'; GET /v1/preloads lists them, PUT /v1/preloads/nope makes one",
    "claim-not-found": f"no claim has the id {_CLAIM_ID}; ended claims are forgotten after a time",
    "vm-not-found": f"no VM has the id {_VM_ID}; VMs that ended are forgotten after a time",
    "conflict": f"claim {_CLAIM_ID} has no VM yet, so there is no lease to renew; wait until it is bound",
    "snapshot-refused": (
        "nothing of pool 'fast-start-pool' can be snapshotted: root: a container disk is read from its image at each boot "
        "and cannot be snapshotted. Give it a disk on a storage class that has a VolumeSnapshotClass"
    ),
    "snapshot-not-found": "no snapshot is named 'nope'; GET /v1/snapshots lists them, POST /v1/snapshots takes one",
    "snapshot-being-deleted": (
        "snapshot 'ubuntu-ready' is being deleted, and its name is free once the cluster holds nothing of it any more"
    ),
    "snapshot-in-use": (
        "VMs of the pools 'fast-start-pool' start from snapshot 'ubuntu-ready'; change their start_from, or delete it with "
        "?force=true: they start cold from then on"
    ),
    "pool-being-deleted": (
        f"pool '{_POOL_NAME}' is being deleted and its name is free once its last VM has gone; "
        f"DELETE /v1/pools/{_POOL_NAME}?force=true releases its claims now"
    ),
    "preload-being-deleted": "preload 'ubuntu' is being deleted, and its name is free once the cluster has let go of it",
    "preload-in-use": (
        f"preload 'ubuntu' is what pool {_POOL_NAME} starts from; delete it with ?force=true all the same"
    ),
    "claim-ended": f"claim {_CLAIM_ID} is expired (its lease ended); its VM is gone: claim another one",
    "cluster-object-not-found": "There is no VirtualMachinePool web-servers; kubectl get vmpool lists them.",
    "no-warm-vm": f"pool '{_POOL_NAME}' has no ready VM (0 on their way, 10 claimed), and it is paused",
    "no-path": (
        "no path to a VM of this shape is open. snapshot: no snapshot of this shape; preload: not among the paths that the "
        "claim allows; cold: 5 VMs in a row failed, the last one: ErrImagePull: the image is not there"
    ),
    "deadline-too-short": (
        "no path to a VM of this shape is known to be there within 10.0 s. cold: its measured p95 of 38.7 s is beyond the "
        "deadline of 10.0 s; leave the deadline out, or make it longer"
    ),
    "database-unavailable": (
        "the database does not answer; nothing was changed that you have not been told of. Try again in a moment"
    ),
    "cluster-unavailable": "The cluster does not answer in time; could not create a VM (dry run).",
    "cluster-forbidden": "The cluster forbids to create a VM (dry run): exceeded quota: vms",
    "cluster-error": "The cluster answered with HTTP 418: could not create a VM (dry run).",
}
"""By code: the sentence of a problem, as the service may write it."""
