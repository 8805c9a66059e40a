"""Console logs: those that a container of each launcher pod collects (KubeVirt 1.1 and later).

virt-controller adds the container unless the VM (`logSerialConsole`, `autoattachSerialConsole`) or KubeVirt's configuration
(`disableSerialConsoleLog`) says no. It writes whole lines only, and ends with the pod (read in KubeVirt's source, v1.9). A kubelet
begins its answer with the first byte (read in Kubernetes' source, v1.36): the log of a silent console has not even a head.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

import aiohttp

from app.compute.kubevirt.client import KubeVirtClient
from app.compute.kubevirt.errors import translating
from app.compute.kubevirt.kinds import PODS, Manifest
from app.concurrency import first_of
from app.errors import ClusterNotFound, ClusterRefused, EmberpoolError, NoConsoleLog

_CONTAINER: Final = "guest-console-log"
_REFUSAL_SECONDS: Final = 1.0
"""A refusal comes sooner than this. What takes longer is a console that is silent."""
_HOW: Final = (
    "the cluster keeps none of it: its template sets logSerialConsole or autoattachSerialConsole to false, or the configuration of "
    "KubeVirt has virtualMachineOptions.disableSerialConsoleLog. Set domain.devices.logSerialConsole to true in the template, and "
    "the next VMs have one"
)


class KubeVirtConsole:
    def __init__(self, client: KubeVirtClient) -> None:
        self._client = client

    @asynccontextmanager
    async def open(self, *, vm: str, instance: str, lines: int, follow: bool) -> AsyncIterator[AsyncIterator[bytes]]:
        pod = await self._launcher(vm, instance)
        query = {"container": _CONTAINER, "tailLines": str(lines), "follow": "true" if follow else None}
        opening = asyncio.ensure_future(self._client.open_log(pod, query, may_be_silent=follow))
        try:
            if not follow or await first_of(opening, timeout=_REFUSAL_SECONDS):
                try:
                    await opening
                except (ClusterRefused, ClusterNotFound) as error:
                    raise _missing(vm, error.detail) from error
            async with aclosing(_pieces(opening, f"read the console log of {vm}")) as pieces:
                yield pieces
        finally:
            await _close(opening)

    async def _launcher(self, vm: str, instance: str) -> str:
        """The name of the pod that runs the VM: after a migration the newest one that has begun."""
        pods, _ = await self._client.list_all(PODS, selector=f"kubevirt.io/created-by={instance}")
        if not pods:
            raise _missing(
                vm, "it has no launcher pod: it has not started yet, or its pod has gone, and its log with it"
            )
        pod = max(pods, key=lambda each: (_has_begun(each), each["metadata"]["creationTimestamp"]))
        if not any(each["name"] == _CONTAINER for each in _containers(pod)):
            raise _missing(vm, _HOW)
        if not _has_begun(pod):
            raise _missing(vm, "its launcher pod has not started yet; try again when it boots")
        return str(pod["metadata"]["name"])


def _has_begun(pod: Manifest) -> bool:
    return str(pod["status"].get("phase", "Pending")) != "Pending"


def _containers(pod: Manifest) -> list[Manifest]:
    """It is a sidecar, which is an init container; before KubeVirt 1.6 it was an ordinary one."""
    spec = pod["spec"]
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _missing(vm: str, why: str) -> NoConsoleLog:
    return NoConsoleLog(f"VM {vm} has no console log: {why}")


async def _pieces(opening: "asyncio.Future[aiohttp.ClientResponse]", doing: str) -> AsyncGenerator[bytes]:
    response = await opening
    with translating(doing):
        async for piece in response.content.iter_any():
            yield piece


async def _close(opening: "asyncio.Future[aiohttp.ClientResponse]") -> None:
    opening.cancel()
    with suppress(asyncio.CancelledError, EmberpoolError):
        (await opening).close()
