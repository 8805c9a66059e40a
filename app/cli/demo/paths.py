"""Act two: the same VM by all four paths. The four requests are the same."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import Progress

from app.cli.demo.board import show_board, show_step
from app.cli.demo.chart import Bar, draw
from app.cli.demo.client import Client, DemoFailed, Json
from app.cli.demo.pool import watch_pool
from app.cli.demo.words import in_time, quote, say

IMAGE: Final = "https://example.com/vm-images/ubuntu.qcow2"
VM: Final[Json] = {"image": IMAGE, "cpu": 2, "memory": "2Gi"}
_PRELOAD: Final = "ubuntu-image"
_SNAPSHOT: Final = "ubuntu-booted"
_POOL: Final = "ubuntu-from-snapshot"
_SIZE: Final = "10Gi"
_STAGES_TIMEOUT_SECONDS: Final = 10.0


async def show_paths(client: Client, console: Console) -> None:
    """Raises DemoFailed if a claim is not served by the expected path."""
    say(
        console,
        f"[bold]The same VM by all four paths[/bold]: {IMAGE} on its own disk, 2 CPUs, 2Gi. The same POST /v1/claim with "
        "the VM's description is sent four times; what is ready at that moment decides the path.\n",
    )
    with show_board(console) as board:
        bars = await _Paths(client, console, board).walk()
    shape = bars[0].claim["shape"]
    costs = await client.ask("GET", "/v1/paths", query={"shape": shape})
    console.print("", draw(bars, costs["items"], width=console.width))
    say(
        console,
        "\nSimulated: the time that the dev cluster takes to import, clone, restore, schedule and boot, in whole seconds. "
        "The savings are those of GET /v1/paths, over all starts of this shape. "
        "Only the claim from the pool measures something real: this service on this machine.\n",
    )


@dataclass(frozen=True, slots=True)
class _Paths:
    client: Client
    console: Console
    board: Progress

    async def walk(self) -> list[Bar]:
        """The four claims, the slowest first."""
        path = f"/v1/preloads/{_PRELOAD}"
        await self.client.ask("PUT", path, {"image": {"http": {"url": IMAGE}}, "size": _SIZE})
        cold = await self._claim()
        # Set once the second claim was made: the snapshot, which is faster, must not exist before.
        preloading = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                from_preload = group.create_task(self._import(path, preloading))
                from_nothing = group.create_task(self._finish("cold", cold))
                group.create_task(self._snapshot(from_nothing, preloading))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        from_snapshot = await self._finish("snapshot", await self._claim())
        await self._fill()
        warm = await self._finish("pool", await self._claim())
        bars = [from_nothing.result(), from_preload.result(), from_snapshot, warm]
        return [await self._with_stages(bar) for bar in bars]

    async def _claim(self) -> tuple[float, Json, float]:
        """The time of the request, the first answer, and the time of the answer."""
        began = time.perf_counter()
        claim = await self.client.ask("POST", "/v1/claim", {"vm": VM})
        return began, claim, time.perf_counter()

    async def _finish(self, path: str, sent: tuple[float, Json, float]) -> Bar:
        began, claim, ended = sent
        if claim["state"] != "bound":
            with show_step(self.board, f"claim, {claim['choice']['path']}"):
                claim = await self.client.bound(claim)
            ended = time.perf_counter()
        if claim["path"] != path:
            raise DemoFailed(f"the claim was served by {claim['path']} instead of {path}: {claim['choice']['reason']}.")
        self._tell_choice(path, ended - began, claim["choice"])
        return Bar(path, ended - began, claim)

    async def _import(self, path: str, preloading: asyncio.Event) -> Bar:
        began = time.perf_counter()
        with show_step(self.board, "import of the image") as reach:

            def is_ready(preload: Json) -> bool:
                reach(preload["progress"]["percent"])
                return bool(preload["ready"])

            await self.client.watch(path, until=is_ready, lost=_why_failed, what="the image is not imported")
        self._tell_done(
            f"PUT {path}", f"imported the image in {in_time(time.perf_counter() - began)}, during the cold start"
        )
        sent = await self._claim()
        preloading.set()
        return await self._finish("preload", sent)

    async def _snapshot(self, first: "asyncio.Task[Bar]", preloading: asyncio.Event) -> None:
        name = (await first).claim["vm"]["name"]
        await preloading.wait()
        began = time.perf_counter()
        await self.client.ask("POST", "/v1/snapshots", {"name": _SNAPSHOT, "source": {"vm": name}})
        with show_step(self.board, "snapshot of the first VM"):
            await self.client.watch(
                f"/v1/snapshots/{_SNAPSHOT}",
                until=lambda snapshot: bool(snapshot["ready"]),
                lost=_why_failed,
                what="the snapshot is not ready",
            )
        self._tell_done(
            "POST /v1/snapshots", f"took a snapshot of the first VM's disk in {in_time(time.perf_counter() - began)}"
        )

    async def _fill(self) -> None:
        path = f"/v1/pools/{_POOL}"
        began = time.perf_counter()
        await self.client.ask("PUT", path, {"size": 1, "template": VM, "start_from": {"snapshot": _SNAPSHOT}})
        with show_step(self.board, "pool of one, from the snapshot"):
            what = "the pool that starts from the snapshot is not full"
            await watch_pool(self.client, path, size=1, what=what)
        self._tell_done(
            f"PUT {path}", f"was warm in {in_time(time.perf_counter() - began)}, with a VM from the snapshot"
        )

    async def _with_stages(self, bar: Bar) -> Bar:
        """Reads the claim again until its stages are known: some come from the pod, which is read a moment after the VM is ready.

        A stage that stays unknown is left out.
        """
        path = f"/v1/claims/{bar.claim['id']}"
        give_up = time.monotonic() + _STAGES_TIMEOUT_SECONDS
        claim = await self.client.ask("GET", path)
        while claim["path"] != "pool" and None in _stages(claim) and time.monotonic() < give_up:
            await asyncio.sleep(0.2)
            claim = await self.client.ask("GET", path)
        return Bar(bar.path, bar.seconds, claim)

    def _tell_choice(self, path: str, seconds: float, choice: Json) -> None:
        say(self.console, f"[bold]{path}[/bold] in {in_time(seconds)}: {quote(choice['reason'])}", indent=2)
        faster = []
        for way in choice["considered"]:
            if way["path"] == path:
                break
            faster.append(f"{way['path']}: {way['why']}")
        if faster:
            say(self.console, f"[dim]why not faster: {quote('; '.join(faster))}[/dim]", indent=4)

    def _tell_done(self, request: str, done: str) -> None:
        say(self.console, f"[bold]{request}[/bold] {done}", indent=2)


def _stages(claim: Json) -> list[float | None]:
    return list((claim["timings"]["stages"] or {"unknown": None}).values())


def _why_failed(found: Json) -> str | None:
    return str(found["reason"]) if found["state"] == "failed" else None
