"""Accuracy over the triangle of three minima (Zhang et al. 2018, eq. 10 and Figs. 7, 8)."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from jaxstab import plots
from jaxstab.checks import check_name
from jaxstab.experiments import problems
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import seed_range, setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.zhang2018 import networks
from jaxstab.experiments.zhang2018.networks import LABELS, NetworkSettings
from jaxstab.landscape import simplex

STARTS = ("independent", "shared")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Triangles of minima."""

    seeds: int = setting(3, "number of triangles for each kind of labels")
    start: str = setting("independent", "initial parameters of the corners: independent or shared")
    resolution: int = setting(20, "parts of each edge of a triangle")
    level: float = setting(0.95, "training accuracy that counts")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains three networks for every triangle and evaluates the mixtures of their parameters."""
    check_name("start", settings.start, STARTS)
    problem = problems.load(settings, context.data_dir)
    steps = {
        f"{labels}-{seed}": partial(triangle, settings, problem, labels, seed)
        for labels, seed in product(LABELS, seed_range(settings.seeds))
    }
    found = context.remember_all(steps)
    first = {f"{row['labels']} labels": row["accuracy"] for row in reversed(found)}
    figure = plots.triangles(
        found[0]["coordinates"],
        {f"{labels} labels": first[f"{labels} labels"] for labels in LABELS},
        quantity="training accuracy  [1]",
        limits=(0.0, 1.0),
        title=f"Mixtures of three minima, {settings.start} starts: {settings.model} on "
        f"{settings.dataset}",
    )
    rows = pd.DataFrame(found).drop(columns=["coordinates", "accuracy"])
    return Outcome(
        rows=rows,
        tables=[table(rows)],
        claims=claims(rows, settings.level),
        figures={"interpolation": figure},
    )


def triangle(settings: Settings, problem: Problem, labels: str, seed: int) -> dict[str, Any]:
    """One triangle: how the corners ended, and the accuracy over it."""
    data = networks.labelled(problem, labels, seed)
    runs = [
        networks.trained(
            settings,
            problem,
            data,
            start=3 * seed + (corner if settings.start == "independent" else 0),
            batches=3 * seed + corner,
        )
        for corner in range(3)
    ]
    endings = pd.DataFrame([networks.ending(problem, one, data) for one in runs])
    found = simplex(
        problem.loss,
        [one.params for one in runs],
        data,
        resolution=settings.resolution,
        batch_norm="frozen",
    )
    accuracy = np.asarray(found.accuracy)
    middle = np.argmin(np.abs(np.asarray(found.weights) - 1 / 3).max(axis=1))
    return {
        "labels": labels,
        "seed": seed,
        "reached": bool(endings["reached"].all()),
        "train_loss": endings["train_loss"].mean(),
        "above": found.fraction_above(settings.level),
        "mean_accuracy": float(accuracy.mean()),
        "middle": float(accuracy[middle]),
        "accuracy": accuracy.tolist(),
        "coordinates": found.coordinates().tolist(),
    }


def table(rows: pd.DataFrame) -> Table:
    """Area above the level, and accuracy in the middle, by labels."""
    names = ["above", "mean_accuracy", "middle", "train_loss"]
    grouped = rows[rows["reached"]].groupby("labels")[names]
    lines = grouped.mean().join(grouped.std().add_suffix("_std")).reset_index()
    columns = [
        Column("labels"),
        Column("above", "area above the level", format=".3f", spread="std"),
        Column("mean_accuracy", "mean accuracy", format=".3f", spread="std"),
        Column("middle", "accuracy in the middle", format=".3f", spread="std"),
        Column("train_loss", "loss at the corners", format=".2e", spread="std"),
    ]
    return Table("interpolation", lines, columns, title="Triangles of minima (± over triangles)")


def claims(rows: pd.DataFrame, level: float) -> list[Claim]:
    """Natural minus random labels, triangle by triangle from the same starts."""
    found = []
    for column, words in (
        ("above", f"the area with training accuracy above {level:g}"),
        ("mean_accuracy", "the mean training accuracy over the triangle"),
    ):
        wide = rows[rows["reached"]].pivot(index="seed", columns="labels", values=column)
        wide = wide.reindex(columns=LABELS)
        gap = (wide["natural"] - wide["random"]).rename("gap").reset_index()
        found.append(
            claim(
                f"larger {column}",
                f"{words} is larger with natural labels",
                f"{words}: natural minus random labels, mean over triangles",
                mean_over(gap, "gap"),
                ">",
                0.0,
            )
        )
    return found


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="cifar10", model="vgg", n_train=50_000, batch_size=100, max_steps=1_000_000
    ),
    "tiny": Settings(
        n_train=30, batch_size=10, seeds=1, resolution=3, loss_tolerance=0.2, max_steps=3000
    ),
}
