"""Whether this process may act. Requests ask before they hand out VMs, reconcilers before they touch the cluster.

It is closed while it is not known, or an operator has to decide, whose the VMs in the cluster are.
"""

import asyncio

import structlog

from app.errors import InstallationWaits

_STARTING = "the service has just started, and looks whose the VMs in the cluster are"
_RETRY_SECONDS = 2.0
log = structlog.get_logger(__name__)


class Gate:
    """`claims`: why no claim is answered; None: they are. `work`: likewise for all that changes the cluster."""

    def __init__(self) -> None:
        self.claims: str | None = _STARTING
        self.work: str | None = _STARTING
        self._was_opened = False
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._closed.set()

    @classmethod
    def opened(cls) -> "Gate":
        gate = cls()
        gate.set(claims=None, work=None)
        return gate

    def set(self, *, claims: str | None, work: str | None) -> None:
        """Opens or closes it."""
        if (claims, work) == (self.claims, self.work):
            return
        if claims is not None or work is not None:
            # A start is no news; what an operator has to decide is told by the leading worker as well.
            tell = log.warning if self._was_opened else log.info
            tell("gate.closed", reason=claims or work, claims="open" if claims is None else "closed")
        else:
            self._was_opened = True
            log.info("gate.opened")
        self.claims, self.work = claims, work
        now, before = (self._opened, self._closed) if work is None else (self._closed, self._opened)
        before.clear()
        now.set()

    def require_claims(self) -> None:
        """Raises InstallationWaits."""
        if self.claims is not None:
            raise InstallationWaits(
                f"no VM is handed out, because it is not certain whose it is: {self.claims}. GET /v1/installation tells more",
                retry_after=_RETRY_SECONDS,
            )

    async def until_work(self) -> None:
        """Until the cluster may be changed."""
        await self._opened.wait()

    async def until_no_work(self) -> None:
        """Until the cluster may no longer be changed."""
        await self._closed.wait()
