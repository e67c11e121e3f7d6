"""Second moment and Σ against one Hessian-vector product, and against the floor of each.

The floor is the count of matrix products per layer: a product by jvp of grad takes 9, one whose
linearisation is kept 6, (1/n) Σ H_i² 8, Σ 12.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row
from jaxstab.checks import check_name

# Matrix products per layer.
UNITS = {"HVP": 9, "HVP linearised once": 6, "second moment": 8, "variance": 12}


class Case(NamedTuple):
    """One problem, products per run, and the aims of its two ratios to the faster HVP."""

    problem: problems.Problem
    products: int
    second_moment: float
    variance: float


def cases(size: str, only: str | None = None) -> list[Case]:
    """ResNet-14 takes n = 50 in the small set: 1,000 examples take minutes on two cores.

    The FNN is to be within 5 % of the operation counts, 8/6 and 12/6.
    """
    tiny = size == "tiny"
    n = 12 if tiny else 1000
    products = 2 if tiny else 10
    made = {
        "FNN": lambda: Case(problems.fnn(n, tiny=tiny), products, 1.05 * 8 / 6, 1.05 * 12 / 6),
        "VGG": lambda: Case(problems.vgg(n, tiny=tiny), products, 1.5, 1.8),
        "ResNet-14": lambda: Case(
            problems.resnet14(50 if size == "small" else n), products, 1.5, 2.0
        ),
    }
    if tiny:  # ResNet-14 takes a minute to compile
        del made["ResNet-14"]
    if only is not None:
        check_name("only", only, tuple(made))
    return [make() for name, make in made.items() if only in (None, name)]


def operators(problem: problems.Problem) -> dict[str, Any]:
    """The three operators whose products are compared."""
    arguments = (problem.loss, problem.params, problem.data)
    return {
        "HVP": js.hessian(*arguments),
        "second moment": js.hessian_second_moment(*arguments),
        "variance": js.hessian_variance(*arguments),
    }


def measure(case: Case, rounds: int) -> list[Row]:
    """Single calls and runs of all operators of one problem, in turn."""
    v = harness.random_like(case.problem.params)
    made = operators(case.problem)
    calls: dict[str, Any] = {
        "plain HVP, run": functools.partial(
            harness.run_of_products, made["HVP"], v, products=case.products, keep=False
        )
    }
    for name, operator in made.items():
        calls[name + ", single"] = functools.partial(harness.single_product, operator, v)
        calls[name + ", run"] = functools.partial(
            harness.run_of_products, operator, v, products=case.products
        )
    timings = harness.time_in_turn(calls, rounds=rounds)
    for name in timings:
        if name.endswith("run"):
            timings[name] = timings[name].per(case.products)
    # XLA takes what does not change out of a loop, so that a run of plain products can be as fast
    # as one that keeps the linearisation; and it compiles convolutions inside loops worse.
    ways = ("HVP, single", "plain HVP, run", "HVP, run")
    fastest = min((timings[way] for way in ways), key=lambda timing: timing.median)
    rows = []
    for name, bound in (("second moment", case.second_moment), ("variance", case.variance)):
        for way in ("run", "single"):
            mine = timings[f"{name}, {way}"]
            rows.append(
                Row(
                    f"{name} / the faster HVP, {way}: {case.problem.label}",
                    harness.ratio(mine, fastest),
                    at_most=bound if way == "run" else None,
                    note=f"{1e3 * mine.median:.0f} ms / {1e3 * fastest.median:.0f} ms"
                    + (f", {case.products} products a run" if way == "run" else ""),
                    details=harness.milliseconds(timings),
                )
            )
    return rows + floor_rows(case.problem.label, harness.milliseconds(timings))


def floor_rows(label: str, milliseconds: dict[str, float]) -> list[Row]:
    """Time of each product over what its operations would take at the speed of the fastest unit.

    A unit is one matrix product per layer. The best rate that any of the four reached
    stands for the speed of the machine: 1 is the floor.
    """
    taken = {"HVP": "HVP, single", "HVP linearised once": "HVP, run"}
    taken |= {name: f"{name}, run" for name in ("second moment", "variance")}
    found = {name: milliseconds[f"{way} (ms)"] for name, way in taken.items()}
    unit = min(time / UNITS[name] for name, time in found.items())
    return [
        Row(
            f"{name} / its floor of {UNITS[name]} units: {label}",
            time / (UNITS[name] * unit),
            note=f"{time:.1f} ms / {UNITS[name]} × {unit:.2f} ms",
        )
        for name, time in found.items()
    ]


def run(settings: argparse.Namespace) -> list[Row]:
    """Second moment and variance against one HVP, per product in a run and in single calls."""
    rounds = 2 if settings.size == "tiny" else harness.ROUNDS
    return [row for case in cases(settings.size, settings.only) for row in measure(case, rounds)]


if __name__ == "__main__":
    harness.main("bench_operators", run)
