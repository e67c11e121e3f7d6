"""Minima of L-BFGS, Adam and RMSProp: how sharp, and whether GD and SGD stay (2018 paper, Fig. 9).

L-BFGS corrects every step by the curvature, so nothing keeps it from sharp minima: GD and SGD that
start there leave. For methods x ← x − η D⁻¹ ∇L the condition is λ_max(D⁻¹H) ≤ 2/η (Wu, Ma, E 2018,
section 5), with momentum 2 (1 + b1) / ((1 − b1) η) for Adam.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pandas as pd

from jaxstab import dispatch, plots, store, tracking, training
from jaxstab.checks import check_batch_size
from jaxstab.experiments import problems, starts, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.minima import SLACK
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import parse_batch_size, seed_range, setting
from jaxstab.experiments.starts import BY, Start, TrialSettings
from jaxstab.experiments.statistics import fraction, mean_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.stability import edges

MOST = 0.5  # of the runs
B1, B2, DECAY, EPS = 0.9, 0.999, 0.99, 1e-8


@dataclass(frozen=True)
class Settings(TrialSettings):
    """Settings of `lbfgs`."""

    starts: int = setting(4, "initialisations")
    gd_learning_rate: float = setting(2.0, "learning rate of the GD and SGD minima")
    sgd_batch_size: int = setting(4, "batch size of the SGD minima")
    adam_learning_rate: float = setting(1e-3, "learning rate of Adam (full batch)")
    rmsprop_learning_rate: float = setting(1e-3, "learning rate of RMSProp (full batch)")
    learning_rates: tuple[float, ...] = setting(
        (0.02, 0.2, 2.0), "learning rates of GD and SGD from the L-BFGS minimum"
    )
    batch_sizes: tuple[int | str, ...] = setting(
        (4, "n"), "their batch sizes; n is the whole training set", parse_batch_size
    )


class Method(NamedTuple):
    """An optimizer that looks for a minimum."""

    name: str
    optimizer: Any
    batch_size: int
    edge: float = np.nan
    """Largest stable eigenvalue of D⁻¹H; of H for methods without D; NaN for none."""
    diagonal: Any = None
    """Function from the state to D, where the update is D⁻¹ times the gradient."""


def methods(settings: Settings, n: int) -> list[Method]:
    """The optimizers that are compared."""
    rate, adam, rms = (
        getattr(settings, f"{name}_learning_rate") for name in ("gd", "adam", "rmsprop")
    )
    rmsprop = optax.rmsprop(rms, DECAY, EPS, eps_in_sqrt=False, bias_correction=True)
    of_adam = tracking.adam_preconditioner(b2=B2, eps=EPS)
    of_rms = tracking.rmsprop_preconditioner(decay=DECAY, eps=EPS, eps_in_sqrt=False)
    size = check_batch_size(settings.sgd_batch_size, n)
    return [
        Method("L-BFGS", optax.lbfgs(), n),
        Method("GD", optax.sgd(rate), n, edges.gradient_descent(rate)),
        Method("SGD", optax.sgd(rate), size, edges.gradient_descent(rate)),
        Method("Adam", optax.adam(adam, B1, B2, EPS), n, edges.adam(adam, B1), of_adam),
        Method("RMSProp", rmsprop, n, edges.gradient_descent(rms), of_rms),
    ]


def run(settings: Settings, context: Context) -> Outcome:
    """Finds the minima, predicts what GD and SGD do at those of L-BFGS, and runs them."""
    problem = problems.load(settings, context.data_dir)
    settings.sizes(problem.n)
    found, begin = find_minima(settings, problem, methods(settings, problem.n), context)
    outcome = starts.run_from(
        begin,
        settings,
        context,
        near=max(settings.learning_rates),
        title="Leaving a minimum of L-BFGS",
        claims=partial(claims, found),
    )
    return dataclasses.replace(
        outcome,
        rows=pd.concat([found, outcome.rows], ignore_index=True),
        tables=[table(found), *outcome.tables],
        figures={"minima": plots.optimizers(found)} | dict(outcome.figures),
    )


def find_minima(
    settings: Settings, problem: Problem, all_methods: list[Method], context: Context
) -> tuple[pd.DataFrame, list[Start]]:
    """Returns one row per minimum, and the starts: those of L-BFGS."""
    rows, begin = [], []
    tasks = [
        (method, seed) for seed in seed_range(settings.starts, "starts") for method in all_methods
    ]
    for index, (method, seed) in enumerate(tasks):
        context.progress(index, 2 * len(tasks), f"{method.name}, initialisation {seed}")
        params, diagonal, ended = _train(settings, problem, method, seed, context)
        start = starts.make_start(method.name, seed, problem, params, ended["steps"], settings)
        row: dict[str, Any] = {"optimizer": method.name, "seed": seed, "edge": method.edge} | ended
        row |= start.measurement.to_record() | dict(start.accuracies)
        value, condition = row["sharpness"], "a"
        if method.diagonal is not None:
            given = problem.loss, params, problem.train, diagonal
            top = edges.preconditioned_sharpness(
                *given, key=jax.random.key(0), **settings.measuring
            )
            value, condition = float(top.value), "λmax(D⁻¹H)"
        rows.append(row | {"condition": condition, "value": value, "ratio": value / method.edge})
        begin += [start] if method.name == "L-BFGS" else []
    return pd.DataFrame(rows), begin


def _train(
    settings: Settings, problem: Problem, method: Method, seed: int, context: Context
) -> tuple[Any, Any, dict[str, Any]]:
    """Trains to the tolerance, or reads what an earlier call found: params, D, how it ended."""
    path = context.out / "minima" / f"{method.name}-{seed}"
    init_key, batch_key = dispatch.run_keys(seed)
    initial = problem.init(init_key, 1.0)

    def compute() -> dict[str, Any]:
        run = training.train(
            problem.loss,
            initial,
            problem.train,
            optimizer=method.optimizer,
            batch_size=method.batch_size,
            key=batch_key,
            max_steps=settings.max_steps,
            loss_tolerance=settings.loss_tolerance,
        )
        if run.status is training.Status.DIVERGED:
            raise ValueError(
                f"{method.name} diverged after {run.steps} steps: give it a smaller learning rate"
            )
        diagonal = run.params if method.diagonal is None else method.diagonal(run.opt_state)
        store.replace_params(path, {"params": run.params, "diagonal": diagonal})
        return {"status": run.status.name.lower(), "steps": run.steps}

    ended = context.remember(f"{method.name}-{seed}", compute)
    held = store.load_params(path, {"params": initial, "diagonal": initial})
    return held["params"], held["diagonal"], ended


def table(found: pd.DataFrame) -> Table:
    """One line per minimum: a, s, and the optimizer's own condition against its edge."""
    columns = [Column("optimizer", "minimum of"), tables.SEED, Column("status"), tables.STEPS]
    columns += [tables.LOSS, tables.SHARPNESS, tables.NONUNIFORMITY, Column("condition")]
    columns += [Column("value", "its value"), Column("edge"), Column("ratio", format=".2f")]
    return Table("minima", found, columns, title="minima by optimizer")


def claims(found: pd.DataFrame, rows: pd.DataFrame) -> list[Claim]:
    """What the paper says of these minima, as it came out."""
    sharp = found.pivot(index="seed", columns="optimizer", values="sharpness")
    sharp["log"] = np.log(sharp["L-BFGS"] / sharp["GD"])
    adaptive = found[found["condition"] != "a"]["ratio"]
    largest = rows["learning_rate"].max()
    fast = rows[rows["learning_rate"] == largest]
    fast = fast.assign(left=fast["outcome"] == "left")
    return [
        claim("lbfgs-sharper", "L-BFGS ends at sharper minima than gradient descent",
              f"geometric mean of the ratio of sharpness over {len(sharp)} initialisations",
              mean_over(sharp.reset_index(), "log").map(np.exp), ">", 1),
        claim("adaptive-condition",
              "Adam and RMSProp end where λ_max(D⁻¹H) is below their edge",
              f"largest ratio of λ_max(D⁻¹H) to the edge of {len(adaptive)} minima",
              adaptive.max(), "<=", 1, within=SLACK),
        claim("leave-lbfgs",
              "GD and SGD with a large learning rate leave the minimum of L-BFGS",
              f"fraction that left of {len(fast)} runs at the largest, η = {largest:g}, by start",
              fraction(fast, "left", by=BY), ">", MOST),
    ]  # fmt: skip


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="fashion_mnist", model="fnn", n_train=1000, loss_tolerance=1e-4, max_steps=400_000,
        gd_learning_rate=0.1, learning_rates=(0.01, 0.1, 0.5), sgd_steps=50_000, gd_steps=20_000,
    ),
    "tiny": Settings(
        n_train=30, starts=1, max_steps=400, loss_tolerance=0.01, adam_learning_rate=3e-3,
        learning_rates=(6.0,), batch_sizes=("n",), seeds=1, gd_steps=60, burst_steps=30, tol=1e-2,
    ),
}  # fmt: skip
