"""The calls to the Kubernetes API that we make, typed, with their errors translated. Only this module and `errors` know the
library.

Particulars of kubernetes_asyncio (36.1): it sends a dict as the body of a PATCH as a JSON patch unless the content type is given;
with `_preload_content=False` it returns the bare response whatever its status; its `Watch` opens a session of its own, silently
resumes a silent or closed watch, and resumes once from a resourceVersion that was just answered with 410. That is why this module
reads the stream of a watch itself.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import orjson
from kubernetes_asyncio import client as kubernetes
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.config import load_incluster_config, load_kube_config

from app.compute.kubevirt import labels
from app.compute.kubevirt.access import Access, AccessJudge
from app.compute.kubevirt.errors import NoRight, is_of_namespace, is_unserved, reason_of, translate, translating
from app.compute.kubevirt.kinds import NAMESPACES, VMIS, VMS, Kind, Manifest
from app.config import Settings
from app.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterRefused, ClusterUnavailable, WatchExpired

# Without it the API server silently drops unknown fields.
_STRICT = {"fieldValidation": "Strict", "fieldManager": labels.MANAGER}
_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_PAGE_SIZE = 500
_LIST_ATTEMPTS = 3
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_LACKING_RETRY_SECONDS = 30.0  # somebody has to install or create it
_SPARE_CONNECTIONS = 8  # besides those that create VMs: two watches, a list, the checks of pools that are being written


class AlreadyExists(ClusterError):
    """The name of the object to create is taken. This error never leaves `kubevirt`."""


class KubeVirtClient:
    """Objects of every kind that we know, in the namespace of the settings, or in the cluster if the kind has no namespace."""

    def __init__(self, settings: Settings, configuration: kubernetes.Configuration) -> None:
        """Needs a running event loop. Makes no call."""
        configuration.connection_pool_maxsize = settings.provision_concurrency + _SPARE_CONNECTIONS
        self._client = kubernetes.ApiClient(configuration)
        self._client.user_agent = labels.MANAGER
        self._namespace = settings.namespace
        self._selector = labels.selector(settings.instance)
        self._timeout = settings.cluster_timeout_seconds
        self._silence = settings.watch_silence_seconds
        self._judge = AccessJudge(self._review, believe_seconds=settings.forbidden_seconds)

    async def get(self, kind: Kind, name: str) -> Manifest:
        async with self._asking("get", kind, f"read {kind}/{name}"):
            answer = await self._call("GET", kind.path(self._namespace, name))
        return _as_object(answer)

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
        return _as_object(answer)

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
            if not labels.has(found, {key: ours[key] for key in identity}):
                raise ClusterConflict(
                    f"The name {name} belongs to a {what} that is not ours. It was not changed."
                ) from error
            return found, False

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
        return _as_object(answer or {}).get("kind") != "Status"

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
        return _as_object(answer)

    async def patch(self, kind: Kind, name: str, steps: list[Manifest]) -> Manifest:
        """A JSON patch. If one of its `test` steps fails, the API server answers 422, which is ClusterRefused."""
        async with self._asking("patch", kind, f"change {kind}/{name}"):
            answer = await self._call(
                "PATCH", kind.path(self._namespace, name), body=steps, query=_STRICT, content_type=_JSON_PATCH
            )
        return _as_object(answer)

    async def versions(self, group: str) -> tuple[str, ...]:
        """The versions in which the cluster serves an API group, the preferred one first; empty if it does not know the group."""
        try:
            with translating(f"ask for the versions of {group}"):
                answer = _as_object(await self._call("GET", f"/apis/{group}"))
        except ClusterNotFound:
            return ()
        return tuple(str(each["version"]) for each in answer.get("versions") or [])

    async def list_all(self, kind: Kind, *, selector: str | None = None) -> tuple[list[Manifest], str]:
        """Every object with our labels, and the resourceVersion from which to watch.

        `selector` replaces the selector of our labels; an empty one selects everything.
        """
        for _ in range(_LIST_ATTEMPTS):
            try:
                return await self._list_pages(kind, self._selector if selector is None else selector)
            except WatchExpired:  # reading the pages took longer than the server keeps that version: start again
                continue
        raise ClusterUnavailable(
            f"The list of {kind} expired {_LIST_ATTEMPTS} times before its last page.", retry_after=1
        )

    async def watch(
        self, kind: Kind, resource_version: str, *, selector: str | None = None
    ) -> AsyncGenerator[Manifest, None]:
        """The events of objects with our labels, including bookmarks, until the server ends the watch.

        Raises WatchExpired (410, as an answer or as an event), and ClusterUnavailable if the watch breaks or is silent for
        longer than `watch_silence_seconds`.
        """
        doing = f"watch {kind}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._silence)
        with translating(doing):
            async with asyncio.timeout(self._timeout):
                query = {
                    "labelSelector": self._selector if selector is None else selector,
                    "watch": "true",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": resource_version,
                }
                response = await self._client.call_api(
                    kind.path(self._namespace),
                    "GET",
                    query_params=_given(query),
                    header_params={"Accept": _JSON},
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _preload_content=False,
                    _request_timeout=timeout,
                )
        try:
            if response.status != 200:  # noqa: PLR2004 - OK
                async with self._asking("watch", kind, doing):
                    raise await self._refusal(response, doing)
            while (event := await self._next_event(response, doing)) is not None:
                yield event
        finally:
            response.close()

    async def require_namespace(self) -> None:
        """Raises ClusterUnavailable if the namespace does not exist: a list of its objects is empty then, and no error.

        Without a right to read it nothing is known, and nothing is raised.
        """
        with suppress(NoRight), translating(f"read namespace {self._namespace}"):
            try:
                await self._call("GET", NAMESPACES.path("", self._namespace))
            except ApiException as error:
                if error.status == 404:  # noqa: PLR2004 - Not Found
                    raise self._missing_namespace() from error
                raise

    async def close(self) -> None:
        await self._client.close()

    @asynccontextmanager
    async def _asking(self, verb: str, kind: Kind, doing: str) -> AsyncIterator[None]:
        """Translates the errors of one call. A missing right, KubeVirt or namespace is told as such."""
        namespace = self._namespace if kind.namespaced else ""
        access = Access(verb, kind.group, kind.plural, namespace)
        try:
            with translating(doing):
                yield
        except NoRight as error:
            raise await self._judge.judge(access, error) from error
        except ClusterNotFound as error:
            if is_of_namespace(error):
                raise self._missing_namespace() from error
            if kind in (VMS, VMIS) and is_unserved(error):
                raise ClusterUnavailable(
                    f"The cluster has no {kind} ({kind.api_version}): KubeVirt is not installed in it, or is older than 1.7; "
                    f"could not {doing}.",
                    retry_after=_LACKING_RETRY_SECONDS,
                ) from error
            raise
        self._judge.granted(access)

    async def _review(self, access: Access) -> bool:
        with translating(f"ask whether the service may {access.verb} {access.resource}"):
            answer = _as_object(await self._call("POST", _REVIEWS, body=access.review()))
        return bool((answer.get("status") or {}).get("allowed"))

    def _missing_namespace(self) -> ClusterUnavailable:
        return ClusterUnavailable(
            f"The cluster has no namespace {self._namespace!r}: create it (kubectl create namespace {self._namespace}), or set "
            "EMBERPOOL_NAMESPACE to one that exists.",
            retry_after=_LACKING_RETRY_SECONDS,
        )

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str | None] | None = None,
        content_type: str = _JSON,
    ) -> object:
        """One request. Returns the JSON of the answer, whatever its kind.

        The library's own methods name built-in kinds differently from custom ones, and do not read the body of a 202.
        """
        headers = {"Accept": _JSON, **({"Content-Type": content_type} if body is not None else {})}
        answer: object = await self._client.call_api(
            path,
            method,
            query_params=_given(query or {}),
            header_params=headers,
            body=body,
            response_types_map={200: "object", 201: "object", 202: "object"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=self._timeout,
        )
        return answer

    async def _list_pages(self, kind: Kind, selector: str) -> tuple[list[Manifest], str]:
        items: list[Manifest] = []
        token: str | None = None
        while True:
            async with self._asking("list", kind, f"list {kind}"):
                query = {"labelSelector": selector, "limit": str(_PAGE_SIZE), "continue": token}
                page = _as_object(await self._call("GET", kind.path(self._namespace), query=query))
            items.extend(page.get("items") or [])
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                return items, str(metadata.get("resourceVersion") or "")

    async def _refusal(self, response: aiohttp.ClientResponse, doing: str) -> Exception:
        with translating(doing):
            async with asyncio.timeout(self._timeout):
                body = await response.read()
        try:
            status = orjson.loads(body)
        except orjson.JSONDecodeError:
            status = None
        return translate(response.status, status if isinstance(status, dict) else {}, response.headers, doing)

    async def _next_event(self, response: aiohttp.ClientResponse, doing: str) -> Manifest | None:
        with translating(doing):
            try:
                line = await response.content.readline()
            except TimeoutError as error:
                raise ClusterUnavailable(
                    f"The cluster was silent for {self._silence:g} s; could not {doing}."
                ) from error
            if not line:
                return None
            event = _as_object(orjson.loads(line))
        if not isinstance(event.get("type"), str):
            raise ClusterError(f"The cluster sent something that is not a watch event; could not {doing}.")
        if event["type"] == "ERROR":
            status = event.get("object") or {}
            raise translate(int(status.get("code") or 500), status, None, doing)
        return event


async def configure(settings: Settings) -> kubernetes.Configuration:
    """The address of the cluster and our credentials. Raises ClusterError if the kubeconfig or service account cannot be used."""
    configuration = kubernetes.Configuration()
    try:
        if settings.kubeconfig is None:
            load_in_cluster: Any = load_incluster_config  # untyped in the library
            load_in_cluster(client_configuration=configuration)
        else:
            loader = await load_kube_config(
                config_file=str(settings.kubeconfig.expanduser()),
                context=settings.kube_context,
                client_configuration=configuration,
                persist_config=False,  # it is the user's file
            )
            _renew_by_plugin(loader, configuration)
    except Exception as error:  # for a wrong file the library raises errors of any kind
        where = settings.kubeconfig or "the service account of this pod"
        raise ClusterError(
            f"{where} cannot be used to reach the cluster ({error}): set EMBERPOOL_KUBECONFIG (and EMBERPOOL_KUBE_CONTEXT) "
            "to a kubeconfig and one of its contexts."
        ) from error
    return configuration


def _renew_by_plugin(loader: Any, configuration: kubernetes.Configuration) -> None:
    """Renews the token of an exec plugin before a call once it has expired; the library itself reads it only once."""
    if not hasattr(loader, "exec_plugin_expiry"):
        return

    async def renew(current: kubernetes.Configuration) -> None:
        await loader.load_from_exec_plugin()  # runs the plugin only after the token has expired
        current.api_key["BearerToken"] = loader.token

    configuration.refresh_api_key_hook = renew


def _given(query: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in query.items() if value]


def _as_object(answer: object) -> Manifest:
    if not isinstance(answer, dict):
        raise ClusterError(
            "The cluster's answer is not a JSON object: is there a proxy in between, or another server at its address?"
        )
    return answer
