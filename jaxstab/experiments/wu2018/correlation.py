"""Sharpness against non-uniformity over many models and settings (Wu, Ma, E 2018, Fig. 7)."""

import dataclasses
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
    rows = pd.concat(
        [
            run_grid(grid, context.part(problem, i, len(grids))).rows.assign(problem=problem)
            for i, (problem, grid) in enumerate(grids.items())
        ],
        ignore_index=True,
    )
    found = minima.reached(rows)
    theirs = {
        problem: published.beside(grid, "wu2018_grid").dropna(subset=["nonuniformity_mean"])
        for problem, grid in grids.items()
    }
    lines = summarize(rows, settings.problems)
    labels = {
        line["problem"]: f"{line['problem']}: r = {line['r']:.2f} ({line['minima']} minima)"
        for line in lines.to_dict("records")
    }
    figure = plots.plane(
        {labels[problem]: found[found["problem"] == problem] for problem in grids},
        published={labels[problem]: theirs[problem] for problem in grids},
        title=f"a and s of minima of {len(grids)} problems, log–log; {labels['all']}",
    )
    return Outcome(
        rows=rows, tables=[table(lines)], claims=claims(rows, settings.problems),
        figures={"correlation": figure},
    )  # fmt: skip


def grid_settings(settings: Settings, problem: str) -> GridSettings:
    """The grid of one problem, given as DATASET/MODEL or DATASET/MODEL/CLASS,CLASS."""
    parts = problem.split("/")
    if len(parts) not in (2, 3):
        raise ValueError(
            f"a problem is DATASET/MODEL or DATASET/MODEL/CLASS,CLASS, got {problem!r}"
        )
    shared = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    del shared["problems"]
    return GridSettings(
        dataset=check_name("data set", parts[0], data.NAMES),
        model=check_name("model", parts[1], models.MODELS),
        classes=tuple(parts[2].split(",")) if len(parts) == 3 else (),
        **shared,
    )


def of_logs(rows: pd.DataFrame) -> Estimate:
    """Correlation of log a with log s; a and s span decades, and a power law is a line in logs."""
    positive = rows[(rows["sharpness"] > 0) & (rows["nonuniformity"] > 0)]
    logs = {name: np.log(positive[name]) for name in ("sharpness", "nonuniformity")}
    return correlation(positive.assign(**logs), *logs, by=UNITS)


def summarize(rows: pd.DataFrame, problems: tuple[str, ...]) -> pd.DataFrame:
    """One line per problem and one for all: how many minima, ranges, correlations."""
    lines = []
    for problem in [*problems, "all"]:
        here = rows if problem == "all" else rows[rows["problem"] == problem]
        found = minima.reached(here)
        line = {"problem": problem, "minima": len(found), "runs": len(here)}
        for symbol, name in (("a", "sharpness"), ("s", "nonuniformity")):
            line |= {f"{symbol}_min": found[name].min(), f"{symbol}_max": found[name].max()}
        line["slope"] = (found["nonuniformity"] / found["sharpness"]).median()
        ranks = correlation(found, "sharpness", "nonuniformity", by=UNITS, ranks=True)
        lines.append(line | of_logs(found).columns("r") | ranks.columns("ranks"))
    return pd.DataFrame(lines)


def table(lines: pd.DataFrame) -> Table:
    """The lines, with the intervals of the correlations."""
    ends = [
        Column(f"{x}_{end}", f"{end} {x}", "1/step size", ".3g")
        for x in "as"
        for end in ("min", "max")
    ]
    columns = [
        Column("problem"),
        Column("minima"),
        Column("runs"),
        *ends,
        Column("slope", "median s/a", format=".2f"),
        Column("r", "r of log a, log s (95 %)", format=".3f", spread="interval"),
        Column("ranks", "rank correlation (95 %)", format=".3f", spread="interval"),
    ]
    return Table("correlation", lines, columns, note="95 % by bootstrap over problems × seeds")


def claims(rows: pd.DataFrame, problems: tuple[str, ...]) -> list[Claim]:
    """The correlation over all models, and within each."""
    result = []
    for problem in ("all", *problems):
        found = minima.reached(rows if problem == "all" else rows[rows["problem"] == problem])
        over = "all models" if problem == "all" else problem
        result.append(
            claim(
                "correlated" if problem == "all" else f"correlated {problem}",
                f"sharpness and non-uniformity are strongly correlated over {over}",
                f"Pearson correlation of log a and log s over {len(found)} minima",
                of_logs(found),
                ">",
                STRONG,
            )
        )
    return result


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
