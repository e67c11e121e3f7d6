"""From a minimum on: the prediction whether an optimizer stays or leaves, then what it does.

Shared by the experiments that start GD and SGD at a minimum which another run found. A prediction
rests on the measurement of the start and on nothing else, and is written to disk before the run.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxstab import plots, sweeps, tracking, training
from jaxstab.experiments.base import Claim, Context, judge
from jaxstab.experiments.statistics import correlation, fraction
from jaxstab.measurement import Measurement, measure
from jaxstab.stability import Verdict, verdict
from jaxstab.stability.criteria import variance_factor
from jaxstab.stability.exact import directional_curvatures

# Closer than this to a bound, relative, the linear theory cannot be asked for more than a tie: GD
# that trained to its edge oscillates about it by a few per cent (edge of stability).
EDGE = 0.05
AGREEMENT = 0.9  # of the predictions, for the claim to hold


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
    """

    name: str
    loss: Any
    data: Any
    params: Any
    measurement: Measurement
    evaluate: Any
    found: Mapping[str, Any]


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
    measurement = measure(loss, params, data, key=key, tol=tol, max_matvecs=max_matvecs)
    accuracies = {name: float(x) for name, x in evaluate(params).items()}
    return Start(name, loss, data, params, measurement, evaluate, dict(found) | accuracies)


def predict(start: Start, trial: Trial) -> list[dict[str, Any]]:
    """Returns one prediction per learning rate and batch size: verdict, margins, rate, time.

    `rate` is a lower bound on the factor by which E |x|^2 of linearised SGD grows per step. The
    second-moment map Q[S] = (1-pi)(I-eta H) S (I-eta H) + pi mean_i (I-eta H_i) S (I-eta H_i) is
    self-adjoint (FORMULAS.md, section 2), so its largest eigenvalue is at least its Rayleigh
    quotient at S = v v^T: (1 - eta h)^2 + eta^2 pi Var_i(v^T H_i v) with h = v^T H v. v is the
    better one of the top eigenvectors of H and of Sigma; for GD along that of H it is exact.

    `steps` is the time in which the energy along v, started by the gradient and by the noise of
    one step, grows to the `escape_factor` at that rate.
    """
    n = start.measurement.n
    known = [
        _along(start, result.vector)
        for result in (start.measurement.sharpness, start.measurement.nonuniformity)
    ]
    predictions = []
    for batch_size in trial.batch_sizes:
        pi = variance_factor(n, batch_size)
        for eta in trial.learning_rates:
            found = verdict(start.measurement, learning_rate=eta, batch_size=batch_size)
            rates = [(1 - eta * h) ** 2 + eta**2 * pi * spread for h, spread, _, _ in known]
            best = int(np.argmax(rates))
            h, _, slope, noise = known[best]
            energy = h / 2 * ((slope / h) ** 2 + eta**2 * pi * noise) if h > 0 else math.nan
            gain = (trial.escape_factor - 1) * float(start.measurement.loss)
            predictions.append(
                _numbers(found, start)
                | {
                    "rate": rates[best],
                    "predicted_steps": _time(rates[best], energy, gain),
                }
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
        "sharpness_bound": found.box.sharpness,
        "nonuniformity_bound": found.box.nonuniformity,
        "sharpness_margin": found.sharpness_margin,
        "nonuniformity_margin": found.nonuniformity_margin,
        "verdict": found.status,
        "basis": found.basis,
        "at_the_edge": tight < EDGE,
    }


def _along(start: Start, v: Any) -> tuple[float, float, float, float]:
    """Mean and variance over the examples of curvature v^T H_i v and of slope v^T g_i."""
    v = jax.tree.map(lambda x: x / optax.tree.norm(v), v)
    curvatures = np.asarray(directional_curvatures(start.loss, start.params, start.data, v), float)
    slopes = np.asarray(_slopes(start.loss, start.params, start.data, v), float)
    return curvatures.mean(), curvatures.var(), slopes.mean(), slopes.var()


@jax.jit
def _slopes(loss: Any, params: Any, data: Any, v: Any) -> jax.Array:
    def all_losses(params: Any) -> jax.Array:
        return jax.vmap(loss, (None, 0))(params, data)

    return jax.jvp(all_losses, (params,), (v,))[1]


def _time(rate: float, energy: float, gain: float) -> float:
    if not rate > 1:
        return math.inf
    return max(1.0, math.log(gain / energy) / math.log(rate)) if energy > 0 else math.nan


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
        burst = _continue(start, trial, batch_size, seeds, context, burst=True)
        long = _continue(start, trial, batch_size, seeds, context, burst=False)
        for first, whole in zip(burst.records, long.records, strict=True):
            told = next(
                p
                for p in predictions
                if p["batch_size"] == batch_size and p["learning_rate"] == first["learning_rate"]
            )
            histories = burst.load_history(first), long.load_history(whole)
            rows.append(dict(told) | {"seed": first["seed"]} | _happened(whole, histories, trial))
    return rows


def _continue(
    start: Start,
    trial: Trial,
    batch_size: int,
    seeds: Sequence[int],
    context: Context,
    *,
    burst: bool,
) -> Any:
    steps = trial.burst_steps if burst else trial.steps[batch_size]
    kind = "burst" if burst else "long"
    return sweeps.sweep(
        start.loss,
        jax.tree_util.Partial(_given, start.params),
        start.data,
        optimizer=optax.sgd,
        learning_rates=trial.learning_rates,
        batch_sizes=[batch_size],
        seeds=seeds,
        max_steps=steps,
        check_every=1 if burst else max(1, steps // 200),
        loss_tolerance=None,
        measure=False if burst else functools.partial(measure, max_matvecs=500),
        evaluate=None if burst else start.evaluate,
        out=context.out / "runs" / start.name.replace(" ", "-") / f"B{batch_size}-{kind}",
    )


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
    start: Start, learning_rate: float, batch_size: int, steps: int, context: Context
) -> dict[str, list[float]]:
    """Returns one run in detail: loss, sharpness and accuracies at about 30 points of it."""

    def compute() -> dict[str, Any]:
        check_every = max(1, steps // 30)
        tracker = tracking.tracker(
            start.loss, key=jax.random.key(0), every=1, nonuniformity=False, tol=1e-2
        )
        watch = training.Observer(
            tracker.init, jax.tree_util.Partial(_watch, tracker.update, start.evaluate)
        )
        run = training.train(
            start.loss,
            start.params,
            start.data,
            optimizer=optax.sgd,
            learning_rate=learning_rate,
            batch_size=batch_size,
            key=jax.random.key(1),
            max_steps=steps - steps % check_every,
            check_every=check_every,
            loss_tolerance=None,
            observer=watch,
        )
        first = {"sharpness": float(start.measurement.sharpness.value)} | {
            name: start.found[name] for name in run.observations if name != "sharpness"
        }
        series = {name: [first[name], *x.tolist()] for name, x in run.observations.items()}
        return series | {"step": run.history_steps.tolist(), "loss": run.history.tolist()}

    name = f"follow {start.name} eta {learning_rate:g} B {batch_size}".replace(" ", "-")
    return context.remember(name, compute)


def _watch(
    update: Any, evaluate: Any, state: Any, params: Any, data: Any, **_: Any
) -> tuple[Any, Any]:
    state, info = update(state, params, data)
    return state, {"sharpness": info.sharpness.value} | evaluate(params)


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
            rates = [row["learning_rate"] for row in left if row["batch_size"] == size]
            if rates:
                eta = min(rates, key=lambda rate: abs(rate - near))
                steps = trial.steps[size]
                followed[kind, eta, size, n] = follow(start, eta, size, steps, context)
    return followed


@plots.styled
def draw_trajectories(followed: Followed, title: str) -> Figure:
    """Loss, sharpness and accuracies along the runs that were followed."""
    figure, axes = plots.new_figure(2, 2, width=6.0, height=3.6)
    panels = {
        "loss": axes[0, 0],
        "sharpness": axes[0, 1],
        "train_accuracy": axes[1, 0],
        "test_accuracy": axes[1, 1],
    }
    for i, ((kind, eta, size, n), run) in enumerate(followed.items()):
        label = f"{kind}: " + (f"GD, η = {eta:g}" if size == n else f"SGD, η = {eta:g}, B = {size}")
        style = {"color": plots.COLORS[i % 8], "marker": plots.MARKERS[i % 8], "markersize": 3.5}
        epochs = np.asarray(run["step"]) * size / n
        for name, panel in panels.items():
            if name in run:
                panel.plot(epochs, run[name], label=label, **style)
    for name, panel in panels.items():
        word = name.replace("_", " ") + ("  [1/step size]" if name == "sharpness" else "")
        legend = name == "loss" and bool(followed)
        logarithmic = name in ("loss", "sharpness") and bool(followed)
        plots.label_axes(panel, "epochs after the start", word, log_y=logarithmic, legend=legend)
        panel.set_xscale("symlog", linthresh=1)  # the start itself lies at 0
    figure.suptitle(title)
    return figure


def confusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Predictions against outcomes, over all runs and without those at the edge."""
    lines = [f"{'prediction':>12} {'stayed':>8} {'left':>8}   (more than {EDGE:.0%} from a bound)"]
    for status in ("stable", "unstable", "undecided"):
        cells = [
            sum(row["verdict"] == status and row["outcome"] == outcome for row in some)
            for some in (rows, [row for row in rows if not row["at_the_edge"]])
            for outcome in ("stayed", "left")
        ]
        lines.append(f"{status:>12} {cells[0]:>8} {cells[1]:>8}   ({cells[2]} and {cells[3]})")
    return "\n".join(lines)


def agreement_claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Predictions against outcomes, and the time and rate of leaving against linear theory."""
    decided = [row for row in rows if row["verdict"] != "undecided" and not row["at_the_edge"]]
    right = [(row["verdict"] == "stable") == (row["outcome"] == "stayed") for row in decided]
    share = fraction(sum(right), len(right))
    left = [row for row in rows if row["outcome"] == "left" and row["verdict"] == "unstable"]
    timed = [row for row in left if math.isfinite(row["predicted_steps"])]
    times = correlation(
        [row["predicted_steps"] for row in timed],
        [row["escape_steps"] for row in timed],
        ranks=True,
    )
    gd = [row for row in left if row["batch_size"] == row["n"] and math.isfinite(row["growth"])]
    ratios = np.array([row["growth"] / row["rate"] for row in gd])
    return [
        Claim(
            "predictions",
            "a and s of the start tell which runs leave it",
            "observation",
            f"fraction of right predictions over {len(right)} runs (start, eta, B, seed) whose "
            f"start is more than {EDGE:.0%} from a bound; {AGREEMENT:.0%} counts as holding",
            1.0,
            share.value,
            {"95% interval": [share.lower, share.upper]},
            judge(share.value >= AGREEMENT if right else None),
        ),
        Claim(
            "times",
            "runs leave sooner where linear theory gives a higher rate",
            "observation",
            f"Spearman correlation of predicted and measured steps over {len(timed)} runs",
            "> 0",
            times.value,
            {"95% interval": [times.lower, times.upper]},
            judge(_sign(times)),
        ),
        Claim(
            "gd-rate",
            "gradient descent leaves with the excess loss growing by (1 - eta a)^2 per step",
            "observation",
            f"median of measured over predicted factor, {len(gd)} runs (within 20 % counts)",
            1.0,
            float(np.median(ratios)) if len(gd) else math.nan,
            {"range": [float(ratios.min()), float(ratios.max())]} if len(gd) else None,
            judge(abs(np.median(ratios) - 1) <= 0.2 if len(gd) else None),
        ),
    ]


def _sign(estimate: Any) -> bool | None:
    """True or False where the interval excludes 0, else None."""
    if estimate.lower > 0:
        return True
    return False if estimate.upper < 0 else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per start, learning rate and batch size, over the seeds."""
    head = (
        f"{'start':>22} {'eta':>6} {'B':>5} | {'a/bound':>8} {'s/bound':>8} {'predicted':>9}"
        f" {'rate':>8} {'steps':>6} | {'left':>5} {'steps':>8} {'end a':>7} {'end test':>8}"
    )
    lines = [head, "-" * len(head)]
    for key in dict.fromkeys((r["start"], r["learning_rate"], r["batch_size"]) for r in rows):
        same = [r for r in rows if (r["start"], r["learning_rate"], r["batch_size"]) == key]
        one, gone = same[0], [r["escape_steps"] for r in same if r["outcome"] == "left"]
        ends = [r["end_sharpness"] for r in same if math.isfinite(r["end_sharpness"])]
        test = [r["end_test_accuracy"] for r in same if "end_test_accuracy" in r]
        size = "n" if one["batch_size"] == one["n"] else one["batch_size"]
        lines.append(
            f"{one['start']:>22} {one['learning_rate']:>6.3g} {size:>5} |"
            f" {1 - one['sharpness_margin']:>8.2f} {1 - one['nonuniformity_margin']:>8.2f}"
            f" {one['verdict']:>9} {one['rate']:>8.3g} {_short(one['predicted_steps']):>6} |"
            f" {len(gone)}/{len(same):<3} {_short(np.median(gone) if gone else math.nan):>8}"
            f" {_short(np.mean(ends) if ends else math.nan):>7}"
            f" {_short(np.mean(test) if test else math.nan):>8}"
        )
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"
