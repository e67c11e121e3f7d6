"""How much of the gap between training and test loss is a shift (He, Huang, Yuan 2019, Fig. 3)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxstab import landscape, plots
from jaxstab.experiments.claims import claim
from jaxstab.experiments.he2019.solutions import (
    PAPER,
    TINY,
    WHOLE,
    Networks,
    NetworkSettings,
    over_seeds,
    restored,
    stored,
)
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table

KINDS = ("uniform_positive", "gaussian")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Directions, and the part of the slice over which the gap is taken."""

    directions: int = setting(4, "directions of each kind")
    radius: float = setting(0.6, "R of definition 3, as a fraction of the reach")


def run(settings: Settings, context: Context) -> Outcome:
    """Slices training and test loss at one solution a seed and shifts one onto the other."""
    networks = Networks.load(settings, context)
    found: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    example: Any = None
    for seed, step in over_seeds(settings, context, partial(look, networks)):
        for kind in KINDS:
            line = restored(step[kind])
            example = example or line
            gap = landscape.shift_gap(line, radius=settings.radius * settings.reach)
            curves.setdefault(kind, []).append(np.asarray(gap.ratio))
            found += [
                {
                    "seed": seed,
                    "kind": kind,
                    "direction": i,
                    "best_shift": float(gap.best_shift[i]),
                    "best_ratio": float(gap.best_ratio[i]),
                }
                for i in range(settings.directions)
            ]
    rows = pd.DataFrame(found).assign(shift_size=lambda x: x["best_shift"].abs())
    return Outcome(
        rows=rows,
        tables=[summary(rows)],
        claims=[
            claim(
                "a-shift-explains",
                "a shift explains at least half of the gap between training and test loss",
                "mean over U(0, 1) directions of the smallest ξ_δ/ξ_0",
                mean_over(rows[rows["kind"] == "uniform_positive"], "best_ratio"),
                "<",
                0.5,
            ),
            claim(
                "the-shift-is-not-zero",
                "the best shift is not zero",
                "mean over U(0, 1) directions of |best δ|, in units of length",
                mean_over(rows[rows["kind"] == "uniform_positive"], "shift_size"),
                ">",
                0,
            ),
        ],
        figures={"shift-gap": draw(curves, np.asarray(gap.shifts), example)},
    )


def look(networks: Networks, seed: int) -> dict[str, Any]:
    """Slices of one solution, as plain numbers."""
    params = networks.solution(seed)
    key = jax.random.fold_in(jax.random.key(seed), 3)
    count = networks.settings.directions
    step = {}
    for kind in KINDS:
        us = landscape.directions(params, kind=kind, key=key, count=count)
        step[kind] = stored(networks.slice(params, us, test_data=networks.problem.dataset.test))
    return step


def summary(rows: pd.DataFrame) -> Table:
    """One line a kind of direction."""
    lines = [
        {"kind": kind}
        | mean_over(own, "best_ratio").columns("ratio")
        | mean_over(own, "shift_size").columns("shift")
        for kind, own in rows.groupby("kind")
    ]
    columns = [
        Column("kind", "directions"),
        Column("ratio", "smallest ξ_δ/ξ_0", format=".3f", spread="interval"),
        Column("shift", "|δ| there", "length", format=".3f", spread="interval"),
    ]
    return Table("shift-gap", pd.DataFrame(lines), columns, note="intervals over seeds")


def draw(curves: dict[str, Any], shifts: np.ndarray, example: Any) -> Any:
    """The ratio over the shift, and one slice of training and test loss."""
    ratios = [
        plots.Series(kind.replace("_", " "), shifts, all_.mean(0), all_.std(0))
        for kind, all_ in ((kind, np.concatenate(rows)) for kind, rows in curves.items())
    ]
    losses = [
        plots.Series(label, example.positions, curve[0])
        for label, curve in (("train", example.loss), ("test", example.test_loss))
    ]
    return plots.panels(
        [
            plots.Panel(
                "shift gap",
                ratios,
                "shift δ  [1]",
                "ξ_δ / ξ_0  [1]",
                lines=[plots.Line("no shift: 1", 1.0)],
            ),
            plots.Panel("one U(0, 1) direction", losses, "distance l along u  [1]", "loss  [1]"),
        ]
    )


PRESETS = {
    "quick": Settings(**WHOLE | {"positions": 41}, seeds=3, directions=3),
    "paper": Settings(**PAPER, directions=20, seeds=3),
    "tiny": Settings(**TINY | {"positions": 11}, directions=2),
}
