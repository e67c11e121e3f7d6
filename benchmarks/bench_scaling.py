"""Time of one Σ-product against n: linear to n = 60,000, and the figure of the README."""

import argparse
import functools
from pathlib import Path
from typing import Any

import matplotlib.figure

import jaxstab as js
from benchmarks import harness, peering, problems
from benchmarks.harness import Row

CHUNK = 1000
PRODUCTS = 3


def product_times(n: int, methods: dict[str, int | None], tiny: bool, rounds: int) -> Any:
    """Timings of single calls of the named operators at one n."""
    problem = problems.fnn(n, tiny=tiny)
    arguments = (problem.loss, problem.params, problem.data)
    chunk = None if n <= CHUNK else CHUNK
    v = harness.random_like(problem.params)
    made = {
        "HVP": lambda: js.hessian(*arguments, chunk_size=chunk),
        "factored": lambda: js.hessian_variance(*arguments, chunk_size=chunk),
        "vmap": lambda: js.hessian_variance(*arguments, method="vmap"),
    }
    calls = {
        name: functools.partial(harness.single_product, made[name](), v)
        for name, limit in methods.items()
        if limit is None or n <= limit
    }
    return harness.time_in_turn(calls, rounds=rounds)


def run_times(sizes: tuple[int, int], tiny: bool) -> dict[int, Any]:
    """Timings per product at two n, in a run of products that keeps the linearisation."""
    calls = {}
    for n in sizes:
        problem = problems.fnn(n, tiny=tiny)
        operator = js.hessian_variance(
            problem.loss, problem.params, problem.data, chunk_size=min(n, CHUNK)
        )
        v = harness.random_like(problem.params)
        calls[n] = functools.partial(harness.run_of_products, operator, v, products=PRODUCTS)
    timings = harness.time_in_turn(calls, rounds=3)
    return {n: timing.per(PRODUCTS) for n, timing in timings.items()}


def protocol_seconds(n: int, tiny: bool, python: str | None) -> tuple[float, int]:
    """Seconds per example of the 2018 protocol in PyTorch, and the examples timed."""
    problem = problems.fnn(n, tiny=tiny)
    v = harness.random_like(problem.params)
    ours = js.hessian_second_moment(problem.loss, problem.params, problem.data)(v)
    peer = peering.ask(
        "protocol2018",
        problem,
        python=python,
        v=peering.flat_vector(problem, v),
        reference=peering.flat_vector(problem, ours),
        examples=n,
        rounds=3,
    )
    return peer["seconds_per_example"], n


def figure(times: dict[str, dict[int, float]], scaled: dict[str, float], label: str) -> Any:
    """Log-log curves; dashed where the time of fewer examples is scaled."""
    drawn = matplotlib.figure.Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawn.add_subplot()
    sizes = sorted(times["HVP"])
    styles = {
        "2018": ("2018 protocol (PyTorch, one example at a time)", "#b2182b", "s"),
        "vmap": ("vmap of the definition", "#e08214", "^"),
        "factored": ("jaxstab", "#2166ac", "o"),
        "HVP": ("one Hessian-vector product (the floor)", "#555555", "."),
    }
    for name, (text, colour, marker) in styles.items():
        measured = times.get(name)
        if not measured:
            continue
        x = sorted(measured)
        axes.loglog(x, [measured[n] for n in x], marker=marker, color=colour, label=text)
        if name in scaled:
            rest = [n for n in sizes if n >= x[-1]]
            axes.loglog(rest, [scaled[name] * n for n in rest], "--", color=colour, linewidth=1)
    axes.set_xlabel("examples n")
    axes.set_ylabel("seconds per product v ↦ Σv")
    axes.set_title(f"Cost of one product with Σ = (1/n)ΣH_i² − H²\n{label}", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return drawn


def run(settings: argparse.Namespace) -> list[Row]:
    """Single calls at growing n, in chunks of 1,000, against the vmapped definition and 2018's."""
    tiny = settings.size == "tiny"
    sizes = (4, 8, 16) if tiny else (10, 100, 1000, 10_000, 60_000)
    vmap_limit = 8 if tiny else {"small": 100, "full": 1000}[settings.size]
    times: dict[str, dict[int, float]] = {}
    for n in sizes:
        rounds = 3 if n > CHUNK or tiny else harness.ROUNDS
        methods = {"HVP": None, "factored": None, "vmap": vmap_limit}
        for name, timing in product_times(n, methods, tiny, rounds).items():
            times.setdefault(name, {})[n] = timing.median
    scaled = {"vmap": times["vmap"][max(times["vmap"])] / max(times["vmap"])}
    try:
        for n in sizes[:2]:
            per_example, _ = protocol_seconds(n, tiny, settings.peers)
            times.setdefault("2018", {})[n] = per_example * n
        scaled["2018"] = per_example
    except peering.NoPeersError as error:
        print(error)
    base, last = (4, 16) if tiny else (1000, 60_000)
    label = f"FNN, {problems.fnn(1, tiny=tiny).size:,} parameters, float32"
    path = Path(settings.out) / "sigma_product_cost.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure(times, scaled, label).savefig(path, dpi=150)
    factored = times["factored"]
    runs = run_times((base, last), tiny)
    return [
        Row(
            f"variance product in a run, n = {last:,} / {last // base} × that of n = {base:,}: "
            f"{label}",
            harness.ratio(runs[last], runs[base]) / (last // base),
            at_most=None if tiny else 1.05,
            note=f"{runs[last].median:.2f} s / {last // base} × {1e3 * runs[base].median:.0f} ms, "
            f"chunks of {CHUNK}, {PRODUCTS} products a run",
        ),
        Row(
            f"the same as single calls, in memory of one chunk: {label}",
            factored[last] / (last // base * factored[base]),
            note=f"{factored[last]:.2f} s / {last // base} × {1e3 * factored[base]:.0f} ms, "
            f"single calls, chunks of {CHUNK}",
            details={"seconds": times, "seconds per example, scaled": scaled, "figure": str(path)},
        ),
        Row(
            f"the same for HVP: {label}",
            times["HVP"][last] / (last // base * times["HVP"][base]),
            note=f"{times['HVP'][last]:.2f} s / {last // base} × {1e3 * times['HVP'][base]:.0f} ms",
        ),
    ]


if __name__ == "__main__":
    harness.main("bench_scaling", run)
