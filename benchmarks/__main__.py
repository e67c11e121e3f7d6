"""Runs the benchmarks, each in a process of its own, and prints all rows as one table.

`python -m benchmarks` is what `make bench` runs: the small set, on whatever devices there are. One
benchmark alone: `python -m benchmarks.bench_operators --size full`. `--saved` runs nothing, and
prints what is kept in benchmarks/results.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import harness, saved
from jaxstab import files

HERE = Path(__file__).parent


def names() -> list[str]:
    """All benchmarks, found by name."""
    return sorted(path.stem for path in HERE.glob("bench_*.py"))


def main() -> int:
    """Returns the number of benchmarks that failed to run (not of targets missed)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"all by default: {', '.join(names())}")
    parser.add_argument("--size", choices=harness.SIZES, default="small")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--saved", action="store_true", help="print the runs that were kept")
    settings = parser.parse_args()
    if settings.saved:
        print(saved.page())
        return 0
    unknown = sorted(set(settings.names) - set(names()))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: known are {', '.join(names())}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows, failed = [], []
    for name in settings.names or names():
        command = [sys.executable, "-m", f"benchmarks.{name}", "--size", settings.size]
        done = subprocess.run([*command, "--out", str(settings.out)], cwd=HERE.parent)
        if done.returncode:
            failed.append(name)
            continue
        rows += saved.rows_of(files.read_json(settings.out / f"{name}.json"))
    console.print(harness.as_table("all", [row for row in rows if row.met is not None]))
    for name in failed:
        console.print(f"[red]{name} failed, see above")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
