"""Sharpness against non-uniformity over many models and settings (Wu, Ma, E 2018, Fig. 7)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxstab import data, models, plots
from jaxstab.checks import check_name
from jaxstab.experiments import minima, published
from jaxstab.experiments.base import (
    Claim,
    Context,
    Experiment,
    Outcome,
    judge,
    parse_batch_size,
    setting,
)
from jaxstab.experiments.grid import GridSettings, describe, run_grid
from jaxstab.experiments.statistics import Estimate, correlation

STRONG = 0.5  # a correlation above this counts as strong
_PUBLISHED = {
    "fashion_mnist/fnn": "fashion_mnist",
    "cifar10/vgg/airplane,automobile": "cifar10_2class",
}


@dataclass(frozen=True)
class CorrelationSettings:
    """One grid on every problem."""

    problems: tuple[str, ...] = setting(
        ("digits/fnn-small", "digits/vgg-small", "digits/resnet8-small"),
        "problems, each as DATASET/MODEL or DATASET/MODEL/CLASS,CLASS",
    )
    n_train: int = setting(100, "number of training examples n")
    learning_rates: tuple[float, ...] = setting((1.0, 2.0), "learning rates")
    batch_sizes: tuple[int | str, ...] = setting(
        (4, 25), "batch sizes; n is the whole data set", parse_batch_size
    )
    init_scales: tuple[float, ...] = setting((1.0, 1.5), "initialisation scales v")
    seeds: int = setting(1, "number of seeds")
    max_steps: int = setting(15_000, "step limit of a run")
    loss_tolerance: float = setting(1e-4, "a minimum is reached below this training loss")
    tol: float = setting(1e-3, "relative accuracy to which a and s are certified")
    max_matvecs: int = setting(1000, "products that each of a and s may cost")


def run(settings: CorrelationSettings, context: Context) -> Outcome:
    """Trains the grid on every problem and correlates a with s over all minima."""
    grids = [grid_settings(settings, problem) for problem in settings.problems]  # names first
    rows: list[dict[str, Any]] = []
    for index, (problem, grid) in enumerate(zip(settings.problems, grids, strict=True)):
        part = _part(context, index, len(grids), problem)
        found = run_grid(grid, part, batch_sizes=grid.batch_sizes).rows
        rows += [{"problem": problem} | row for row in found]
    theirs = published_points(settings)
    figure = draw(minima.reached(rows), theirs)
    text = f"{describe(settings)}\n\n{table(rows, settings.problems)}"
    return Outcome(
        rows, claims(rows, settings.problems), [context.save(figure, "correlation")], text
    )


def grid_settings(settings: CorrelationSettings, problem: str) -> GridSettings:
    """The grid of one problem, given as DATASET/MODEL or DATASET/MODEL/CLASS,CLASS."""
    parts = problem.split("/")
    if len(parts) not in (2, 3):
        raise ValueError(
            f"a problem is DATASET/MODEL or DATASET/MODEL/CLASS,CLASS, got {problem!r}"
        )
    shared = dataclasses.asdict(settings)
    shared.pop("problems")
    return GridSettings(
        dataset=check_name("data set", parts[0], data.NAMES),
        model=check_name("model", parts[1], models.MODELS),
        classes=tuple(parts[2].split(",")) if len(parts) == 3 else (),
        **shared,
    )


def _part(context: Context, index: int, problems: int, problem: str) -> Context:
    """The context of one problem: a folder of its own, progress as a share of the whole."""

    def progress(done: int, total: int, message: str = "") -> None:
        context.progress(index * total + done, problems * total, f"{problem} {message}".strip())

    folder = context.out / problem.replace("/", "_").replace(",", "+")
    return Context(folder, progress, context.data_dir)


def published_points(settings: CorrelationSettings) -> dict[str, list[dict[str, Any]]]:
    """Published means of (a, s) by problem, where data set and network are those of the paper."""
    return {
        problem: [
            row
            for row in published.load("wu2018_grid", where={"dataset": _PUBLISHED[problem]})
            if row["nonuniformity_mean"] is not None
        ]
        for problem in settings.problems
        if problem in _PUBLISHED
    }


@plots.styled
def draw(found: Sequence[Any], theirs: dict[str, list[dict[str, Any]]]) -> Figure:
    """All minima in the (a, s) plane, logarithmic; one colour per problem, published hollow."""
    figure, axes = plots.new_figure(width=6.4, height=4.8)
    panel = axes[0, 0]
    for i, problem in enumerate(sorted({row["problem"] for row in found} | set(theirs))):
        color, marker = plots.COLORS[i % len(plots.COLORS)], plots.MARKERS[i % len(plots.MARKERS)]
        here = [row for row in found if row["problem"] == problem]
        a, s = ([row[name] for row in here] for name in ("sharpness", "nonuniformity"))
        label = f"{problem}: r = {_of_logs(here).value:.2f} ({len(here)} minima)"
        panel.scatter(a, s, color=color, marker=marker, alpha=0.8, label=label)
        points = theirs.get(problem, [])
        if points:
            panel.scatter(
                [row["sharpness_mean"] for row in points],
                [row["nonuniformity_mean"] for row in points],
                edgecolors=color,
                facecolors="none",
                marker=marker,
                s=80,
                label=f"{problem}: published means",
            )
    title = f"a and s of {len(found)} minima, log–log: r = {_of_logs(found).value:.2f}"
    plots.label_axes(
        panel,
        plots.SHARPNESS,
        plots.NONUNIFORMITY,
        title=title,
        log_x=True,
        log_y=True,
        legend=bool(found or theirs),
    )
    return figure


def _of_logs(rows: Sequence[Any]) -> Estimate:
    """Correlation of log a with log s; a and s span decades, and a power law is a line in logs."""
    pairs = [(r["sharpness"], r["nonuniformity"]) for r in rows]
    positive = np.log([pair for pair in pairs if min(pair) > 0] or np.ones((0, 2)))
    return correlation(*positive.T.tolist())


def table(rows: Sequence[Any], problems: Sequence[str]) -> str:
    """One line per problem and one for all: how many minima, ranges, correlation with interval."""
    head = (
        f"{'problem':<34} {'minima':>7} | {'a (range)':>17} | {'s (range)':>17} | "
        f"{'median s/a':>10} | {'r of log a, log s (95 %)':>26} | {'rank correlation (95 %)':>26}"
    )
    lines = [head, "-" * len(head)]
    for problem in [*problems, "all"]:
        here = [row for row in rows if problem in (row["problem"], "all")]
        found = minima.reached(here)
        cells = ["–"] * 5
        if found:
            a, s = (np.array([r[name] for r in found]) for name in ("sharpness", "nonuniformity"))
            cells = [f"{x.min():.3g} to {x.max():.3g}" for x in (a, s)]
            cells += [f"{np.median(s / a):.2f}", _interval(_of_logs(found))]
            cells += [_interval(correlation(a.tolist(), s.tolist(), ranks=True))]
        lines.append(
            f"{problem:<34} {len(found):>3}/{len(here):<3} | {cells[0]:>17} | {cells[1]:>17} | "
            f"{cells[2]:>10} | {cells[3]:>26} | {cells[4]:>26}"
        )
    return "\n".join(lines)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.lower:.3f}, {estimate.upper:.3f}]"


def claims(rows: Sequence[Any], problems: Sequence[str]) -> list[Claim]:
    """The correlation over all models, and within each."""
    result = []
    for name, where in [("correlated", "all"), *((f"correlated {p}", p) for p in problems)]:
        found = minima.reached([row for row in rows if where in (row["problem"], "all")])
        estimate = _of_logs(found)
        known = np.isfinite(estimate.lower)
        holds = True if estimate.lower > STRONG else False if estimate.upper < STRONG else None
        over = "all models" if where == "all" else where
        result.append(
            Claim(
                name,
                f"sharpness and non-uniformity are strongly correlated over {over}",
                "observation",
                f"Pearson correlation of log a and log s over {len(found)} minima (bootstrap)",
                f"> {STRONG}",
                estimate.value,
                {"95% interval": [estimate.lower, estimate.upper]},
                judge(holds if known else None),
            )
        )
    return result


EXPERIMENT = Experiment(
    name="correlation",
    source="Wu, Ma, E 2018, Fig. 7",
    summary="sharpness against non-uniformity over networks, learning rates, batch sizes, starts",
    run=run,
    presets={
        "quick": CorrelationSettings(),
        "paper": CorrelationSettings(
            problems=(
                "fashion_mnist/fnn",
                "cifar10/vgg/airplane,automobile",
                "cifar10/resnet14-no-norm/airplane,automobile",
            ),
            n_train=1000,
            learning_rates=(0.01, 0.05, 0.1),
            batch_sizes=(10, 100, "n"),
            init_scales=(0.5, 1.0, 1.5),
            seeds=2,
            max_steps=400_000,
        ),
    },
)
