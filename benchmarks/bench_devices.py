"""A product with Σ over 1 to 8 devices of the host, and over data streamed from memory or disk."""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row, Timing

CHUNK = 125


def product_seconds(n: int, chunk_size: int, *, tiny: bool = False, rounds: int = 5) -> list[float]:
    """Seconds of single Σ-products of the FNN, its data spread over all devices there are."""
    problem = problems.fnn(n, tiny=tiny)
    data = js.data.shard(problem.data) if jax.device_count() > 1 else problem.data
    operator = js.hessian_variance(problem.loss, problem.params, data, chunk_size=chunk_size)
    v = harness.random_like(problem.params)
    call = functools.partial(harness.single_product, operator, v)
    return list(harness.time_in_turn({"product": call}, rounds=rounds)["product"].rounds)


def on_devices(devices: int, n: int) -> Timing:
    """The same in a process with so many devices, which share the cores of this machine."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "benchmarks.bench_devices", "--measure", str(n)]
    done = subprocess.run(
        command, env=dict(os.environ, XLA_FLAGS=flags), capture_output=True, text=True, check=True
    )
    return Timing(tuple(json.loads(done.stdout.splitlines()[-1])))


def scaling_rows(n: int, counts: tuple[int, ...]) -> list[Row]:
    """Strong scaling (n in all) and weak (n for each device), over one device with the same data.

    Devices of one host share its cores, so that more of them cannot be faster than one on all: what
    is seen is what spreading costs. 1 is nothing; 1/0.9 is the aim.
    """
    rows = []
    one = on_devices(1, n)
    for count in counts:
        for kind, size in (("strong", n), ("weak", n * count)):
            timing = on_devices(count, size)
            base = one.median * size / n
            rows.append(
                Row(
                    f"{kind} scaling, {count} devices / 1, n = {size:,}: FNN, chunks of {CHUNK}",
                    timing.median / base,
                    at_most=1 / 0.9,
                    note=f"{1e3 * timing.median:.0f} ms / {1e3 * base:.0f} ms for as much work",
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
            f"Σ-product, data streamed from {name} / on the device: {problem.label}",
            harness.ratio(timings[name], timings["device"]),
            note=f"{1e3 * timings[name].median:.0f} ms / {1e3 * timings['device'].median:.0f} ms, "
            f"chunks of {chunk}",
        )
        for name in held
        if name != "device"
    ]


def run(settings: argparse.Namespace) -> list[Row]:
    """Scaling over devices of the host, and streaming against data on the device."""
    if settings.size == "tiny":
        seconds = product_seconds(16, 8, tiny=True, rounds=2)
        one = Row("Σ-product on the devices there are", float(np.median(seconds)), unit="s")
        return [one, *streaming_rows(16, 8, tiny=True)]
    counts = (2, 4, 8) if settings.size == "full" else (2, 8)
    return scaling_rows(2000, counts) + streaming_rows(4000, 500, tiny=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(product_seconds(int(sys.argv[2]), CHUNK)))
    else:
        harness.main("bench_devices", run)
