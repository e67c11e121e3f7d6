"""The same direction at random neighbours of a solution (He, Huang, Yuan 2019, Fig. 4)."""

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
from jaxstab.experiments.statistics import fraction, mean_over
from jaxstab.experiments.tables import Column, Table


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The neighbours."""

    neighbours: int = setting(10, "random neighbours of every solution")
    distances: tuple[float, ...] = setting((0.25, 1.0), "their distances from it")


def run(settings: Settings, context: Context) -> Outcome:
    """Slices one U(0, 1) direction at every solution and at its neighbours."""
    networks = Networks.load(settings, context)
    found: list[dict[str, Any]] = []
    lines: dict[Any, Any] = {}
    for seed, step in over_seeds(settings, context, partial(look, networks)):
        own = restored(step["solution"])
        for distance in settings.distances:
            line = restored(step[f"{distance:g}"])
            lines.setdefault(distance, (own, line))
            found += [row | {"seed": seed} for row in compare(own, line, distance)]
    rows = pd.DataFrame(found)
    nearest = rows[rows["distance"] == min(settings.distances)]
    return Outcome(
        rows=rows,
        tables=[summary(rows)],
        claims=[
            claim(
                "same-flat-side",
                "the valley around a solution is flat on the same side as at the solution",
                f"fraction of neighbours at distance {min(settings.distances):g} where it is",
                fraction(nearest, "same_side"),
                ">",
                0.9,
            ),
            claim(
                "same-profile",
                "slices at neighbours vary little",
                "mean over neighbours of max |ΔL(l)| over the rise of the solution's slice",
                mean_over(nearest, "deviation"),
                "<",
                0.1,
            ),
        ],
        figures={"locality": draw(lines)},
    )


def look(networks: Networks, seed: int) -> dict[str, Any]:
    """Slices of one solution and its neighbours, as plain numbers."""
    s = networks.settings
    params = networks.solution(seed)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3))
    one = landscape.directions(params, kind="uniform_positive", key=keys[0])
    u = jax.tree.map(lambda x: x[0], one)
    away = landscape.directions(params, kind="gaussian", key=keys[1], count=s.neighbours)
    step = {"solution": stored(networks.slice(params, u))}
    for distance in s.distances:
        offsets = jax.tree.map(lambda x, d=distance: d * x, away)
        step[f"{distance:g}"] = stored(networks.slice(params, u, offsets=offsets))
    return step


def compare(own: Any, line: Any, distance: float) -> list[dict[str, Any]]:
    """One row a neighbour: its flat side and how far its slice is from the solution's."""
    side = int(landscape.flat_side(own, at=[0.0]).flat_side)
    sides = landscape.flat_side(line, at=[0.0]).flat_side
    profile = np.asarray(own.loss) - np.min(own.loss)
    profiles = np.asarray(line.loss) - np.min(line.loss, axis=-1, keepdims=True)
    deviation = np.abs(profiles - profile).max(-1) / profile.max()
    return [
        {
            "distance": distance,
            "neighbour": i,
            "same_side": bool(sides[i] == side),
            "deviation": float(deviation[i]),
        }
        for i in range(len(deviation))
    ]


def summary(rows: pd.DataFrame) -> Table:
    """One line a distance."""
    lines = [
        {"distance": distance}
        | fraction(own, "same_side").columns("same_side")
        | mean_over(own, "deviation").columns("deviation")
        for distance, own in rows.groupby("distance")
    ]
    columns = [
        Column("distance", "distance", "length"),
        Column("same_side", "same flat side", format=".2f", spread="interval"),
        Column("deviation", "deviation of the slice / its rise", format=".3f", spread="interval"),
    ]
    return Table("locality", pd.DataFrame(lines), columns, note="intervals over seeds")


def draw(lines: dict[float, Any]) -> Any:
    """Mean and standard deviation over the neighbours of the first seed, beside the solution."""
    panels = [
        plots.Panel(
            f"{len(line.loss)} neighbours at distance {distance:g}",
            [
                plots.Series("neighbours", line.positions, line.loss.mean(0), line.loss.std(0)),
                plots.Series("solution", own.positions, own.loss),
            ],
        )
        for distance, (own, line) in lines.items()
    ]
    return plots.panels(panels, xlabel="distance l along u  [1]", ylabel="training loss  [1]")


PRESETS = {
    "quick": Settings(**WHOLE, neighbours=8),
    "paper": Settings(**PAPER, neighbours=100, distances=(1.0, 5.0), seeds=3),
    "tiny": Settings(**TINY, neighbours=2),
}
