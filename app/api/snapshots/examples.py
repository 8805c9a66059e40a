"""An example of a snapshot, for the OpenAPI document."""

from typing import Any, Final

_TAKEN: Final = "2026-01-12T09:03:20.000000Z"
_SHAPE: Final = "5f2b0c7e4d9a1f83c6e0b5d7a2948e61c3f7d0b9a8e6542130fedcba98765432"

SNAPSHOT: Final[dict[str, Any]] = {
    "name": "ubuntu-ready",
    "spec": {
        "name": "ubuntu-ready",
        "source": {"vm": None, "pool": "fast-start-pool"},
        "quiesce": None,
        "refresh": True,
        "keep": 2,
        "timeout_seconds": 600,
    },
    "state": "ready",
    "reason": None,
    "ready": True,
    "refreshing": False,
    "included": [
        {
            "name": "root",
            "size": "10Gi",
            "storage_class": "fast-ssd",
            "volume_snapshot": "vmsnapshot-903d7c2d-ee10-47bc-9721-908e3a6a46de-volume-root",
        }
    ],
    "excluded": [{"name": "scratch", "reason": "Snapshot is not supported for this volumeSource type [scratch]"}],
    "bytes": 10737418240,
    "shape": _SHAPE,
    "created_at": "2026-01-12T09:00:00.000000Z",
    "updated_at": "2026-01-12T09:00:00.000000Z",
    "ready_at": _TAKEN,
    "age_seconds": 3600.0,
    "used": {"count": 41, "last_at": "2026-01-12T10:02:11.000000Z", "pools": ["fast-start-pool"]},
    "boot_seconds": {"count": 40, "p50": 9.6, "p95": 12.3},
    "takes": [
        {
            "number": 1,
            "state": "ready",
            "state_since": _TAKEN,
            "reason": None,
            "vm": "shape-5f2b0c7e4d-cold-9a1f83c6e0-agranwb3dvzgjhvq3excehesbi",
            "shape": _SHAPE,
            "bytes": 10737418240,
            "created_at": "2026-01-12T09:00:00.000000Z",
            "ready_at": _TAKEN,
            "ended_at": None,
        }
    ],
}
