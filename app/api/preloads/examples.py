"""Examples of answers about preloads, for the OpenAPI document. A test holds each to the shape that it is an example of."""

from typing import Any, Final

PRELOAD: Final[dict[str, Any]] = {
    "id": "01a206d8-3b1d-7264-9eb0-d92e221c9301",
    "name": "ubuntu",
    "spec": {
        "image": {"http": {"url": "https://example.com/vm-images/ubuntu.qcow2"}},
        "size": "10Gi",
        "storage_class": "fast-ssd",
        "access_modes": ["ReadWriteOnce"],
        "policy": "Always",
    },
    "state": "importing",
    "state_since": "2026-01-12T09:00:01.000000Z",
    "ready": False,
    "ready_at": None,
    "reason": None,
    "last_failure": None,
    "failures": 0,
    "next_try_at": None,
    "generation": 1,
    "progress": {
        "percent": 43.0,
        "bytes_done": 4617089843,
        "bytes_total": 10737418240,
        "bytes_per_second": 115448709.5,
        "ends_at": "2026-01-12T09:01:34.000000Z",
        "phase": "ImportInProgress",
        "restarts": 0,
    },
    "volume": None,
    "nodes": None,
    "used": 0,
    "used_at": None,
    "automatic": False,
    "created_at": "2026-01-12T09:00:00.000000Z",
    "updated_at": "2026-01-12T09:00:00.000000Z",
}
