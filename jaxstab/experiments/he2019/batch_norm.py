"""Batch-norm parameters against others: asymmetry, and SWA on one group (He et al. 2019, 5.2)."""

from dataclasses import dataclass
from functools import partial
from itertools import product
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
    restored,
    stored,
)
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import seed_range, setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table

GROUPS = ("none", "batch norm", "as many others", "all")


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The network without batch norm beside it, and the directions."""

    evaluated: int = setting(0, "training examples that slices are evaluated on; 0 for all")
    plain_model: str = setting("resnet8-small", "the same network without batch norm")
    plain_learning_rate: float = setting(0.05, "its learning rate, constant")
    directions: int = setting(4, "U(0, 1) directions in each group of parameters")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains both networks, averages by group, and slices along directions of each group."""
    rates = dict.fromkeys(("learning_rate", "final_learning_rate"), settings.plain_learning_rate)
    plain = Settings(**vars(settings) | {"model": settings.plain_model} | rates)
    both = {"with": Networks.load(settings, context), "without": Networks.load(plain, context)}
    rows: list[dict[str, Any]] = []
    lines: dict[Any, Any] = {}
    tasks = list(product(seed_range(settings.seeds), both))
    steps = {f"{name}-{seed}": partial(look, both[name], seed) for seed, name in tasks}
    for (seed, name), step in zip(tasks, context.remember_all(steps), strict=True):
        for group, found in step.items():
            row = {"seed": seed, "network": f"{name} batch norm", "group": group}
            rows.append(row | found["at"])
            if "line" in found:
                line = restored(found["line"])
                lines.setdefault((row["network"], group), []).append(line)
                ratio = np.asarray(landscape.flat_side(line, at=[0.0]).ratio)
                rows[-1]["log_ratio"] = float(np.log(np.minimum(ratio, 1e3)).mean())
    found = pd.DataFrame(rows)
    return Outcome(
        rows=found,
        tables=[summary(found)],
        claims=claims(found),
        figures={"batch-norm": draw(lines)},
    )


def look(networks: Networks, seed: int) -> dict[str, Any]:
    """By group of parameters: the network with that group averaged, and slices along it."""
    s = networks.settings
    last, average = networks.first_phase(seed)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3))
    masks: dict[str, Any] = {"none": None, "all": None}
    if networks.normed:
        norm = landscape.resolve_mask(last, "BatchNorm")
        count = int(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(norm)))
        others = landscape.random_subset(last, count, key=keys[0], exclude=norm)
        masks = {"none": None, "batch norm": norm, "as many others": others, "all": None}
    step: dict[str, Any] = {}
    for group, mask in masks.items():
        params = last if group == "none" else average
        if mask is not None:  # masked SWA leaves the iterates as they are: mix afterwards
            params = jax.tree.map(jnp.where, mask, average, last)
        step[group] = {"at": networks.evaluate(params)}
        if group != "none":
            us = landscape.directions(
                last, kind="uniform_positive", key=keys[1], count=s.directions, mask=mask
            )
            step[group]["line"] = stored(networks.slice(last, us))
    return step


def summary(found: pd.DataFrame) -> Table:
    """One line a network and group."""
    lines = []
    for (network, group), own in found.groupby(["network", "group"], sort=False):
        line = {"network": network, "group": group}
        for what in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            line |= {what: own[what].mean(), f"{what}_std": own[what].std(ddof=0)}
        lines.append(line | mean_over(own, "log_ratio").map(np.exp).columns("rise_ratio"))
    columns = [
        Column("network"),
        Column("group", "averaged"),
        Column("train_loss", spread="std"),
        Column("train_accuracy", format=".4f", spread="std"),
        Column("test_loss", spread="std"),
        Column("test_accuracy", format=".4f", spread="std"),
        Column("rise_ratio", "rise along it, sharp/flat", format=".2f", spread="interval"),
    ]
    note = "rise: geometric mean over U(0, 1) directions in the group, at the reach of the slice"
    return Table("batch-norm", pd.DataFrame(lines), columns, note=note)


def claims(found: pd.DataFrame) -> list[Claim]:
    """What section 5.2 says of batch-norm parameters, as it came out here."""
    own = found[found["network"] == "with batch norm"]
    accuracy = own.pivot(index="seed", columns="group", values="test_accuracy").reset_index()
    ratio = own.pivot(index="seed", columns="group", values="log_ratio").reset_index()
    plain = found[(found["network"] != "with batch norm") & (found["group"] == "all")]
    ratio = ratio.merge(plain[["seed", "log_ratio"]].rename(columns={"log_ratio": "plain"}))
    gains = accuracy.assign(
        more=lambda x: x["batch norm"] - x["as many others"],
        gain=lambda x: x["all"] - x["none"],
    )
    ratios = ratio.assign(
        more=lambda x: x["batch norm"] - x["as many others"], norm=lambda x: x["all"] - x["plain"]
    )
    what = "difference of mean log(rise on the sharp side / on the flat side)"
    return [
        claim(
            "batch-norm-directions-are-more-asymmetric",
            "directions in batch-norm parameters are more asymmetric than in as many others",
            what,
            mean_over(ratios, "more"),
            ">",
            0,
        ),
        claim(
            "averaging-batch-norm-helps-more",
            "averaging batch-norm parameters alone helps more than averaging as many others",
            "difference of test accuracies",
            mean_over(gains, "more"),
            ">",
            0,
        ),
        claim(
            "averaging-all-helps",
            "averaging all parameters raises the test accuracy",
            "difference of test accuracies, SWA less the last iterate",
            mean_over(gains, "gain"),
            ">",
            0,
        ),
        claim(
            "without-batch-norm-less-asymmetric",
            "a network with batch norm is more asymmetric than one without",
            what + ", over all parameters",
            mean_over(ratios, "norm"),
            ">",
            0,
        ),
    ]


def draw(lines: dict[Any, Any]) -> Any:
    """Training loss along directions of each group: the first seed's."""
    panels = [
        plots.Panel(
            f"{network}: {group}",
            [plots.Series("", own[0].positions, curve) for curve in own[0].loss],
        )
        for (network, group), own in lines.items()
    ]
    return plots.panels(panels, xlabel="distance l along u  [1]", ylabel="training loss  [1]")


PRESETS = {
    "quick": Settings(positions=11, directions=3),
    "paper": Settings(
        **PAPER
        | {"dataset": "cifar10", "model": "resnet8", "evaluated": 0, "positions": 41, "seeds": 3},
        plain_model="resnet8-no-norm",
    ),
    "tiny": Settings(
        **TINY | {"model": "fnn-small-norm", "seeds": 2}, plain_model="fnn-small", directions=1
    ),
}
