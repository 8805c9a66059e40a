"""Reads the Kubernetes API: lists in pages, lists that are streamed, watches and logs. Of these nothing holds more than a page."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import aiohttp
from kubernetes_asyncio import client as kubernetes

from app.compute.kubevirt.connection import JSON, Connection
from app.compute.kubevirt.kinds import PODS, Kind, Manifest
from app.compute.kubevirt.streams import Page, pages_of, read_events
from app.config import Settings
from app.errors import ClusterForbidden, ClusterRefused, ClusterUnavailable, WatchExpired

_PAGE_SIZE = 250  # of VMs and pods, about a megabyte: the loop reads its JSON in some 10 ms
_METADATA_PAGE_SIZE = 500
_METADATA = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"
_LIST_ATTEMPTS = 3
_WITH_LIST = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


class ClusterReader(Connection):
    """Lists, watches and logs."""

    def __init__(self, settings: Settings, configuration: kubernetes.Configuration) -> None:
        super().__init__(settings, configuration)
        self._streams: dict[Kind, bool] = {}
        """Whether the server streams lists of a kind. It is not known before the first one."""

    async def list_all(
        self, kind: Kind, *, selector: str | None = None, keep: Callable[[Manifest], bool] = lambda _: True
    ) -> tuple[list[Manifest], str]:
        """Every object with our labels, and the resourceVersion of the list. Of a long list `keep` says which objects are held.

        `selector` replaces the selector of our labels; an empty one selects everything.
        """
        for _ in range(_LIST_ATTEMPTS):
            items: list[Manifest] = []
            version = ""
            try:
                async for page in self.pages(kind, selector=selector):
                    items.extend(filter(keep, page.items))
                    version = page.version
            except WatchExpired:  # reading the pages took longer than the server keeps that version: start again
                continue
            return items, version
        raise ClusterUnavailable(
            f"The list of {kind} expired {_LIST_ATTEMPTS} times before its last page.", retry_after=1
        )

    async def pages(
        self, kind: Kind, *, selector: str | None = None, limit: int | None = None, accept: str = JSON
    ) -> AsyncGenerator[Page, None]:
        """The same, page by page. Raises WatchExpired if the server has forgotten the list's version before its last page."""
        token: str | None = None
        while True:
            query = {"labelSelector": self._selected(selector), "limit": str(limit or _PAGE_SIZE), "continue": token}
            async with self._asking("list", kind, f"list {kind}"):
                page = await self._read(kind, query, accept)
            metadata = page.get("metadata") or {}
            yield Page(page.get("items") or [], str(metadata.get("resourceVersion") or ""))
            token = metadata.get("continue")
            if not token:
                return

    def metadata(self, kind: Kind, *, selector: str | None = None) -> AsyncGenerator[Page, None]:
        """The same without spec and status."""
        return self.pages(kind, selector=selector, limit=_METADATA_PAGE_SIZE, accept=_METADATA)

    async def newest_version(self, kind: Kind, *, selector: str | None = None) -> str:
        """The resourceVersion that the cluster has now. Costs a list of one object. Raises as `require_namespace` does."""
        async with aclosing(self.pages(kind, selector=selector, limit=1)) as pages:
            page = await anext(pages)
        if kind.namespaced and not page.items:
            await self.require_namespace()
        return page.version

    async def stream(self, kind: Kind, *, selector: str | None = None) -> AsyncGenerator[Page, None]:
        """Like `pages`, as the events that a watch begins with: the server sends them from its memory, and holds no page.

        A server that cannot do so (its feature gate WatchList is off), or did not do so the first time, is asked for pages.
        """
        if self._streams.get(kind, True):
            try:
                async with self.watch(kind, None, selector=selector) as events, aclosing(pages_of(events)) as pages:
                    async for page in pages:
                        yield page
            except (ClusterRefused, ClusterForbidden, ClusterUnavailable) as error:
                if kind in self._streams and isinstance(error, ClusterUnavailable):
                    raise
                self._streams[kind] = False
            else:
                self._streams[kind] = True
                return
        async with aclosing(self.pages(kind, selector=selector)) as pages:
            async for page in pages:
                yield page

    @asynccontextmanager
    async def watch(
        self, kind: Kind, version: str | None, *, selector: str | None = None
    ) -> AsyncIterator[AsyncGenerator[list[Manifest], None]]:
        """The events of objects with our labels after that resourceVersion, in batches, until the server ends the watch.

        They include bookmarks. Once the context is entered the watch is open. Without `version` the watch begins with the list
        of all objects (see `pages_of`). Raises WatchExpired (410, as an answer or as an event), and ClusterUnavailable if the
        watch breaks or is silent for longer than `watch_silence_seconds`.
        """
        doing, silence = f"watch {kind}", self._silence if version is not None else self._timeout
        begin = {"resourceVersion": version} if version is not None else _WITH_LIST
        query = {"labelSelector": self._selected(selector), "watch": "true", "allowWatchBookmarks": "true", **begin}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=silence)
        async with self._asking("watch", kind, doing):
            async with asyncio.timeout(self._timeout):
                response = await self._open(kind.path(self._namespace), query, limits)
            try:
                await self._refuse(response)
            except BaseException:
                response.close()
                raise
        try:
            async with aclosing(read_events(response.content.read, doing, silence=silence)) as events:
                yield events
        finally:
            response.close()

    async def open_log(
        self, pod: str, query: Mapping[str, str | None], *, may_be_silent: bool
    ) -> aiohttp.ClientResponse:
        """The log of a pod's container, whose bytes the caller reads; it closes the answer.

        Waits for the kubelet's first byte: of a log that is followed it may never come, so nothing but the connection is limited
        then (`may_be_silent`).
        """
        silence = None if may_be_silent else self._timeout
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=silence)
        async with self._asking("get", PODS, f"read the log of pod {pod}", part="log"):
            response = await self._open(f"{PODS.path(self._namespace, pod)}/log", query, limits, "*/*")
            try:
                await self._refuse(response)
            except BaseException:
                response.close()
                raise
        return response

    def _selected(self, selector: str | None) -> str:
        return self._selector if selector is None else selector


@dataclass(frozen=True, slots=True)
class Selected:
    """Reads the objects of one selector; None: those with our labels. Implements `reflector.Source`."""

    reader: ClusterReader
    selector: str | None = None

    async def newest_version(self, kind: Kind) -> str:
        return await self.reader.newest_version(kind, selector=self.selector)

    def stream(self, kind: Kind) -> AsyncGenerator[Page, None]:
        return self.reader.stream(kind, selector=self.selector)

    def metadata(self, kind: Kind) -> AsyncGenerator[Page, None]:
        return self.reader.metadata(kind, selector=self.selector)

    def watch(self, kind: Kind, version: str) -> AbstractAsyncContextManager[AsyncGenerator[list[Manifest], None]]:
        return self.reader.watch(kind, version, selector=self.selector)
