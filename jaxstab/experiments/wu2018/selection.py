"""Which minima SGD selects: the a–s diagram by batch size (Wu, Ma, E 2018, Fig. 6).

Beside the box of eq. 9, for some minima, the exact threshold of the mean square (Mulayoff &
Michaeli, COLT 2024, Thm 5): η/η*_var, above 1 where the mean square of linearised SGD grows. Where
it is known and decides, the verdict rests on it, else on eq. 9; the table says on which.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import pandas as pd

import jaxstab as js
from jaxstab.checks import check_at_least, check_positive
from jaxstab.experiments import minima
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.grid import Grid, run_grid
from jaxstab.experiments.minima import SLACK
from jaxstab.experiments.protocol import Context, Experiment, Outcome
from jaxstab.experiments.settings import TINY, GridSettings, setting
from jaxstab.experiments.statistics import mean_over, share, trend
from jaxstab.measurement import Measurement
from jaxstab.stability.criteria import verdict


@dataclass(frozen=True)
class Settings(GridSettings):
    """A grid of SGD, and how many of its minima get an exact threshold."""

    thresholds: int = setting(
        1, "minima at each η and B < n, those of the first seeds, that get an exact threshold"
    )
    threshold_tol: float = setting(5e-2, "change at which an exact threshold has converged")
    threshold_rank: int = setting(80, "dimension of its subspace at most")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains the grid, measures a and s of every minimum and places it in the region of eq. 9."""
    check_at_least("thresholds", settings.thresholds, 0)
    check_positive("threshold_tol", settings.threshold_tol)
    check_at_least("threshold_rank", settings.threshold_rank, 1)
    grid = run_grid(settings, context)
    rows = with_thresholds(settings, grid, context) if settings.thresholds else grid.rows
    title = f"Minima that SGD selects: {settings.model} on {settings.dataset}, n = {grid.n}"
    return Outcome(
        rows=rows,
        tables=[minima.table(rows, n=grid.n)],
        notes=[*minima.conclusion(rows), *exact_conclusion(rows)],
        claims=claims(grid.minima, grid.n),
        figures=minima.diagrams(rows, n=grid.n, title=title),
    )


def with_thresholds(settings: Settings, grid: Grid, context: Context) -> pd.DataFrame:
    """The rows with η/η*_var and its interval, of Gauss–Newton H_i, for the minima that get one.

    Their verdicts take it into account. At B = n it is a / (2/η), which every row has.
    """
    noisy = grid.minima[grid.minima["batch_size"] < grid.n]
    chosen = noisy.sort_values(["seed", "init_scale"]).groupby(["learning_rate", "batch_size"])
    steps = {
        "threshold-" + "-".join(f"{row[name]:g}" for name in POINT): partial(
            threshold, settings, grid, row
        )
        for row in chosen.head(settings.thresholds).to_dict("records")
    }
    found = pd.DataFrame(context.remember_all(steps), columns=[*POINT, *RATIO, *minima.TOLD])
    rows = grid.rows.merge(found, on=list(POINT), how="left", suffixes=("", "_exact"))
    for name in minima.TOLD:
        rows[name] = rows.pop(f"{name}_exact").fillna(rows[name])
    return rows


POINT = ("learning_rate", "batch_size", "init_scale", "seed")
RATIO = ("threshold_ratio", "threshold_ratio_lower", "threshold_ratio_upper")


def threshold(settings: Settings, grid: Grid, row: dict[str, Any]) -> dict[str, Any]:
    """η/η*_var at one minimum, the ends of its certified interval, and the verdict with it."""
    eta = row["learning_rate"]
    found = js.mean_square_threshold(
        grid.problem.loss,
        grid.result.load_params(row),
        grid.problem.train,
        batch_sizes=[int(row["batch_size"])],
        key=jax.random.key(0),
        tol=settings.threshold_tol,
        max_rank=settings.threshold_rank,
    )
    ends = found.value[0], found.interval.upper[0], found.interval.lower[0]
    ratios = [eta / float(end) for end in ends]
    judged = verdict(
        Measurement.from_record(row, n=grid.n),
        learning_rate=eta,
        batch_size=int(row["batch_size"]),
        loss_kind=settings.loss,
        threshold=found,
    )
    point = {name: row[name] for name in POINT}
    return point | dict(zip(RATIO, ratios, strict=True)) | minima.told(judged)


def exact_conclusion(rows: pd.DataFrame) -> list[str]:
    """What the verdicts say where the exact threshold is known, by batch size."""
    if "threshold_ratio" not in rows:
        return []
    known = rows[rows["threshold_ratio"].notna()]
    counts = known.groupby(["batch_size", "verdict", "rests_on"]).size()
    each = [f"B = {size}: {count} {word} ({on})" for (size, word, on), count in counts.items()]
    return [f"verdicts where the exact threshold is known: {'; '.join(each)}"] if each else []


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
    "quick": Settings(learning_rates=(2.0,), init_scales=(0.5, 1.0, 1.4)),
    "paper": Settings(
        dataset="fashion_mnist",
        model="fnn",
        learning_rates=(0.5,),
        init_scales=(0.5, 1.0, 1.5),
        max_steps=400_000,
        thresholds=15,
        threshold_tol=1e-2,
        threshold_rank=400,
    ),
    "tiny": Settings(**TINY, learning_rates=(1.0,), batch_sizes=(10, "n"), seeds=1, thresholds=0),
}

# `jaxstab sweep`: the same for any grid; not in the registry, as it is no experiment of a paper.
SWEEP = Experiment(
    name="sweep",
    source="any grid",
    summary="train a grid of learning rates and batch sizes and place its minima in eq. 9",
    run=run,
    presets={"quick": Settings(thresholds=0)},
)
