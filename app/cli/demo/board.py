"""Shows on a terminal what is running: a line for each step, removed when the step ends. Without a terminal it shows nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Step:
    """One running step."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def reach(self, percent: float | None) -> None:
        self._progress.update(self._task, total=100, completed=percent or 0)


class Board:
    """A context manager. Lines that are printed meanwhile appear above it."""

    def __init__(self, console: Console) -> None:
        self._is_seen = console.is_interactive
        self._progress = Progress(
            TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        )

    def __enter__(self) -> Self:
        if self._is_seen:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_seen:
            self._progress.stop()

    @contextmanager
    def step(self, what: str) -> Iterator[Step]:
        """Shows `what` until the block ends."""
        task = self._progress.add_task(what, total=None)
        try:
            yield Step(self._progress, task)
        finally:
            self._progress.remove_task(task)
