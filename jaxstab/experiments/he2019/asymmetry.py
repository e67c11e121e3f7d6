"""Which random directions are asymmetric, by kind (He, Huang, Yuan 2019, Fig. 2, appendix A)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxstab import landscape, plots
from jaxstab.experiments import tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.he2019.solutions import (
    KINDS,
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
    """Directions, the thresholds of definition 1, and whether to measure the solutions."""

    directions: int = setting(6, "directions of each kind")
    ratio: float = setting(2.0, "c of definition 1")
    measured: bool = setting(True, "measure a and s of every solution")
    extent: float = setting(0.25, "smallest r − ζ that counts, as a fraction of the reach")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains one solution a seed and slices it along directions of every kind."""
    networks = Networks.load(settings, context)
    found: list[dict[str, Any]] = []
    lines: dict[Any, Any] = {}
    minima = []
    for seed, step in over_seeds(settings, context, partial(look, networks)):
        minima.append({"seed": seed} | step.get("minimum", {}))
        for kind in KINDS:
            line = restored(step[kind]["line"])
            lines.setdefault(kind, line)
            found += [row | {"seed": seed} for row in rows(settings, kind, line, step[kind])]
    table = pd.DataFrame(found)
    return Outcome(
        rows=table,
        tables=[summary(table)] + ([solutions(minima)] if settings.measured else []),
        claims=claims(table, settings),
        figures={"asymmetry": draw(lines)},
    )


def look(networks: Networks, seed: int) -> dict[str, Any]:
    """Slices with slopes, and derivatives at the bottom, of one solution; as plain numbers."""
    s = networks.settings
    params = networks.solution(seed)
    key = jax.random.fold_in(jax.random.key(seed), 3)  # the same for all kinds: paired controls
    step: dict[str, Any] = {}
    if s.measured:
        step["minimum"] = networks.measure(params, jax.random.fold_in(key, 1))
    for kind in KINDS:
        us = landscape.directions(params, kind=kind, key=key, count=s.directions)
        near = landscape.derivatives(
            networks.problem.loss,
            params,
            networks.slice_data,
            direction=us,
            batch_norm=networks.statistics,
            chunk_size=s.chunk_size,
        )
        step[kind] = {
            "line": stored(networks.slice(params, us, derivatives=1)),
            "curvature": np.asarray(near.curvature).tolist(),
            "third": np.asarray(near.third).tolist(),
        }
    return step


def rows(settings: Settings, kind: str, line: Any, step: Any) -> list[dict[str, Any]]:
    """One row a direction: the longest (ζ, r) of definition 1, and what the bottom says."""
    found = landscape.longest_asymmetry(line, c=settings.ratio)
    holds = np.asarray(found.r - found.zeta) >= settings.extent * settings.reach
    sides = landscape.flat_side(line, at=[0.0])
    return [
        {
            "kind": kind,
            "direction": i,
            "zeta": float(found.zeta[i]),
            "r": float(found.r[i]),
            "p": float(found.p[i]),
            "asymmetric": bool(holds[i]),
            "flat_side": int(sides.flat_side[i]),
            "rise_ratio": float(sides.ratio[i]),
            "curvature": step["curvature"][i],
            "third": step["third"][i],
            "bottom_agrees": bool(np.sign(-step["third"][i]) == sides.flat_side[i]),
        }
        for i in range(len(step["third"]))
    ]


def summary(found: pd.DataFrame) -> Table:
    """One line a kind of direction."""
    lines = []
    for kind in KINDS:
        own = found[found["kind"] == kind]
        lines.append(
            {"kind": kind, "rise_ratio": own["rise_ratio"].median()}
            | {"length": (own["r"] - own["zeta"]).mean()}
            | fraction(own, "asymmetric").columns("asymmetric")
            | {"plus": float((own["flat_side"] > 0).mean())}
            | fraction(own, "bottom_agrees").columns("agrees")
        )
    columns = [
        Column("kind", "directions"),
        Column("asymmetric", "asymmetric", format=".2f", spread="interval"),
        Column("length", "mean r − ζ"),
        Column("rise_ratio", "median rise, sharp/flat"),
        Column("plus", "flat towards +u", format=".2f"),
        Column("agrees", "third derivative tells", format=".2f", spread="interval"),
    ]
    note = "intervals over seeds; the rise is compared at the largest distance of the slice"
    return Table("asymmetry", pd.DataFrame(lines), columns, note=note)


def solutions(minima: list[dict[str, Any]]) -> Table:
    """One line a seed: the symmetric view of the same points."""
    columns = [
        tables.SEED,
        tables.LOSS,
        Column("gradient_norm", format=".1e"),
        Column("sharpness", "a", "1/step size", spread="interval"),
        Column("nonuniformity", "s", "1/step size", spread="interval"),
    ]
    return Table("solutions", pd.DataFrame(minima), columns, note="statistics of batch norm frozen")


def claims(found: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What the paper says of its directions, as it came out here."""
    wide = found.pivot_table(index="seed", columns="kind", values="asymmetric", aggfunc="mean")
    wide = wide.reset_index().assign(more=lambda x: x["uniform_positive"] - x["gaussian"])
    length = settings.extent * settings.reach
    what = f"(r, p, c, ζ)-asymmetric at c = {settings.ratio:g} with r − ζ ≥ {length:g}"
    positive = found[found["kind"] == "uniform_positive"]
    return [
        claim(
            "most-are-asymmetric",
            "most directions with coordinates from U(0, 1) are asymmetric",
            f"fraction that is {what}",
            fraction(positive, "asymmetric"),
            ">",
            0.5,
        ),
        claim(
            "controls-are-not",
            "directions from U(0, 1) are asymmetric more often than Gaussian ones",
            f"difference of the fractions that are {what}",
            mean_over(wide, "more"),
            ">",
            0,
        ),
        claim(
            "the-bottom-tells",
            "the third derivative at the solution has the sign of the sharp side",
            "fraction of all directions where it has",
            fraction(found, "bottom_agrees"),
            ">",
            0.5,
        ),
    ]


def draw(lines: dict[str, Any]) -> Any:
    """The loss along the directions of the first seed, a panel for each kind."""
    panels = [
        plots.Panel(
            kind.replace("_", " "),
            [plots.Series("", line.positions, curve) for curve in np.asarray(line.loss)],
        )
        for kind, line in lines.items()
    ]
    return plots.panels(panels, xlabel="distance l along u  [1]", ylabel="training loss  [1]")


PRESETS = {
    "quick": Settings(**WHOLE | {"positions": 25}, seeds=3, directions=5),
    "paper": Settings(**PAPER, directions=20, seeds=3),
    "tiny": Settings(**TINY, directions=2),
}
