"""Shows on a terminal what is running: a line for each step, removed when the step ends. Without a terminal it shows nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def show_board(console: Console) -> Iterator[Progress]:
    """A board until the block ends. Lines that are printed meanwhile appear above it."""
    board = Progress(
        TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    with board if console.is_interactive else nullcontext():
        yield board


@contextmanager
def show_step(board: Progress, what: str) -> Iterator[Callable[[float | None], None]]:
    """Shows `what` until the block ends. Gives what tells the board how many percent are done."""
    task = board.add_task(what, total=None)
    try:
        yield lambda percent: board.update(task, total=100, completed=percent or 0)
    finally:
        board.remove_task(task)
