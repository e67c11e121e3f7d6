"""Processes that wait for work, so that they can be timed in turn without their start."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def workers(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]] | None = None
) -> Iterator[list[subprocess.Popen]]:
    """Starts `python -m` with each of these words; each answers a line of its input with `done`.

    Args:
      commands: module and arguments of each process.
      environments: variables that each gets besides those of this process.
    """
    with contextlib.ExitStack() as stack:  # closes their pipes, at which they end, and waits
        yield [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, **more},
                )
            )
            for command, more in zip(commands, environments or [{}] * len(commands), strict=True)
        ]


def ask(those: Sequence[subprocess.Popen], line: str) -> None:
    """Has these processes work on a line at the same time, and waits until each has answered."""
    for worker in those:
        assert worker.stdin
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    for worker in those:
        assert worker.stdout
        if worker.stdout.readline() != "done\n":
            raise RuntimeError("a process of the benchmark failed, see above")
