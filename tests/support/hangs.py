"""Ends a test that hangs, and says what it was waiting for.

pytest-timeout alone does not: it drops its timer when a test fails, so that nothing bounds the teardown after a failure; and
its exception may reach a background task of the loop, which keeps it to itself. Here a teardown has a timer of its own, a
timeout tells what every task awaits, and what outlives that as well ends with its process (xdist starts another one).
"""

import asyncio
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import AsyncGeneratorType, FrameType

import pytest
import pytest_timeout

TEARDOWN_SECONDS = 180
# Beyond pytest-timeout's own, which end a test alone and not its process. PYTEST_TIMEOUT=900 sets those for a busier machine.
MARGIN_SECONDS = 30
_LOOK_SECONDS = 1.0
# Of coroutines, generators and asynchronous generators: the prefix of their attributes, and the one that says what is awaited.
_KINDS = {"cr": "cr_await", "gi": "gi_yieldfrom", "ag": "ag_await"}


class Watch:
    """Ends the process where one phase of a test goes on for too long."""

    def __init__(self, config: pytest.Config, seconds: float) -> None:
        self._config = config
        self._seconds = seconds
        self._phase: tuple[str, float, float] | None = None

    def start(self) -> None:
        threading.Thread(target=self._look, name="hangs", daemon=True).start()

    def begin(self, phase: str, seconds: float | None = None) -> None:
        """`seconds`: the bound of this test where it has one of its own."""
        self._phase = (phase, time.monotonic(), seconds or self._seconds)

    def end(self) -> None:
        self._phase = None

    def _look(self) -> None:
        while True:
            time.sleep(min(_LOOK_SECONDS, self._seconds / 4))
            phase = self._phase
            if phase is not None and time.monotonic() - phase[1] > phase[2]:
                self._give_up(phase[0], phase[2])

    def _give_up(self, phase: str, seconds: float) -> None:
        told = f"\n{phase} hangs for {seconds:g} s; its process ends.\n{describe_threads()}{describe_tasks()}"
        capture = self._config.pluginmanager.getplugin("capturemanager")
        # What captures may itself be what hangs; the sentence is then lost, and the end is not.
        with contextlib.suppress(Exception):
            if capture is not None:
                capture.suspend_global_capture(in_=True)
        with contextlib.suppress(Exception):
            os.write(2, told.encode(errors="replace"))
        os._exit(1)


_WATCH = pytest.StashKey[Watch]()
_AWAITED = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    timeout = pytest_timeout.get_env_settings(config).timeout
    config.stash[_WATCH] = watch = Watch(config, (timeout or 0) + MARGIN_SECONDS)
    if timeout and not _is_debugging(config):
        watch.start()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _watched(item, "setup"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _watched(item, "call"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    timer = item.config.pluginmanager.hook
    settings = pytest_timeout.Settings(TEARDOWN_SECONDS, "signal", False, False)
    with _watched(item, "teardown"):
        timer.pytest_timeout_cancel_timer(item=item)
        if _is_debugging(item.config):
            return (yield)
        timer.pytest_timeout_set_timer(item=item, settings=settings)
        try:
            return (yield)
        finally:
            timer.pytest_timeout_cancel_timer(item=item)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Iterator[object]:
    """What the tasks await is noted when the time is up: by the time of the report the loop is closed and they are gone."""
    is_set = yield
    fail = signal.getsignal(signal.SIGALRM)

    def note_and_fail(signum: int, frame: FrameType | None) -> None:
        item.stash[_AWAITED] = describe_tasks()
        fail(signum, frame)

    if callable(fail):
        signal.signal(signal.SIGALRM, note_and_fail)
    return is_set


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    report = yield
    awaited = item.stash.get(_AWAITED, None)
    if awaited is not None:
        del item.stash[_AWAITED]
        report.sections.append(("What every task awaited when the time was up", awaited))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What is left until the process ends, such as joining threads, is one more phase. xdist's processes wait for each other
    there, and it bounds the end of each itself.
    """
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    session.config.stash[_WATCH].begin("The end of the run")


def describe_tasks() -> str:
    """Each task that is not done, of every loop, down to what it awaits."""
    tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
    out = io.StringIO()
    for task in sorted(tasks, key=lambda task: task.get_name()):
        out.write(f"Task {task.get_name()}:\n{''.join(_describe_awaits(task.get_coro()))}")
    return out.getvalue() or "No task is left.\n"


def describe_threads() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def _is_debugging(config: pytest.Config) -> bool:
    """With `--pdb` or `--timeout 0` somebody looks, and takes the time that it takes."""
    return config.getoption("usepdb") or config.getoption("timeout") == 0


@contextlib.contextmanager
def _watched(item: pytest.Item, phase: str) -> Iterator[None]:
    watch = item.config.stash[_WATCH]
    mark = item.get_closest_marker("timeout")
    watch.begin(f"{item.nodeid} ({phase})", mark.args[0] + MARGIN_SECONDS if mark else None)
    try:
        yield
    finally:
        watch.end()


def _describe_awaits(awaited: object) -> Iterator[str]:
    """A line for each coroutine or generator in the chain, outermost first; what ends it is told as it names itself."""
    while awaited is not None:
        kind = next((each for each in _KINDS if hasattr(awaited, f"{each}_frame")), None)
        if kind is None:
            # The step of an asynchronous generator does not say whose it is.
            behind = [each for each in gc.get_referents(awaited) if isinstance(each, AsyncGeneratorType)]
            if not behind:
                yield f"  {awaited!r}\n"
                return
            awaited = behind[0]
            continue
        frame = getattr(awaited, f"{kind}_frame")
        if frame is None:
            return
        yield f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}\n"
        awaited = getattr(awaited, _KINDS[kind])
