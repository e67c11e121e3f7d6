"""A sweep shared by processes through its folder, runs per second, against one process."""

import argparse
import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Row

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def workers(devices: list[int], runs: int, steps: int) -> Iterator[list[subprocess.Popen]]:
    """Processes with so many devices each, compiled and waiting."""
    command = [sys.executable, "-m", "benchmarks.sweep_worker"]
    with contextlib.ExitStack() as stack:  # closes their pipes, at which they end, and waits
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(count), str(runs), str(steps)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            for count in devices
        ]
        for worker in started:
            ask([worker], "memory")
        yield started


def ask(those: list[subprocess.Popen], folder: str) -> None:
    """Has these processes do one sweep together, and waits until each has all of it."""
    for worker in those:
        assert worker.stdin
        worker.stdin.write(folder + "\n")
        worker.stdin.flush()
    for worker in those:
        assert worker.stdout
        if worker.stdout.readline() != "done\n":
            raise RuntimeError("a process of the benchmark failed, see above")


def run(settings: argparse.Namespace) -> list[Row]:
    """Runs of equal length on the digits, no measuring; start and compilation are not counted."""
    tiny = settings.size == "tiny"
    runs, steps = (4, 20) if tiny else (16, 4000)
    with (
        workers([1, 1, 2], runs, steps) as (first, second, both),
        tempfile.TemporaryDirectory() as place,
    ):
        fresh = (f"{place}/{i}" for i in itertools.count())
        calls = {
            "1 process": lambda: ask([first], next(fresh)),
            "2 processes": lambda: ask([first, second], next(fresh)),
            "2 devices": lambda: ask([both], next(fresh)),
            "2 devices, in memory": lambda: ask([both], "memory"),
        }
        timings = harness.time_in_turn(calls, rounds=2 if tiny else harness.ROUNDS)
    each = ", ".join(f"{name} {runs / time.median:.2f}" for name, time in timings.items())
    rows = [
        ("2 processes of 1 device / 1 process of 1 device", "1 process", "2 processes", 1.8),
        ("2 processes of 1 device / 1 process of 2 devices", "2 devices", "2 processes", 0.9),
        ("written to its folder / kept in memory", "2 devices, in memory", "2 devices", 0.9),
    ]
    return [
        Row(
            f"sweep, runs per second: {what}, {runs} runs of {steps} steps",
            harness.ratio(timings[slow], timings[fast]),
            at_least=None if tiny else bound,
            note=f"runs a second: {each}",
            details=harness.milliseconds(timings),
        )
        for what, slow, fast, bound in rows
    ]


if __name__ == "__main__":
    harness.main("bench_processes", run)
