"""Removes volumes and snapshot contents whose claim or snapshot is gone: their reclaim policy is always Delete."""

from collections.abc import Callable

from typing_extensions import override

from app.devcluster.apiserver.api import Api
from app.devcluster.apiserver.controller import KindController
from app.devcluster.apiserver.registry import Resource
from app.devcluster.apiserver.status import Json
from app.devcluster.apiserver.store import Change, Stored


class Reclaimer(KindController):
    def __init__(
        self, api: Api, resource: Resource, user: Resource, name_of: Callable[[Json], str], reference: str
    ) -> None:
        """`reference` is the member of the spec that names the object of the kind `user`; `name_of` gives, from that
        object, the name of what is removed with it.
        """
        self.resource = resource
        self._user = user
        self._name_of = name_of
        self._reference = reference
        super().__init__(api)

    @override
    def _react(self, change: Change) -> None:
        if change.resource is self._user and change.new is None:
            self._queue.add(("", self._name_of(change.last.obj)))

    @override
    def _reconcile(self, stored: Stored) -> None:
        if self._store.by_uid(stored.obj["spec"][self._reference]["uid"]) is None:
            self._store.remove(self.resource, *stored.key)
