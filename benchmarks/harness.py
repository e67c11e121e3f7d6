"""How everything here is timed, and how it is reported.

The rules: one warm-up call that is not counted; `block_until_ready` on every result; things whose
ratio is reported are called in turn in one process (round by round, so that a slow spell of the
machine falls on all of them); the median of at least five rounds; inputs random and non-zero.

Two ways of timing an operator:

- *single call*: `operator(v)`, compiled, as a user calls it once;
- *per product in a run*: one compiled loop of products, each applied to the normalised result of
  the last, as in a Krylov process, divided by their number. What an operator prepares once before
  the loop is in that time.
"""

import argparse
import dataclasses
import datetime
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxstab import files

SIZES = ("tiny", "small", "full")
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every counted round of one thing."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        return min(self.rounds)

    def per(self, count: float) -> "Timing":
        """The same, divided among `count` equal parts."""
        return Timing(tuple(seconds / count for seconds in self.rounds))


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times all calls in turn, `rounds` times, after one call of each that is not counted."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(numerator: Timing, denominator: Timing) -> float:
    """The median of the ratios of rounds that ran next to each other.

    A slow spell of the machine that lasts longer than a round then cancels.
    """
    pairs = zip(numerator.rounds, denominator.rounds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def random_like(tree: Any, seed: int = 0) -> Any:
    """A standard normal vector shaped like `tree`, of norm one."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
    return _normalise(jax.tree.unflatten(structure, drawn))


def _normalise(v: Any) -> Any:
    squares = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(v))
    scale = 1 / jnp.maximum(jnp.sqrt(squares), jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda leaf: (leaf * scale).astype(leaf.dtype), v)


@functools.partial(jax.jit, static_argnames=("products", "keep"))
def run_of_products(operator: Any, v: Any, *, products: int, keep: bool = True) -> Any:
    """A compiled run of products as in a Krylov process; the arrays of `operator` are operands.

    With `keep` the operator prepares before the loop what its products share.
    """
    prepared = operator.prepare() if keep else operator
    step = lambda v, _: (_normalise(prepared.product(v)), None)  # noqa: E731
    return jax.lax.scan(step, v, length=products)[0]


@functools.partial(jax.jit)
def single_product(operator: Any, v: Any) -> Any:
    return operator.product(v)


def temporary_bytes(operator: Any, v: Any) -> int:
    """Bytes that the compiled product allocates besides its operands and its result.

    From XLA's own assignment of buffers, so every intermediate array is in it.
    """
    return single_product.lower(operator, v).compile().memory_analysis().temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a report: a value, and where there is one the bound it should keep."""

    what: str
    value: float
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_most is not None and self.value > self.at_most
        below = self.at_least is not None and self.value < self.at_least
        return not (above or below)

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:.3g}"
        return "" if self.at_least is None else f"≥ {self.at_least:.3g}"


def milliseconds(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Medians, for the details of a row."""
    return {name + " (ms)": round(1e3 * timing.median, 3) for name, timing in timings.items()}


def environment() -> dict[str, Any]:
    """Everything that a timing depends on and that can be asked for."""
    packages = ("jax", "jaxlib", "flax", "numpy", "jaxstab")
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
        "float64": bool(jax.config.jax_enable_x64),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def as_table(title: str, rows: list[Row]) -> Table:
    """Rows as a table for a terminal."""
    table = Table(title=title, title_justify="left")
    for heading, justify in (("what", "left"), ("value", "right"), ("target", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    table.add_column("how", overflow="fold")
    for row in rows:
        mark = {True: "met", False: "MISSED", None: ""}[row.met]
        table.add_row(row.what, f"{row.value:.3g} {row.unit}", row.target, mark, row.note)
    return table


def write_report(
    path: Path, name: str, size: str, rows: list[Row], seconds: float, found: Mapping | None = None
) -> None:
    """Writes rows and environment as JSON; `found` is the environment before the run."""
    content = {
        "benchmark": name,
        "size": size,
        "seconds": round(seconds, 1),
        "environment": environment() if found is None else found,
        "rows": [dataclasses.asdict(row) | {"met": row.met} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, content)


def main(name: str, run: Callable[[argparse.Namespace], list[Row]]) -> None:
    """The command line of one benchmark: `python -m benchmarks.NAME --size small --out DIR`.

    With `--only CASE` the report is NAME-CASE.json, so that a long one can be run in parts.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=run.__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peers", help="python of the peers' environment (make bench-peers)")
    parser.add_argument("--only", help="one case, where there are several, such as FNN")
    settings = parser.parse_args()
    found = environment()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 1:
        print(f"{name}: the machine is busy (load {busy:.1f}): timings against peers will be off")
    start = time.perf_counter()
    rows = run(settings)
    seconds = time.perf_counter() - start
    part = f"{name}-{settings.only}" if settings.only else name
    write_report(settings.out / f"{part}.json", name, settings.size, rows, seconds, found)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(as_table(f"{name}, size {settings.size}, {seconds:.0f} s", rows))
