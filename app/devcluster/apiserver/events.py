"""Events of the core API: what controllers say about objects, for those who look."""

import hashlib

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.objects import new_object
from app.devcluster.apiserver.registry import EVENTS
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.times import stamp

_KEPT = 1000
"""A real API server keeps events for an hour; here the oldest go once there are more than these."""


class EventRecorder:
    """Writes events in the name of one component. The same event about the same object is counted, not repeated."""

    def __init__(self, api: Api, component: str) -> None:
        self._api = api
        self._component = component

    def record(self, obj: Json, reason: str, message: str, *, warning: bool = False) -> None:
        metadata, now = obj["metadata"], self._api.clock.now()
        said = hashlib.sha256(f"{metadata['uid']} {reason} {message}".encode()).hexdigest()[:16]
        name = f"{metadata['name']}.{said}"
        stored = self._api.store.get(EVENTS, metadata["namespace"], name)
        if stored is not None:
            again = {"count": stored.obj["count"] + 1, "lastTimestamp": stamp(now)}
            self._api.modify(EVENTS, stored, lambda old: {**old, **again})
            return
        event = {
            **new_object(EVENTS, name, metadata["namespace"], now),
            "involvedObject": {"apiVersion": obj["apiVersion"], "kind": obj["kind"], **_name(metadata)},
            "reason": reason,
            "message": message,
            "type": "Warning" if warning else "Normal",
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": "",
            "firstTimestamp": stamp(now),
            "lastTimestamp": stamp(now),
            "eventTime": None,
            "count": 1,
        }
        self._api.store.put(EVENTS, event)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        kept = list(self._api.store.each(EVENTS))
        for stored in kept[: max(0, len(kept) - _KEPT)]:
            self._api.store.remove(EVENTS, *stored.key)


def _name(metadata: Json) -> Json:
    return {member: metadata[member] for member in ("name", "namespace", "uid", "resourceVersion")}
