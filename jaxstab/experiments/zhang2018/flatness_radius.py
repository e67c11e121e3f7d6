"""How far from a minimum the loss stays the same (Zhang et al. 2018, eq. 11 and Table 1).

The raw radius depends on the scale of the parameters, which random labels change; so the radius in
filter-normalised directions and the norm of the parameters stand beside it.
"""

from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxstab import plots
from jaxstab.experiments import problems, published
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import seed_range, setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.zhang2018 import networks
from jaxstab.experiments.zhang2018.networks import LABELS, NetworkSettings
from jaxstab.landscape import flatness_radius

PARAMETERS = ("all", "top_layer")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Radii at minima."""

    eps: float = setting(0.05, "change ε of the training loss that ends the radius")
    directions: int = setting(10, "random directions at each minimum")
    resolution: float = setting(0.05, "narrowest excursion that is seen, over its radius")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains on natural and random labels to one loss, and measures the radii there."""
    problem = problems.load(settings, context.data_dir)
    steps = {
        f"{labels}-{seed}": partial(at_minimum, settings, problem, labels, seed)
        for labels, seed in product(LABELS, seed_range(settings.seeds))
    }
    frame = pd.DataFrame(chain.from_iterable(context.remember_all(steps)))
    theirs = published.beside(settings, "zhang2018_table1")
    lines = summarize(frame, theirs)
    return Outcome(
        rows=frame,
        tables=[table(lines)],
        claims=claims(frame),
        figures={"flatness-radius": draw(settings, lines)},
    )


def at_minimum(
    settings: Settings, problem: Problem, labels: str, seed: int
) -> list[dict[str, Any]]:
    """Radii at one minimum, of all parameters and of the top layer; one row each."""
    data = networks.labelled(problem, labels, seed)
    found = networks.trained(settings, problem, data, start=seed, batches=seed)
    rows = []
    for i, parameters in enumerate(PARAMETERS):
        row = {"labels": labels, "seed": seed, "parameters": parameters}
        row |= networks.ending(problem, found, data)
        for column, normalisation in (("radius", None), ("filter_radius", "filter")):
            radii = flatness_radius(
                problem.loss,
                found.params,
                data,
                eps=settings.eps,
                key=jax.random.fold_in(jax.random.key(seed), i),
                directions=settings.directions,
                mask=None if parameters == "all" else networks.top_layer(found.params),
                normalisation=normalisation,
                resolution=settings.resolution,
            )
            row |= {column: radii.mean, f"{column}_infinite": radii.infinite}
            row |= {f"{column}_over_directions": radii.std, "norm": radii.norm}
        rows.append(row)
    return rows


def summarize(rows: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Means and standard deviations over seeds, beside the published."""
    reached = rows[rows["reached"]]
    lines = []
    for parameters, labels in product(PARAMETERS, LABELS):
        mine = reached[(reached["parameters"] == parameters) & (reached["labels"] == labels)]
        line = {"parameters": parameters, "labels": labels, "minima": len(mine)}
        for name in ("radius", "filter_radius", "norm"):
            line |= {name: mine[name].mean(), f"{name}_std": mine[name].std()}
        line["over_directions"] = mine["radius_over_directions"].mean()
        line["relative"] = (mine["radius"] / mine["norm"]).mean()
        same = theirs[(theirs["parameters"] == parameters) & (theirs["labels"] == labels)]
        if len(same):
            line |= {"published": same["radius_mean"].iloc[0]}
            line |= {"published_std": same["radius_std"].iloc[0]}
        lines.append(line)
    return pd.DataFrame(lines)


def table(lines: pd.DataFrame) -> Table:
    """The four numbers of Table 1, with what they depend on."""
    columns = [
        Column("parameters"),
        Column("labels"),
        Column("minima"),
        Column("radius", "radius (± over seeds)", spread="std"),
        Column("over_directions", "std over directions", format=".2g"),
        Column("norm", "norm of the parameters", spread="std"),
        Column("relative", "radius / norm", format=".3g"),
        Column("filter_radius", "filter-normalised radius", spread="std"),
    ]
    if "published" in lines:
        columns.append(Column("published", "published", spread="std"))
    return Table("flatness-radius", lines, columns, title="Flatness radius at minima of equal loss")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Natural over random labels, seed by seed: the same start, the same directions."""
    reached = rows[rows["reached"]]
    found = []
    for parameters, (column, kind) in product(
        PARAMETERS, (("radius", "raw"), ("filter_radius", "filter-normalised"))
    ):
        mine = reached[reached["parameters"] == parameters]
        wide = mine.pivot(index="seed", columns="labels", values=column).reindex(columns=LABELS)
        logs = np.log(wide["natural"] / wide["random"]).rename("log").reset_index()
        words = "all parameters" if parameters == "all" else "the top layer"
        found.append(
            claim(
                f"flatter {parameters} {kind}",
                f"minima of natural labels are flatter along {words} ({kind} directions)",
                "radius with natural over radius with random labels, geometric mean over seeds",
                mean_over(logs, "log").map(lambda x: float(np.exp(x))),
                ">",
                1.0,
            )
        )
    return found


def draw(settings: Settings, lines: pd.DataFrame) -> Figure:
    """Radii by group, with the published ones as open markers."""
    kinds = ("{} labels", "{} labels, filter-normalised")
    groups: dict[str, dict[str, Any]] = {k.format(x): {} for k in kinds for x in LABELS}
    for line in lines.to_dict("records"):
        name = line["parameters"].replace("_", " ")
        for kind, column in zip(kinds, ("radius", "filter_radius")):
            groups[kind.format(line["labels"])][name] = (line[column], line[f"{column}_std"])
        if "published" in lines:
            theirs = groups.setdefault(f"Table 1, {line['labels']}", {})
            theirs[name] = (line["published"], line["published_std"])
    return plots.groups(
        groups,
        ylabel="radius  [parameters; lengths of the filters]",
        hollow=[name for name in groups if name.startswith("Table 1")],
        log_y=True,
        title=f"Flatness radius, ε = {settings.eps:g}: {settings.model} on {settings.dataset}",
    )


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="mnist", model="fnn", n_train=60_000, batch_size=100, directions=20, seeds=5,
        max_steps=1_000_000,
    ),
    "tiny": Settings(
        n_train=30, batch_size=10, seeds=1, directions=2, resolution=0.5, loss_tolerance=0.2,
        max_steps=3000,
    ),
}  # fmt: skip
