"""The Hessian along training with cross-entropy: it vanishes (Wu, Ma, E 2018, Fig. 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy import special

from jaxstab import plots
from jaxstab.checks import check_at_least, check_batch_size, check_positive
from jaxstab.experiments.base import (
    Claim,
    Context,
    Estimate,
    Experiment,
    Outcome,
    batch_sizes_for,
    judge,
    mean_interval,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.problems import Problem, load_problem
from jaxstab.experiments.settings import describe
from jaxstab.measurement import measure
from jaxstab.stability.criteria import verdict
from jaxstab.training import train

LOSSES = ("cross_entropy", "squared")
VANISHED = 0.1  # a below this fraction of 2/η counts as having vanished
FITTED = 0.1  # a run whose loss ends below this has fitted the data; others say nothing of L → 0


@dataclass(frozen=True)
class CrossEntropySettings:
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
    tol: float = setting(1e-3, "relative accuracy to which a and s are certified")
    max_matvecs: int = setting(1000, "products that each of a and s may cost")


def run(settings: CrossEntropySettings, context: Context) -> Outcome:
    """Trains with both losses and measures a and s at steps spaced evenly in their logarithm."""
    problems = {kind: _problem(settings, context, kind) for kind in LOSSES}
    n = len(problems[LOSSES[0]].dataset.train[0])
    sizes = [check_batch_size(size, n) for size in batch_sizes_for(settings.batch_sizes, n)]
    check_positive("learning_rate", settings.learning_rate)
    check_at_least("max_steps", settings.max_steps, 1)
    check_at_least("points", settings.points, 2)
    runs = [
        (kind, b, seed) for kind in LOSSES for b in sizes for seed in seed_range(settings.seeds)
    ]
    rows: list[dict[str, Any]] = []
    for done, (kind, size, seed) in enumerate(runs):
        context.progress(done, len(runs), f"{kind}, B {size}, seed {seed}")
        follow = partial(_follow, settings, problems[kind], kind, size, seed)
        rows += context.remember(f"{kind}-{size}-{seed}", follow)
    context.progress(len(runs), len(runs))
    summary = summarize(rows)
    figure = draw(summary, settings, n)
    text = f"{describe(settings)}\n\n{table(summary, settings, n)}"
    return Outcome(rows, claims(rows), [context.save(figure, "cross-entropy")], text)


def _problem(settings: CrossEntropySettings, context: Context, kind: str) -> Problem:
    return load_problem(
        settings.dataset,
        settings.model,
        loss=kind,
        n_train=settings.n_train,
        classes=settings.classes,
        data_dir=context.data_dir,
    )


def measured_blocks(max_steps: int, points: int) -> tuple[int, list[int]]:
    """Length of a block of steps, and after how many blocks to measure: 0, then geometrically.

    Blocks of one length keep the compiled training loop one program.
    """
    block = max(1, max_steps // 200)
    last = max_steps // block
    return block, [0, *np.unique(np.geomspace(1, last, points).round().astype(int)).tolist()]


def _follow(
    settings: CrossEntropySettings, problem: Problem, kind: str, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """One run: a row for every measured point; it ends early where the loss diverges."""
    key, run_key = jax.random.split(jax.random.key(seed))
    params, opt_state = problem.init(key, 1.0), None
    block, stops = measured_blocks(settings.max_steps, settings.points)
    identity = {"loss_kind": kind, "batch_size": batch_size, "seed": seed}
    rows = []
    for index in range(stops[-1] + 1):
        if index in stops:
            point = _measure(settings, problem, kind, batch_size, params, seed)
            rows.append(identity | {"step": index * block} | point)
        if index == stops[-1]:
            break
        ended = train(
            problem.loss,
            params,
            problem.dataset.train,
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
    settings: CrossEntropySettings,
    problem: Problem,
    kind: str,
    batch_size: int,
    params: Any,
    seed: int,
) -> dict[str, Any]:
    """a and s with intervals, the verdict that jaxstab gives, and the curvature in the outputs."""
    x, y = problem.dataset.train
    found = measure(
        problem.loss,
        params,
        (x, y),
        key=jax.random.key(seed),
        tol=settings.tol,
        max_matvecs=settings.max_matvecs,
    )
    rate = settings.learning_rate
    judged = verdict(found, learning_rate=rate, batch_size=batch_size, loss_kind=kind)
    ratio = math.nan
    if kind == "cross_entropy":
        ratio = output_curvature_ratio(problem.loss.predict(params, x), y)
    row = {"loss": float(found.loss), "gradient_norm": float(found.gradient_norm)}
    for name in ("sharpness", "nonuniformity"):
        result = getattr(found, name)
        row |= {name: float(result.value), f"{name}_converged": bool(result.converged)}
        row |= {f"{name}_lower": float(result.interval.lower)}
        row |= {f"{name}_upper": float(result.interval.upper)}
    return row | {
        "edge_fraction": row["sharpness"] * rate / 2,
        "output_curvature_ratio": ratio,
        "verdict": judged.status,
        "reasons": "; ".join(judged.reasons),
    }


def output_curvature_ratio(logits: Any, targets: Any) -> float:
    """Largest λ_max(A_i) / (2 ℓ_i) over the examples, A_i = ∂²ℓ_i/∂f² = diag(p) − ppᵀ.

    At most 1 for one-hot targets, whatever the logits: λ_max(A_i) ≤ tr A_i = 1 − Σ_j p_j² ≤ 2(1 −
    p_y) = 2(1 − exp(−ℓ_i)) ≤ 2 ℓ_i. So the Gauss–Newton part of H is at most (2/n) Σ ℓ_i ‖J_i‖²,
    which vanishes with the loss unless the Jacobians grow as fast. In float64, with 1 − p_y summed
    from the other classes, so that it keeps its digits when p_y is 1 to float accuracy.

    Args:
      logits: shape (n, k).
      targets: shape (n, k), one-hot.
    """
    f, y = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    p = special.softmax(f, axis=1)
    matrices = -p[:, :, None] * p[:, None, :]
    diagonal = np.arange(p.shape[1])
    matrices[:, diagonal, diagonal] = p * (p @ (1 - np.eye(p.shape[1])))  # p_j (1 − p_j)
    top = np.linalg.eigvalsh(matrices)[:, -1]
    right = np.sum(f * y, axis=1, keepdims=True)
    loss = np.logaddexp(0, special.logsumexp(np.where(y > 0, -np.inf, f - right), axis=1))
    # below 1e-300 both sides are zero to float64's accuracy
    ratio = np.divide(top, 2 * loss, out=np.zeros_like(top), where=loss > 1e-300)
    return float(np.max(ratio))


def summarize(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of loss and a, by (loss, B, step)."""
    keys = sorted({(r["loss_kind"], r["batch_size"], r["step"]) for r in rows})
    summary = []
    for kind, size, step in keys:
        here = [
            r for r in rows if (r["loss_kind"], r["batch_size"], r["step"]) == (kind, size, step)
        ]
        line = {"loss_kind": kind, "batch_size": size, "step": step, "runs": len(here)}
        for name in ("loss", "sharpness", "nonuniformity"):
            values = [row[name] for row in here]
            line |= {f"{name}_mean": float(np.mean(values)), f"{name}_std": float(np.std(values))}
        summary.append(line | {"verdicts": ", ".join(sorted({row["verdict"] for row in here}))})
    return summary


@plots.styled
def draw(summary: Sequence[dict[str, Any]], settings: CrossEntropySettings, n: int) -> Figure:
    """Loss and a along training, and a against the loss, for both losses; 2/η dashed."""
    figure, axes = plots.new_figure(1, 3, width=4.6)
    edge = 2 / settings.learning_rate
    lines = [plots.Line(f"2/η = {edge:g}", edge)]
    panels = (("step", "loss"), ("step", "sharpness"), ("loss_mean", "sharpness"))
    for panel, (x, name) in zip(axes[0], panels):
        series = []
        for kind, size in sorted({(line["loss_kind"], line["batch_size"]) for line in summary}):
            here = [
                line
                for line in summary
                if (line["loss_kind"], line["batch_size"]) == (kind, size) and line["step"] > 0
            ]
            at, mean, std = (
                [line[column] for line in here] for column in (x, f"{name}_mean", f"{name}_std")
            )
            label = f"{kind.replace('_', '-')}, B = {'n' if size == n else size}"
            series.append(plots.Series(label, at, mean, std))
        plots.draw_series(panel, series, lines if name == "sharpness" else ())
        xlabel = "training loss L  [1]" if x == "loss_mean" else "step  [1]"
        ylabel = "training loss L  [1]" if name == "loss" else plots.SHARPNESS
        plots.label_axes(panel, xlabel, ylabel, log_x=True, log_y=True, legend=False)
    axes[0, 2].invert_xaxis()  # training goes to the right, as in the other two
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5)
    figure.suptitle(
        f"Sharpness along training, cross-entropy against squared loss: {settings.model} on "
        f"{settings.dataset}, n = {n}, η = {settings.learning_rate:g}"
    )
    return figure


def table(summary: Sequence[dict[str, Any]], settings: CrossEntropySettings, n: int) -> str:
    """One line per (loss, B, step): loss, a as a fraction of 2/η, s, and jaxstab's verdict."""
    head = (
        f"{'loss':>13} {'B':>5} {'step':>7} | {'training loss':>20} | {'a (mean ± std)':>19} "
        f"{'a/(2/eta)':>9} | {'s (mean ± std)':>19} | verdict"
    )
    lines = [head, "-" * len(head)]
    for line in summary:
        loss, a, s = (
            f"{line[f'{name}_mean']:.3g} ± {line[f'{name}_std']:.2g}"
            for name in ("loss", "sharpness", "nonuniformity")
        )
        size = "n" if line["batch_size"] == n else line["batch_size"]
        share = line["sharpness_mean"] * settings.learning_rate / 2
        lines.append(
            f"{line['loss_kind']:>13} {size:>5} {line['step']:>7} | {loss:>20} | {a:>19} "
            f"{share:>9.3f} | {s:>19} | {line['verdicts']}"
        )
    return "\n".join(lines)


def _ends(rows: Sequence[Any], kind: str) -> list[Any]:
    """The last point of every run with one loss."""
    last: dict[tuple[int, int], Any] = {}
    for row in rows:
        if row["loss_kind"] == kind:
            last[row["batch_size"], row["seed"]] = row
    return list(last.values())


def _fitted(rows: Sequence[Any]) -> list[Any]:
    """The last points of the cross-entropy runs that fitted the data.

    A learning rate that is too large for a small batch kills the ReLUs: the loss stays at log k and
    a is small for a reason that has nothing to do with the loss going to zero.
    """
    return [row for row in _ends(rows, "cross_entropy") if row["loss"] < FITTED]


def _by_seed(pairs: Sequence[tuple[int, float]]) -> list[float]:
    """Mean within each seed, whose runs share their start and are not independent."""
    seeds = sorted({seed for seed, _ in pairs})
    return [float(np.mean([value for s, value in pairs if s == seed])) for seed in seeds]


def slopes(rows: Sequence[Any]) -> list[tuple[int, float]]:
    """(seed, d log a / d log L) of every cross-entropy run, from the peak of a to its end."""
    result = []
    for end in _fitted(rows):
        identity = ("loss_kind", "batch_size", "seed")
        points = [r for r in rows if all(r[name] == end[name] for name in identity)]
        peak = int(np.argmax([row["sharpness"] for row in points]))
        after = [
            (r["loss"], r["sharpness"]) for r in points[peak:] if min(r["loss"], r["sharpness"]) > 0
        ]
        if len(after) >= 3:
            log_loss, log_a = np.log(after).T
            result.append((end["seed"], float(np.polyfit(log_loss, log_a, 1)[0])))
    return result


def claims(rows: Sequence[Any]) -> list[Claim]:
    """What Fig. 4 shows, as it came out here, and why."""
    return [_output_curvature(rows), *_vanishing(rows), _squared(rows), _no_verdict(rows)]


def _output_curvature(rows: Sequence[Any]) -> Claim:
    ratios = [r["output_curvature_ratio"] for r in rows if r["loss_kind"] == "cross_entropy"]
    largest = max(ratios, default=math.nan)
    return Claim(
        "output-curvature",
        "the curvature of cross-entropy in the outputs is at most twice the loss, so the "
        "Gauss-Newton part of the Hessian vanishes with the loss",
        "theorem",
        f"largest λ_max(∂²ℓ_i/∂f²) / (2 ℓ_i) over all examples at {len(ratios)} points",
        "<= 1",
        largest,
        None,
        judge(largest <= 1 + 1e-9 if ratios else None),  # rounding
    )


def _below(estimate: Estimate, bound: float) -> bool | None:
    """Whether the 95 % interval lies below a bound; None if it straddles it or is not known."""
    return True if estimate.upper < bound else False if estimate.lower > bound else None


def _vanishing(rows: Sequence[Any]) -> list[Claim]:
    ends = _fitted(rows)
    fraction = mean_interval(_by_seed([(r["seed"], r["edge_fraction"]) for r in ends]))
    slope = mean_interval(_by_seed(slopes(rows)))
    rises = _below(slope, 0.0)
    return [
        Claim(
            "sharpness-vanishes",
            "with cross-entropy, sharpness ends far below the edge 2/η",
            "observation",
            f"a / (2/η) at the end of {len(ends)} runs that fitted the data, mean over seeds",
            f"< {VANISHED}",
            fraction.value,
            {"95% interval": [fraction.lower, fraction.upper]},
            judge(_below(fraction, VANISHED)),
        ),
        Claim(
            "sharpness-falls-with-the-loss",
            "with cross-entropy, sharpness goes to 0 as the loss goes to 0",
            "observation",
            "slope of log a against log loss after the peak of a, mean over seeds",
            "> 0",
            slope.value,
            {"95% interval": [slope.lower, slope.upper]},
            judge(None if rises is None else not rises),
        ),
    ]


def _squared(rows: Sequence[Any]) -> Claim:
    ends = _ends(rows, "squared")
    fraction = mean_interval(_by_seed([(row["seed"], row["edge_fraction"]) for row in ends]))
    vanishes = _below(fraction, VANISHED)
    return Claim(
        "squared-does-not-vanish",
        "with squared loss, at the same learning rate and batch sizes, sharpness does not vanish",
        "observation",
        f"a / (2/η) at the end of {len(ends)} runs, mean over seeds",
        f"> {VANISHED}",
        fraction.value,
        {"95% interval": [fraction.lower, fraction.upper]},
        judge(None if vanishes is None else not vanishes),
    )


def _no_verdict(rows: Sequence[Any]) -> Claim:
    silent = [row["verdict"] == "undecided" for row in _fitted(rows)]
    return Claim(
        "no-verdict",
        "the quadratic analysis gives no verdict for cross-entropy at small loss",
        "observation",
        f"fraction of {len(silent)} ends of fitted runs where the verdict is undecided",
        1.0,
        float(np.mean(silent)) if silent else math.nan,
        None,
        judge(all(silent) if silent else None),
    )


EXPERIMENT = Experiment(
    name="cross-entropy",
    source="Wu, Ma, E 2018, Fig. 4",
    summary="sharpness along training with cross-entropy: it vanishes, the analysis does not apply",
    run=run,
    presets={
        "quick": CrossEntropySettings(),
        "paper": CrossEntropySettings(
            dataset="fashion_mnist",
            model="fnn",
            n_train=1000,
            learning_rate=0.1,
            batch_sizes=(10, 100, "n"),
            seeds=5,
            max_steps=200_000,
            points=30,
        ),
    },
)
