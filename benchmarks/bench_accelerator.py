"""On an accelerator: n = 50,000 and 60,000, with the distance to what the hardware allows.

And what precision of products costs and gives: a and s at JAX's default, in three bfloat16 passes
and in full float32, each against float64 on the CPU, with the time of each.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row


class Peak(NamedTuple):
    """What this device reaches: operations a second in matrix products, bytes a second copied."""

    operations: float
    bytes: float


def measure_peak(tiny: bool) -> Peak:
    """Peaks as measured by one large float32 product, at JAX's default precision, and one copy."""
    size = 256 if tiny else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    long = jnp.ones(2**16 if tiny else 2**28)
    calls = {
        "product": functools.partial(jax.jit(jnp.matmul), matrix, matrix),
        "copy": functools.partial(jax.jit(jnp.add), long, 1.0),
    }
    timings = harness.time_in_turn(calls)
    return Peak(2 * size**3 / timings["product"].best, 2 * long.nbytes / timings["copy"].best)


def work_of_a_product(operator: Any, problem: problems.Problem, chunk: int) -> Peak:
    """Operations and bytes of one product, from XLA's count for one chunk without a loop."""
    one = jax.tree.map(lambda leaf: leaf[:chunk], problem.data)
    made = operator(problem.loss, problem.params, one, chunk_size=chunk)
    compiled = harness.single_product.lower(made, problem.params).compile()
    cost = compiled.cost_analysis()
    chunks = problem.n / chunk
    return Peak(cost["flops"] * chunks, cost["bytes accessed"] * chunks)


def rows_of(
    problem: problems.Problem, chunk: int, peak: Peak, rounds: int, bounds: dict[str, float]
) -> list[Row]:
    """Ratios to the HVP, and seconds over the floor max(operations / peak, bytes / bandwidth)."""
    makes = {
        "HVP": js.hessian,
        "second moment": js.hessian_second_moment,
        "variance": js.hessian_variance,
    }
    v = harness.random_like(problem.params)
    calls = {}
    for name, make in makes.items():
        operator = make(problem.loss, problem.params, problem.data, chunk_size=chunk)
        calls[name] = functools.partial(harness.single_product, operator, v)
    timings = harness.time_in_turn(calls, rounds=rounds)
    rows = []
    for name, make in makes.items():
        if name in bounds:
            rows.append(
                Row(
                    f"{name} / HVP, single: {problem.label}",
                    harness.ratio(timings[name], timings["HVP"]),
                    at_most=bounds[name],
                    note=f"chunks of {chunk}",
                    details=harness.milliseconds(timings),
                )
            )
        work = work_of_a_product(make, problem, chunk)
        by_operations, by_bytes = work.operations / peak.operations, work.bytes / peak.bytes
        rows.append(
            Row(
                f"{name} / floor: {problem.label}",
                timings[name].median / max(by_operations, by_bytes),
                note=f"{1e3 * timings[name].median:.1f} ms; {work.operations / 1e9:.0f} Gflop take "
                f"{1e3 * by_operations:.1f} ms at {peak.operations / 1e12:.2f} Tflop/s; "
                f"{work.bytes / 1e9:.1f} GB take {1e3 * by_bytes:.1f} ms at "
                f"{peak.bytes / 1e9:.0f} GB/s",
            )
        )
    return rows


THREE_PASSES = "BF16_BF16_F32_X3"  # an algorithm of matrix products, not of convolutions


def truth(problem: problems.Problem, measured: Any, tol: float) -> float:
    """a or s in float64 on the CPU."""
    wide = lambda x: (  # noqa: E731
        np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x)
    )
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        loss, params, data = jax.tree.map(
            lambda x: jnp.asarray(wide(x)), (problem.loss, problem.params, problem.data)
        )
        result = measured(loss, params, data, key=jax.random.key(1), tol=tol, max_matvecs=500)
    return float(result.value)


def precision_rows(
    problem: problems.Problem, names: Sequence[str], measures: Mapping[str, Any], rounds: int
) -> list[Row]:
    """Seconds of a certified solve by precision, with the interval beside the float64 truth."""
    rows = []
    for symbol, measured in measures.items():
        exact = truth(problem, measured, 1e-6)

        def solve(name: str, measured: Any = measured) -> Any:
            ours = name in ("default", "high", "highest")
            with jax.default_matmul_precision("highest" if ours else name):
                return measured(
                    problem.loss,
                    problem.params,
                    problem.data,
                    key=jax.random.key(0),
                    precision=name if ours else None,
                )

        timings = harness.time_in_turn(
            {name: functools.partial(solve, name) for name in names}, rounds=rounds
        )
        for name in names:
            found = solve(name)
            low, high = map(float, found.interval)
            rows.append(
                Row(
                    f"{symbol}, {name}: {problem.label}",
                    timings[name].median,
                    unit="s",
                    note=f"{float(found.value):.7g} in [{low:.7g}, {high:.7g}], float64 {exact:.7g}"
                    f" ({'inside' if low <= exact <= high else 'OUTSIDE'}); error "
                    f"{abs(float(found.value) - exact) / exact:.1e}; {int(found.matvecs)} products "
                    f"and {int(found.rounding.checks)} in full, unit roundoff "
                    f"{float(found.rounding.unit):.1e}; "
                    f"{'' if found.converged else 'not '}converged",
                    details={"inside": low <= exact <= high, "float64": exact},
                )
            )
    return rows


def run(settings: argparse.Namespace) -> list[Row]:
    """FNN at n = 60,000 and ResNet-14 at n = 50,000; tiny shapes run anywhere."""
    tiny = settings.size == "tiny"
    if jax.default_backend() == "cpu" and not tiny:
        print("bench_accelerator: no accelerator here, nothing measured")
        return []
    peak = measure_peak(tiny)
    rounds = 2 if tiny else harness.ROUNDS
    n_fnn, chunk_fnn = (16, 8) if tiny else (60_000, 10_000)
    # At the tiny size nothing is claimed.
    fnn = {} if tiny else {"second moment": 1.0, "variance": 1.5}
    resnet = {"second moment": 1.5, "variance": 2.0}
    rows = rows_of(problems.fnn(n_fnn, tiny=tiny), chunk_fnn, peak, rounds, fnn)
    small = problems.trained(
        problems.fnn(16 if tiny else 1000, tiny=tiny), steps=5 if tiny else 300
    )
    if tiny:
        rows += precision_rows(small, ("default",), {"a": js.sharpness}, rounds)
    else:
        names, both = ("default", "high", "highest"), {"a": js.sharpness, "s": js.nonuniformity}
        rows += precision_rows(small, (*names, THREE_PASSES), both, rounds)
        for make, n in ((problems.vgg, 1000), (problems.resnet14, 50)):
            rows += precision_rows(problems.trained(make(n)), names, both, rounds)
        rows += rows_of(problems.resnet14(50_000), 2_500, peak, rounds, resnet)
    return rows


if __name__ == "__main__":
    harness.main("bench_accelerator", run)
