"""A sweep shared by processes through its folder, runs per second, against one process."""

import argparse
import itertools
import tempfile

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.waiting import ask, workers


def run(settings: argparse.Namespace) -> list[Row]:
    """Runs of equal length on the digits, no measuring; start and compilation are not counted."""
    tiny = settings.size == "tiny"
    runs, steps = (4, 20) if tiny else (16, 4000)
    commands = [
        ["benchmarks.sweep_worker", *map(str, (devices, runs, steps))] for devices in (1, 1, 2)
    ]
    with (
        workers(commands) as (first, second, both),
        tempfile.TemporaryDirectory() as place,
    ):
        for worker in (first, second, both):  # one after the other: compiling takes both cores
            ask([worker], "memory")
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
