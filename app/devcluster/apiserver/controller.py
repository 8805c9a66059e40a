"""The base of all controllers: a change of the store names keys, a queue reconciles them one after the other.

A controller is level-triggered: `_reconcile` looks at the present state of a key and brings it one step further, however
many changes came before. What takes simulated time is left to a timer, whose callback looks at the state again.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Generic, TypeVar

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.deletion import DeleteOptions, delete
from app.devcluster.apiserver.objects import Key, is_deleting, owners_of
from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored
from app.devcluster.apiserver.times import stamp
from app.devcluster.apiserver.work import Timers, WorkQueue

KeyT = TypeVar("KeyT")


class Controller(ABC, Generic[KeyT]):
    """Runs from its construction until `stop`. `delay` is in seconds, from a change to the reconciliation of its keys."""

    def __init__(self, api: Api, delay: float = 0.0) -> None:
        self._api = api
        self._store = api.store
        self._timers: Timers[Hashable] = Timers(api.clock)
        self._queue: WorkQueue[KeyT] = WorkQueue(type(self).__name__, self._handle, api.clock, delay)
        self._unsubscribe = api.store.subscribe(self._notice)

    @abstractmethod
    def resume(self) -> None:
        """Look at everything: after a start from a saved state, and for some controllers when faults come or go."""

    def stop(self) -> None:
        self._unsubscribe()
        self._queue.stop()
        self._timers.cancel_all()

    @property
    def idle(self) -> bool:
        """Nothing to do before time moves on."""
        return self._queue.idle

    @abstractmethod
    def _notice(self, change: Change) -> None:
        """Queue the keys that a change concerns. Called inside the write."""

    @abstractmethod
    def _handle(self, key: KeyT) -> None:
        """Bring the key one step further. An error is logged and does not stop the controller."""

    def _moment(self) -> str:
        """The present time as a time stamp."""
        return stamp(self._api.clock.now())

    def _delete(self, resource: Resource, stored: Stored, policy: str = "") -> None:
        """Delete this very object; one that is being deleted is left alone."""
        if not stored.deleting:
            delete(self._api, resource, *stored.key, DeleteOptions(policy=policy, uid=stored.uid))


class KindController(Controller[Key]):
    """Reconciles the objects of one kind, each by its namespace and name."""

    resource: Resource

    @override
    def resume(self) -> None:
        for stored in self._store.each(self.resource):
            self._queue.add(stored.key)

    @override
    def _notice(self, change: Change) -> None:
        if change.resource is self.resource:
            if change.new is None:
                self._forget(change.last.uid)
            self._queue.add(change.key)
        self._react(change)

    def _react(self, change: Change) -> None:
        """Queue the keys that a change of any kind concerns, beside the changed object of the own kind."""

    def _forget(self, uid: str) -> None:
        """The object is gone."""
        self._timers.cancel(uid)

    @override
    def _handle(self, key: Key) -> None:
        stored = self._store.get(self.resource, *key)
        if stored is not None:
            self._reconcile(stored)

    @abstractmethod
    def _reconcile(self, stored: Stored) -> None:
        """Bring the object one step further."""

    def _queue_owners(self, change: Change) -> None:
        """Queue the objects of the own kind that own, or owned, the changed one."""
        for stored in (change.old, change.last):
            for reference in owners_of(stored.obj) if stored else ():
                if reference["kind"] == self.resource.kind:
                    self._queue.add((change.key[0], reference["name"]))

    def _modify_status(self, stored: Stored, status: Json) -> Stored:
        return self._api.modify(self.resource, stored, lambda obj: {**obj, "status": status})

    def _current(self, key: Key) -> Stored | None:
        """The object as it is now, for a timer's callback; None where it is gone or being deleted."""
        stored = self._store.get(self.resource, *key)
        return None if stored is None or is_deleting(stored.obj) else stored
