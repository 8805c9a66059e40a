"""How many creates may be under way at once, by what the cluster answers. Pure: the caller tells it the time.

The number grows while answers come as fast as from a server that is not busy, and stays where a few requests wait in the server:
more of them would only wait longer, and make everybody else wait. This is what TCP Vegas does with packets. If the server pushes back
(429, 5xx, no answer), the number is halved, nothing is begun until the server wants to be asked again, and the number at which it
pushed back is tried again only after many successes.
"""

from dataclasses import dataclass

_FEW_WAIT = 3.0
_MANY_WAIT = 6.0
"""Requests that wait in the server: with fewer the number grows, with more it shrinks. A few keep the server busy."""
_WEIGHT = 0.2  # of the last answer among those before it
_FORGETS = (
    1.0005  # with each answer, so that a server that has become slower for good is not taken for a busy one for ever
)
_TRIES_MORE_AFTER = 200  # successes
_REST_SECONDS = 0.5
_MOST_REST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Pushback:
    """The cluster did not do what was begun at `begun_at`. `retry_after`: seconds after which it wants to be asked again."""

    begun_at: float
    retry_after: float | None = None


class CreatePacer:
    """Begins with `start` at a time, and never allows more than `limit`. Times are seconds of any clock that only advances."""

    def __init__(self, *, start: int, limit: int) -> None:
        self._limit = float(limit)
        self._ceiling = float(limit)
        self._window = float(min(start, limit))
        self._probing = True
        self._unloaded: float | None = None
        self._typical = 0.0
        self._pushbacks = 0
        self._cut_at = float("-inf")
        self._rests_until = float("-inf")

    @property
    def window(self) -> int:
        """How many may be under way."""
        return int(self._window)

    def room(self, under_way: int, now: float) -> int:
        """How many more may be begun."""
        return max(0, self.window - under_way) if now >= self._rests_until else 0

    def succeeded(self, seconds: float, *, under_way: int) -> None:
        """A create was answered after so many seconds, while `under_way` were, itself included."""
        self._pushbacks = 0
        self._ceiling = min(self._limit, self._ceiling + 1 / _TRIES_MORE_AFTER)
        if self._unloaded is None:
            self._unloaded = self._typical = seconds
        self._unloaded = min(seconds, self._unloaded * _FORGETS)
        self._typical += _WEIGHT * (seconds - self._typical)
        waiting = self._window * (1 - self._unloaded / max(self._typical, self._unloaded))
        if waiting > _MANY_WAIT:
            self._resize(max(-1.0, (_MANY_WAIT - waiting) / self._window))
        elif waiting < _FEW_WAIT and under_way >= self.window:  # what was not used says nothing of more
            self._resize(1 if self._probing else 1 / self._window)
        self._probing = self._probing and waiting < _FEW_WAIT

    def pushed_back(self, pushback: Pushback, now: float) -> None:
        """Of all that were under way together only the first counts: the others know nothing of the smaller number yet."""
        if pushback.begun_at >= self._cut_at:
            self._cut_at = now
            self._probing = False
            self._pushbacks += 1
            self._ceiling = max(1.0, self._window - 1)
            self._resize(-self._window / 2)
        rest = min(_MOST_REST_SECONDS, _REST_SECONDS * 2.0 ** min(self._pushbacks - 1, 10))
        if pushback.retry_after is not None:
            rest = min(_MOST_REST_SECONDS, pushback.retry_after)
        self._rests_until = max(self._rests_until, now + rest)

    def _resize(self, change: float) -> None:
        self._window = max(1.0, min(self._ceiling, self._window + change))
