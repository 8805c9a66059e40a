"""The calls to the Kubernetes API that we make, typed, each error translated. Only this module and `faults` know the library.

What is particular about kubernetes_asyncio (36.1): a dict as the body of a PATCH goes as a JSON patch unless the content type is
given; `_preload_content=False` hands back the bare response whatever its status; and its `Watch` opens a session of its own,
takes up a silent or closed watch again without a word, and resumes once from the resourceVersion that had just been answered
with 410. So the stream of a watch is read here.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import orjson
from kubernetes_asyncio import client as kubernetes
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.config import load_incluster_config, load_kube_config

from app.cluster import labels
from app.cluster.faults import reason_of, translate, translating
from app.cluster.gateway import Manifest
from app.config import Settings
from app.errors import ClusterError, ClusterUnavailable, WatchExpired

VMS = "virtualmachines"
VMIS = "virtualmachineinstances"

_GROUP = {"group": "kubevirt.io", "version": "v1"}
_STRICT = {
    "field_validation": "Strict",
    "field_manager": labels.MANAGER,
}  # unknown fields are pruned in silence otherwise
_PAGE_SIZE = 500
_LIST_ATTEMPTS = 3
_SPARE_CONNECTIONS = 8  # beside those that provision: two watches, a list, the checks of pools being written


class AlreadyExists(ClusterError):
    """The name of an object that was to be created is taken. It never leaves `cluster`."""


class KubeVirtClient:
    """VirtualMachines and their instances in the one namespace of the settings."""

    def __init__(self, settings: Settings, configuration: kubernetes.Configuration) -> None:
        """Needs a running event loop, and makes no call."""
        configuration.connection_pool_maxsize = settings.provision_concurrency + _SPARE_CONNECTIONS
        self._client = kubernetes.ApiClient(configuration)
        self._client.user_agent = labels.MANAGER
        # Any: the library's stubs know neither `_content_type` nor a dict for delete options.
        self._api: Any = kubernetes.CustomObjectsApi(self._client)
        self._namespace = settings.namespace
        self._selector = labels.selector(settings.instance)
        self._timeout = settings.cluster_timeout_seconds
        self._silence = settings.watch_silence_seconds

    async def get(self, plural: str, name: str) -> Manifest:
        with translating(f"read {plural}/{name}"):
            answer = await self._api.get_namespaced_custom_object(
                **self._at(plural), name=name, _request_timeout=self._timeout
            )
        return _as_object(answer)

    async def create(self, plural: str, body: Manifest, *, dry_run: bool = False) -> Manifest:
        """Raises AlreadyExists where the name is taken.

        Any other 409 on a create is a quota that another create is just counting itself into (the API server's quota
        admission): it is ClusterUnavailable, for the same call succeeds a moment later.
        """
        doing = f"{'try' if dry_run else 'create'} {plural}/{body['metadata']['name']}"
        options = {**_STRICT, "dry_run": "All"} if dry_run else _STRICT
        try:
            with translating(doing):
                answer = await self._api.create_namespaced_custom_object(
                    **self._at(plural), body=body, _request_timeout=self._timeout, **options
                )
        except ClusterError as error:
            cause = error.__cause__
            if isinstance(cause, ApiException) and cause.status == 409:  # noqa: PLR2004 - Conflict
                if reason_of(cause) == "AlreadyExists":
                    raise AlreadyExists(error.detail) from cause
                raise ClusterUnavailable(error.detail, retry_after=1) from cause
            raise
        return _as_object(answer)

    async def delete(self, plural: str, name: str, uid: str) -> Manifest:
        """The object, going; or a Status, where it went at once. A Foreground delete of that UID alone."""
        with translating(f"delete {plural}/{name}"):
            answer = await self._api.delete_namespaced_custom_object(
                **self._at(plural),
                name=name,
                body={
                    "apiVersion": "v1",
                    "kind": "DeleteOptions",
                    "propagationPolicy": "Foreground",
                    "preconditions": {"uid": uid},
                },
                _request_timeout=self._timeout,
            )
        return _as_object({} if answer is None else answer)  # the library reads no body of a 202

    async def merge(self, plural: str, name: str, patch: Manifest) -> Manifest:
        """A JSON merge patch."""
        with translating(f"change {plural}/{name}"):
            answer = await self._api.patch_namespaced_custom_object(
                **self._at(plural),
                name=name,
                body=patch,
                _content_type="application/merge-patch+json",
                _request_timeout=self._timeout,
                **_STRICT,
            )
        return _as_object(answer)

    async def list_all(self, plural: str) -> tuple[list[Manifest], str]:
        """Every object with our labels, and the resourceVersion from which a watch goes on."""
        for _ in range(_LIST_ATTEMPTS):
            try:
                return await self._list_pages(plural)
            except WatchExpired:  # the pages took longer than the server keeps their moment: begin again
                continue
        raise ClusterUnavailable(
            f"The list of {plural} expired {_LIST_ATTEMPTS} times before its last page.", retry_after=1
        )

    async def watch(self, plural: str, resource_version: str) -> AsyncGenerator[Manifest, None]:
        """The events of objects with our labels, bookmarks too, until the server ends the watch.

        Raises WatchExpired (410, as an answer or as an event), ClusterUnavailable where it breaks or is silent for longer
        than `watch_silence_seconds`.
        """
        doing = f"watch {plural}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._silence)
        with translating(doing):
            async with asyncio.timeout(self._timeout):
                response = await self._api.list_namespaced_custom_object(
                    **self._at(plural),
                    label_selector=self._selector,
                    watch=True,
                    allow_watch_bookmarks=True,
                    resource_version=resource_version,
                    _preload_content=False,
                    _request_timeout=timeout,
                )
        try:
            if response.status != 200:  # noqa: PLR2004 - OK
                raise await self._refusal(response, doing)
            while (event := await self._next_event(response, doing)) is not None:
                yield event
        finally:
            response.close()

    async def close(self) -> None:
        await self._client.close()

    def _at(self, plural: str) -> dict[str, str]:
        return {**_GROUP, "namespace": self._namespace, "plural": plural}

    async def _list_pages(self, plural: str) -> tuple[list[Manifest], str]:
        items: list[Manifest] = []
        token: str | None = None
        while True:
            with translating(f"list {plural}"):
                answer = await self._api.list_namespaced_custom_object(
                    **self._at(plural),
                    label_selector=self._selector,
                    limit=_PAGE_SIZE,
                    _request_timeout=self._timeout,
                    **({"_continue": token} if token else {}),
                )
            page = _as_object(answer)
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
            raise ClusterError(f"The cluster sent what is no event of a watch; could not {doing}.")
        if event["type"] == "ERROR":
            status = event.get("object") or {}
            raise translate(int(status.get("code") or 500), status, None, doing)
        return event


async def configure(settings: Settings) -> kubernetes.Configuration:
    """Where the cluster is, and who we are there. Raises ClusterError where the kubeconfig or service account cannot be used."""
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
    except Exception as error:  # the library raises whatever a wrong file makes it stumble over
        where = settings.kubeconfig or "the service account of this pod"
        raise ClusterError(
            f"{where} cannot be used to reach the cluster ({error}): set EMBERPOOL_KUBECONFIG (and EMBERPOOL_KUBE_CONTEXT) "
            "to a kubeconfig and one of its contexts."
        ) from error
    return configuration


def _renew_by_plugin(loader: Any, configuration: kubernetes.Configuration) -> None:
    """Lets an exec plugin's token be renewed before a call, once it has expired: the library reads it only once."""
    if not hasattr(loader, "exec_plugin_expiry"):
        return

    async def renew(current: kubernetes.Configuration) -> None:
        await loader.load_from_exec_plugin()  # runs the plugin only after the expiry that it gave
        current.api_key["BearerToken"] = loader.token

    configuration.refresh_api_key_hook = renew


def _as_object(answer: object) -> Manifest:
    if not isinstance(answer, dict):
        raise ClusterError(
            "The cluster's answer is no JSON object: is there a proxy between, or another server at its address?"
        )
    return answer
