"""Langevin dynamics prefers the wide one of two equally deep wells (Zhang et al. 2018, Fig. 3).

The memo does not print its potential; `jaxstab.landscape.two_wells` is ours: equal depth, one well
w = 2 times as wide in each of d coordinates, an occupancy ratio of w^d at every temperature.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from jaxstab import plots
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.zhang2018.chains import ChainSettings, panel, ratio_estimate, simulate
from jaxstab.landscape import two_wells

LEVEL = 1e-3  # chance to reject a correct histogram, over all dimensions together
WITHIN = 0.25  # of the ratio: the terms of second order in η, and room for the interval


@dataclass(frozen=True)
class Settings(ChainSettings):
    """Chains in two wells."""

    dimensions: tuple[int, ...] = setting((1, 2, 3, 4, 5), "dimensions d")
    width: float = setting(2.0, "width w of the wide well over that of the narrow one")


def run(settings: Settings, context: Context) -> Outcome:
    """Runs the chains of each dimension and compares occupancies and histogram with exp(−V/T)."""
    wells = [two_wells(d, width=settings.width) for d in settings.dimensions]
    steps = {
        f"d{well.dimension}": partial(simulate, settings, well, dynamics="Langevin")
        for well in wells
    }
    found = context.remember_all(steps)
    rows = pd.DataFrame(found).drop(columns=["edges", "histogram", "histogram_error"])
    panels = [panel(potential, settings, [row]) for potential, row in zip(wells, found)]
    title = f"Langevin chains in two wells of equal depth, T = {settings.temperature:g}"
    return Outcome(
        rows=rows,
        tables=[table(rows)],
        claims=claims(rows),
        figures={"double-well": plots.marginals(panels, title=title)},
        notes=[
            "The chain of step η is off exp(−V/T) by `step bias`, known to first order in η; the "
            "measured ratio contains it, the claims take it out."
        ],
    )


def table(rows: pd.DataFrame) -> Table:
    """Occupancies beside w^d."""
    columns = [
        Column("dimension", "d"),
        Column("narrow", "P(narrow)"),
        Column("wide", "P(wide)"),
        Column("ratio", "measured ratio"),
        Column("ratio_exact", "w^d"),
        Column("step_bias", "step bias", format=".3f"),
        Column("histogram_p_value", "p of the histogram", format=".2g"),
        Column("rhat", "R-hat", format=".4f"),
        Column("effective_sample_size", "effective size", format=".0f"),
        Column("mixed"),
    ]
    return Table("double-well", rows, columns, title="Occupancy of the wide and the narrow well")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The ratio in each dimension and the histograms; a run that has not mixed claims nothing."""
    found = [
        claim(
            f"ratio d={row['dimension']}",
            f"d = {row['dimension']}: the wide well is occupied w^d times as much as the narrow "
            "one",
            "occupancy ratio of Langevin chains, less the bias of the step",
            ratio_estimate(row),
            "=",
            row["ratio_exact"],
            within=WITHIN * row["ratio_exact"],
            kind="theorem",
        )
        for row in rows.to_dict("records")
    ]
    mixed = rows["histogram_p_value"].where(rows["mixed"])
    found.append(
        claim(
            "histogram",
            "the histogram of the first coordinate is the integrated Boltzmann density",
            f"smallest p-value over {len(rows)} dimensions times their number (Hotelling's T² of "
            "eight bins over chains)",
            np.minimum(mixed.min(skipna=False) * len(rows), 1.0),
            ">",
            LEVEL,
            kind="theorem",
        )
    )
    return found


PRESETS = {
    "quick": Settings(chains=4096, burn_in=6000, draws=60),
    "paper": Settings(chains=8192, learning_rate=0.005, burn_in=20_000, draws=400, bins=60),
    "tiny": Settings(
        dimensions=(2,), temperature=1.0, chains=256, burn_in=1500, draws=20, thin=100, bins=10
    ),
}
