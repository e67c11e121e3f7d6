"""Sharpness of the minima of gradient descent beside 2/η (Wu, Ma, E 2018, Table 2)."""

import pandas as pd

from jaxstab import plots
from jaxstab.experiments import minima, published, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.grid import run_grid
from jaxstab.experiments.minima import SLACK
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import TINY, GdGridSettings
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table


def run(settings: GdGridSettings, context: Context) -> Outcome:
    """Runs gradient descent at every learning rate and compares a with 2/η."""
    grid = run_grid(settings, context)
    theirs = published.beside(settings, "wu2018_grid", source="table2_gd")
    summary = summarize(grid.rows, theirs)
    figure = plots.edge(
        learning_rate=grid.minima["learning_rate"],
        sharpness=grid.minima["sharpness"],
        blew_up=summary["learning_rate"][summary["reached"] == 0],
        published=plots.published_series(
            "Wu, Ma, E 2018, Table 2", theirs, x="learning_rate", y="sharpness"
        ),
        title=f"Gradient descent ends at the edge: {settings.model} on {settings.dataset}, "
        f"n = {grid.n}",
    )
    return Outcome(
        rows=grid.rows,
        tables=[table(summary)],
        notes=minima.conclusion(grid.rows),
        claims=claims(grid.minima),
        figures={"gd-sharpness": figure},
    )


def summarize(rows: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """The lines of Table 2: what the runs at each learning rate came to, beside the published."""
    lines = minima.summarize(rows, by=["learning_rate"], of=["sharpness"])
    outside = rows[(rows["side"] != "") & (rows["sharpness_side"] == "outside")]
    above = outside.groupby("learning_rate")["sharpness_margin"].agg(above="size", margin="min")
    lines = lines.merge(above.reset_index(), on="learning_rate", how="left")
    columns = ["learning_rate", "sharpness_mean", "sharpness_std"]
    theirs = theirs[columns].set_axis(["learning_rate", "published", "published_std"], axis=1)
    return lines.merge(theirs, on="learning_rate", how="left").assign(
        above=lines["above"].fillna(0).astype(int),
        most_above=-lines["margin"],
        edge=2 / lines["learning_rate"],
        ratio=lines["sharpness"] * lines["learning_rate"] / 2,
    )


def table(summary: pd.DataFrame) -> Table:
    """A mean ± std beside 2/η; a dash where no run reached a minimum."""
    columns = [
        tables.LEARNING_RATE,
        Column("edge", "2/η", "1/step size"),
        tables.MEAN_SHARPNESS,
        Column("ratio", "a/(2/η)", format=".3f"),
        Column("above"),
        Column("most_above", format="+.2%"),
        Column("reached"),
        Column("runs"),
        Column("blew_up"),
    ]
    if summary["published"].notna().any():
        columns.append(Column("published", "published", "1/step size", spread="std"))
    return Table("gd-sharpness", summary, columns, title="a of GD minima beside the edge 2/η")


def claims(found: pd.DataFrame) -> list[Claim]:
    """What Table 2 shows, as it came out here."""
    found = found.assign(ratio=1 - found["sharpness_margin"])
    above = (found["sharpness_side"] == "outside").sum()
    return [
        claim(
            "below-the-edge",
            "no minimum of gradient descent is sharper than 2/η by more than 5 %, which runs "
            "stopped while they still oscillate at the edge explain",
            f"largest a / (2/η) over {len(found)} minima, {above} of them above 1",
            found["ratio"].max(),
            "<=",
            1 + SLACK,
        ),
        claim(
            "at-the-edge",
            "the minima lie close to the edge, so sharpness falls as 1/η",
            f"mean of a / (2/η) over seeds of {len(found)} minima",
            mean_over(found, "ratio"),
            "=",
            1,
            within=0.1,
        ),
    ]


PRESETS = {
    "quick": GdGridSettings(learning_rates=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0), n_train=300),
    "paper": GdGridSettings(
        dataset="fashion_mnist",
        model="fnn",
        learning_rates=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
        max_steps=400_000,
    ),
    "paper-cifar10": GdGridSettings(
        dataset="cifar10",
        model="vgg",
        classes=("airplane", "automobile"),
        learning_rates=(0.01, 0.05, 0.1, 0.5),
        max_steps=400_000,
    ),
    "tiny": GdGridSettings(**TINY, learning_rates=(1.0, 1e4), seeds=1),
}
