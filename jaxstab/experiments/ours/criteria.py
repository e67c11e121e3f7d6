"""Which notion of stability governs SGD? Predictions at minima, then SGD and its linearisation.

From minima of SGD and of gradient descent runs start at learning rates around the thresholds.
Eight criteria say of each whether it stays; they are written to disk before the first step. Three
things can be asked of what follows, and a criterion may be right about one and wrong about another:

- mean square: does E |x|² of linearised SGD grow? (simulated by resampled populations of runs)
- typical run: does linearised SGD, on the batches of this run, end far above its start?
- network: does SGD on the network leave?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, product
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd

import jaxstab as js
from jaxstab import files, sweeps
from jaxstab.experiments import problems
from jaxstab.experiments.ours import judgement
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import (
    TINY,
    MeasureSettings,
    ProblemSettings,
    StopSettings,
    numbers_for,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.operators import output_factors
from jaxstab.stability import output_runs, variance_factor

SLACK = 1e-3  # relative: what float32 does to the bounds that have no interval of their own
FLATTER = 0.1  # share of sharpness by which an end has to be lower to be another minimum


@dataclass(frozen=True)
class Settings(MeasureSettings, StopSettings, ProblemSettings):
    """Starts, learning rates around their thresholds, and runs."""

    n_train: int = setting(100, "number of training examples n")
    loss_tolerance: float = setting(1e-6, "a minimum is reached below this training loss")
    start_learning_rate: float = setting(1.0, "learning rate of the runs that find the starts")
    start_batch_size: int = setting(4, "batch size of those that are no gradient descent")
    starts: int = setting(3, "starts of SGD, and as many of gradient descent")
    batch_sizes: tuple[int | str, ...] = setting(
        (2, 8, "n"), "batch sizes from there on; n is the whole training set", parse_batch_size
    )
    multiples: tuple[float, ...] = setting(
        (0.6, 0.8, 0.95, 1.05, 1.25, 1.6, 2.2), "learning rates, over the mean-square threshold"
    )
    seeds: int = setting(2, "runs of SGD for each of these")
    steps: int = setting(1000, "steps of a run")
    every: int = setting(10, "steps between looks at the loss")
    escape_factor: float = setting(10.0, "growth of the loss at which a run has left")
    chains: int = setting(128, "runs in a population at B = 1; as many over B otherwise")
    populations: int = setting(4, "independent populations")
    rate_steps: int = setting(200, "steps of a population")
    threshold_tol: float = setting(1e-2, "change at which the exact threshold has converged")


@dataclass(frozen=True, eq=False)
class Start:
    """A minimum to start from."""

    name: str
    kind: str
    problem: Problem
    params: Any

    @property
    def given(self) -> tuple[Any, Any, Any]:
        """Loss, parameters and training set."""
        return self.problem.loss, self.params, self.problem.train

    @cached_property
    def factors(self) -> jax.Array:
        """F in the span of its rows; found once for all batch sizes."""
        return output_runs.reduced_factors(output_factors(*self.given))


def run(settings: Settings, context: Context) -> Outcome:
    """Finds the starts, predicts, writes the predictions, runs, and compares."""
    problem = problems.load(settings, context.data_dir)
    if settings.loss != "squared":
        raise ValueError(f"criteria are about the squared loss, got loss {settings.loss!r}")
    sizes = numbers_for(settings.batch_sizes, problem.n)
    starts = find_starts(settings, problem, context)
    steps = {f"predict-{start.name}": partial(predict, settings, start, sizes) for start in starts}
    told = list(chain.from_iterable(context.remember_all(steps)))
    files.write_json(context.out / "predictions.json", told)  # before any of the runs
    own = {
        (start, size): [
            row for row in told if (row["start"], row["batch_size"]) == (start.name, size)
        ]
        for start, size in product(starts, sizes)
    }
    steps = {
        f"run-{start.name}-B{size}": partial(observe, settings, start, rows)
        for (start, size), rows in own.items()
    }
    seen = list(chain.from_iterable(context.remember_all(steps)))
    factor = settings.escape_factor
    rows = judgement.judge(pd.DataFrame(told), pd.DataFrame(seen), escape_factor=factor)
    return Outcome(
        rows=rows,
        tables=judgement.tables(rows),
        claims=judgement.claims(rows),
        figures={"criteria": judgement.draw(rows)},
        notes=[judgement.conclusion(rows)],
    )


def find_starts(settings: Settings, problem: Problem, context: Context) -> list[Start]:
    """Minima of SGD and of gradient descent; no two share an initialisation."""
    found, count = [], len(seed_range(settings.starts, "starts"))
    for index, (kind, size) in enumerate((("SGD", settings.start_batch_size), ("GD", problem.n))):
        context.progress(0, 1, f"{kind} from {count} initialisations")
        result = sweeps.sweep(
            problem.loss,
            problem.init,
            problem.train,
            optimizer=optax.sgd,
            learning_rates=[settings.start_learning_rate],
            batch_sizes=[size],
            seeds=[index * count + seed for seed in range(count)],
            max_steps=settings.max_steps,
            loss_tolerance=settings.loss_tolerance,
            measure=False,
            out=context.out / "starts" / kind,
        )
        for record in result.records:
            if record["status"] == "converged":
                name = f"{kind}-{record['seed']}"
                found.append(Start(name, kind, problem, result.load_params(record)))
    if not found:
        raise ValueError(
            "no run reached the loss tolerance, so there is no minimum to start from: give a "
            "larger loss_tolerance or max_steps"
        )
    return found


def predict(settings: Settings, start: Start, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """What each criterion says at each batch size and learning rate; nothing is run yet.

    A criterion that is a threshold on η has an interval (`_lower`, `_upper`); the exponent has a
    value with an interval at the learning rate in question.
    """
    given, n = start.given, start.problem.n
    keys = jax.random.split(jax.random.key(0), 3)
    box = js.measure(*given, key=keys[0], **settings.measuring)
    exact = js.mean_square_threshold(
        *given, batch_sizes=sizes, key=keys[1], tol=settings.threshold_tol
    )
    a, s = box.sharpness, box.nonuniformity
    spent: dict[str, Any] = {"edge": a.matvecs, "eq9": a.matvecs + s.matvecs, "sharpest": a.matvecs}
    spent |= {"eq8": exact.bound_products, "mean_square": exact.products}
    rows = []
    for i, size in enumerate(sizes):
        root = np.sqrt(variance_factor(n, size))
        ends: dict[str, tuple[float, float]] = {
            "edge": (2 / float(a.interval.upper), 2 / float(a.interval.lower)),
            "mean_square": (float(exact.interval.lower[i]), float(exact.interval.upper[i])),
        }
        of_s = [1 / max(root * float(x), 1e-12) for x in (s.interval.upper, s.interval.lower)]
        ends["eq9"] = min(ends["edge"][0], of_s[0]), min(ends["edge"][1], of_s[1])
        for name, bound in (("sharpest", "sharpest example"), ("eq8", "eq. 8"),
                            ("eq27", "eq. 27"), ("eq17", "eq. 17")):  # fmt: skip
            value = float(exact.bounds[bound][i])
            ends[name] = value * (1 - SLACK), value * (1 + SLACK)
        etas = [float(multiple * exact.value[i]) for multiple in sorted(settings.multiples)]
        typical = output_runs.growth_rates(
            start.factors, learning_rates=etas, batch_size=size, chains=1, populations=16,
            steps=2 * settings.rate_steps, key=keys[2],
        )  # fmt: skip
        spent["almost_sure"] = 16 * 2 * settings.rate_steps * size // n * len(etas)
        for j, eta in enumerate(etas):
            half = 3 * float(typical.standard_error[j]) + typical.resolution
            row = {"start": start.name, "kind": start.kind, "n": n, "batch_size": size}
            row |= {"sharpness": float(a.value), "nonuniformity": float(s.value)}
            row |= {"learning_rate": eta, "multiple": sorted(settings.multiples)[j]}
            row |= {"threshold": float(exact.value[i]), "converged": bool(exact.converged[i])}
            for name, (lower, upper) in ends.items():
                row |= {f"{name}_lower": lower, f"{name}_upper": upper}
            row |= {"exponent": float(typical.value[j]) / 2, "exponent_margin": half / 2}
            row |= {"exponent_error": float(typical.standard_error[j]) / 2}
            growth = max(exact.growth(eta, size), 0.0)
            row |= {"growth": growth} | {f"{k}_products": int(v) for k, v in spent.items()}
            rows.append(row)
    return rows


def observe(
    settings: Settings, start: Start, told: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Runs from one start at one batch size: mean square, linearised SGD, and the network."""
    size, etas = told[0]["batch_size"], [row["learning_rate"] for row in told]
    n, (x, y) = start.problem.n, start.problem.train
    seeds = 1 if size == n else settings.seeds
    square = output_runs.growth_rates(
        start.factors, learning_rates=etas, batch_size=size, key=jax.random.key(1),
        chains=2 if size == n else max(settings.chains // size, 2),
        populations=settings.populations, steps=settings.rate_steps,
    )  # fmt: skip
    residual = (start.problem.loss.predict(start.params, x) - y) * np.sqrt(2 / y.shape[-1])
    keys = jax.vmap(jax.random.key)(np.arange(seeds) + 100)
    both = output_runs.run_beside(
        *start.given, start.factors, residual, learning_rates=etas, batch_size=size, keys=keys,
        steps=settings.steps, every=settings.every,
    )  # fmt: skip
    steps, rows = np.asarray(both.steps), []
    for (j, eta), seed in product(enumerate(etas), range(seeds)):
        end = jax.tree.map(lambda leaf, j=j, seed=seed: leaf[j, seed], both.params)
        loss, linear = (np.asarray(path[j, seed], float) for path in (both.loss, both.linear))
        flat = 1.0
        if np.isfinite(loss[-1]):
            of, _, data = start.given
            found = js.sharpness(of, end, data, key=jax.random.key(2), **settings.measuring)
            flat = 1 - float(found.value) / told[j]["sharpness"]
        row = {"start": start.name, "batch_size": size, "learning_rate": eta, "seed": seed}
        row |= {"rate": float(square.value[j]), "rate_sign": int(square.sign[j])}
        row |= {"rate_error": float(square.standard_error[j]), "flattening": flat}
        row |= {"rate_resolution": square.resolution, "typical": outcome(linear, settings)}
        network = outcome(loss, settings)
        if flat > FLATTER:
            network = "left"
        row |= {"network": network, "typical_steps": first_above(steps, linear, settings)}
        rows.append(row | {"network_steps": first_above(steps, loss, settings)})
    return rows


def outcome(loss: np.ndarray, settings: Settings) -> str:
    """ "left" if it ends high or not finite, "burst" if it came back from there, or "stayed"."""
    above = ~(loss <= settings.escape_factor * loss[0])
    return "left" if above[-1] else "burst" if above.any() else "stayed"


def first_above(steps: np.ndarray, loss: np.ndarray, settings: Settings) -> float | None:
    """The first step at which the loss had grown by the factor; None if it never had."""
    above = ~(loss <= settings.escape_factor * loss[0])
    return float(steps[np.argmax(above)]) if above.any() else None


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="fashion_mnist", model="fnn", n_train=500, starts=10, batch_sizes=(1, 4, 16, "n"),
        start_learning_rate=0.1, max_steps=400_000, chains=1024, rate_steps=400, steps=4000,
    ),
    "tiny": Settings(
        **TINY, starts=1, start_batch_size=10, batch_sizes=(10,), multiples=(0.5, 2.0), seeds=1,
        steps=100, chains=160, populations=2, rate_steps=80, threshold_tol=0.1,
    ),
}  # fmt: skip
