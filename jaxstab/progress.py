"""A progress bar with the time left, on standard error."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Between two lines where standard error is no terminal (a log file, CI).
LINE_SECONDS = 10.0


class Bar:
    """Progress of an experiment: `bar(done, total, message)`, inside a `with` block.

    The time left follows from the steps done since the bar started, so that steps which an earlier
    call had finished do not count as fast ones. Without a terminal it prints a line now and then.
    """

    def __init__(self, title: str, *, console: Console | None = None):
        self._title = title
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task(title, total=None, left="")
        self._first: int | None = None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> "Bar":
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            self._progress.stop()

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Shows that `done` of `total` steps are finished."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        left = time_left(done - self._first, total - done, now - self._started)
        text = f"{self._title}: {message}" if message else self._title
        if self._live:
            self._progress.update(
                self._task, completed=done, total=total, description=text, left=left
            )
        elif now - self._printed >= LINE_SECONDS:
            self._printed = now
            self._console.print(f"{self._title}: {done}/{total} {left}".rstrip(), highlight=False)


def time_left(done: int, missing: int, seconds: float) -> str:
    """How long `missing` steps take if `done` ones took so many seconds; empty if unknown.

    Example:
      >>> time_left(2, 4, 60.0)
      '2:00 left'
    """
    if done <= 0:
        return ""
    left = round(seconds * missing / done)
    hours, minutes = left // 3600, left // 60 % 60
    clock = f"{hours}:{minutes:02}:{left % 60:02}" if hours else f"{minutes}:{left % 60:02}"
    return f"{clock} left"
