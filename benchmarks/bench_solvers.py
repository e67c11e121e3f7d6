"""Sharpness to one accuracy against curvlinops + SciPy eigsh, PyHessian, hessian-eigenthings."""

import argparse
from typing import Any

import jax

import jaxstab as js
from benchmarks import harness, peering, problems
from benchmarks.harness import Row, Timing

ACCURACY = 1e-3


def compare(problem: problems.Problem, rounds: int, python: str | None) -> list[Row]:
    """Our certified solve against each library at the least effort that is accurate enough."""
    operator = js.hessian(problem.loss, problem.params, problem.data)
    key = jax.random.key(5)
    uncertified = js.eigen.lanczos(tol=ACCURACY, certify=False)

    def solves() -> dict[str, Any]:
        return {
            "certified": lambda: js.sharpness(
                problem.loss, problem.params, problem.data, key=key, tol=ACCURACY
            ),
            "not certified": lambda: uncertified(operator, problem.params, key=key),
        }

    reference = js.sharpness(
        problem.loss, problem.params, problem.data, key=key, tol=1e-4, max_matvecs=400
    )
    before = harness.time_in_turn(solves(), rounds=rounds)
    peer = peering.ask(
        "sharpness",
        problem,
        python=python,
        reference=float(reference.value),
        accuracy=ACCURACY,
        rounds=rounds,
    )
    after = harness.time_in_turn(solves(), rounds=rounds)
    ours = {name: Timing(before[name].rounds + after[name].rounds) for name in before}
    found = {name: solve() for name, solve in solves().items()}
    products = {name: int(result.matvecs) for name, result in found.items()}
    rows = []
    for name, theirs in peer["results"].items():
        for way, timing in ours.items():
            rows.append(
                Row(
                    f"{name} / sharpness, {way}: {problem.label}",
                    theirs["seconds"] / timing.median,
                    at_least=1.5 if way == "certified" else None,
                    note=f"{theirs['seconds']:.2f} s, error {theirs['relative_error']:+.0e}, at "
                    f"{theirs['dial']:g} / {timing.median:.2f} s, {products[way]} products",
                    details={**theirs, "reference": float(reference.value)},
                )
            )
    return rows


def run(settings: argparse.Namespace) -> list[Row]:
    """Largest eigenvalue of the Hessian, to 1e-3, on the two networks of the 2018 paper."""
    tiny = settings.size == "tiny"
    rounds = 2 if tiny else harness.ROUNDS
    n, steps = (12, 20) if tiny else (1000, 300)
    makes = [problems.fnn] if tiny else [problems.fnn, problems.vgg]
    rows = []
    for make in makes:
        problem = problems.trained(make(n, tiny=tiny), steps=steps)
        rows += compare(problem, rounds, settings.peers)
    return rows


if __name__ == "__main__":
    harness.main("bench_solvers", run)
