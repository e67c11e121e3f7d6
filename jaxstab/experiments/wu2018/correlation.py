"""Sharpness against non-uniformity over many models and settings (Wu, Ma, E 2018, Fig. 7)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxstab import data, models, plots
from jaxstab.checks import check_name
from jaxstab.experiments import minima, published
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.grid import run_grid
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import (
    TINY,
    GridSettings,
    MeasureSettings,
    StopSettings,
    parse_batch_size,
    setting,
)
from jaxstab.experiments.statistics import Estimate, correlation
from jaxstab.experiments.tables import Column, Table

ALL = "all"
STRONG = 0.5  # a correlation above this counts as strong
# Runs of one seed on one problem begin at multiples of the same point and see the same batches.
UNITS = ("problem", "seed")


@dataclass(frozen=True)
class Settings(MeasureSettings, StopSettings):
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
    init_scales: tuple[float, ...] = setting((1.0,), "initialisation scales v")
    seeds: int = setting(3, "number of seeds")
    max_steps: int = setting(15_000, "step limit of a run")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains the grid on every problem and correlates a with s over all minima."""
    grids = {problem: grid_settings(settings, problem) for problem in settings.problems}
    parts = {
        problem: run_grid(grid, context.part(problem, i, len(grids))).rows.assign(problem=problem)
        for i, (problem, grid) in enumerate(grids.items())
    }
    parts[ALL] = pd.concat(parts.values(), ignore_index=True)
    lines = summarize(parts)
    shown = zip(lines["problem"], lines["r"], lines["minima"], strict=True)
    labels = {problem: f"{problem}: r = {r:.2f} ({count} minima)" for problem, r, count in shown}
    figure = plots.plane(
        {labels[problem]: minima.reached(parts[problem]) for problem in grids},
        published={labels[p]: published.beside(grid, "wu2018_grid") for p, grid in grids.items()},
        title=f"a and s of minima of {len(grids)} problems, log–log; {labels[ALL]}",
    )
    return Outcome(
        rows=parts[ALL],
        tables=[table(lines)],
        claims=[claim_of(problem, parts[problem]) for problem in (ALL, *grids)],
        figures={"correlation": figure},
    )


def grid_settings(settings: Settings, problem: str) -> GridSettings:
    """The grid of one problem, given as DATASET/MODEL or DATASET/MODEL/CLASS,CLASS."""
    dataset, model, *classes = [*problem.split("/"), ""][:3]
    if problem.count("/") not in (1, 2):
        raise ValueError(
            f"a problem is DATASET/MODEL or DATASET/MODEL/CLASS,CLASS, got {problem!r}"
        )
    shared = dataclasses.asdict(settings)
    del shared["problems"]
    return GridSettings(
        dataset=check_name("data set", dataset, data.NAMES),
        model=check_name("model", model, models.MODELS),
        classes=tuple(filter(None, classes[0].split(","))),
        **shared,
    )


def of_logs(rows: pd.DataFrame) -> Estimate:
    """Correlation of log a with log s; a and s span decades, and a power law is a line in logs."""
    positive = rows[(rows["sharpness"] > 0) & (rows["nonuniformity"] > 0)]
    logs = {name: np.log(positive[name]) for name in ("sharpness", "nonuniformity")}
    return correlation(positive.assign(**logs), *logs, by=UNITS)


def summarize(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One line per part: how many minima, ranges, correlations."""
    lines = []
    for problem, rows in parts.items():
        found = minima.reached(rows)
        a, s = found["sharpness"], found["nonuniformity"]
        ranks = correlation(found, a.name, s.name, by=UNITS, ranks=True)
        line = {"problem": problem, "minima": len(found), "runs": len(rows)}
        line |= {"a_min": a.min(), "a_max": a.max(), "s_min": s.min(), "s_max": s.max()}
        line |= {"slope": (s / a).median()} | of_logs(found).columns("r") | ranks.columns("ranks")
        lines.append(line)
    return pd.DataFrame(lines)


def table(lines: pd.DataFrame) -> Table:
    """The lines, with the intervals of the correlations."""
    ends = [("a_min", "min a"), ("a_max", "max a"), ("s_min", "min s"), ("s_max", "max s")]
    columns = [
        *(Column(name) for name in ("problem", "minima", "runs")),
        *(Column(name, header, "1/step size", ".3g") for name, header in ends),
        Column("slope", "median s/a", format=".2f"),
        Column("r", "r of log a, log s (95 %)", format=".3f", spread="interval"),
        Column("ranks", "rank correlation (95 %)", format=".3f", spread="interval"),
    ]
    return Table("correlation", lines, columns, note="95 % by bootstrap over problems × seeds")


def claim_of(problem: str, rows: pd.DataFrame) -> Claim:
    """The correlation over all models, or within one."""
    found = minima.reached(rows)
    over = "all models" if problem == ALL else problem
    return claim(
        "correlated" if problem == ALL else f"correlated {problem}",
        f"sharpness and non-uniformity are strongly correlated over {over}",
        f"Pearson correlation of log a and log s over {len(found)} minima",
        of_logs(found),
        ">",
        STRONG,
    )


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
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
    "tiny": Settings(
        **TINY,
        problems=("digits/fnn-small",),
        learning_rates=(1.0,),
        init_scales=(1.0,),
        batch_sizes=(10, "n"),
        seeds=1,
    ),
}
