"""The calls to the Kubernetes API that we make, typed, with their errors translated.

Particulars of kubernetes_asyncio (36.1): it sends a dict as the body of a PATCH as a JSON patch unless the content type is given.
"""

from kubernetes_asyncio.client.exceptions import ApiException

from app.compute.kubevirt import labels
from app.compute.kubevirt.connection import as_object
from app.compute.kubevirt.errors import reason_of, translating
from app.compute.kubevirt.kinds import Kind, Manifest
from app.compute.kubevirt.reading import ClusterReader
from app.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterRefused, ClusterUnavailable

# Without it the API server silently drops unknown fields.
_STRICT = {"fieldValidation": "Strict", "fieldManager": labels.MANAGER}
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


class AlreadyExists(ClusterError):
    """The name of the object to create is taken. This error never leaves `kubevirt`."""


class KubeVirtClient(ClusterReader):
    """Reads and writes objects of every kind that we know."""

    installation: str | None = None
    """The id that everything that is created carries; None while it is not known, and only dry runs are made."""

    async def get(self, kind: Kind, name: str) -> Manifest:
        async with self._asking("get", kind, f"read {kind}/{name}"):
            answer = await self._call("GET", kind.path(self._namespace, name))
        return as_object(answer)

    async def find(self, kind: Kind, name: str) -> Manifest | None:
        """None if there is no such object."""
        try:
            return await self.get(kind, name)
        except ClusterNotFound:
            return None

    async def create(self, kind: Kind, body: Manifest, *, dry_run: bool = False) -> Manifest:
        """Raises AlreadyExists if the name is taken.

        Any other 409 on a create means that another create is updating the same quota at the same time (the API server's quota
        admission). The same call succeeds a moment later, so it becomes ClusterUnavailable.
        """
        doing = f"{'try' if dry_run else 'create'} {kind}/{body['metadata']['name']}"
        options = {**_STRICT, "dryRun": "All"} if dry_run else _STRICT
        body = self._signed(body)
        try:
            async with self._asking("create", kind, doing):
                answer = await self._call("POST", kind.path(self._namespace), body=body, query=options)
        except ClusterError as error:
            cause = error.__cause__
            if isinstance(cause, ApiException) and cause.status == 409:  # noqa: PLR2004 - Conflict
                if reason_of(cause) == "AlreadyExists":
                    raise AlreadyExists(error.detail) from cause
                raise ClusterUnavailable(error.detail, retry_after=1) from cause
            raise
        return as_object(answer)

    async def create_or_find(
        self,
        kind: Kind,
        body: Manifest,
        identity: tuple[str, ...],
        *,
        called: str | None = None,
        advice: str = "It will be created again.",
    ) -> tuple[Manifest, bool]:
        """Creates the object, or finds the one that an earlier attempt created; and whether it was created now.

        The earlier one has the labels `identity` as in `body`. Raises ClusterConflict if the name belongs to another object, or
        if the object has gone since: the message calls its kind `called` and ends with the `advice`.
        """
        name, ours, what = body["metadata"]["name"], body["metadata"]["labels"], called or kind.name
        try:
            return await self.create(kind, body), True
        except AlreadyExists as error:
            found = await self.find(kind, name)
            if found is None:
                raise ClusterConflict(
                    f"{what} {name} existed already and was deleted before it could be read. {advice}"
                ) from error
            if self.is_foreign(found) or not labels.has(found, {key: ours[key] for key in identity}):
                raise ClusterConflict(
                    f"The name {name} belongs to a {what} that is not ours. It was not changed."
                ) from error
            return found, False

    def is_foreign(self, found: Manifest) -> bool:
        """Whether an object carries another installation's id."""
        signed = (found["metadata"].get("labels") or {}).get(labels.INSTALLATION)
        return signed is not None and self.installation is not None and signed != self.installation

    def _signed(self, body: Manifest) -> Manifest:
        if self.installation is None:
            return body
        signed = {**(body["metadata"].get("labels") or {}), labels.INSTALLATION: self.installation}
        return {**body, "metadata": {**body["metadata"], "labels": signed}}

    async def delete(self, kind: Kind, name: str, uid: str, *, propagation: str = "Foreground") -> bool:
        """Deletes exactly that UID. True: it still exists; False: it does not exist (any more), or another object has the name."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid},
        }
        try:
            async with self._asking("delete", kind, f"delete {kind}/{name}"):
                answer = await self._call("DELETE", kind.path(self._namespace, name), body=options)
        except ClusterNotFound:
            return False
        except ClusterConflict:
            now = await self.find(kind, name)
            if now is not None and now["metadata"].get("uid") == uid:
                raise
            return False
        # A Status means that it had no finalizer and is gone. A 202 may come without a body.
        return as_object(answer or {}).get("kind") != "Status"

    async def merge(self, kind: Kind, name: str, uid: str, patch: Manifest) -> Manifest:
        """A JSON merge patch of exactly that UID. Raises ClusterConflict if another object has the name."""
        # A uid cannot be changed: the API server refuses a patch that names another one.
        body = {**patch, "metadata": {**patch.get("metadata", {}), "uid": uid}}
        try:
            async with self._asking("patch", kind, f"change {kind}/{name}"):
                answer = await self._call(
                    "PATCH", kind.path(self._namespace, name), body=body, query=_STRICT, content_type=_MERGE
                )
        except ClusterRefused as error:
            if any(problem.field == "metadata.uid" for problem in error.problems):
                raise ClusterConflict(
                    f"{kind}/{name} is another object by now: its UID is not {uid}. It was not changed."
                ) from error
            raise
        return as_object(answer)

    async def patch(self, kind: Kind, name: str, steps: list[Manifest]) -> Manifest:
        """A JSON patch. If one of its `test` steps fails, the API server answers 422, which is ClusterRefused."""
        async with self._asking("patch", kind, f"change {kind}/{name}"):
            answer = await self._call(
                "PATCH", kind.path(self._namespace, name), body=steps, query=_STRICT, content_type=_JSON_PATCH
            )
        return as_object(answer)

    async def versions(self, group: str) -> tuple[str, ...]:
        """The versions in which the cluster serves an API group, the preferred one first; empty if it does not know the group."""
        try:
            with translating(f"ask for the versions of {group}"):
                answer = as_object(await self._call("GET", f"/apis/{group}"))
        except ClusterNotFound:
            return ()
        return tuple(str(each["version"]) for each in answer.get("versions") or [])
