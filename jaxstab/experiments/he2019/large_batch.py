"""Small batches after large ones, and widths along random rays (He et al. 2019, Figs. 10, 11)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxstab import landscape, plots
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.he2019.solutions import (
    PAPER,
    TINY,
    Networks,
    NetworkSettings,
    over_seeds,
    restored,
    stored,
)
from jaxstab.experiments.he2019.swa import BUMP, LINE, compare, draw
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table

NAMES = ("sb", "lb")  # small batches continued, large batches: positions 0 and 1


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The large batch and the rays."""

    large_batch: int = setting(500, "the large batch size")
    second_learning_rate: float = setting(0.05, "learning rate of the small-batch phase")
    rays: int = setting(6, "random rays from each solution")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains with large batches, continues with small ones, and compares the two solutions."""
    networks = Networks.load(settings, context)
    rows, lines, rays = [], [], []
    for seed, step in over_seeds(settings, context, partial(look, networks)):
        lines.append(restored(step["line"]))
        own = [restored(step[name]) for name in NAMES]
        rays.append(own)
        rows.append({"seed": seed} | compare(lines[-1], NAMES) | widths(own))
    found = pd.DataFrame(rows)
    return Outcome(
        rows=found,
        tables=[summary(found)],
        claims=claims(found),
        figures={
            "large-batch": draw(lines, ("small batch", "large batch")),
            "random-rays": draw_rays(rays),
        },
    )


def look(networks: Networks, seed: int) -> dict[str, Any]:
    """The slice through both solutions and random rays from each, as plain numbers."""
    s = networks.settings
    large, _ = networks.first_phase(seed, batch_size=s.large_batch)
    small = networks.second_phase(large, seed)
    key = jax.random.fold_in(jax.random.key(seed), 3)
    us = landscape.directions(small, kind="gaussian", key=key, count=s.rays)
    positions = jnp.linspace(0, s.reach, s.positions)
    step = {"line": stored(networks.interpolate(small, large))}
    for name, params in zip(NAMES, (small, large), strict=True):
        step[name] = stored(networks.slice(params, us, positions))
    return step


def widths(rays: Any) -> dict[str, float]:
    """Mean rise of the training loss at the end of the rays, for both, and their ratio."""
    rises = [float(np.mean(ray.loss[:, -1] - ray.loss[:, 0])) for ray in rays]
    return dict(zip([f"{name}_rise" for name in NAMES], rises)) | {
        "log_rise_ratio": float(np.log(max(rises[1], 1e-9) / max(rises[0], 1e-9)))
    }


def summary(found: pd.DataFrame) -> Table:
    """One line a solution."""
    lines = []
    for name, label in zip(NAMES, ("small batch after large", "large batch"), strict=True):
        line: dict[str, Any] = {"solution": label}
        for what in ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "rise"):
            values = found[f"{name}_{what}"]
            line |= {what: values.mean(), f"{what}_std": values.std(ddof=0)}
        lines.append(line | mean_over(found, f"{name}_bias").columns("bias"))
    columns = [Column("solution")]
    columns += [Column(f"{part}_loss", f"{part} loss", spread="std") for part in ("train", "test")]
    columns += [
        Column(f"{part}_accuracy", f"{part} accuracy", format=".4f", spread="std")
        for part in ("train", "test")
    ]
    columns += [
        Column("rise", "rise along random rays", spread="std"),
        Column("bias", "bias to the flat side", "|LB − SB|", ".3f", "interval"),
    ]
    return Table("large-batch", pd.DataFrame(lines), columns, note="mean ± std over seeds")


def claims(found: pd.DataFrame) -> list[Claim]:
    """One valley, two places in it, and what random rays make of them."""
    return [
        claim(
            "no-bump",
            "there is no bump between the large-batch solution and the small-batch one",
            "training loss above both ends on the way, in nats, mean over seeds",
            mean_over(found, "bump"),
            "<=",
            0,
            within=BUMP,
        ),
        claim(
            "small-batch-on-the-flat-side",
            "the small-batch solution lies further to the flat side",
            "difference of their biases, in units of their distance",
            mean_over(found, "more_bias"),
            ">",
            0,
        ),
        claim(
            "rays-show-two-widths",
            "along random rays the small-batch solution looks wider, in the same valley",
            "log of the large-batch rise over the small-batch one",
            mean_over(found, "log_rise_ratio"),
            ">",
            0,
        ),
    ]


def draw_rays(rays: list[Any]) -> Any:
    """Training loss along random rays, mean and standard deviation over rays of all seeds."""
    series = []
    for i, label in enumerate(("small batch", "large batch")):
        curves = np.concatenate([own[i].loss for own in rays])
        series.append(plots.Series(label, rays[0][i].positions, curves.mean(0), curves.std(0)))
    return plots.panels(
        [plots.Panel("random rays", series)], xlabel="distance  [1]", ylabel="training loss  [1]"
    )


PRESETS = {
    "quick": Settings(evaluated=0, positions=11, rays=4),
    "paper": Settings(
        **PAPER | LINE,
        large_batch=2048,
        second_learning_rate=0.01,
    ),
    "tiny": Settings(**TINY, large_batch=20, rays=2),
}
