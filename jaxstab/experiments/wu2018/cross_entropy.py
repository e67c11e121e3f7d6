"""The Hessian along training with cross-entropy: it vanishes (Wu, Ma, E 2018, Fig. 4)."""

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import jax
import optax
import pandas as pd

from jaxstab import losses, plots
from jaxstab.checks import check_positive
from jaxstab.experiments import problems, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import (
    DataSettings,
    MeasureSettings,
    numbers_for,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.statistics import exponents, mean_over, share, spread_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.measurement import measure
from jaxstab.snapshots import spaced_blocks
from jaxstab.stability import verdict

LOSSES = ("cross_entropy", "squared")
RUN = ["loss_kind", "batch_size", "seed"]  # what tells one run from another
VANISHED = 0.1  # a below this fraction of 2/η counts as having vanished
FITTED = 0.1  # a run whose loss ends below this has fitted the data; others say nothing of L → 0


@dataclass(frozen=True)
class Settings(MeasureSettings, DataSettings):
    """The same training with cross-entropy and with squared loss."""

    n_train: int = setting(300, "number of training examples n")
    learning_rate: float = setting(0.5, "learning rate")
    batch_sizes: tuple[int | str, ...] = setting(
        (10, "n"), "batch sizes; n is the whole data set", parse_batch_size
    )
    seeds: int = setting(3, "number of seeds")
    max_steps: int = setting(10_000, "steps of a run")
    points: int = setting(14, "about how many points along a run are measured")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains with both losses and measures a and s at steps spaced evenly in their logarithm."""
    given = {kind: problems.load(settings, context.data_dir, loss=kind) for kind in LOSSES}
    n = given[LOSSES[0]].n
    check_positive("learning_rate", settings.learning_rate)
    spaced_blocks(settings.max_steps, settings.points)  # checks them
    steps = {
        f"{kind}-{size}-{seed}": partial(_follow, settings, given[kind], kind, size, seed)
        for kind in LOSSES
        for size in numbers_for(settings.batch_sizes, n)
        for seed in seed_range(settings.seeds)
    }
    found = pd.DataFrame(chain.from_iterable(context.remember_all(steps)))
    lines = summarize(found)
    title = f"Sharpness along training, cross-entropy against squared loss: {settings.model} on "
    figure = plots.along_training(
        {
            f"{kind.replace('_', '-')}, B = {'n' if size == n else size}": here[here["step"] > 0]
            for (kind, size), here in lines.groupby(RUN[:2])
        },
        edge=2 / settings.learning_rate,
        title=f"{title}{settings.dataset}, n = {n}, η = {settings.learning_rate:g}",
    )
    return Outcome(found, claims(found), [table(lines, n)], {"cross-entropy": figure})


def _follow(
    settings: Settings, problem: Problem, kind: str, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """One run: a row for every measured point; it ends early where the loss diverges.

    a and s with intervals, the verdict that jaxstab gives, and the curvature in the outputs.
    """
    rate, (x, y) = settings.learning_rate, problem.train
    points = problems.along_run(problem, settings, batch_size, seed, optimizer=optax.sgd)
    head, rows = dict(zip(RUN, (kind, batch_size, seed))), []
    for step, params in points:
        given = problem.loss, params, problem.train
        found = measure(*given, key=jax.random.key(seed), **settings.measuring)
        told = verdict(found, learning_rate=rate, batch_size=batch_size, loss_kind=kind)
        row = head | {"step": step} | found.to_record()
        row |= {"edge_fraction": float(found.sharpness.value) * rate / 2, "output_ratio": math.nan}
        if kind == "cross_entropy":
            outputs = problem.loss.predict(params, x)
            row["output_ratio"] = losses.output_curvature_ratio(outputs, y)
        rows.append(row | {"verdict": told.status, "reasons": "; ".join(told.reasons)})
    return rows


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of loss, a and s, by (loss, B, step)."""
    by = [*RUN[:2], "step"]
    lines = spread_over(rows, by, ["loss", "sharpness", "nonuniformity", "edge_fraction"])
    words = rows.groupby(by)["verdict"].agg(lambda told: ", ".join(sorted(set(told))))
    return lines.join(words, on=by)


def table(lines: pd.DataFrame, n: int) -> Table:
    """One line per (loss, B, step): loss, a as a fraction of 2/η, s, and jaxstab's verdict."""
    columns = [
        Column("loss_kind", "loss"),
        tables.batch_size(n),
        Column("step"),
        Column("loss", "training loss", format=".3g", spread="std"),
        replace(tables.MEAN_SHARPNESS, format=".3g"),
        Column("edge_fraction", "a/(2/η)", format=".3f"),
        replace(tables.MEAN_NONUNIFORMITY, format=".3g"),
        Column("verdict", status=True),
    ]
    return Table("cross-entropy", lines, columns)


def slopes(rows: pd.DataFrame) -> pd.DataFrame:
    """d log a / d log L of each run, from the peak of a to its end."""
    peaks = rows.groupby(RUN)["sharpness"].transform("idxmax")
    return exponents(rows[rows.index >= peaks], "loss", "sharpness", by=RUN)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What Fig. 4 shows, as it came out here, and why.

    Only runs that fitted the data count: a learning rate that is too large for a small batch kills
    the ReLUs, and a is small for a reason that has nothing to do with the loss going to zero.
    """
    ends = rows.groupby(RUN).tail(1)
    fitted = ends[(ends["loss_kind"] == LOSSES[0]) & (ends["loss"] < FITTED)]
    squared = ends[ends["loss_kind"] == "squared"]
    entropy = rows.merge(fitted[RUN], on=RUN)
    ratios = rows["output_ratio"].dropna()
    return [
        claim("output-curvature",
              "the curvature of cross-entropy in the outputs is at most twice the loss, so the "
              "Gauss-Newton part of the Hessian vanishes with the loss",
              f"largest λ_max(∂²ℓ_i/∂f²) / (2 ℓ_i) over all examples at {len(ratios)} points",
              ratios.max(), "<=", 1, within=1e-9, kind="theorem"),
        claim("sharpness-vanishes", "with cross-entropy, sharpness ends far below the edge 2/η",
              f"a / (2/η) at the end of {len(fitted)} runs that fitted the data, mean over seeds",
              mean_over(fitted, "edge_fraction"), "<", VANISHED),
        claim("sharpness-falls-with-the-loss",
              "with cross-entropy, sharpness goes to 0 as the loss goes to 0",
              "slope of log a against log loss after the peak of a, mean over seeds",
              mean_over(slopes(entropy), "slope"), ">", 0),
        claim("squared-does-not-vanish",
              "with squared loss, at the same learning rate and batch sizes, sharpness does not "
              "vanish", f"a / (2/η) at the end of {len(squared)} runs, mean over seeds",
              mean_over(squared, "edge_fraction"), ">", VANISHED),
        claim("no-verdict",
              "the quadratic analysis gives no verdict for cross-entropy at small loss",
              f"fraction of {len(fitted)} ends of fitted runs where the verdict is undecided",
              share(fitted["verdict"], "undecided", undecided=None), "=", 1),
    ]  # fmt: skip


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="fashion_mnist", model="fnn", n_train=1000, learning_rate=0.1,
        batch_sizes=(10, 100, "n"), seeds=5, max_steps=200_000, points=30,
    ),
    "tiny": Settings(n_train=30, batch_sizes=("n",), seeds=1, max_steps=300, points=3, tol=1e-2),
}  # fmt: skip
