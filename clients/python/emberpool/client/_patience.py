"""When a request is sent again: after a broken connection, and after a 429 or 503 that names a time.

Every request of this client may be sent twice: a claim carries its idempotency key, and all others are idempotent.
"""

import random
from dataclasses import dataclass
from typing import Final

import tenacity

from emberpool.client.errors import Refused, Unavailable, Unreachable

EMPTY: Final = frozenset({"no-warm-vm", "no-path", "deadline-too-short"})
"""The codes by which the service says that no VM would come. That is an answer, and no outage."""
_FIRST_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """`seconds`: for how long a request is sent again while the service is away. `wait_seconds`: likewise while it has no VM."""

    seconds: float
    wait_seconds: float = 0.0

    def goes_on(self, error: BaseException) -> bool:
        if isinstance(error, Unavailable):
            return error.retry_after is not None and (error.code not in EMPTY or self.wait_seconds > 0)
        return isinstance(error, Unreachable) and error.passing

    def pause(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next try: what the service asked for, else more each time. A part of it is chance."""
        error = _error_of(state)
        if isinstance(error, Refused) and error.retry_after is not None:
            return error.retry_after * random.uniform(1.0, 1.1)  # noqa: S311 - not a secret
        longest = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** (state.attempt_number - 1))
        return random.uniform(longest / 2, longest)  # noqa: S311 - likewise

    def ends(self, state: tenacity.RetryCallState) -> bool:
        """Whether the time would be over before the next try: then there is no use in waiting for it."""
        error = _error_of(state)
        limit = self.wait_seconds if isinstance(error, Refused) and error.code in EMPTY else self.seconds
        return (state.seconds_since_start or 0.0) + state.upcoming_sleep > limit


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
