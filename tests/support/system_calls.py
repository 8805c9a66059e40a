"""The service and the dev cluster, called over HTTP as their users do."""

from typing import Any, Final

import aiohttp

TEMPLATE: Final = {"image": "registry.local/disk:1", "memory": "64Mi"}


class Calls:
    """One replica. What is not answered as it should be raises AssertionError with the whole answer."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url = url
        self._session = session

    async def put_pool(self, name: str, *, size: int, **spec: object) -> dict[str, Any]:
        body = {"size": size, "template": TEMPLATE, **spec}
        return await self._expect({200, 201}, "PUT", f"/v1/pools/{name}", json=body)

    async def pool(self, name: str) -> dict[str, Any]:
        """Its status."""
        found: dict[str, Any] = (await self._expect({200}, "GET", f"/v1/pools/{name}"))["status"]
        return found

    async def is_full(self, name: str, size: int) -> bool:
        """So many are ready, and none is on its way, in or out."""
        counts = (await self.pool(name))["counts"]
        restless = ("planned", "creating", "booting", "failed", "releasing")
        return bool(counts["ready"] == size and not any(counts[state] for state in restless))

    async def resume(self, name: str) -> None:
        await self._expect({200}, "POST", f"/v1/pools/{name}/resume", json={})

    async def delete_pool(self, name: str) -> None:
        await self._expect({200, 202, 204, 404}, "DELETE", f"/v1/pools/{name}", params={"force": "true"})

    async def claim(self, pool: str, **body: object) -> dict[str, Any]:
        """A bound claim."""
        return await self._expect({201}, "POST", "/v1/claim", json={"pool": pool, **body})

    async def look(self, claim_id: str) -> dict[str, Any]:
        return await self._expect({200}, "GET", f"/v1/claims/{claim_id}")

    async def release(self, claim_id: str) -> dict[str, Any]:
        return await self._expect({200}, "DELETE", f"/v1/claims/{claim_id}")

    async def vms(self, pool: str, **query: str) -> list[dict[str, Any]]:
        """The first hundred, those that ended too where `ended="true"`."""
        found: list[dict[str, Any]] = (await self._expect({200}, "GET", "/v1/vms", params={"pool": pool, **query}))[
            "items"
        ]
        return found

    async def readiness(self) -> dict[str, Any]:
        return await self._expect({200, 503}, "GET", "/readyz")

    async def ask(self, method: str, path: str, **request: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of whatever it answers."""
        async with self._session.request(method, self.url + path, **request) as response:
            return response.status, await response.json(content_type=None), dict(response.headers)

    async def _expect(self, statuses: set[int], method: str, path: str, **request: Any) -> dict[str, Any]:
        status, body, _ = await self.ask(method, path, **request)
        assert status in statuses, f"{method} {path}: {status} {body}"
        return body


class Orders:
    """Faults of a dev cluster, ordered as `app.devcluster.server.admin` describes."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/devcluster/v1"

    async def order(self, kind: str, **given: object) -> str:
        """Its id."""
        return str((await self._send("POST", "faults", {"kind": kind, **given}))["id"])

    async def struck(self, fault_id: str) -> int:
        """How often a fault in force has struck."""
        faults = (await self._send("GET", "faults"))["items"]
        return int(next(fault["struck"] for fault in faults if fault["id"] == fault_id))

    async def lift(self, fault_id: str) -> None:
        await self._send("DELETE", f"faults/{fault_id}")

    async def lift_all(self) -> None:
        await self._send("DELETE", "faults")

    async def kill_node(self, name: str) -> None:
        await self._send("POST", f"nodes/{name}/kill")

    async def revive_node(self, name: str) -> None:
        await self._send("POST", f"nodes/{name}/revive")

    async def dead_nodes(self) -> list[str]:
        return [node["name"] for node in (await self._send("GET", "nodes"))["items"] if not node["alive"]]

    async def restart(self, *, down: float, starting: float) -> None:
        """The API server is killed, is away for so many seconds, and comes up for so many."""
        await self._send("POST", "restart", {"kill": True, "down": down, "starting": starting})

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self._session.request(method, f"{self._url}/{path}", json=body) as response:
            found: dict[str, Any] = await response.json()
            assert response.status < 300, f"{method} {path}: {response.status} {found}"
            return found
