"""Sharpness and non-uniformity against batch size (Wu, Ma, E 2018, Fig. 5)."""

from functools import partial

import pandas as pd

from jaxstab import plots
from jaxstab.experiments import minima, published, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.grid import run_grid
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import TINY, GridSettings
from jaxstab.experiments.statistics import share
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.wu2018.selection import falls_with_batch_size
from jaxstab.stability.criteria import box


def run(settings: GridSettings, context: Context) -> Outcome:
    """Trains the grid and follows a and s over batch sizes at every learning rate."""
    grid = run_grid(settings, context)
    theirs = published.beside(settings, "wu2018_grid", source="fig5_batch_size")
    summary = summarize(grid.rows, theirs, grid.n)
    return Outcome(
        rows=grid.rows,
        tables=[table(summary, grid.n)],
        notes=minima.conclusion(grid.rows),
        claims=claims(grid.minima, grid.n),
        figures={
            "batch-size": plots.batch_size(
                summary,
                n=grid.n,
                bound=partial(box, n=grid.n),
                published=theirs,
                title=f"Minima by batch size: {settings.model} on {settings.dataset}, n = {grid.n}",
            )
        },
    )


def summarize(rows: pd.DataFrame, theirs: pd.DataFrame, n: int) -> pd.DataFrame:
    """Mean and standard deviation over seeds at every (η, B), beside bounds and published means."""
    keys = ["learning_rate", "batch_size"]
    lines = minima.summarize(rows, by=keys)
    bounds = [box(eta, int(size), n) for eta, size in lines[keys].itertuples(index=False)]
    lines["edge"] = [bound.sharpness for bound in bounds]
    lines["bound"] = [bound.nonuniformity for bound in bounds]
    lines["ratio"] = lines["nonuniformity"] / lines["bound"].where(lines["batch_size"] < n)
    theirs = theirs[[*keys, "sharpness_mean", "nonuniformity_mean"]]
    return lines.merge(theirs, on=keys, how="left")


def table(summary: pd.DataFrame, n: int) -> Table:
    """One line per (η, B): mean ± std of a and s beside their bounds."""
    columns = [
        tables.LEARNING_RATE,
        tables.batch_size(n),
        Column("reached"),
        Column("runs"),
        tables.MEAN_SHARPNESS,
        Column("edge", "2/η", "1/step size"),
        tables.MEAN_NONUNIFORMITY,
        Column("bound", "bound", "1/step size", infinite="none"),
        Column("ratio", "s/bound", format=".3f"),
    ]
    if summary["sharpness_mean"].notna().any():
        columns += [Column("sharpness_mean", "published a"), Column("nonuniformity_mean", "and s")]
    return Table("batch-size", summary, columns, title="a and s of minima by batch size")


def claims(found: pd.DataFrame, n: int) -> list[Claim]:
    """What Fig. 5 shows, as it came out here."""
    bounded = found[found["batch_size"] < n]
    return [
        claim(
            "below-the-bound",
            "non-uniformity lies below the bound of eq. 9 at every batch size",
            f"fraction of {len(bounded)} minima with B < n inside, by certified intervals",
            share(bounded["nonuniformity_side"], "inside"),
            "=",
            1,
        ),
        falls_with_batch_size(found, "nonuniformity", "non-uniformity"),
        falls_with_batch_size(found, "sharpness", "sharpness"),
    ]


PRESETS = {
    "quick": GridSettings(
        n_train=300,
        learning_rates=(1.0, 2.0, 4.0),
        batch_sizes=(4, 10, 40, 100, "n"),
        seeds=3,
        max_steps=30_000,
    ),
    "paper": GridSettings(
        dataset="fashion_mnist",
        model="fnn",
        learning_rates=(0.05, 0.1, 0.5, 1.0),
        batch_sizes=(10, 100, 300, 600, "n"),
        max_steps=400_000,
    ),
    "paper-cifar10": GridSettings(
        dataset="cifar10",
        model="vgg",
        classes=("airplane", "automobile"),
        learning_rates=(0.01, 0.03, 0.05, 0.1),
        batch_sizes=(4, 10, 100, 400, "n"),
        max_steps=400_000,
    ),
    "tiny": GridSettings(**TINY, learning_rates=(1.0,), batch_sizes=(10, "n"), seeds=1),
}
