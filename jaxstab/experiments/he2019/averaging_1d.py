"""The mean of SGD's iterates lies on the flat side (He et al. 2019, Figs. 5, 6, theorem 2)."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import numpy as np
import pandas as pd
from scipy import stats

from jaxstab import plots
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import Estimate
from jaxstab.experiments.tables import Column, Table
from jaxstab.landscape import Valley, averaging_bound, noisy_descent

ERROR = 1e-6  # of every theorem's interval: the chance that a true theorem is seen to fail
# name: slopes (inner, outer) left and right of the bottom, noise, start
CASES: dict[str, tuple[Any, Any, float, float]] = {
    "asymmetric": ((16.0, 16.0), (1.0, 1.0), 0.9, 0.0),
    "asymmetric, curved": ((20.0, 30.0), (1.0, 0.8), 0.9, 0.0),
    "c too small": ((8.0, 8.0), (1.0, 1.0), 0.9, 0.0),
    "c' too large": ((16.0, 16.0), (1.0, 0.05), 0.9, 0.0),
    "noise too large": ((30.0, 30.0), (1.0, 1.0), 3.0, 0.0),
    "symmetric, sharp": ((2.0, 2.0), (2.0, 2.0), 1.9, 0.0),
    "symmetric, flat": ((1e-3, 1e-3), (1e-3, 1e-3), 1e-3, 1000.0),
}


@dataclass(frozen=True)
class Settings:
    """Learning rates, and how long and how often to run."""

    learning_rates: tuple[float, ...] = setting((0.02, 0.5), "learning rates")
    steps: int = setting(10_000, "steps of a run")
    burn_in: float = setting(0.2, "fraction of the steps that does not count")
    runs: int = setting(100, "independent runs of every case")
    seed: int = setting(0, "of the noise")


def run(settings: Settings, context: Context) -> Outcome:
    """Runs every valley at every learning rate; the mean iterate beside what is predicted."""
    tasks = list(product(CASES, settings.learning_rates))
    keys = jax.random.split(jax.random.key(settings.seed), len(tasks))
    steps = {
        f"{case}-eta{rate:g}".replace(" ", "-"): partial(walk, settings, case, rate, key)
        for (case, rate), key in zip(tasks, keys, strict=True)
    }
    found = context.remember_all(steps)
    ended = list(zip(tasks, found, strict=True))
    rows = pd.DataFrame([row(case, rate, step) for (case, rate), step in ended])
    samples = {f"{case}, η = {rate:g}": step["sample"] for (case, rate), step in ended}
    return Outcome(
        rows=rows,
        tables=[table(rows)],
        claims=claims(rows),
        figures={"averaging-1d": draw(samples, rows)},
    )


def row(case: str, rate: float, step: dict[str, Any]) -> dict[str, Any]:
    """The mean iterate of a case beside the bound and what the bound asks for."""
    left, right, noise, _ = CASES[case]
    bound = averaging_bound(Valley(left, right), noise=noise)
    return {
        "case": case,
        "learning_rate": rate,
        "c": bound.c,
        "c_prime": bound.c_prime,
        "covered": "covered" if bound.covered else "not covered",
        "fails": "; ".join(text for text, holds in bound.conditions.items() if not holds),
        "bound": bound.lower * rate if bound.lower > 0 else math.nan,
        "right": step["right"],
    } | estimate(step["means"]).columns("mean")


def walk(settings: Settings, case: str, rate: float, key: Any) -> Any:
    """Iterates of all runs, summed up as plain numbers."""
    left, right, noise, start = CASES[case]
    path = np.asarray(
        noisy_descent(
            Valley(left, right),
            start * rate,
            learning_rate=rate,
            noise=noise,
            steps=settings.steps,
            runs=settings.runs,
            key=key,
        ),
        np.float64,
    )[:, int(settings.burn_in * settings.steps) :]
    # with the mean over steps as a unit, nothing is assumed of how a run's iterates depend
    return {
        "means": path.mean(1).tolist(),
        "right": float((path > 0).mean()),
        "sample": path[0, :2000].tolist(),
    }


def estimate(means: Any) -> Estimate:
    """Mean over runs with an interval that misses it with probability `ERROR`."""
    means = np.asarray(means)
    half = stats.t.isf(ERROR / 2, means.size - 1) * means.std(ddof=1) / math.sqrt(means.size)
    how = f"1 − {ERROR:g}, Student's t over {means.size} runs"
    return Estimate(float(means.mean()), means.mean() - half, means.mean() + half, how)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Theorem 2 where it is covered, and both symmetric limits of appendix D."""
    found = []
    for row in rows.to_dict("records"):
        if row["covered"] != "covered":
            continue
        name = f"{row['case'].replace(', ', '-')}-{row['learning_rate']:g}"
        mean = Estimate(row["mean"], row["mean_lower"], row["mean_upper"], f"1 − {ERROR:g}, t")
        where = f"{row['case']}, η = {row['learning_rate']:g}"
        statement = f"{where}: the mean iterate is at least c_0 > 0"
        found.append(
            claim(name, statement, "mean iterate", mean, ">=", row["bound"], kind="theorem")
        )
    sharp, flat = (rows[rows["case"] == f"symmetric, {name}"] for name in ("sharp", "flat"))
    worst = sharp["right"].sub(0.5).abs().max()
    return [
        *found,
        claim(
            "flat-symmetric-stays",
            "in a flat symmetric valley all iterates stay on the side of the start",
            "smallest share of iterates right of the bottom",
            flat["right"].min(),
            "=",
            1,
            kind="theorem",
        ),
        claim(
            "sharp-symmetric-centres",
            "in a sharp symmetric valley iterates lie around the centre",
            "largest |share of iterates right of it − 1/2|",
            worst,
            "<",
            0.1,
        ),
    ]


def table(rows: pd.DataFrame) -> Table:
    """One line a case and learning rate."""
    columns = [
        Column("case"),
        Column("learning_rate", "η", "step size"),
        Column("c"),
        Column("c_prime", "c'"),
        Column("covered", "theorem 2"),
        Column("mean", "mean iterate", format=".4g", spread="interval"),
        Column("bound", "c_0"),
        Column("right", "share right", format=".3f"),
        Column("fails", "condition that fails"),
    ]
    return Table("averaging-1d", rows, columns, note=f"intervals: 1 − {ERROR:g} over runs")


def draw(samples: dict[str, Any], rows: pd.DataFrame) -> Any:
    """Histograms of one run's iterates, with its mean."""
    chosen = [label for label in samples if label.startswith(("asymmetric,", "symmetric, sharp"))]
    panels = []
    for label in chosen:
        values = np.asarray(samples[label])
        heights, edges = np.histogram(values, bins=40, density=True)
        panels.append(
            plots.Panel(
                label,
                [plots.Series("iterates", (edges[1:] + edges[:-1]) / 2, heights)],
                vertical={"bottom": 0.0, "mean": float(values.mean())},
            )
        )
    return plots.panels(panels, xlabel="w  [1]", ylabel="density  [1/w]")


PRESETS = {
    "quick": Settings(),
    "paper": Settings(steps=100_000, runs=1000, learning_rates=(0.02, 0.1, 0.5)),
    "tiny": Settings(steps=400, runs=20, learning_rates=(0.5,)),
}
