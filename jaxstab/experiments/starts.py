"""GD and SGD started at minima: what theory predicts of each run, then what it does.

Shared by the experiments that start at a minimum which another run found. A prediction rests on the
measurement of the start and on nothing else, and is written to disk before the first step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pandas as pd

from jaxstab import checks, dispatch, files, plots, sweeps
from jaxstab.experiments import tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.minima import SLACK
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import (
    MeasureSettings,
    ProblemSettings,
    StopSettings,
    numbers_for,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.statistics import bootstrap, correlation, fraction
from jaxstab.experiments.tables import Column, Table
from jaxstab.measurement import Measurement, measure, sharpness
from jaxstab.snapshots import train_keeping
from jaxstab.stability import escape, verdict

AGREEMENT = 0.9  # of the predictions, for the claim to hold
BY = "start"  # runs from one start are not independent
KEPT = ("status", "loss", "sharpness", "nonuniformity", "train_accuracy", "test_accuracy")
# Where runs end need not be certified: it decides nothing. One object, so that it compiles once.
MEASURE_END = partial(measure, tol=1e-2, max_matvecs=200)


@dataclass(frozen=True)
class TrialSettings(MeasureSettings, StopSettings, ProblemSettings):
    """A problem, how its minima are found and measured, and what is run from them."""

    n_train: int = setting(500, "number of training examples n")
    max_steps: int = setting(20_000, "step limit of a run that looks for a minimum")
    loss_tolerance: float = setting(1e-3, "a minimum is reached below this training loss")
    learning_rates: tuple[float, ...] = setting((1.0, 2.0, 3.0), "learning rates from there on")
    batch_sizes: tuple[int | str, ...] = setting(
        (4, 25, "n"), "batch sizes from there on; n is the whole training set", parse_batch_size
    )
    seeds: int = setting(2, "runs of SGD for each of these")
    sgd_steps: int = setting(10_000, "steps of a run of SGD")
    gd_steps: int = setting(1000, "steps of a run of GD")
    burst_steps: int = setting(60, "first steps, whose loss is recorded one by one")
    escape_factor: float = setting(10.0, "a run has left when its loss exceeds so many times that")

    def sizes(self, n: int) -> list[int]:
        """Checks what is run from the starts, and returns the batch sizes as numbers."""
        for name in ("gd_steps", "sgd_steps", "burst_steps", "seeds"):
            checks.check_at_least(name, getattr(self, name), 1)
        for learning_rate in self.learning_rates:
            checks.check_positive("learning_rate", learning_rate)
        if not self.escape_factor > 1:
            raise ValueError(f"escape_factor must be above 1, got {self.escape_factor}")
        if not self.batch_sizes or not self.learning_rates:
            raise ValueError("batch_sizes and learning_rates need at least one value each")
        return sorted(numbers_for(self.batch_sizes, n))


class Start(NamedTuple):
    """A minimum to start from."""

    name: str
    kind: str
    problem: Problem
    params: Any
    measurement: Measurement
    steps: int
    accuracies: Mapping[str, float]

    @property
    def file_name(self) -> str:
        """The name, for files."""
        return self.name.replace(" ", "-")


def make_start(
    kind: str, seed: int, problem: Problem, params: Any, steps: int, settings: TrialSettings
) -> Start:
    """Measures a point, with a key that depends on nothing, and makes a start of it."""
    given = problem.loss, params, problem.train
    measurement = measure(*given, key=jax.random.key(0), **settings.measuring)
    accuracies = {name: float(x) for name, x in problem.evaluate(params).items()}
    return Start(f"{kind} {seed}", kind, problem, params, measurement, steps, accuracies)


def predict(start: Start, settings: TrialSettings) -> list[dict[str, Any]]:
    """Returns one prediction per batch size and learning rate: verdict, margins, growth, time."""
    found, problem = start.measurement, start.problem
    vectors = [found.sharpness.vector, found.nonuniformity.vector]
    along = escape.slices(problem.loss, start.params, problem.train, vectors)
    predictions = []
    for size in settings.sizes(problem.n):
        for eta in sorted(settings.learning_rates):
            told = verdict(found, learning_rate=eta, batch_size=size, loss_kind=settings.loss)
            out = escape.predict_escape(
                along, learning_rate=eta, batch_size=size, loss_factor=settings.escape_factor
            )
            row = {"start": start.name, "kind": start.kind, "start_steps": start.steps}
            row |= {"learning_rate": eta, "batch_size": size, "start_loss": float(found.loss)}
            row |= {f"start_{name}": x for name, x in start.accuracies.items()}
            for name, bound in told.box._asdict().items():
                row |= {f"start_{name}": getattr(told, name), f"{name}_bound": bound}
                row |= {f"{name}_margin": getattr(told, f"{name}_margin")}
            margins = told.sharpness_margin, told.nonuniformity_margin
            row |= {"at_the_edge": min(map(abs, margins)) < SLACK}
            row |= {"verdict": told.status, "basis": told.basis, "n": problem.n}
            row |= {"predicted_growth": out.growth, "predicted_steps": out.steps}
            predictions.append(row)
    return predictions


def run_from(
    starts: Sequence[Start],
    settings: TrialSettings,
    context: Context,
    *,
    near: float,
    title: str,
    claims: Any,
) -> Outcome:
    """Predicts, writes the predictions, runs, and compares.

    Args:
      starts: where the runs begin.
      settings: what is run.
      context: of the experiment.
      near: of the runs that left, that with the learning rate nearest to this one is drawn.
      title: of the figure of these runs.
      claims: function from the rows to the claims of the experiment, which come after the shared.
    """
    told = [row for start in starts for row in predict(start, settings)]
    files.write_json(context.out / "predictions.json", told)  # before any of the runs
    lines = []
    for index, start in enumerate(starts):
        context.progress(len(starts) + index, 2 * len(starts), f"runs from {start.name}")
        own = [row for row in told if row["start"] == start.name]
        lines += observe(start, own, settings, context)
    rows = pd.DataFrame(lines)
    followed = follow_some(starts, rows, settings, context, near=near)
    return Outcome(
        rows=rows,
        claims=[*agreement(rows), *claims(rows)],
        tables=[table(rows), confusion(rows)],
        figures={"trajectories": plots.trajectories(followed, title=title)},
    )


def observe(
    start: Start, predictions: Sequence[Any], settings: TrialSettings, context: Context
) -> list[dict[str, Any]]:
    """Runs GD and SGD from a start: one row per run, the prediction and what happened."""
    rows = []
    for size in settings.sizes(start.problem.n):
        steps, name = _steps(settings, size, start), f"{start.file_name}-B{size}"
        burst = context.remember(f"burst-{name}", partial(_burst, start, size, settings))
        runs = _continue(
            start, size, settings, steps, check_every=max(1, steps // 200), measure=MEASURE_END,
            evaluate=start.problem.evaluate, out=context.out / "runs" / name,
        )  # fmt: skip
        for first, record in zip(burst, runs.records, strict=True):
            point = size, record["learning_rate"]
            told = next(p for p in predictions if (p["batch_size"], p["learning_rate"]) == point)
            later = runs.load_history(record)
            after = later["steps"] >= len(first)
            seen = escape.observe_escape(
                np.concatenate([np.arange(len(first)), later["steps"][after]]),
                np.concatenate([first, later["loss"][after]]),
                predicted=escape.Escape(told["predicted_growth"], told["predicted_steps"]),
                flattening=1 - record["sharpness"] / told["start_sharpness"],
                loss_factor=settings.escape_factor,
            )
            row = dict(told) | {"seed": record["seed"], "outcome": seen.outcome}
            row |= {"escape_steps": seen.steps, "growth": seen.growth}
            rows.append(row | {f"end_{name}": record[name] for name in KEPT if name in record})
    return rows


def _steps(settings: TrialSettings, size: int, start: Start) -> int:
    return settings.gd_steps if size == start.problem.n else settings.sgd_steps


def _burst(start: Start, size: int, settings: TrialSettings) -> list[list[float]]:
    """The losses of the first steps of every run, one by one."""
    runs = _continue(start, size, settings, settings.burst_steps, check_every=1, measure=False)
    return [runs.load_history(record)["loss"].tolist() for record in runs.records]


def _continue(
    start: Start, size: int, settings: TrialSettings, steps: int, **options: Any
) -> sweeps.SweepResult:
    """Runs of all learning rates and seeds from a start, none stopped before its step limit."""
    return sweeps.sweep(
        start.problem.loss,
        jax.tree_util.Partial(_given, start.params),
        start.problem.train,
        optimizer=optax.sgd,
        learning_rates=sorted(settings.learning_rates),
        batch_sizes=[size],
        seeds=seed_range(1 if size == start.problem.n else settings.seeds),
        max_steps=steps,
        loss_tolerance=None,
        **options,
    )


def _given(params: Any, key: Any, scale: Any) -> Any:
    """Initial parameters that are given, whatever the key."""
    return params


def follow_some(
    starts: Sequence[Start],
    rows: pd.DataFrame,
    settings: TrialSettings,
    context: Context,
    *,
    near: float,
) -> dict[str, dict[str, list[float]]]:
    """Follows, from the first start of each kind, a run of SGD and one of GD that left (Fig. 8).

    Of SGD that with the smallest batch; of either the one with the learning rate nearest to `near`.
    """
    followed = {}
    gone = rows[(rows["outcome"] == "left") & (rows["end_status"] != "diverged")]
    first: dict[str, Start] = {}
    for start in starts:
        first.setdefault(start.kind, start)
    for start in first.values():
        n = start.problem.n
        for size in sorted({settings.sizes(n)[0], n}):
            some = gone[(gone["start"] == start.name) & (gone["batch_size"] == size)]
            if len(some):
                row = some.loc[(some["learning_rate"] - near).abs().idxmin()]
                eta, seed = float(row["learning_rate"]), int(row["seed"])
                name = f"follow-{start.file_name}-eta{eta:g}-B{size}-seed{seed}"
                run = partial(_follow, start, eta, size, seed, settings)
                label = f"GD, η = {eta:g}" if size == n else f"SGD, η = {eta:g}, B = {size}"
                followed[f"{start.kind}: {label}"] = context.remember(name, run)
    return followed


def _follow(start: Start, eta: float, size: int, seed: int, settings: TrialSettings) -> Any:
    """Repeats a run; epochs, loss, sharpness and accuracies at about 30 points."""
    problem = start.problem
    run, points = train_keeping(
        problem.loss,
        start.params,
        problem.train,
        optimizer=optax.sgd,
        learning_rate=eta,
        batch_size=size,
        key=dispatch.run_keys(seed)[1],
        max_steps=_steps(settings, size, start),
        points=30,
    )
    options = {"key": jax.random.key(0), **settings.measuring}
    given = [(problem.loss, params, problem.train) for params in points]
    curvatures = [start.measurement.sharpness, *(sharpness(*one, **options) for one in given)]
    accuracies = [start.accuracies, *map(problem.evaluate, points)]
    series = {"epochs": (run.history_steps * size / problem.n).tolist()}
    series |= {"loss": run.history.tolist(), "sharpness": [float(x.value) for x in curvatures]}
    return series | {name: [float(x[name]) for x in accuracies] for name in start.accuracies}


def agreement(rows: pd.DataFrame) -> list[Claim]:
    """Predictions against outcomes, and the time and rate of leaving against linear theory."""
    rows = rows.assign(
        right=(rows["verdict"] == "unstable") == (rows["outcome"] == "left"),
        sooner=rows["escape_steps"] / rows["start_steps"],
        ratio=rows["growth"] / rows["predicted_growth"],
    )
    told = rows[(rows["verdict"] != "undecided") & (rows["outcome"] != "too short")]
    told = told[~told["at_the_edge"]]
    left = rows[(rows["outcome"] == "left") & (rows["verdict"] == "unstable")]
    timed = left[np.isfinite(left["predicted_steps"])]
    gd = left[(left["batch_size"] == left["n"]) & left["ratio"].notna()]
    return [
        claim("sooner", "leaving takes far fewer steps than finding the minimum took",
              "median of steps to leave over steps to find the start, over starts of "
              f"{len(left)} runs that were predicted to leave and did",
              bootstrap(left, lambda some: some["sooner"].median(), by=BY), "<", 0.1),
        claim("predictions", "a and s of the start tell which runs leave it",
              f"fraction of right predictions of {len(told)} runs that are more than {SLACK:.0%} "
              "from a bound and long enough to tell, over starts",
              fraction(told, "right", by=BY), ">=", AGREEMENT),
        claim("times", "runs leave sooner where linear theory gives a higher rate",
              f"Spearman correlation of predicted and measured steps of {len(timed)} runs",
              correlation(timed, "predicted_steps", "escape_steps", by=BY, ranks=True), ">", 0),
        claim("gd-rate",
              "gradient descent leaves with the excess loss growing by (1 − ηa)² per step",
              f"median of measured over predicted factor of {len(gd)} runs, over starts",
              bootstrap(gd, lambda some: some["ratio"].median(), by=BY), "=", 1, within=0.2),
    ]  # fmt: skip


def table(rows: pd.DataFrame) -> Table:
    """One line per start, learning rate and batch size, over the seeds."""
    rows = rows.assign(
        a=1 - rows["sharpness_margin"],
        s=1 - rows["nonuniformity_margin"],
        batch_size=rows["batch_size"].mask(rows["batch_size"] == rows["n"], np.nan),
        predicted_steps=rows["predicted_steps"].replace(np.inf, np.nan),
        escape_steps=rows["escape_steps"].replace(np.inf, np.nan),
        left=rows["outcome"] == "left",
    )
    keys = ["start", "learning_rate", "batch_size"]
    names = ["a", "s", "verdict", "predicted_growth", "predicted_steps"]
    means = ["escape_steps", "end_sharpness", "end_test_accuracy"]
    how = dict.fromkeys(names, "first") | dict.fromkeys(means, "mean")
    how |= {"left": "sum", "seed": "size", "escape_steps": "median"}
    held = {name: function for name, function in how.items() if name in rows}
    lines = rows.groupby(keys, sort=False, dropna=False).agg(held).reset_index()
    lines["batch_size"] = ["n" if np.isnan(size) else int(size) for size in lines["batch_size"]]
    columns = [
        Column("start"),
        tables.LEARNING_RATE,
        Column("batch_size", "B"),
        Column("a", "a/bound", format=".2f"),
        Column("s", "s/bound", format=".2f"),
        Column("verdict", "predicted", status=True),
        Column("predicted_growth", "growth", "1 per step", ".3g"),
        Column("predicted_steps", "time", "steps", ".3g"),
        Column("left"),
        Column("seed", "of"),
        Column("escape_steps", "left after", "steps", ".3g"),
        Column("end_sharpness", "end a", "1/step size", ".3g"),
        Column("end_test_accuracy", "end test", format=".1%"),
    ]
    return Table("runs", lines, columns, title="predicted before the first step, and what happened")


def confusion(rows: pd.DataFrame) -> Table:
    """Predictions against outcomes, over all runs and of those far from a bound."""
    lines = []
    for status in ("stable", "unstable", "undecided"):
        some = rows[rows["verdict"] == status]
        line: dict[str, Any] = {"verdict": status}
        for outcome in escape.OUTCOMES:
            here = some[some["outcome"] == outcome]
            line |= {outcome: len(here), f"{outcome}, far": int((~here["at_the_edge"]).sum())}
        lines.append(line)
    names = [*escape.OUTCOMES, *(f"{outcome}, far" for outcome in escape.OUTCOMES)]
    columns = [Column("verdict", "prediction"), *map(Column, names)]
    note = f"far: more than {SLACK:.0%} from either bound"
    return Table("confusion", pd.DataFrame(lines), columns, note=note)
