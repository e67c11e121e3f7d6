"""Second moment and Σ against one Hessian-vector product."""

import argparse
import functools
from typing import Any, NamedTuple

import jaxstab as js
from benchmarks import harness, problems
from benchmarks.harness import Row

# Matrix products per layer: the floor of each by the count of operations.
UNITS = {"HVP": 9, "HVP linearised once": 6, "second moment": 8, "variance": 12}


class Case(NamedTuple):
    """One problem, products per run, and the bounds on its two ratios."""

    problem: problems.Problem
    products: int
    second_moment: float
    variance: float


def cases(size: str) -> list[Case]:
    """ResNet-14 takes n = 50 in the small set: 1,000 examples take minutes on two cores."""
    tiny = size == "tiny"
    n = {"tiny": 12, "small": 1000, "full": 1000}[size]
    products = 2 if tiny else 10
    made = [
        Case(problems.fnn(n, tiny=tiny), products, 1.0, 1.5),
        Case(problems.vgg(n, tiny=tiny), products, 1.5, 2.0),
    ]
    if not tiny:  # it takes a minute to compile
        made.append(Case(problems.resnet14(50 if size == "small" else n), products, 1.5, 2.0))
    return made


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
    # The floor is the usual product, jvp of grad, made whole each time, in the faster of its two
    # forms: on CPU, XLA compiles convolutions inside loops worse than outside, and a ratio to a
    # slow floor would say nothing. "HVP, run" keeps the linearisation, as the others do.
    floor = min(
        (timings["HVP, single"], timings["plain HVP, run"]), key=lambda timing: timing.median
    )
    rows = [
        Row(
            f"HVP linearised once / HVP, run: {case.problem.label}",
            harness.ratio(timings["HVP, run"], floor),
            note=f"{1e3 * timings['HVP, run'].median:.0f} ms / {1e3 * floor.median:.0f} ms",
        )
    ]
    for name, bound in (("second moment", case.second_moment), ("variance", case.variance)):
        for way in ("run", "single"):
            rows.append(
                Row(
                    f"{name} / HVP, {way}: {case.problem.label}",
                    harness.ratio(timings[f"{name}, {way}"], floor),
                    at_most=bound if way == "run" else None,
                    note=f"{1e3 * timings[f'{name}, {way}'].median:.0f} ms / "
                    f"{1e3 * floor.median:.0f} ms"
                    + (f", {case.products} products a run" if way == "run" else ""),
                    details=harness.milliseconds(timings),
                )
            )
    return rows + floor_rows(case.problem.label, timings, floor)


def floor_rows(label: str, timings: dict[str, Any], hvp: harness.Timing) -> list[Row]:
    """Time of each product over what its operations would take at the speed of the fastest unit.

    A unit is one matrix product per layer. The best rate that any of the four reached
    stands for the speed of the machine: 1 is the floor.
    """
    found = {
        "HVP": hvp,
        "HVP linearised once": timings["HVP, run"],
        "second moment": timings["second moment, run"],
        "variance": timings["variance, run"],
    }
    unit = min(timing.median / UNITS[name] for name, timing in found.items())
    return [
        Row(
            f"{name} / its floor of {UNITS[name]} units: {label}",
            timing.median / (UNITS[name] * unit),
            note=f"{1e3 * timing.median:.1f} ms / {UNITS[name]} × {1e3 * unit:.2f} ms",
        )
        for name, timing in found.items()
    ]


def run(settings: argparse.Namespace) -> list[Row]:
    """Second moment and variance against one HVP, per product in a run and in single calls."""
    rounds = 2 if settings.size == "tiny" else harness.ROUNDS
    return [row for case in cases(settings.size) for row in measure(case, rounds)]


if __name__ == "__main__":
    harness.main("bench_operators", run)
