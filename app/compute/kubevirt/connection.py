"""How calls reach the cluster: credentials, one request, and its errors, told as what they are.

Particulars of kubernetes_asyncio (36.1): with `_preload_content=False` it returns the bare response whatever its status; its
`Watch` opens a session of its own, silently resumes a silent or closed watch, and resumes once from a resourceVersion that was
just answered with 410. That is why watches are read by `reading`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import orjson
from kubernetes_asyncio import client as kubernetes
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.config import load_incluster_config, load_kube_config

from app.compute.kubevirt import labels
from app.compute.kubevirt.access import Access, AccessJudge
from app.compute.kubevirt.errors import NoRight, is_of_namespace, is_unserved, translating
from app.compute.kubevirt.kinds import NAMESPACES, VMIS, VMS, Kind, Manifest
from app.config import Settings
from app.errors import ClusterError, ClusterNotFound, ClusterUnavailable

JSON = "application/json"
_OK = 200
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_LACKING_RETRY_SECONDS = 30.0  # somebody has to install or create it
_SPARE_CONNECTIONS = 12  # besides those that create VMs: watches of four kinds, their lists, the checks of pools


class Connection:
    """To the API server, for the namespace of the settings, or the cluster for kinds that have no namespace."""

    def __init__(self, settings: Settings, configuration: kubernetes.Configuration) -> None:
        """Needs a running event loop. Makes no call."""
        creating = max(settings.provision_concurrency, settings.create_concurrency)
        configuration.connection_pool_maxsize = creating + _SPARE_CONNECTIONS
        self._client = kubernetes.ApiClient(configuration)
        self._client.user_agent = labels.MANAGER
        self._namespace = settings.namespace
        self._selector = labels.selector(settings.instance)
        self._timeout = settings.cluster_timeout_seconds
        self._silence = settings.watch_silence_seconds
        self._judge = AccessJudge(self._review, believe_seconds=settings.forbidden_seconds)

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
    async def _asking(self, verb: str, kind: Kind, doing: str, *, part: str = "") -> AsyncIterator[None]:
        """Translates the errors of one call. A missing right, KubeVirt or namespace is told as such. `part`: a subresource."""
        namespace = self._namespace if kind.namespaced else ""
        access = Access(verb, kind.group, kind.plural + (f"/{part}" if part else ""), namespace)
        try:
            with translating(doing):
                yield
        except NoRight as error:
            raise await self._judge.judge(access, error) from error
        except ClusterNotFound as error:
            if is_of_namespace(error):
                raise self._missing_namespace() from error
            if is_unserved(error):
                raise _unserved(kind, doing) from error
            raise
        self._judge.granted(access)

    async def _review(self, access: Access) -> bool:
        with translating(f"ask whether the service may {access.verb} {access.resource}"):
            answer = as_object(await self._call("POST", _REVIEWS, body=access.review()))
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
        content_type: str = JSON,
    ) -> object:
        """One request. Returns the JSON of the answer, whatever its kind.

        The library's own methods name built-in kinds differently from custom ones, and do not read the body of a 202.
        """
        headers = {"Accept": JSON, **({"Content-Type": content_type} if body is not None else {})}
        answer: object = await self._client.call_api(
            path,
            method,
            query_params=given(query or {}),
            header_params=headers,
            body=body,
            response_types_map={200: "object", 201: "object", 202: "object"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=self._timeout,
        )
        return answer

    async def _read(self, kind: Kind, query: Mapping[str, str | None], accept: str) -> Manifest:
        """The JSON of an answer about a kind, read as it came: the library's own reading costs several times as much."""
        async with await self._open(kind.path(self._namespace), query, self._timeout, accept) as response:
            await self._refuse(response)
            return as_object(orjson.loads(await response.read()))

    async def _open(
        self,
        path: str,
        query: Mapping[str, str | None],
        limits: float | aiohttp.ClientTimeout,
        accept: str = JSON,
    ) -> aiohttp.ClientResponse:
        """The answer, whatever its status, as soon as it begins."""
        answer: aiohttp.ClientResponse = await self._client.call_api(
            path,
            "GET",
            query_params=given(query),
            header_params={"Accept": accept},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=limits,
        )
        return answer

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raises the library's error if the answer is no success."""
        if response.status != _OK:
            error = ApiException(status=response.status, reason=response.reason)
            async with asyncio.timeout(self._timeout):
                error.body = await response.read()
            error.headers = response.headers
            raise error


def _unserved(kind: Kind, doing: str) -> ClusterUnavailable | ClusterNotFound:
    """Without VMs nothing works, and it is an outage until somebody installs KubeVirt. Other kinds the service can do without."""
    told = f"The cluster has no {kind} ({kind.api_version})"
    if kind not in (VMS, VMIS):
        return ClusterNotFound(f"{told}; could not {doing}.")
    return ClusterUnavailable(
        f"{told}: KubeVirt is not installed in it, or is older than 1.7; could not {doing}.",
        retry_after=_LACKING_RETRY_SECONDS,
    )


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


def given(query: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in query.items() if value]


def as_object(answer: object) -> Manifest:
    if not isinstance(answer, dict):
        raise ClusterError(
            "The cluster's answer is not a JSON object: is there a proxy in between, or another server at its address?"
        )
    return answer
