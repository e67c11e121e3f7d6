"""Langevin, SGDL and SGD prefer a flat valley to a point (Zhang et al. 2018, Figs. 4 to 6).

The memo does not print its potential; `jaxstab.landscape.flat_valley` is ours: a minimum at a point
and a valley of minima, flat along d − 1 coordinates of a torus, both of depth 0. As a sum of losses
it is V(x) + c_i·x with Σ c_i = 0, whose gradient noise is the same everywhere and isotropic; with
such noise SGD is Langevin dynamics of temperature η π(B) σ²/2 for small steps. Noise that depends
on the place or the direction need not be.
"""

from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from jaxstab import plots
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.statistics import Estimate
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.zhang2018.chains import ChainSettings, panel, ratio_estimate, simulate
from jaxstab.landscape import flat_valley

DYNAMICS = ("Langevin", "SGDL", "SGD")
LEVEL = 1e-3
WITHIN = 0.25
ALIKE = 0.03  # of a probability


def run(settings: ChainSettings, context: Context) -> Outcome:
    """Runs the three dynamics in each dimension at one total temperature."""
    valleys = {d: flat_valley(d) for d in settings.dimensions}
    steps = {
        f"{dynamics}-d{d}": partial(simulate, settings, valleys[d], dynamics=dynamics)
        for d, dynamics in product(valleys, DYNAMICS)
    }
    found = context.remember_all(steps)
    rows = pd.DataFrame(found)
    rows["away"] = [_away(row, found) for row in found]
    panels = [
        panel(valley, settings, [row for row in found if row["dimension"] == d])
        for d, valley in valleys.items()
    ]
    rows = rows.drop(columns=["edges", "histogram", "histogram_error"])
    title = f"A flat valley at x₁ = 1.5 beside a minimum at x₁ = −1, T = {settings.temperature:g}"
    return Outcome(
        rows=rows,
        tables=[table(rows)],
        claims=claims(rows),
        figures={"degenerate": plots.marginals(panels, columns=2, title=title)},
    )


def _away(row: dict, found: list[dict]) -> float:
    """Largest distance of the occupancies of x₁ between this dynamics and Langevin's."""
    same = (one for one in found if one["dimension"] == row["dimension"])
    langevin = next(one for one in same if one["dynamics"] == "Langevin")
    ours, theirs = (np.cumsum(one["histogram"]) for one in (row, langevin))
    return float(np.abs(ours - theirs).max())


def smallest_rise(mine: pd.DataFrame) -> Estimate:
    """Smallest rise of log P(valley)/P(point) from one dimension to the next, from 0 at d = 1.

    The interval holds each rise by itself with 95 %; the dimensions' chains are independent.
    """
    logs = np.log(mine["ratio"].where(mine["mixed"]).to_numpy(float))
    errors = mine["log_error"].to_numpy(float)
    rises = np.diff(logs, prepend=0.0)
    reach = stats.norm.isf(0.025) * np.hypot(errors, np.concatenate([[0.0], errors[:-1]]))
    value, lower, upper = (float(x.min()) for x in (rises, rises - reach, rises + reach))
    return Estimate(value, lower, upper, "95 % of each rise, over chains")


def table(rows: pd.DataFrame) -> Table:
    """Occupancies of the valley beside the closed form."""
    columns = [
        Column("dimension", "d"),
        Column("dynamics"),
        Column("narrow", "P(point)"),
        Column("wide", "P(valley)"),
        Column("ratio", "measured ratio"),
        Column("ratio_exact", "exact ratio"),
        Column("step_bias", "step bias", format=".3f"),
        Column("away", "distance to Langevin", format=".3f"),
        Column("histogram_p_value", "p of the histogram", format=".2g"),
        Column("rhat", "R-hat", format=".4f"),
        Column("mixed"),
    ]
    note = "distance to Langevin: largest difference of the distribution functions of x₁"
    return Table("degenerate", rows, columns, title="Occupancy of valley and point", note=note)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Langevin's law is a theorem; that SGDL and SGD share it is observed."""
    langevin = rows[rows["dynamics"] == "Langevin"]
    found = [
        claim(
            f"ratio d={row['dimension']}",
            f"d = {row['dimension']}: the valley is occupied as much more than the point as "
            "exp(−V/T) says",
            "occupancy ratio of Langevin chains, less the bias of the step",
            ratio_estimate(row),
            "=",
            row["ratio_exact"],
            within=WITHIN * row["ratio_exact"],
            kind="theorem",
        )
        for row in langevin.to_dict("records")
    ]
    for dynamics in DYNAMICS:
        mine = rows[rows["dynamics"] == dynamics]
        found.append(
            claim(
                f"faster-with-d {dynamics}",
                f"{dynamics} concentrates on the degenerate minimum, the more the higher d",
                "smallest rise of log P(valley)/P(point) from one dimension to the next",
                smallest_rise(mine),
                ">",
                0.0,
            )
        )
        if dynamics != "Langevin":
            found.append(
                claim(
                    f"alike {dynamics}",
                    f"the histograms of {dynamics} and of Langevin dynamics are alike",
                    "largest difference of the two distribution functions of x₁, over dimensions; "
                    "the noise of both runs is in it",
                    mine["away"].where(mine["mixed"]).max(skipna=False),
                    "<",
                    ALIKE,
                )
            )
    return found


PRESETS = {
    "quick": ChainSettings(chains=512, draws=60),
    "paper": ChainSettings(chains=8192, learning_rate=0.005, burn_in=20_000, draws=400, bins=60),
    "tiny": ChainSettings(
        dimensions=(2,), temperature=1.0, chains=256, burn_in=1500, draws=20, thin=100, bins=10
    ),
}
