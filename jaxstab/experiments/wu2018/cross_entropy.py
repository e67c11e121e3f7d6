"""The Hessian along training with cross-entropy: it vanishes (Wu, Ma, E 2018, Fig. 4)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd

from jaxstab import losses, plots
from jaxstab.checks import check_at_least, check_batch_size, check_positive
from jaxstab.experiments import problems, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import (
    MeasureSettings,
    batch_sizes_for,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.statistics import mean_over, share
from jaxstab.experiments.tables import Column, Table
from jaxstab.measurement import measure
from jaxstab.stability import verdict
from jaxstab.training import train

LOSSES = ("cross_entropy", "squared")
RUN = ["loss_kind", "batch_size", "seed"]  # what tells one run from another
VANISHED = 0.1  # a below this fraction of 2/η counts as having vanished
FITTED = 0.1  # a run whose loss ends below this has fitted the data; others say nothing of L → 0


@dataclass(frozen=True)
class Settings(MeasureSettings):
    """The same training with cross-entropy and with squared loss."""

    dataset: str = setting("digits", "data set")
    model: str = setting("fnn-small", "model")
    classes: tuple[str, ...] = setting((), "classes of the data set to keep; all by default")
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
    fields = {name: getattr(settings, name) for name in ("dataset", "model", "n_train", "classes")}
    given = {
        kind: problems.load_problem(**fields, loss=kind, data_dir=context.data_dir)
        for kind in LOSSES
    }
    n = given[LOSSES[0]].n
    sizes = [check_batch_size(size, n) for size in batch_sizes_for(settings.batch_sizes, n)]
    check_positive("learning_rate", settings.learning_rate)
    check_at_least("max_steps", settings.max_steps, 1)
    check_at_least("points", settings.points, 2)
    seeds = seed_range(settings.seeds)
    runs = [(kind, size, seed) for kind in LOSSES for size in sizes for seed in seeds]
    rows: list[dict[str, Any]] = []
    for done, (kind, size, seed) in enumerate(runs):
        context.progress(done, len(runs), f"{kind}, B {size}, seed {seed}")
        follow = partial(_follow, settings, given[kind], kind, size, seed)
        rows += context.remember(f"{kind}-{size}-{seed}", follow)
    context.progress(len(runs), len(runs))
    found = pd.DataFrame(rows)
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


def measured_blocks(max_steps: int, points: int) -> tuple[int, list[int]]:
    """Length of a block of steps, and after how many blocks to measure: 0, then geometrically.

    Blocks of one length keep the compiled training loop one program.
    """
    block = max(1, max_steps // 200)
    last = max_steps // block
    return block, [0, *np.unique(np.geomspace(1, last, points).round().astype(int)).tolist()]


def _follow(
    settings: Settings, problem: Problem, kind: str, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """One run: a row for every measured point; it ends early where the loss diverges."""
    key, run_key = jax.random.split(jax.random.key(seed))
    params, opt_state = problem.init(key, 1.0), None
    block, stops = measured_blocks(settings.max_steps, settings.points)
    rows = []
    for index in range(stops[-1] + 1):
        if index in stops:
            head = dict(zip(RUN, (kind, batch_size, seed))) | {"step": index * block}
            rows.append(head | _measure(settings, problem, kind, batch_size, params, seed))
        if index == stops[-1]:
            break
        ended = train(
            problem.loss,
            params,
            problem.train,
            optimizer=optax.sgd,
            learning_rate=settings.learning_rate,
            batch_size=batch_size,
            key=jax.random.fold_in(run_key, index),
            max_steps=block,
            check_every=block,
            loss_tolerance=None,
            opt_state=opt_state,
        )
        if not math.isfinite(ended.loss):
            break  # diverged: the points measured so far are the result
        params, opt_state = ended.params, ended.opt_state
    return rows


def _measure(
    settings: Settings, problem: Problem, kind: str, batch_size: int, params: Any, seed: int
) -> dict[str, Any]:
    """a and s with intervals, the verdict that jaxstab gives, and the curvature in the outputs."""
    key, rate = jax.random.key(seed), settings.learning_rate
    found = measure(problem.loss, params, problem.train, key=key, **settings.measuring)
    told = verdict(found, learning_rate=rate, batch_size=batch_size, loss_kind=kind)
    x, y = problem.train
    is_entropy = kind == "cross_entropy"
    outputs = problem.loss.predict(params, x) if is_entropy else None
    return found.to_record() | {
        "edge_fraction": float(found.sharpness.value) * rate / 2,
        "output_ratio": losses.output_curvature_ratio(outputs, y) if is_entropy else math.nan,
        "verdict": told.status,
        "reasons": "; ".join(told.reasons),
    }


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of loss, a and s, by (loss, B, step)."""
    names = ["loss", "sharpness", "nonuniformity"]
    groups = rows.groupby([*RUN[:2], "step"])
    spread = groups[names].std(ddof=0).add_suffix("_std")
    verdicts = groups["verdict"].agg(lambda words: ", ".join(sorted(set(words))))
    means = groups[[*names, "edge_fraction"]].mean()
    return pd.concat([groups.size().rename("runs"), means, spread, verdicts], axis=1).reset_index()


def table(lines: pd.DataFrame, n: int) -> Table:
    """One line per (loss, B, step): loss, a as a fraction of 2/η, s, and jaxstab's verdict."""
    spread: dict[str, Any] = {"format": ".3g", "spread": "std"}
    columns = [
        Column("loss_kind", "loss"),
        tables.batch_size(n),
        Column("step"),
        Column("loss", "training loss", **spread),
        Column("sharpness", "a (mean ± std)", "1/step size", **spread),
        Column("edge_fraction", "a/(2/η)", format=".3f"),
        Column("nonuniformity", "s (mean ± std)", "1/step size", **spread),
        Column("verdict", status=True),
    ]
    return Table("cross-entropy", lines, columns)


def slopes(rows: pd.DataFrame) -> pd.DataFrame:
    """d log a / d log L of each run, from the peak of a to its end."""
    found = []
    for run, points in rows.groupby(RUN):
        after = points.loc[points["sharpness"].idxmax() :]
        after = after[(after["loss"] > 0) & (after["sharpness"] > 0)]
        if len(after) >= 3:
            slope = np.polyfit(np.log(after["loss"]), np.log(after["sharpness"]), 1)[0]
            found.append(dict(zip(RUN, run)) | {"slope": float(slope)})
    return pd.DataFrame(found, columns=[*RUN, "slope"])


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
