"""Against the protocol of the 2018 paper: one example's Hessian at a time, in PyTorch."""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxstab as js
from benchmarks import harness, peering, problems
from benchmarks.harness import Row, Timing

STEPS = 50  # the protocol's limit on power steps
TOLERANCE = 1e-3  # and its stopping rule, a relative change of the value


class Case(NamedTuple):
    """One problem, what is timed of it, and the bound on 2018 step / Σ-product."""

    problem: problems.Problem
    products: int
    examples: int
    step: float


def cases(size: str) -> list[Case]:
    """The two networks of the paper at its n = 1,000."""
    tiny = size == "tiny"
    n, examples = (12, 4) if tiny else (1000, 50 if size == "small" else 1000)
    on_cpu = jax.default_backend() == "cpu"
    steps = 20 if tiny else 300
    fnn = problems.trained(problems.fnn(n, tiny=tiny), steps=steps)
    made = [Case(fnn, 2 if tiny else 10, examples, 100.0 if on_cpu else 1000.0)]
    if not tiny:
        made.append(Case(problems.trained(problems.vgg(n), steps=steps), 4, examples, 8.0))
    return made


def protocol(case: Case, v: Any, rounds: int, python: str | None) -> dict[str, Any]:
    """Times the protocol, and hands it our product over its examples to compare with."""
    problem = case.problem
    some = jax.tree.map(lambda leaf: leaf[: case.examples], problem.data)
    ours = js.hessian_second_moment(problem.loss, problem.params, some)(v)
    return peering.ask(
        "protocol2018",
        problem,
        python=python,
        v=peering.flat_vector(problem, v),
        reference=peering.flat_vector(problem, ours),
        examples=case.examples,
        rounds=rounds,
    )


def step_row(case: Case, product: Timing, peer: dict[str, Any]) -> Row:
    """One power step of the protocol over one Σ-product."""
    return Row(
        f"2018 power step (PyTorch) / variance product: {case.problem.label}",
        peer["seconds_step"] / product.median,
        at_least=case.step,
        note=f"{peer['seconds_step']:.2f} s / {1e3 * product.median:.0f} ms; "
        f"{peer['examples']} of {case.problem.n} examples timed; {case.products} products a run; "
        f"the two agree to {peer['relative_difference']:.0e}",
        details=peer,
    )


def power_steps(operator: Any, v: Any) -> tuple[int, float]:
    """Returns the power steps of the protocol until its value changes by less than 1e-3."""
    product = functools.partial(harness.single_product, operator)
    value, steps = 0.0, 0
    while steps < STEPS:
        w = product(v)
        new = float(sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (v, w)))))
        norm = jnp.sqrt(sum(jnp.vdot(a, a) for a in jax.tree.leaves(w)))
        v = jax.tree.map(lambda leaf, norm=norm: leaf / norm, w)
        steps += 1
        if abs(new - value) < TOLERANCE * abs(new):
            return steps, new
        value = new
    return steps, value


def certified_row(case: Case, peer: dict[str, Any], rounds: int, bound: float | None) -> Row:
    """a and s, certified, against the seconds that the protocol takes for as many steps.

    Its steps are counted with our operators (same numbers, less time); its seconds are the measured
    ones of a step.
    """
    problem = case.problem
    arguments = (problem.loss, problem.params, problem.data)
    keys = jax.random.split(jax.random.key(3))

    def ours() -> tuple[Any, Any]:
        return (
            js.sharpness(*arguments, key=keys[0], tol=TOLERANCE),
            js.nonuniformity(*arguments, key=keys[1], tol=TOLERANCE),
        )

    timing = harness.time_in_turn({"a and s": ours}, rounds=rounds)["a and s"]
    a, s = ours()
    v = harness.random_like(problem.params, seed=4)
    steps_a, power_a = power_steps(js.hessian(*arguments), v)
    steps_s, power_s = power_steps(js.hessian_variance(*arguments), v)
    seconds = steps_a * peer["seconds_hvp"] + steps_s * peer["seconds_step"]
    certified = bool(a.converged) and bool(s.converged)
    return Row(
        f"a and s: 2018 protocol / certified to 1e-3: {problem.label}",
        seconds / timing.median,
        at_least=bound,
        note=f"{seconds:.1f} s ({steps_a} + {steps_s} power steps, at the measured time of one) / "
        f"{timing.median:.2f} s ({int(a.matvecs)} + {int(s.matvecs)} products, "
        f"{'' if certified else 'NOT '}certified)",
        details={
            "a": float(a.value),
            "a of the protocol": power_a,
            "s": float(s.value),
            "s of the protocol": max(power_s, 0.0) ** 0.5,
            "certified": certified,
        },
    )


def run(settings: argparse.Namespace) -> list[Row]:
    """One Σ-product, and a and s altogether, against the protocol of 2018 in PyTorch."""
    rounds = 2 if settings.size == "tiny" else harness.ROUNDS
    rows = []
    for case in cases(settings.size):
        problem = case.problem
        v = harness.random_like(problem.params)
        operator = js.hessian_variance(problem.loss, problem.params, problem.data)
        call = functools.partial(harness.run_of_products, operator, v, products=case.products)
        # Half of our rounds before the other process and half after it: the machine may drift.
        before = harness.time_in_turn({"run": call}, rounds=rounds)["run"]
        peer = protocol(case, v, rounds, settings.peers)
        after = harness.time_in_turn({"run": call}, rounds=rounds)["run"]
        product = Timing(before.rounds + after.rounds).per(case.products)
        rows.append(step_row(case, product, peer))
        fnn = problem.name == "FNN"
        rows.append(certified_row(case, peer, min(rounds, 3), 150.0 if fnn else None))
    return rows


if __name__ == "__main__":
    harness.main("bench_protocol", run)
