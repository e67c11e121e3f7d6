"""A product with Σ over 1 to 8 devices of the host, and over data streamed from memory or disk."""

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row
from benchmarks.waiting import ask, workers

CHUNK = 125


def product_of(n: int, chunk_size: int, *, tiny: bool = False) -> Any:
    """One Σ-product of the FNN as a call, its data spread over all devices there are."""
    problem = problems.fnn(n, tiny=tiny)
    data = js.data.shard(problem.data) if jax.device_count() > 1 else problem.data
    operator = js.hessian_variance(problem.loss, problem.params, data, chunk_size=chunk_size)
    return functools.partial(harness.single_product, operator, harness.random_like(problem.params))


def serve() -> None:
    """Answers each n on a line with one product over so many examples."""
    made = functools.cache(lambda n: product_of(n, CHUNK))
    for line in sys.stdin:
        jax.block_until_ready(made(int(line))())
        print("done", flush=True)


def scaling_rows(n: int, counts: tuple[int, ...]) -> list[Row]:
    """Strong scaling (n in all) and weak (n for each device), over one device with the same data.

    Devices of one host share its cores, so that more of them cannot be faster than one on all: what
    is seen is what spreading costs. 1 is nothing; 1/0.9 is the aim.
    """
    sizes = (1, *counts)
    flags = [{"XLA_FLAGS": f"--xla_force_host_platform_device_count={size}"} for size in sizes]
    commands = [["benchmarks.bench_devices", "--serve"]] * len(sizes)
    with workers(commands, flags) as started:
        by_count = dict(zip(sizes, started, strict=True))
        calls = {}
        for count in counts:
            for devices in (1, count):
                for size in (n, n * count):
                    calls[devices, size] = functools.partial(ask, [by_count[devices]], str(size))
        timings = harness.time_in_turn(calls)
    rows = []
    for kind, of in (("strong", lambda count: n), ("weak", lambda count: n * count)):
        for count in counts:
            spread, one = timings[count, of(count)], timings[1, of(count)]
            rows.append(
                Row(
                    f"{kind} scaling, {count} devices / 1, n = {of(count):,}",
                    harness.ratio(spread, one),
                    at_most=1 / 0.9,
                    note=f"{1e3 * spread.median:.0f} ms / {1e3 * one.median:.0f} ms, FNN, chunks "
                    f"of {CHUNK}",
                )
            )
    return rows


def streaming_rows(n: int, chunk: int, *, tiny: bool) -> list[Row]:
    """One Σ-product (two passes) over data in memory, on the host, and on disk."""
    problem = problems.fnn(n, tiny=tiny)
    v = harness.random_like(problem.params)
    host = jax.tree.map(np.asarray, problem.data)
    with tempfile.TemporaryDirectory() as folder:
        mapped = []
        for i, leaf in enumerate(host):
            np.save(Path(folder) / f"{i}.npy", leaf)
            mapped.append(np.load(Path(folder) / f"{i}.npy", mmap_mode="r"))
        held = {
            "device": problem.data,
            "host": js.data.stream(host),
            "host, not ahead": js.data.stream(host, ahead=0),
            "disk": js.data.stream(tuple(mapped)),
        }
        calls: dict[str, Any] = {
            name: functools.partial(
                harness.single_product,
                js.hessian_variance(problem.loss, problem.params, data, chunk_size=chunk),
                v,
            )
            for name, data in held.items()
        }
        timings = harness.time_in_turn(calls, rounds=2 if tiny else harness.ROUNDS)
    return [
        Row(
            f"Σ-product, data on the {name} / on the device",
            harness.ratio(timings[name], timings["device"]),
            at_most=1.1 if "not" not in name and not tiny else None,
            note=f"{1e3 * timings[name].median:.0f} ms / {1e3 * timings['device'].median:.0f} ms, "
            f"{problem.label}, chunks of {chunk}",
        )
        for name in held
        if name != "device"
    ]


def run(settings: argparse.Namespace) -> list[Row]:
    """Scaling over devices of the host, and streaming against data on the device."""
    if settings.size == "tiny":
        call = product_of(16, 8, tiny=True)
        timing = harness.time_in_turn({"product": call}, rounds=2)["product"]
        one = Row("Σ-product on the devices there are", timing.median, unit="s")
        return [one, *streaming_rows(16, 8, tiny=True)]
    counts = (2, 4, 8) if settings.size == "full" else (2, 8)
    return scaling_rows(1000, counts) + streaming_rows(4000, 500, tiny=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    else:
        harness.main("bench_devices", run)
