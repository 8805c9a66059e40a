"""What the module of the same name for asyncio offers, for threads."""

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Final, ParamSpec, Self, TypeVar

__all__ = ["Background", "Event", "pause", "sleep", "to_its_end", "to_thread"]
_Found = TypeVar("_Found")
_Given = ParamSpec("_Given")
_LAST_SECONDS: Final = 5.0
sleep = time.sleep


def to_thread(work: Callable[_Given, _Found], /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Found:
    """The result of `work`, here and now: nobody else waits for this thread."""
    return work(*args, **kwargs)


def pause(stop: Event, seconds: float) -> bool:
    """Waits so long, or until `stop` is set. Returns whether it is set."""
    return stop.wait(seconds)


def to_its_end(work: Callable[_Given, _Found], /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Found:
    """The result of `work`. There is no cancellation."""
    return work(*args, **kwargs)


class Background:
    """Runs `work` beside the body of a `with`, and sets `stop`, for which `work` has to look, at its end."""

    def __init__(self, work: Callable[[], None], stop: Event) -> None:
        self._stop = stop
        self._thread = Thread(target=work, name="emberpool-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A request that is on its way is not waited for longer than some seconds: it does no harm."""
        self._stop.set()
        self._thread.join(_LAST_SECONDS)
