"""Which minima SGD selects: the a–s diagram by batch size (Wu, Ma, E 2018, Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab.experiments import minima
from jaxstab.experiments.base import Claim, Context, Experiment, Outcome, judge
from jaxstab.experiments.grid import Grid, GridSettings, describe, run_grid
from jaxstab.experiments.statistics import correlation, fraction

Rows = Sequence[Any]


def run(settings: GridSettings, context: Context) -> Outcome:
    """Trains the grid, measures a and s of every minimum and places it in the region of eq. 9."""
    grid = run_grid(settings, context, batch_sizes=settings.batch_sizes)
    figures = draw(grid, settings, context)
    text = f"{describe(settings)}\n\n{minima.table(grid.rows, n=grid.n)}\n\n"
    return Outcome(
        grid.rows, claims(grid.rows, grid.n), figures, text + minima.conclusion(grid.rows)
    )


def draw(grid: Grid, settings: GridSettings, context: Context) -> list[Path]:
    """One diagram per learning rate."""
    title = f"Minima that SGD selects: {settings.model} on {settings.dataset}, n = {grid.n}"
    figures = minima.diagrams(grid.rows, n=grid.n, title=title)
    if len(figures) == 1:
        return [context.save(figures[0][1], "selection")]
    return [context.save(figure, f"selection-{eta:g}") for eta, figure in figures]


def claims(rows: Rows, n: int) -> list[Claim]:
    """The claims of the paper about these minima, as they came out."""
    found = minima.reached(rows)
    inside = fraction(sum(row["side"] == "inside" for row in found), len(found))
    outside = sum(row["side"] == "outside" for row in found)
    worst = min((minima.worst_margin(row) for row in found), default=float("nan"))
    result = [
        Claim(
            "inside",
            "every minimum that SGD reaches lies inside the region of eq. 9",
            "observation",
            f"fraction of {len(found)} minima inside, by certified intervals",
            1.0,
            inside.value,
            {"95% interval": [inside.lower, inside.upper]},
            judge(None if not found else True if inside.value == 1 else False if outside else None),
        ),
        Claim(
            "no-suspicious-point",
            "no minimum is outside by more than runs stopped while still leaving explain (5 %)",
            "observation",
            "smallest relative margin 1 − measured/bound over all minima and both bounds",
            f">= {-minima.SUSPICIOUS}",
            worst,
            None,
            judge(worst >= -minima.SUSPICIOUS if found else None),
        ),
    ]
    for name, word in (("nonuniformity", "non-uniformity"), ("sharpness", "sharpness")):
        result.append(_falls_with_batch_size(found, name, word))
    return [*result, *_edge(found, n)]


def _falls_with_batch_size(found: Rows, name: str, word: str) -> Claim:
    """Smaller batches select flatter and more uniform minima."""
    rank = correlation([r["batch_size"] for r in found], [r[name] for r in found], ranks=True)
    known = np.isfinite(rank.lower)
    above, below = rank.lower > 0, rank.upper < 0
    return Claim(
        f"{name}-falls",
        f"{word} falls as the batch size falls",
        "observation",
        f"Spearman correlation of {word} with batch size over {len(found)} minima",
        "> 0",
        rank.value,
        {"95% interval": [rank.lower, rank.upper]},
        judge((True if above else False if below else None) if known else None),
    )


def _edge(found: Rows, n: int) -> list[Claim]:
    """Gradient descent ends close to its edge."""
    ratios = [1 - row["sharpness_margin"] for row in found if row["batch_size"] == n]
    if not ratios:
        return []
    mean, std = float(np.mean(ratios)), float(np.std(ratios))
    return [
        Claim(
            "gd-at-the-edge",
            "the minima of gradient descent lie close to the edge a = 2/η",
            "observation",
            f"mean of a / (2/η) over {len(ratios)} GD minima (1 is the edge; within 10 % counts)",
            1.0,
            mean,
            {"std": std},
            judge(abs(mean - 1) <= 0.1),
        )
    ]


# `jaxstab sweep`: the same for any grid; not in the registry, as it is no experiment of a paper.
SWEEP = Experiment(
    name="sweep",
    source="any grid",
    summary="train a grid of learning rates and batch sizes and place its minima in eq. 9",
    run=run,
    presets={"quick": GridSettings()},
)

EXPERIMENT = Experiment(
    name="selection",
    source="Wu, Ma, E 2018, Fig. 6",
    summary="which minima SGD selects: sharpness and non-uniformity by batch size, inside eq. 9",
    run=run,
    presets={
        "quick": GridSettings(learning_rates=(2.0,), init_scales=(0.5, 1.0, 1.4)),
        "paper": GridSettings(
            dataset="fashion_mnist",
            model="fnn",
            learning_rates=(0.5,),
            init_scales=(0.5, 1.0, 1.5),
            max_steps=400_000,
        ),
    },
)
