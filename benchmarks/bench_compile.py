"""Time from `measure` called to its result, cold and with JAX's persistent cache."""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time

import jax

import jaxstab as js
from benchmarks import harness, problems, transformer
from benchmarks.harness import Row

SCANNED = "transformer, its layers in scan"
NETWORKS = ("FNN", "VGG", "ResNet-14", "transformer", SCANNED)
AIM = {"ResNet-14": 15.0, "transformer": 15.0}  # seconds, cold, on two cores


def make(name: str, *, tiny: bool = False) -> problems.Problem:
    """The problem of this name, with few examples."""
    if name == "FNN":
        return problems.fnn(12 if tiny else 50, tiny=tiny)
    if name == "VGG":
        return problems.vgg(50)
    if name == "ResNet-14":
        return problems.resnet14(50)
    shape = dataclasses.replace(transformer.NARROW, scanned=name == SCANNED)
    return transformer.problem(shape, 8, 32)


def first_number(name: str, *, tiny: bool = False) -> dict[str, float]:
    """Seconds of one call of `measure` in this process, and of what JAX says it did in them."""
    problem = jax.block_until_ready(make(name, tiny=tiny))
    spent: dict[str, float] = {}

    def listen(event: str, seconds: float, **_: object) -> None:
        for part in ("trace", "lower", "to_mlir", "backend_compile"):
            if part in event:
                spent[part] = spent.get(part, 0.0) + seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    start, busy = time.perf_counter(), time.process_time()
    jax.block_until_ready(
        js.measure(problem.loss, problem.params, problem.data, key=jax.random.key(0), tol=1e-2)
    )
    seconds = {"seconds": time.perf_counter() - start, "CPU seconds": time.process_time() - busy}
    return seconds | spent


def in_process(name: str, cache: str) -> dict[str, float]:
    """The same in a process of its own, with a folder for the compilation cache."""
    command = [sys.executable, "-m", "benchmarks.bench_compile", "--measure", name, cache]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(name: str) -> list[Row]:
    """Cold with an empty cache, and again with what that left."""
    with tempfile.TemporaryDirectory() as cache:
        found = {"cold": in_process(name, cache), "cached": in_process(name, cache)}
    return [
        Row(
            f"measure, called to result, {kind}: {name}",
            values["seconds"],
            unit="s",
            at_most=AIM.get(name) if kind == "cold" else None,
            note=f"{values['CPU seconds']:.1f} s of CPU; compiling "
            f"{values.get('backend_compile', 0.0):.1f} s, tracing {values.get('trace', 0.0):.1f} s",
            details=values,
        )
        for kind, values in found.items()
    ]


def run(settings: argparse.Namespace) -> list[Row]:
    """Every network, cold and cached, each in a process of its own."""
    if settings.size == "tiny":
        found = first_number("FNN", tiny=True)
        return [Row("measure, called to result: FNN", found["seconds"], unit="s")]
    return [row for name in NETWORKS for row in rows_of(name)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        jax.config.update("jax_compilation_cache_dir", sys.argv[3])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        print(json.dumps(first_number(sys.argv[2])))
    else:
        harness.main("bench_compile", run)
