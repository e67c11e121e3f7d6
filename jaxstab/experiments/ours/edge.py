"""Where SGD sits while it trains: which quantity rises to its edge and stays there, by batch size.

Along runs, over 1 where the edge is: a / (2/η); s over its bound in eq. 9; η over the mean-square
threshold of the point, with its interval; batch sharpness over 2/η (Andreyev & Beneventano, arXiv
2412.20553); beside them the almost-sure exponent and the sharpness that self-stabilisation with
noise predicts (`stability.edges.stochastic_gap`). The threshold is that of a minimum: far from one
Gauss–Newton H_i say what the batch noise would do to the linearised outputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, product
from typing import Any

import jax
import pandas as pd
from matplotlib.figure import Figure

import jaxstab as js
from jaxstab import plots
from jaxstab.checks import check_positive
from jaxstab.experiments import problems, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import (
    TINY,
    MeasureSettings,
    ProblemSettings,
    numbers_for,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.experiments.statistics import mean_over, spread_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.operators import output_factors
from jaxstab.plots import Line, Panel, Series
from jaxstab.snapshots import spaced_blocks
from jaxstab.stability import edges, output_runs
from jaxstab.stability.batch_sharpness import batch_sharpness

LATE = 0.5  # share of a run that counts as late
CLOSE = 0.2  # how far from 1 counts as at the edge
QUANTITIES = {
    "sharpness_ratio": "a / (2/η)",
    "nonuniformity_ratio": "s / bound",
    "threshold_ratio": "η / η*_var",
    "batch_ratio": "batch sharpness / (2/η)",
    "gap_ratio": "predicted a / (2/η)",
}


@dataclass(frozen=True)
class Settings(MeasureSettings, ProblemSettings):
    """Runs, and how many of their points are measured."""

    n_train: int = setting(60, "number of training examples n")
    learning_rate: float = setting(2.0, "learning rate")
    momentum: float = setting(
        0.0, "momentum; with it, a and the batch sharpness alone are followed"
    )
    batch_sizes: tuple[int | str, ...] = setting(
        (2, 8, "n"), "batch sizes; n is the whole data set", parse_batch_size
    )
    seeds: int = setting(4, "number of seeds")
    max_steps: int = setting(3000, "steps of a run")
    points: int = setting(5, "about how many points along a run are measured")
    batches: int = setting(64, "batches that the batch sharpness is averaged over")
    rate_steps: int = setting(200, "steps of linearised SGD for the exponent")
    threshold_tol: float = setting(5e-2, "change at which the exact threshold has converged")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains, measures along the runs, and says what sits at its edge."""
    problem = problems.load(settings, context.data_dir)
    if settings.loss != "squared":
        raise ValueError(f"edge is about the squared loss, got loss {settings.loss!r}")
    check_positive("learning_rate", settings.learning_rate)
    spaced_blocks(settings.max_steps, settings.points)  # checks them
    sizes = numbers_for(settings.batch_sizes, problem.n)
    steps = {
        f"B{size}-{seed}": partial(follow, settings, problem, size, seed)
        for size, seed in product(sizes, seed_range(settings.seeds))
    }
    rows = pd.DataFrame(chain.from_iterable(context.remember_all(steps)))
    rows = rows.astype({name: float for name in QUANTITIES if name in rows})  # None to NaN
    return Outcome(
        rows=rows,
        tables=[table(rows, settings, problem.n)],
        claims=claims(rows, settings, problem.n),
        figures={"edge": draw(rows, settings, problem.n)},
    )


def follow(settings: Settings, problem: Problem, size: int, seed: int) -> list[dict[str, Any]]:
    """One run: a row for every measured point; it ends early where the loss diverges."""
    rows, optimizer = [], sgd(settings.momentum)
    for step, params in problems.along_run(problem, settings, size, seed, optimizer=optimizer):
        if not step:  # a random network, before any training
            continue
        row = {"batch_size": size, "seed": seed, "step": step, "n": problem.n}
        rows.append(row | measure_point(settings, problem, params, size))
    return rows


@cache
def sgd(momentum: float) -> Any:
    """SGD as a function of its learning rate, one object for all runs."""
    return partial(js.transforms.sgd, momentum=momentum)


def measure_point(settings: Settings, problem: Problem, params: Any, size: int) -> dict[str, Any]:
    """Every quantity at one point, as a share of its edge."""
    eta, given = settings.learning_rate, (problem.loss, params, problem.train)
    keys = jax.random.split(jax.random.key(0), 4)
    found = js.measure(*given, key=keys[0], **settings.measuring)
    box = js.stability.box(eta, size, problem.n)
    batch = batch_sharpness(*given, batch_size=size, batches=settings.batches, key=keys[1])
    row = found.to_record()
    row |= {"sharpness_ratio": float(found.sharpness.value) / box.sharpness}
    row |= {"nonuniformity_ratio": float(found.nonuniformity.value) / box.nonuniformity}
    row |= {"batch_ratio": float(batch.value) / box.sharpness}
    row |= {"batch_error": float(batch.standard_error) / box.sharpness}
    if settings.momentum:
        return row
    exact = js.mean_square_threshold(
        *given, batch_sizes=[size], key=keys[2], tol=settings.threshold_tol
    )
    rate = output_runs.growth_rates(
        output_runs.reduced_factors(output_factors(*given)),
        learning_rates=[eta], batch_size=size, chains=1, populations=16,
        steps=settings.rate_steps, key=keys[3],
    )  # fmt: skip
    gap = edges.stochastic_gap(*given, found.sharpness.vector, learning_rate=eta, batch_size=size)
    return row | {
        "threshold_ratio": eta / float(exact.value[0]),
        "threshold_ratio_lower": eta / float(exact.interval.upper[0]),
        "threshold_ratio_upper": eta / float(exact.interval.lower[0]),
        "linear_ratio": eta / float(exact.bounds["2/a"][0]),
        "exponent": float(rate.value[0]) / 2,
        "exponent_error": float(rate.standard_error[0]) / 2,
        "gap_ratio": None if math.isnan(gap.value) else 1 - gap.value / box.sharpness,
    }


def late(rows: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The points of the late part of the runs."""
    return rows[rows["step"] >= (1 - LATE) * settings.max_steps]


def shown(rows: pd.DataFrame) -> list[str]:
    """The quantities that were followed."""
    return [name for name in QUANTITIES if name in rows]


def table(rows: pd.DataFrame, settings: Settings, n: int) -> Table:
    """Late in the runs, by batch size: every quantity as a share of its edge, over seeds."""
    lines = []
    for size, here in late(rows, settings).groupby("batch_size"):
        line: dict[str, Any] = {"batch_size": size, "loss": here["loss"].mean()}
        for name in shown(rows):
            line |= mean_over(here, name).columns(name)
        if "exponent" in here:
            line |= mean_over(here, "exponent").columns("exponent")
            ends = here[["threshold_ratio_lower", "threshold_ratio_upper"]].mean()
            line["bounds"] = f"{ends.iloc[0]:.2f} to {ends.iloc[1]:.2f}"
            means = here[[name for name in shown(rows) if name != "gap_ratio"]].mean()
            line["nearest"] = QUANTITIES[(means - 1).abs().idxmin()]
        lines.append(line)
    columns = [tables.batch_size(n), tables.LOSS]
    columns += [Column(k, QUANTITIES[k], format=".3f", spread="interval") for k in shown(rows)]
    if "exponent" in rows:
        columns.insert(5, Column("bounds", "certified"))
        columns.append(Column("exponent", "exponent", "1/step", ".2g", spread="interval"))
        columns.append(Column("nearest", "nearest to its edge"))
    note = f"mean over the last {LATE:.0%} of the steps; [95 % over seeds]; the edge is 1"
    return Table("edge", pd.DataFrame(lines), columns, note=note)


def claims(rows: pd.DataFrame, settings: Settings, n: int) -> list[Claim]:
    """What is at its edge late in the runs."""
    end = late(rows, settings)
    gd, sgd = end[end["batch_size"] == n], end[end["batch_size"] < n]
    found = []
    if settings.momentum:
        for here, sign, words in ((sgd, -1, "small"), (gd, 1, "full")):
            edge = 1 + sign * settings.momentum
            found.append(
                claim(f"plateau-{words}", f"batch sharpness of {words} batches is at its plateau",
                      "batch sharpness over 2/η, mean over seeds", mean_over(here, "batch_ratio"),
                      "=", edge, within=CLOSE * edge)
            )  # fmt: skip
        return found
    found.append(
        claim("threshold-above-a", "η/η*_var is no smaller than a/(2/η), of Gauss–Newton's H",
              f"smallest difference at {len(rows)} points",
              float((rows["threshold_ratio"] - rows["linear_ratio"]).min()), ">=", 0,
              within=1e-3, kind="theorem")
    )  # fmt: skip
    for name, here, who in (
        ("sharpness_ratio", gd, "GD"),
        ("threshold_ratio", sgd, "SGD"),
        ("batch_ratio", sgd, "SGD"),
    ):
        found.append(
            claim(f"{name.replace('_', '-')}-{who}", f"{QUANTITIES[name]} of {who} is at its edge",
                  f"mean over seeds of the last {LATE:.0%} of the steps", mean_over(here, name),
                  "=", 1, within=CLOSE)
        )  # fmt: skip
    found.append(
        claim("box-inside", "SGD stays inside the bound on s",
              "s over its bound, mean over seeds", mean_over(sgd, "nonuniformity_ratio"), "<", 1)
    )  # fmt: skip
    gap = sgd.assign(off=sgd.get("gap_ratio", math.nan) - sgd["sharpness_ratio"])
    found.append(
        claim("gap", "self-stabilisation with noise predicts the sharpness of SGD",
              "predicted less measured a, over 2/η, mean over seeds",
              mean_over(gap.astype({"off": float}), "off"), "=", 0, within=CLOSE)
    )  # fmt: skip
    return found


def draw(rows: pd.DataFrame, settings: Settings, n: int) -> Figure:
    """The quantities along training, a panel for each batch size; below, the exponent.

    Bands are one standard deviation over seeds; error bars the certified interval of η/η*_var, its
    ends averaged over seeds.
    """
    names, above, below = shown(rows), [], []
    ends = [name for name in ("threshold_ratio_lower", "threshold_ratio_upper") if name in rows]
    for size, here in rows.groupby("batch_size"):
        title = "B = n (GD)" if size == n else f"B = {size}"
        lines = spread_over(here, ["step"], [*names, *ends])
        certified = {"threshold_ratio": [lines[name] for name in ends]} if ends else {}
        curves = [
            Series(QUANTITIES[k], lines["step"], lines[k], lines[f"{k}_std"],
                   interval=certified.get(k))
            for k in names
        ]  # fmt: skip
        above.append(Panel(title, curves, lines=edges_of(settings)))
        if "exponent" in here:
            lines = spread_over(here, ["step"], ["exponent"])
            one = Series("", lines["step"], lines["exponent"], lines["exponent_std"])
            label = "almost-sure exponent  [1/step]"
            below.append(Panel(title, [one], ylabel=label, lines=[Line("stable below", 0.0)]))
    figure = plots.panels([*above, *below], xlabel="step  [1]", ylabel="share of the edge  [1]")
    for axes in figure.axes:
        axes.set_xscale("log")
    for axes in figure.axes[: len(above)]:
        axes.set_ylim(0, 2)
    return figure


def edges_of(settings: Settings) -> Sequence[Line]:
    """Where the edge is: 1, or the two plateaus of momentum, 1 ∓ β."""
    if not settings.momentum:
        return [Line("edge", 1.0)]
    beta = settings.momentum
    return [Line("small batches: 1 − β", 1 - beta), Line("large batches: 1 + β", 1 + beta)]


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="fashion_mnist", model="fnn", n_train=500, learning_rate=0.1,
        batch_sizes=(2, 8, 32, 128, "n"), seeds=5, max_steps=50_000, points=20,
    ),
    "tiny": Settings(
        n_train=TINY["n_train"], batch_sizes=(10,), seeds=1, max_steps=200, points=2, batches=8,
        rate_steps=80, threshold_tol=0.1,
    ),
}  # fmt: skip
