"""Training curves of SGD and of SGD with Langevin noise (Zhang et al. 2018, eq. 5, Fig. 2)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxstab import plots
from jaxstab.experiments import problems
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import ProblemSettings, seed_range, setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.landscape import langevin_chains
from jaxstab.losses import accuracy
from jaxstab.plots import Series
from jaxstab.training import mean_loss

DYNAMICS = ("SGD", "SGDL")
QUANTITIES = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")


@dataclass(frozen=True)
class Settings(ProblemSettings):
    """Two dynamics from the same starts with the same batches."""

    loss: str = setting("cross_entropy", "loss: squared, cross_entropy or kl")
    learning_rate: float = setting(0.1, "learning rate γ")
    temperature: float = setting(1e-6, "temperature T = γ'²/(2γ) of the noise of SGDL")
    batch_size: int = setting(50, "batch size")
    steps: int = setting(3000, "steps of a run")
    points: int = setting(30, "points of a curve")
    seeds: int = setting(5, "number of seeds")


def run(settings: Settings, context: Context) -> Outcome:
    """Runs both dynamics for all seeds at once, and compares where they end."""
    problem = problems.load(settings, context.data_dir)
    steps = {dynamics: partial(curves, settings, problem, dynamics) for dynamics in DYNAMICS}
    found = zip(DYNAMICS, context.remember_all(steps), strict=True)
    parts = [pd.DataFrame(curve).assign(dynamics=dynamics) for dynamics, curve in found]
    rows = pd.concat(parts, ignore_index=True)
    title = (
        f"{settings.model} on {settings.dataset}: T = {settings.temperature:g}, ± std over seeds"
    )
    return Outcome(
        rows=rows,
        tables=[table(rows)],
        claims=claims(rows),
        figures={"sgd-vs-langevin": draw(rows, title)},
    )


def curves(settings: Settings, problem: Problem, dynamics: str) -> list[dict[str, Any]]:
    """Losses and accuracies along all runs of one dynamics; the noise is the only difference."""
    seeds = seed_range(settings.seeds)
    starts = [problem.init(jax.random.key(seed), 1.0) for seed in seeds]
    thin = max(1, settings.steps // settings.points)
    draws = langevin_chains(
        problem.loss,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
        problem.train,
        learning_rate=settings.learning_rate,
        temperature=settings.temperature if dynamics == "SGDL" else 0.0,
        batch_size=min(settings.batch_size, problem.n),
        draws=settings.points,
        thin=thin,
        key=jax.random.key(0),
        observe=jax.tree_util.Partial(_observe, problem.loss, problem.train, problem.dataset.test),
    )
    values = {name: np.asarray(draws.values[name], float) for name in QUANTITIES}
    return [
        {"seed": seed, "step": (j + 1) * thin} | {name: values[name][i, j] for name in QUANTITIES}
        for i, seed in enumerate(seeds)
        for j in range(settings.points)
    ]


def _observe(loss: Any, train: Any, test: Any, params: Any) -> dict[str, jax.Array]:
    found = {}
    for name, part in (("train", train), ("validation", test)):
        found[f"{name}_loss"] = mean_loss(loss, params, part)
        found[f"{name}_accuracy"] = accuracy(loss, params, part)
    return found


def table(rows: pd.DataFrame) -> Table:
    """Where the curves end."""
    last = rows[rows["step"] == rows["step"].max()].groupby("dynamics")[list(QUANTITIES)]
    lines = last.mean().join(last.std().add_suffix("_std")).reset_index()
    columns = [Column("dynamics")] + [Column(name, spread="std") for name in QUANTITIES]
    return Table("sgd-vs-langevin", lines, columns, title="Last point (± over seeds)")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """SGDL minus SGD, seed by seed: the same start and the same batches."""
    found = []
    for name, where in (("final", rows["step"].max()), ("halfway", rows["step"].median())):
        nearest = rows["step"].unique()[np.argmin(np.abs(rows["step"].unique() - where))]
        at = rows[rows["step"] == nearest]
        wide = at.pivot(index="seed", columns="dynamics", values="validation_accuracy")
        gap = (wide["SGDL"] - wide["SGD"]).rename("gap").reset_index()
        found.append(
            claim(
                f"{name} accuracy",
                "SGD and SGDL reach the same validation accuracy",
                f"validation accuracy of SGDL minus that of SGD at step {nearest}, mean over seeds",
                mean_over(gap, "gap"),
                "=",
                0.0,
                within=0.02,
            )
        )
    return found


def draw(rows: pd.DataFrame, title: str) -> Any:
    """Losses and accuracies against the step."""
    panels: dict[str, list[Series]] = {}
    for ylabel, quantity in (("loss  [nats]", "loss"), ("accuracy  [1]", "accuracy")):
        panels[ylabel] = []
        for dynamics in DYNAMICS:
            for part in ("train", "validation"):
                mine = rows[rows["dynamics"] == dynamics].groupby("step")[f"{part}_{quantity}"]
                mean, std = mine.mean(), mine.std().fillna(0)
                label = f"{dynamics}, {part}"
                panels[ylabel].append(Series(label, mean.index, mean, std))
    return plots.curves(panels, xlabel="step  [1]", log_y=["loss  [nats]"], title=title)


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="cifar10", model="vgg", n_train=50_000, batch_size=100, steps=100_000, points=100
    ),
    "tiny": Settings(n_train=40, batch_size=10, steps=60, points=6, seeds=2),
}
