"""From a minimum on: the prediction whether an optimizer stays or leaves, then what it does.

Shared by the experiments that start GD and SGD at a minimum which another run found. A prediction
rests on the measurement of the start and on nothing else, and is written to disk before the run.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax

from jaxstab import checks, dispatch, sweeps, training
from jaxstab.experiments.base import Context, batch_sizes_for, seed_range
from jaxstab.measurement import Measurement, measure, sharpness
from jaxstab.stability import Verdict, escape, verdict

# Closer than this to a bound, relative, the linear theory cannot be asked for more than a tie: GD
# that trained to its edge oscillates about it by a few per cent (edge of stability).
EDGE = 0.05


# Where runs end need not be certified: it decides nothing. One object, so that it compiles once.
MEASURE_END = functools.partial(measure, tol=1e-2, max_matvecs=200)


@dataclass(frozen=True)
class Start:
    """A minimum to start from.

    Attributes:
      name: in tables and folders.
      loss: of one example.
      data: training set, leading axis n.
      params: the point.
      measurement: a and s there, with their eigenvectors.
      evaluate: `evaluate(params) -> dict` with train_accuracy and perhaps test_accuracy.
      found: what else is known of it: accuracies, steps.
      options: of its measurement.
    """

    name: str
    loss: Any
    data: Any
    params: Any
    measurement: Measurement
    evaluate: Any
    found: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What is run from every start.

    Attributes:
      learning_rates: of GD and SGD.
      batch_sizes: numbers; n is GD.
      seeds: of SGD; GD runs once.
      steps: of a run, by batch size.
      burst_steps: first steps, whose loss is seen one by one.
      escape_factor: a run has left when its loss exceeds this factor times that of the start.
    """

    learning_rates: Sequence[float]
    batch_sizes: Sequence[int]
    seeds: Sequence[int]
    steps: Mapping[int, int]
    burst_steps: int
    escape_factor: float


def make_trial(settings: Any, n: int) -> Trial:
    """Reads a trial from settings with fields of these names, and checks it."""
    sizes = [checks.check_batch_size(size, n) for size in batch_sizes_for(settings.batch_sizes, n)]
    checks.check_at_least("gd_steps", settings.gd_steps, 1)
    checks.check_at_least("sgd_steps", settings.sgd_steps, 1)
    for learning_rate in settings.learning_rates:
        checks.check_positive("learning_rate", learning_rate)
    if not settings.escape_factor > 1:
        raise ValueError(f"escape_factor must be above 1, got {settings.escape_factor}")
    if not sizes or not settings.learning_rates:
        raise ValueError("batch_sizes and learning_rates need at least one value each")
    return Trial(
        learning_rates=sorted(settings.learning_rates),
        batch_sizes=sorted(sizes),
        seeds=seed_range(settings.seeds),
        steps={size: settings.gd_steps if size == n else settings.sgd_steps for size in sizes},
        burst_steps=checks.check_at_least("burst_steps", settings.burst_steps, 1),
        escape_factor=settings.escape_factor,
    )


def make_start(
    name: str,
    loss: Any,
    data: Any,
    params: Any,
    *,
    evaluate: Any,
    found: Mapping[str, Any],
    tol: float,
    max_matvecs: int,
) -> Start:
    """Measures a point, with a key that depends on nothing, and makes a start of it."""
    key = jax.random.key(0)
    options: dict[str, Any] = {"tol": tol, "max_matvecs": max_matvecs}
    measurement = measure(loss, params, data, key=key, **options)
    accuracies = {name: float(x) for name, x in evaluate(params).items()}
    found = dict(found) | accuracies
    return Start(name, loss, data, params, measurement, evaluate, found, options)


def predict(start: Start, trial: Trial) -> list[dict[str, Any]]:
    """Returns one prediction per learning rate and batch size: verdict, margins, growth, time."""
    found = start.measurement
    directions = [found.sharpness.vector, found.nonuniformity.vector]
    along = escape.slices(start.loss, start.params, start.data, directions)
    predictions = []
    for batch_size in trial.batch_sizes:
        for eta in trial.learning_rates:
            options: dict[str, Any] = {"learning_rate": eta, "batch_size": batch_size}
            told = escape.predict_escape(along, **options, loss_factor=trial.escape_factor)
            predictions.append(
                _numbers(verdict(found, **options), start)
                | {"rate": told.growth, "predicted_steps": told.steps}
            )
    return predictions


def _numbers(found: Verdict, start: Start) -> dict[str, Any]:
    tight = min(abs(found.sharpness_margin), abs(found.nonuniformity_margin))
    return {
        "start": start.name,
        "learning_rate": found.learning_rate,
        "batch_size": found.batch_size,
        "n": found.n,
        "start_sharpness": found.sharpness,
        "start_nonuniformity": found.nonuniformity,
        "start_loss": float(start.measurement.loss),
        "start_steps": start.found["steps"],
        "sharpness_bound": found.box.sharpness,
        "nonuniformity_bound": found.box.nonuniformity,
        "sharpness_margin": found.sharpness_margin,
        "nonuniformity_margin": found.nonuniformity_margin,
        "verdict": found.status,
        "basis": found.basis,
        "at_the_edge": tight < EDGE,
    }


def depart(
    start: Start, predictions: Sequence[Mapping[str, Any]], trial: Trial, context: Context
) -> list[dict[str, Any]]:
    """Runs GD and SGD from a start and returns one row per run: the prediction and what happened.

    Adds `outcome` ("left" or "stayed"), `escape_steps` (infinite if it stayed), `growth` (last
    factor of the excess loss before it left), and what the run ended at, as `end_...`.
    """
    rows = []
    n = start.measurement.n
    for batch_size in trial.batch_sizes:
        seeds = trial.seeds[:1] if batch_size == n else trial.seeds
        bursts = _bursts(start, trial, batch_size, seeds, context)
        runs = _continue(
            start,
            trial,
            batch_size,
            seeds,
            steps=trial.steps[batch_size],
            checks=200,
            measure=MEASURE_END,
            evaluate=start.evaluate,
            out=context.out / "runs" / f"{_file_name(start)}-B{batch_size}",
        )
        for losses, record in zip(bursts, runs.records, strict=True):
            told = next(
                p
                for p in predictions
                if p["batch_size"] == batch_size and p["learning_rate"] == record["learning_rate"]
            )
            burst = {"steps": np.arange(len(losses)), "loss": np.array(losses)}
            histories = burst, runs.load_history(record)
            rows.append(dict(told) | {"seed": record["seed"]} | _happened(record, histories, trial))
    return rows


def _bursts(
    start: Start, trial: Trial, batch_size: int, seeds: Sequence[int], context: Context
) -> list[list[float]]:
    """The losses of the first steps of every run, one by one."""

    def compute() -> list[list[float]]:
        steps = trial.burst_steps
        runs = _continue(start, trial, batch_size, seeds, steps=steps, checks=steps, measure=False)
        return [runs.load_history(record)["loss"].tolist() for record in runs.records]

    return context.remember(f"burst-{_file_name(start)}-B{batch_size}", compute)


def _continue(
    start: Start,
    trial: Trial,
    batch_size: int,
    seeds: Sequence[int],
    *,
    steps: int,
    checks: int,
    **settings: Any,
) -> sweeps.SweepResult:
    """Runs of all learning rates and seeds from a start, none stopped before its step limit."""
    return sweeps.sweep(
        start.loss,
        jax.tree_util.Partial(_given, start.params),
        start.data,
        optimizer=optax.sgd,
        learning_rates=trial.learning_rates,
        batch_sizes=[batch_size],
        seeds=seeds,
        max_steps=steps,
        check_every=max(1, steps // checks),
        loss_tolerance=None,
        **settings,
    )


def _file_name(start: Start) -> str:
    return start.name.replace(" ", "-")


def _given(params: Any, key: Any, scale: Any) -> Any:
    """Initial parameters that are given, whatever the key."""
    return params


def _happened(
    record: Mapping[str, Any], histories: Sequence[Mapping[str, Any]], trial: Trial
) -> dict[str, Any]:
    """What a run did, from its losses step by step at first and now and then later."""
    steps, growth = math.inf, math.nan
    for history in histories:
        losses = history["loss"].astype(float)
        over = ~(losses <= trial.escape_factor * losses[0])  # NaN is over, too
        if over.any():
            first = int(np.argmax(over))
            steps = int(history["steps"][first])
            excess = losses - losses[0]
            if history is histories[0] and first >= 2 and excess[first - 1] > 0:
                growth = float(excess[first] / excess[first - 1])
            break
    kept = ("status", "loss", "sharpness", "nonuniformity", "train_accuracy", "test_accuracy")
    return {
        "outcome": "left" if math.isfinite(steps) else "stayed",
        "escape_steps": steps,
        "growth": growth,
    } | {f"end_{name}": record[name] for name in kept if name in record}


def follow(
    start: Start, row: Mapping[str, Any], trial: Trial, context: Context
) -> dict[str, list[float]]:
    """Repeats a run of `depart`; returns loss, sharpness and accuracies at about 30 points."""
    eta, batch_size, seed = row["learning_rate"], row["batch_size"], row["seed"]
    steps = trial.steps[batch_size]

    def compute() -> dict[str, Any]:
        check_every = max(1, steps // 30)
        run = training.train(
            start.loss,
            start.params,
            start.data,
            optimizer=optax.sgd,
            learning_rate=eta,
            batch_size=batch_size,
            key=dispatch.run_keys(seed)[1],
            max_steps=steps - steps % check_every,
            check_every=check_every,
            loss_tolerance=None,
            observer=training.Observer(_nothing, _keep),
        )
        found = [(start.measurement.sharpness, start.evaluate(start.params))]
        for i in range(len(run.history) - 1):
            params = jax.tree.map(lambda x, i=i: x[i], run.observations)
            # with the options of the start, so that it is compiled already
            options = {"key": jax.random.key(0), **start.options}
            here = sharpness(start.loss, params, start.data, **options)
            found.append((here, start.evaluate(params)))
        series = {"step": run.history_steps.tolist(), "loss": run.history.tolist()}
        series["sharpness"] = [float(here.value) for here, _ in found]
        for name in found[0][1]:
            series[name] = [float(accuracies[name]) for _, accuracies in found]
        return series

    name = f"follow-{_file_name(start)}-eta{eta:g}-B{batch_size}-seed{seed}"
    return context.remember(name, compute)


def _nothing(params: Any) -> Any:
    """The state of an observer that needs none."""
    return ()


def _keep(state: Any, params: Any, data: Any, *, opt_state: Any) -> tuple[Any, Any]:
    """An observer's update that keeps the parameters."""
    return state, params


Followed = Mapping[tuple[str, float, int, int], Mapping[str, Sequence[float]]]


def follow_some(
    starts: Mapping[str, Start],
    trials: Mapping[str, Trial],
    rows: Sequence[Mapping[str, Any]],
    context: Context,
    *,
    near: float,
) -> Followed:
    """Follows from each start two of the runs that left, one of SGD and one of GD, as in Fig. 8.

    Of SGD that with the smallest batch; of either the one with the learning rate nearest to `near`.
    """
    followed = {}
    for kind, start in sorted(starts.items()):
        n, trial = start.measurement.n, trials[start.name]
        left = [
            row
            for row in rows
            if row["start"] == start.name
            and row["outcome"] == "left"
            and row["end_status"] != "diverged"
        ]
        for size in sorted({min(trial.batch_sizes), n}):
            some = [row for row in left if row["batch_size"] == size]
            if some:
                row = min(some, key=lambda row: abs(row["learning_rate"] - near))
                key = kind, row["learning_rate"], size, n
                followed[key] = follow(start, row, trial, context)
    return followed
