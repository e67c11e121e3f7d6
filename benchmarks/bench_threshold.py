"""The exact mean-square threshold of large networks, and λ_max of every example's full Hessian."""

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row
from jaxstab import data, losses, models

BATCH_SIZES = (4, 16, 64, 256)
NETWORKS = {"FNN": problems.fnn, "VGG": problems.vgg}
LONGEST = 600  # seconds on two cores: minutes, as one waits for a number


def threshold(name: str, *, tiny: bool = False) -> dict[str, Any]:
    """Thresholds of one network after 300 steps of SGD, all batch sizes in one call, from cold."""
    n, sizes = (24, (4, 16)) if tiny else (1000, BATCH_SIZES)
    problem = problems.trained(NETWORKS[name](n, tiny=tiny), steps=20 if tiny else 300)
    arguments = (problem.loss, problem.params, problem.data)
    wall, cpu = time.perf_counter(), time.process_time()
    options: dict[str, Any] = {"tol": 0.1, "max_rank": 40} if tiny else {}
    found = js.mean_square_threshold(
        *arguments, batch_sizes=sizes, key=jax.random.key(0), **options
    )
    spent = time.perf_counter() - wall, time.process_time() - cpu
    hvp = functools.partial(js.hessian(*arguments), harness.random_like(problem.params))
    return {
        "label": problem.label,
        "loss": float(jnp.mean(jax.vmap(problem.loss, (None, 0))(*arguments[1:]))),
        "seconds": spent[0],
        "cpu_seconds": spent[1],
        "hvp_seconds": harness.time_in_turn({"HVP": hvp})["HVP"].median,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "rank": found.rank,
        "products": found.products,
        "batch_sizes": list(sizes),
        "value": found.value.tolist(),
        "lower": found.interval.lower.tolist(),
        "upper": found.interval.upper.tolist(),
        "converged": found.converged.tolist(),
        "bounds": {name: bound.tolist() for name, bound in found.bounds.items()},
    }


def in_own_process(name: str) -> dict[str, Any]:
    """The same in a process of its own, whose peak memory is then that of this network."""
    command = [sys.executable, "-m", "benchmarks.bench_threshold", "--network", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def threshold_row(found: dict[str, Any]) -> Row:
    """One line: seconds, and what came out for every batch size."""
    each = [
        f"B = {size}: {value:.4g} in [{lower:.4g}, {upper:.4g}]{'' if done else ' NOT CONVERGED'}"
        for size, value, lower, upper, done in zip(
            *(found[name] for name in ("batch_sizes", "value", "lower", "upper", "converged")),
            strict=True,
        )
    ]
    spent = (
        f"{found['cpu_seconds']:.0f} CPU s, {found['peak_bytes'] / 1e9:.1f} GB at the peak, rank "
        f"{found['rank']}, {found['products']} products, as long as "
        f"{found['seconds'] / found['hvp_seconds']:.0f} Hessian-vector products"
    )
    return Row(
        f"η*_var, all B in one call, compilation included: {found['label']}",
        found["seconds"],
        unit="s",
        at_most=LONGEST,
        note="; ".join([*each, spent]),
        details=found,
    )


def digits(*, tiny: bool) -> problems.Problem:
    """64-100-100-10 on 1,000 of the embedded digits, trained."""
    train = data.load("digits", n_train=16 if tiny else 1000).train
    model = models.fnn((8,) if tiny else (100, 100))
    params = models.initialize(model, jax.random.key(1), train[0][0])
    problem = problems.Problem("digits FNN", losses.ModelLoss(model), params, train)
    return problems.trained(problem, steps=20 if tiny else 2000, rate=0.5)


def example_row(*, tiny: bool) -> Row:
    """λ_max of every full H_i, certified: its price in HVPs, and the products that it took."""
    problem = digits(tiny=tiny)
    arguments = (problem.loss, problem.params, problem.data)
    solver = js.eigen.lanczos(tol=1e-3, failure_probability=1e-3 / problem.n)
    solve = functools.partial(
        js.operators.per_example_sharpness, *arguments, solver=solver, key=jax.random.key(0)
    )
    # On its own: beside a solve it would find the caches full of bases.
    operator, v = js.hessian(*arguments), harness.random_like(problem.params)
    hvp = harness.time_in_turn({"HVP": functools.partial(harness.single_product, operator, v)})
    found = solve()
    timing = harness.time_in_turn({"all": solve}, rounds=2 if tiny else 3)["all"]
    ratio = timing.median / hvp["HVP"].median
    spent, value = np.asarray(found.matvecs), np.asarray(found.value)
    closed = np.asarray(js.operators.per_example_sharpness(*arguments))
    typical, most = np.median(np.abs(closed / value - 1)), np.max(np.abs(closed - value))
    return Row(
        f"λ_max of every full H_i / one HVP: {problem.label}",
        ratio,
        note=f"{timing.median:.2f} s; {spent.min()} to {spent.max()} products, "
        f"{np.median(spent):.0f} in the median, as long as {ratio / spent.max():.2g} HVPs each; "
        f"{int(np.sum(found.converged))} of {problem.n} certified to 1e-3; Gauss–Newton is off by "
        f"{typical:.1%} in the median, at most by {most / value.max():.1%} of the largest",
        details=harness.milliseconds({"all": timing, **hvp}),
    )


def run(settings: argparse.Namespace) -> list[Row]:
    """Seconds, memory and intervals of η*_var of the FNN and the VGG at n = 1,000."""
    tiny = settings.size == "tiny"
    find = functools.partial(threshold, tiny=True) if tiny else in_own_process
    names = ["FNN"] if tiny else NETWORKS
    return [*(threshold_row(find(name)) for name in names), example_row(tiny=tiny)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--network"]:
        print(json.dumps(threshold(sys.argv[2])))
    else:
        harness.main("bench_threshold", run)
