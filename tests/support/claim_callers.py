"""Clients of several replicas who know what they were told, and give up in the middle where the test says so."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_ANSWER_SECONDS = 10.0
_PAUSE_SECONDS = 0.02  # between two attempts: a replica is just being started again
_ATTEMPTS = 1000


@dataclass(slots=True)
class Ledger:
    """What all of them were told. `claims_of_key` has for each key the claims (with their VMs) of each answer to it."""

    claims_of_key: dict[str, set[tuple[tuple[str, str], ...]]] = field(default_factory=lambda: defaultdict(set))
    keyless: list[tuple[str, str]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def note(self, key: str | None, claims: Sequence[dict[str, Any]]) -> None:
        told = tuple((claim["id"], claim["vm"]["id"]) for claim in claims)
        if key is None:
            self.keyless.extend(told)
        else:
            self.claims_of_key[key].add(told)

    @property
    def told(self) -> set[tuple[str, str]]:
        """Every claim with its VM that anybody was told of."""
        return {pair for answers in self.claims_of_key.values() for answer in answers for pair in answer} | set(
            self.keyless
        )


class Callers:
    """Errands against one pool. `replicas` gives the addresses of those that serve at the moment."""

    def __init__(
        self, session: aiohttp.ClientSession, pool: str, replicas: Callable[[], Sequence[str]], draw: random.Random
    ) -> None:
        self.ledger = Ledger()
        self._session = session
        self._pool = pool
        self._replicas = replicas
        self._draw = draw

    async def claim(self) -> None:
        """Without a key: asked once; where no answer comes, whatever was claimed is nobody's until its lease ends."""
        await self._ask(self._any(), None, None)

    async def claim_with_key(self, key: str) -> None:
        """From several replicas at the same moment, and again until there is an answer."""
        await asyncio.gather(*(self._insist(key, None) for _ in range(self._draw.randint(2, 3))))

    async def claim_many(self, key: str, count: int) -> None:
        """A batch, from two replicas at the same moment."""
        await asyncio.gather(*(self._insist(key, count) for _ in range(2)))

    async def give_up(self, key: str | None) -> None:
        """Sends a claim and closes the connection, without a look at the answer."""
        address = self._any().removeprefix("http://")
        host, _, port = address.partition(":")
        body = json.dumps({"pool": self._pool})
        mark = f"Idempotency-Key: {key}\r\n" if key is not None else ""
        head = f"POST /v1/claim HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{mark}"
        try:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
            writer.transport.abort() if self._draw.random() < 1 / 2 else writer.close()
        except OSError:
            self.ledger.statuses["not sent"] += 1

    async def _insist(self, key: str, count: int | None) -> None:
        for _ in range(_ATTEMPTS):
            if await self._ask(self._any(), key, count):
                return
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError(f"no answer for {key} in {_ATTEMPTS} attempts: {self.ledger.statuses}")

    async def _ask(self, url: str, key: str | None, count: int | None) -> bool:
        """Whether there was an answer; what else than a VM or "the database does not answer" comes back is a fault."""
        body: dict[str, Any] = {"pool": self._pool} | ({"count": count} if count is not None else {})
        path = "/v1/claim" if count is None else "/v1/claim/batch"
        headers = {"Idempotency-Key": key} if key is not None else {}
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        try:
            async with self._session.post(url + path, json=body, headers=headers, timeout=timeout) as response:
                told = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.ledger.statuses[type(error).__name__] += 1
            return False
        self.ledger.statuses[f"{response.status} {told.get('code', '')}".strip()] += 1
        if response.status == 503 and told["code"] in {"database-unavailable", "outcome-unknown"}:
            return False
        assert response.status == 201, told
        self.ledger.note(key, told["claims"] if count is not None else [told])
        return True

    def _any(self) -> str:
        return self._draw.choice(self._replicas())
