"""GD and SGD leave minima that are too sharp or non-uniform (Wu, Ma, E 2018, Figs. 1, 8, Table 3).

Gradient descent finds a minimum of the clean training set, and one of the same set with a fifth of
examples with random labels added. From there GD and SGD go on at other learning rates and batch
sizes. Whether each run stays is predicted from a and s before it starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

from jaxstab import data, files, plots, sweeps
from jaxstab.experiments import departure, departure_summary, published
from jaxstab.experiments.base import (
    Claim,
    Context,
    Experiment,
    Outcome,
    correlation,
    judge,
    mean_interval,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.departure import Start
from jaxstab.experiments.problems import Problem, load_problem
from jaxstab.experiments.settings import describe

_PUBLISHED = {"clean": "fashion_mnist", "corrupted": "corrupted_fashion_mnist"}


@dataclass(frozen=True)
class Settings:
    """Settings of `escape`."""

    dataset: str = setting("digits", "data set")
    model: str = setting("fnn-small", "model")
    n_train: int = setting(500, "number of training examples")
    random_labels: int = setting(
        100, "further examples with random labels in the corrupted set; 0 for the clean set alone"
    )
    start_learning_rate: float = setting(2.0, "learning rate of the GD that finds the starts")
    starts: int = setting(2, "starts on each of the two sets")
    start_max_steps: int = setting(20_000, "step limit of that GD")
    loss_tolerance: float = setting(1e-3, "a minimum is reached below this training loss")
    learning_rates: tuple[float, ...] = setting((1.0, 2.0, 3.0), "learning rates from there on")
    batch_sizes: tuple[int | str, ...] = setting(
        (4, 25, "n"), "batch sizes from there on; n is the whole training set", parse_batch_size
    )
    seeds: int = setting(3, "runs of SGD for each of these")
    sgd_steps: int = setting(10_000, "steps of a run of SGD")
    gd_steps: int = setting(1000, "steps of a run of GD")
    burst_steps: int = setting(60, "first steps, whose loss is recorded one by one")
    escape_factor: float = setting(10.0, "a run has left when its loss exceeds so many times that")
    tol: float = setting(1e-3, "relative accuracy to which a and s of the starts are certified")
    max_matvecs: int = setting(1000, "products that each of these may cost")


def run(settings: Settings, context: Context) -> Outcome:
    """Finds the starts, writes the predictions, runs, and compares."""
    problems = load_problems(settings, context)
    sizes = {name: len(problem.dataset.train[0]) for name, problem in problems.items()}
    by_kind = {name: departure.make_trial(settings, n) for name, n in sizes.items()}
    starts = find_starts(settings, problems, context)
    trials = {start.name: by_kind[start.name.split()[0]] for start in starts}
    predictions = [p for start in starts for p in departure.predict(start, trials[start.name])]
    files.write_json(context.out / "predictions.json", predictions)  # before any of the runs
    rows: list[dict[str, Any]] = []
    for index, start in enumerate(starts):
        context.progress(len(starts) + 2 * index, 3 * len(starts), f"runs from {start.name}")
        own = [p for p in predictions if p["start"] == start.name]
        rows += departure.depart(start, own, trials[start.name], context)
    followed = departure.follow_some(
        {start.name.split()[0]: start for start in reversed(starts)},
        trials,
        rows,
        context,
        near=settings.start_learning_rate,
    )
    figures = [
        context.save(
            departure_summary.draw_trajectories(followed, "Leaving a minimum of gradient descent"),
            "trajectories",
        ),
        context.save(draw_outcomes(rows, starts), "outcomes"),
    ]
    text = "\n\n".join(
        [
            describe(settings),
            table_of_starts(starts, settings),
            departure_summary.table(rows),
            departure_summary.confusion(rows),
        ]
    )
    return Outcome(rows, claims(rows, starts), figures, text)


def load_problems(settings: Settings, context: Context) -> dict[str, Problem]:
    """The clean training set, and the same with further examples that have random labels."""
    clean = load_problem(
        settings.dataset, settings.model, n_train=settings.n_train, data_dir=context.data_dir
    )
    if not settings.random_labels:
        return {"clean": clean}
    corrupted = data.load(
        settings.dataset,
        n_train=settings.n_train,
        random_labels=settings.random_labels,
        data_dir=context.data_dir,
    )
    return {"clean": clean, "corrupted": Problem(corrupted, clean.loss)}


def find_starts(
    settings: Settings, problems: Mapping[str, Problem], context: Context
) -> list[Start]:
    """Minima of gradient descent on the clean and on the corrupted training set."""
    starts = []
    for index, (name, problem) in enumerate(problems.items()):
        context.progress(index * settings.starts, 6 * settings.starts, f"GD on {name} data")
        result = sweeps.sweep(
            problem.loss,
            problem.init,
            problem.dataset.train,
            optimizer=optax.sgd,
            learning_rates=[settings.start_learning_rate],
            batch_sizes=[len(problem.dataset.train[0])],
            seeds=seed_range(settings.starts),
            max_steps=settings.start_max_steps,
            loss_tolerance=settings.loss_tolerance,
            measure=False,
            out=context.out / "starts" / name,
        )
        for record in result.records:
            if record["status"] == "diverged":
                continue
            starts.append(
                departure.make_start(
                    f"{name} {record['seed']}",
                    problem.loss,
                    problem.dataset.train,
                    result.load_params(record),
                    evaluate=problem.evaluate,
                    found={"status": record["status"], "steps": record["steps"]},
                    tol=settings.tol,
                    max_matvecs=settings.max_matvecs,
                )
            )
    if not starts:
        raise ValueError(
            f"gradient descent with learning rate {settings.start_learning_rate:g} diverged from "
            "every initialisation, so there is no minimum to start from: give a smaller "
            "start_learning_rate"
        )
    return starts


@plots.styled
def draw_outcomes(rows: Sequence[Mapping[str, Any]], starts: Sequence[Start]) -> Figure:
    """Every run in units of its bounds, and test accuracy against sharpness where it ended."""
    figure, axes = plots.new_figure(1, 2, width=5.6, height=4.4)
    plane, scatter = axes[0]
    for outcome, color, marker in (
        ("stayed", plots.COLORS[0], "o"),
        ("left", plots.COLORS[1], "x"),
    ):
        some = [row for row in rows if row["outcome"] == outcome]
        x, y = (
            [max(1 - row[f"{q}_margin"], 1e-2) for row in some]
            for q in ("sharpness", "nonuniformity")
        )
        plane.scatter(x, y, color=color, marker=marker, label=f"{outcome} ({len(some)} runs)")
    plane.axvline(1, ls="--", color="#444444")
    plane.axhline(1, ls="--", color="#444444")
    plots.label_axes(
        plane,
        "a of the start / (2/η)",
        "s of the start / its bound  (B = n: 0.01)",
        title="prediction: the lower left stays",
        log_x=True,
        log_y=True,
    )
    for i, kind in enumerate(_PUBLISHED):
        here = [row for row in _ended(rows) if row["start"].startswith(kind)]
        options = {"color": plots.COLORS[2 + i], "marker": plots.MARKERS[i]}
        scatter.scatter(
            [row["end_sharpness"] for row in here],
            [100 * row["end_test_accuracy"] for row in here],
            alpha=0.7,
            label=f"{kind}: where the runs ended",
            **options,
        )
        begin = [s for s in starts if s.name.startswith(kind) and "test_accuracy" in s.found]
        scatter.scatter(
            [float(start.measurement.sharpness.value) for start in begin],
            [100 * start.found["test_accuracy"] for start in begin],
            s=110,
            facecolors="none",
            edgecolors=options["color"],
            marker=options["marker"],
            label=f"{kind}: starts",
        )
    plots.label_axes(
        scatter, plots.SHARPNESS, "test accuracy  [%]", title="where they ended", log_x=True
    )
    departure_summary.plain_ticks(plane.xaxis, scatter.xaxis)
    return figure


def _ended(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs whose end was measured and whose training accuracy is that of a solution."""
    return [
        row
        for row in rows
        if np.isfinite(row.get("end_sharpness", np.nan))
        and np.isfinite(row.get("end_test_accuracy", np.nan))
        and row["end_train_accuracy"] > 0.95
    ]


def claims(rows: Sequence[Mapping[str, Any]], starts: Sequence[Start]) -> list[Claim]:
    """What the paper says of these runs, as it came out."""
    ended = _ended(rows)
    flat = correlation(
        [row["end_sharpness"] for row in ended],
        [row["end_test_accuracy"] for row in ended],
        ranks=True,
    )
    gone = [row for row in ended if row["outcome"] == "left"]
    flatter = mean_interval([row["end_sharpness"] / row["start_sharpness"] for row in gone])
    before = {start.name: start.found.get("test_accuracy", np.nan) for start in starts}
    found = departure_summary.agreement_claims(rows)
    found += [
        Claim(
            "flatter",
            "what leaves a minimum ends at a flatter one",
            "observation",
            f"mean of final over initial sharpness, {len(gone)} runs that left and trained again",
            "< 1",
            flatter.value,
            {"95% interval": [flatter.lower, flatter.upper]},
            judge(_below(flatter, 1)),
        ),
        Claim(
            "flat-generalises",
            "flatter ends have higher test accuracy",
            "observation",
            f"Spearman correlation of sharpness and test accuracy over {len(ended)} ends",
            "< 0",
            flat.value,
            {"95% interval": [flat.lower, flat.upper]},
            judge(_below(flat, 0)),
        ),
    ]
    for kind in _PUBLISHED:
        changes = [
            100 * (row["end_test_accuracy"] - before[row["start"]])
            for row in gone
            if row["start"].startswith(kind)
        ]
        change = mean_interval(changes)
        found.append(
            Claim(
                f"better-{kind}",
                f"leaving the minimum of the {kind} set raises the test accuracy",
                "observation",
                f"mean change of test accuracy over {len(changes)} runs, percentage points",
                "> 0",
                change.value,
                {"95% interval": [change.lower, change.upper]},
                judge(None if _below(change, 0) is None else not _below(change, 0)),
            )
        )
    return found


def _below(estimate: Any, bound: float) -> bool | None:
    """Whether an interval lies below a bound; None if it contains it or is not known."""
    if estimate.upper < bound:
        return True
    return False if estimate.lower > bound else None


def table_of_starts(starts: Sequence[Start], settings: Settings) -> str:
    """Sharpness, non-uniformity and test accuracy of the starts, as in Table 3."""
    lines = [f"{'start':>14} {'steps':>7} {'a':>8} {'s':>8} {'test accuracy':>14}"]
    for start in starts:
        a, s = start.measurement.sharpness, start.measurement.nonuniformity
        accuracy = 100 * start.found.get("test_accuracy", np.nan)
        lines.append(
            f"{start.name:>14} {start.found['steps']:>7} {float(a.value):>8.4g} "
            f"{float(s.value):>8.4g} {accuracy:>13.2f}%"
        )
    if settings.dataset == "fashion_mnist":
        for row in published.load("wu2018_table3").to_dict("records"):
            lines.append(
                f"{'published ' + row['start']:>14} {'':>7} {row['sharpness']:>8.4g} "
                f"{row['nonuniformity']:>8.4g} {row['test_accuracy']:>13.2f}%"
            )
    return "\n".join(lines)


EXPERIMENT = Experiment(
    name="escape",
    source="Wu, Ma, E 2018, Figs. 1, 8, Table 3",
    summary="which runs leave a minimum of gradient descent: predicted from a and s, then run",
    run=run,
    presets={
        "quick": Settings(),
        "paper": Settings(
            dataset="fashion_mnist",
            model="fnn",
            n_train=1000,
            random_labels=200,
            loss_tolerance=1e-4,
            start_learning_rate=0.1,
            start_max_steps=400_000,
            learning_rates=(0.1, 0.3, 0.5),
            batch_sizes=(1, 4, 100, "n"),
            sgd_steps=50_000,
            gd_steps=20_000,
        ),
    },
)
