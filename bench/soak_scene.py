"""What a soak asks for beside plain pools: every way to a VM, and people who change things meanwhile.

Before the storm each of it stands once: a pool whose VMs have disks, a snapshot of it that refreshes itself, a preload of its
image, pools that start from these two, one that is a VirtualMachinePool, and pools with a placement.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp

from tests.support.processes import until
from tests.support.system_calls import TEMPLATE, Calls

IMAGE: Final = "https://images.example.com/debian-13.qcow2"
DISKS: Final[dict[str, Any]] = {"image": IMAGE, "cpu": 1, "memory": "64Mi", "root_disk": "2Gi"}
OTHER: Final = {**TEMPLATE, "image": "registry.local/disk:2"}
PRELOAD: Final = "debian"
SNAPSHOT: Final = "debian-booted"
_PAUSE_SECONDS: Final = (5.0, 30.0)
_READY_SECONDS: Final = 90.0

SPECIAL: Final[dict[str, dict[str, Any]]] = {
    "disks": {"template": DISKS},
    "preloaded": {"template": DISKS, "start_from": {"preload": PRELOAD}},
    "restored": {"template": DISKS, "start_from": {"snapshot": SNAPSHOT}},
    "members": {"template": TEMPLATE, "backing": "VirtualMachinePool"},
    "pinned": {
        "template": {"image": "registry.local/disk:1", "cpu": 2, "memory": "64Mi"},
        "placement": {"dedicated_cpus": True, "hugepages": "2Mi"},
    },
    "zoned": {
        "template": TEMPLATE,
        "placement": {"node_selector": {"topology.kubernetes.io/zone": "zone-a"}, "spread": "none"},
    },
}
# What describes a VM; each as likely as the others.
_WISHES: Final[Sequence[dict[str, Any]]] = (
    {"vm": TEMPLATE},
    {"vm": OTHER},
    {"vm": OTHER, "deadline_seconds": 2.0},
    {"vm": DISKS},
    {"vm": DISKS, "paths": ["snapshot"]},
    {"vm": DISKS, "paths": ["preload", "cold"]},
    {"vm": DISKS, "paths": ["snapshot", "preload"], "deadline_seconds": 15.0},
    {"vm": DISKS, "start_from": {"preload": PRELOAD}},
    {"vm": OTHER, "paths": ["cold"], "placement": {"node_selector": {"topology.kubernetes.io/zone": "zone-b"}}},
    {"vm": {**TEMPLATE, "image": "registry.local/disk:3"}, "remember": True},
)
_PREFERENCES: Final[Sequence[dict[str, Any]]] = (
    {"zone": "zone-b"},
    {"node": "node1"},
    {"spread": True},
    {"pack": True},
)
_DESCRIBED, _PREFERRED = 0.1, 0.1


class Scene:
    """`set_up` makes it, `wish` draws what a claim is for, `change` edits until its stop and then puts everything back."""

    def __init__(
        self, session: aiohttp.ClientSession, addresses: Callable[[], list[str]], *, plain: int, size: int, seed: int
    ) -> None:
        self.plain = [f"pool-{number:02}" for number in range(plain)]
        self.small = max(2, size // 5)
        self.counts: Counter[str] = Counter()
        self._size = size
        self._session = session
        self._addresses = addresses
        self._random = random.Random(seed)
        self._limits: dict[str, int] = {}

    @property
    def pools(self) -> dict[str, int]:
        """Their sizes."""
        return {**dict.fromkeys(self.plain, self._size), **dict.fromkeys(SPECIAL, self.small)}

    def wish(self, draw: random.Random) -> dict[str, Any]:
        if draw.random() < _DESCRIBED:
            return dict(draw.choice(_WISHES))
        # A small pool has its part of the claims.
        names = [*self.plain, *SPECIAL]
        sizes = [self._size] * len(self.plain) + [self.small] * len(SPECIAL)
        body: dict[str, Any] = {"pool": draw.choices(names, sizes)[0]}
        return {**body, "prefer": draw.choice(_PREFERENCES)} if draw.random() < _PREFERRED else body

    async def set_up(self, **limits: int) -> None:
        """Returns once all of it is ready. Raises NeverCame."""
        self._limits = limits
        calls = self._calls()
        for name in self.plain:
            await calls.put_pool(name, size=self._size, min_available=1, max_concurrent_creates=50, **limits)
        await self._ask("PUT", f"/v1/preloads/{PRELOAD}", {"image": {"http": {"url": IMAGE}}, "size": "2Gi"})
        await self._put("disks")
        await self._ask(
            "POST", "/v1/snapshots", {"name": SNAPSHOT, "source": {"pool": "disks"}, "refresh": True, "keep": 2}
        )
        await until(lambda: self._is_ready(f"/v1/preloads/{PRELOAD}"), "the preload is ready", seconds=_READY_SECONDS)
        await until(
            lambda: self._is_ready(f"/v1/snapshots/{SNAPSHOT}"), "the snapshot is ready", seconds=_READY_SECONDS
        )
        for name in SPECIAL:
            await self._put(name)

        async def is_full() -> bool:
            return all([await calls.is_full(name, size) for name, size in self.pools.items()])

        await until(is_full, "the pools are warm", seconds=2 * _READY_SECONDS, every=0.5)

    async def change(self, stop: asyncio.Event, *, speed: float) -> None:
        """One change after the other at random moments. A replica that is away, or a refusal, is no reason to end."""
        deeds = [
            self._rotate_disks,
            self._rotate_members,
            self._resize_members,
            self._refresh_snapshot,
            self._refresh_preload,
            self._come_and_go,
        ]
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._random.uniform(*_PAUSE_SECONDS) / speed)
                return
            deed = self._random.choice(deeds)
            self.counts[deed.__name__.strip("_").replace("_", " ")] += 1
            with contextlib.suppress(AssertionError, aiohttp.ClientError, TimeoutError):
                await deed()

    async def restore(self) -> None:
        """Every pool as it was, and running again; what came and went is gone."""
        calls = self._calls()
        for name in SPECIAL:
            await self._put(name)
        for name in self.pools:
            await calls.resume(name)
        for path in ("/v1/preloads/passing", "/v1/snapshots/passing"):
            await self._ask("DELETE", path, {}, allowed={202, 404})

    async def _rotate_disks(self) -> None:
        await self._put("disks", template={**DISKS, "memory": self._random.choice(["64Mi", "96Mi"])})

    async def _rotate_members(self) -> None:
        await self._put("members", template={**TEMPLATE, "memory": self._random.choice(["64Mi", "96Mi"])})

    async def _resize_members(self) -> None:
        await self._put("members", size=self._random.randint(0, 2 * self.small))

    async def _refresh_snapshot(self) -> None:
        await self._ask("POST", f"/v1/snapshots/{SNAPSHOT}/refresh", {})

    async def _refresh_preload(self) -> None:
        await self._ask("POST", f"/v1/preloads/{PRELOAD}/refresh", {})

    async def _come_and_go(self) -> None:
        """A preload and a snapshot that are deleted at whatever stage they are found by the next turn."""
        if self._random.random() < 0.5:
            image = self._random.choice([{"container": "registry.local/disk:4"}, {"http": {"url": f"{IMAGE}.old"}}])
            size = {} if "container" in image else {"size": "1Gi"}
            await self._ask("PUT", "/v1/preloads/passing", {"image": image, **size})
            await self._ask("POST", "/v1/snapshots", {"name": "passing", "source": {"pool": "preloaded"}})
        else:
            await self._ask("DELETE", "/v1/preloads/passing", {}, allowed={202, 404})
            await self._ask("DELETE", "/v1/snapshots/passing", {}, allowed={202, 404})

    async def _put(self, name: str, **spec: Any) -> None:
        body = {"size": self.small, "max_concurrent_creates": 20, **SPECIAL[name], **self._limits, **spec}
        await self._calls().put_pool(name, **body)

    async def _is_ready(self, path: str) -> bool:
        found = await self._ask("GET", path)
        state: str = found.get("state") or found["status"]["state"]
        return state == "ready"

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, allowed: set[int] | None = None
    ) -> dict[str, Any]:
        request = {} if method in {"GET", "DELETE"} or body is None else {"json": body}
        timeout = aiohttp.ClientTimeout(total=20)
        status, found, _ = await self._calls().ask(method, path, timeout=timeout, **request)
        assert status in (allowed or {200, 201, 202}), f"{method} {path}: {status} {found}"
        return found

    def _calls(self) -> Calls:
        addresses = self._addresses()
        assert addresses, "no replica is up"
        return Calls(self._session, self._random.choice(addresses))
