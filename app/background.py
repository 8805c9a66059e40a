"""Whether what runs in the background of a process works: told by readiness, in the log and by a metric."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from app.errors import ClusterUnavailable, DatabaseUnavailable, EmberpoolError
from app.telemetry import BACKGROUND_WAITS

log = structlog.get_logger(__name__)


class PartHealth:
    """Of one part. It outlives every error of the database and of the cluster, and says here that it waits for one of them."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.reason: str | None = None
        """What the last attempt failed of; None if it worked."""
        self._since = 0.0

    @property
    def failing_seconds(self) -> float:
        """Since when every attempt has failed; 0 if the last one worked."""
        return time.monotonic() - self._since if self.reason is not None else 0.0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One attempt. Errors of the database and of the cluster are noted and not raised; all others are."""
        try:
            yield
        except (DatabaseUnavailable, ClusterUnavailable) as error:
            self.failed(error)
        else:
            self.worked()

    def worked(self) -> None:
        if self.reason is not None:
            log.info("part.works_again", part=self.part, seconds=round(self.failing_seconds, 1))
        self.reason = None

    def failed(self, error: EmberpoolError) -> None:
        if self.reason is None:
            self._since = time.monotonic()
            log.warning("part.waits", part=self.part, error=error.detail)
        self.reason = error.detail
        BACKGROUND_WAITS.labels(part=self.part).inc()
