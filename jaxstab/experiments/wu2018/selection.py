"""Which minima SGD selects: the a–s diagram by batch size (Wu, Ma, E 2018, Fig. 6)."""

import pandas as pd

from jaxstab.experiments import minima
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.grid import run_grid
from jaxstab.experiments.minima import SLACK
from jaxstab.experiments.protocol import Context, Experiment, Outcome
from jaxstab.experiments.settings import TINY, GridSettings
from jaxstab.experiments.statistics import mean_over, share, trend


def run(settings: GridSettings, context: Context) -> Outcome:
    """Trains the grid, measures a and s of every minimum and places it in the region of eq. 9."""
    grid = run_grid(settings, context)
    title = f"Minima that SGD selects: {settings.model} on {settings.dataset}, n = {grid.n}"
    return Outcome(
        rows=grid.rows,
        tables=[minima.table(grid.rows, n=grid.n)],
        notes=minima.conclusion(grid.rows),
        claims=claims(grid.minima, grid.n),
        figures=minima.diagrams(grid.rows, n=grid.n, title=title),
    )


def claims(found: pd.DataFrame, n: int) -> list[Claim]:
    """The claims of the paper about these minima, as they came out."""
    gd = found[found["batch_size"] == n].assign(ratio=lambda rows: 1 - rows["sharpness_margin"])
    result = [
        claim(
            "inside",
            "every minimum that SGD reaches lies inside the region of eq. 9",
            f"fraction of {len(found)} minima inside, by certified intervals",
            share(found["side"], "inside"),
            "=",
            1,
        ),
        claim(
            "no-suspicious-point",
            "no minimum is outside by more than runs stopped while still leaving explain (5 %)",
            "smallest relative margin 1 − measured/bound over all minima and both bounds",
            minima.worst_margin(found).min(),
            ">=",
            -SLACK,
        ),
    ]
    for name, word in (("nonuniformity", "non-uniformity"), ("sharpness", "sharpness")):
        result.append(falls_with_batch_size(found, name, word))
    if len(gd):
        result.append(
            claim(
                "gd-at-the-edge",
                "the minima of gradient descent lie close to the edge a = 2/η",
                f"mean of a / (2/η) over seeds of {len(gd)} GD minima (1 is the edge)",
                mean_over(gd, "ratio"),
                "=",
                1,
                within=0.1,
            )
        )
    return result


def falls_with_batch_size(found: pd.DataFrame, name: str, word: str) -> Claim:
    """Smaller batches select flatter and more uniform minima."""
    return claim(
        f"{name}-falls",
        f"{word} falls as the batch size falls",
        f"Spearman correlation of {word} with batch size at fixed learning rate and scale, mean "
        "over seeds",
        trend(found, "batch_size", name, within=("learning_rate", "init_scale")),
        ">",
        0,
    )


PRESETS = {
    "quick": GridSettings(learning_rates=(2.0,), init_scales=(0.5, 1.0, 1.4)),
    "paper": GridSettings(
        dataset="fashion_mnist",
        model="fnn",
        learning_rates=(0.5,),
        init_scales=(0.5, 1.0, 1.5),
        max_steps=400_000,
    ),
    "tiny": GridSettings(**TINY, learning_rates=(1.0,), batch_sizes=(10, "n"), seeds=1),
}

# `jaxstab sweep`: the same for any grid; not in the registry, as it is no experiment of a paper.
SWEEP = Experiment(
    name="sweep",
    source="any grid",
    summary="train a grid of learning rates and batch sizes and place its minima in eq. 9",
    run=run,
    presets={"quick": GridSettings()},
)
