"""How Gaussian the noise of batch gradients is, against batch size (Zhang et al. 2018, Fig. 1).

Components are sampled and those of one batch depend on each other: per-layer numbers describe the
components drawn, and intervals are over networks or over batches, which are independent.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd
from scipy import stats

from jaxstab import plots
from jaxstab.experiments import problems
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import seed_range, setting
from jaxstab.experiments.statistics import mean_over, trend
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.zhang2018 import networks
from jaxstab.experiments.zhang2018.networks import NetworkSettings
from jaxstab.landscape import gradient_noise, noise_statistics
from jaxstab.stability.criteria import variance_factor

CAVEAT = "of sampled components, which depend on each other"
CHANCE = 1e-6  # of a wrong alarm about the mean, over all components


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Noise late in training."""

    seeds: int = setting(3, "number of networks")
    noise_batch_sizes: tuple[int, ...] = setting((1, 4, 16, 64, 128), "batch sizes of the noise")
    batches: int = setting(4000, "batches of each size")
    components: int = setting(40, "components sampled of each parameter array")


def run(settings: Settings, context: Context) -> Outcome:
    """Measures the noise at the end of training of every network."""
    problem = problems.load(settings, context.data_dir)
    if max(settings.noise_batch_sizes, default=problem.n) >= problem.n:
        raise ValueError(
            f"noise_batch_sizes must be below n = {problem.n}, where batches are all alike, and "
            f"at least one: got {settings.noise_batch_sizes}"
        )
    seeds = seed_range(settings.seeds)
    steps = {f"seed{seed}": partial(measure, settings, problem, seed) for seed in seeds}
    found = context.remember_all(steps)
    rows, exact = (pd.DataFrame([x for f in found for x in f[key]]) for key in ("rows", "exact"))
    kernels = [leaf for leaf in found[0]["shown"] if "kernel" in leaf]
    panels = {leaf: found[0]["shown"][leaf] for leaf in kernels or list(found[0]["shown"])}
    names = {leaf: "/".join(re.findall(r"\['([^']*)'\]", leaf)) or leaf for leaf in panels}
    title = f"Gradient noise late in training: {settings.model} on {settings.dataset}"
    return Outcome(
        rows=rows,
        tables=[table(rows)],
        claims=claims(rows, exact),
        figures={"gradient-noise": plots.noise(panels, names=names, title=title)},
    )


def measure(settings: Settings, problem: Problem, seed: int) -> dict[str, Any]:
    """Noise at one network: statistics per layer, exact checks, a sample to draw."""
    run = networks.trained(settings, problem, problem.train, start=seed, batches=seed)
    noise = gradient_noise(
        problem.loss,
        run.params,
        problem.train,
        batch_sizes=settings.noise_batch_sizes,
        batches=settings.batches,
        key=jax.random.fold_in(jax.random.key(seed), 2),
        components=settings.components,
    )
    exact: list[dict[str, Any]] = []
    shown: dict[str, dict[str, list[float]]] = {}
    for size, gradients in zip(noise.batch_sizes, noise.batch_gradients):
        expected = variance_factor(noise.n, size) * noise.variance
        # a component that a handful of examples carry is far from normal even in its mean
        live = expected > 1e-6 * expected.max()
        error = (gradients - noise.gradient)[:, live] / np.sqrt(expected[live])
        exact.append(
            {
                "seed": seed,
                "batch_size": size,
                "mean_error": float(np.abs(error.mean(axis=0)).max() * np.sqrt(len(error))),
                "components": int(live.sum()),
                "variance_ratio": float(np.square(error).mean()),
                "variance_error": float(np.square(error).mean(axis=1).std() / np.sqrt(len(error))),
            }
        )
        for i, leaf in enumerate(noise.leaf_names):
            mine = error[:400, noise.leaf[live] == i]
            shown.setdefault(leaf, {})[f"B = {size}"] = np.round(mine.ravel(), 3).tolist()
    rows = [{"seed": seed, **row} for row in noise_statistics(noise)]
    return {"rows": rows, "exact": exact, "shown": shown if seed == 0 else {}}


def table(rows: pd.DataFrame) -> Table:
    """Means over networks for each layer and batch size."""
    names = ["skewness", "excess_kurtosis", "rejected", "mcculloch", "hill", "variance_ratio"]
    lines = rows.groupby(["leaf", "batch_size"])[[*names, "dead"]].mean().reset_index()
    columns = [
        Column("leaf", "parameters"),
        Column("batch_size", "B"),
        Column("skewness", "|skewness|", format=".3f"),
        Column("excess_kurtosis", "excess kurtosis", format=".3f"),
        Column("rejected", "not Gaussian at 5 %", format=".1%"),
        Column("mcculloch", "α (quantiles)", format=".2f"),
        Column("hill", "α (Hill)", format=".2f"),
        Column("variance_ratio", "variance / π(B)C_g", format=".3f"),
        Column("dead", "still components", format=".1f"),
    ]
    note = "α is 2 by quantiles for Gaussian noise; Hill's needs α < 2 for an infinite variance"
    return Table("gradient-noise", lines, columns, title="Noise of batch gradients", note=note)


def claims(rows: pd.DataFrame, exact: pd.DataFrame) -> list[Claim]:
    """The mean and the variance are theorems; how Gaussian the noise is, is observed."""
    bound = stats.norm.isf(CHANCE / 2 / exact["components"].sum())
    spread = exact["variance_error"] * stats.norm.isf(CHANCE / 2 / len(exact))
    largest = rows["batch_size"].max()
    away = rows.assign(away=rows["excess_kurtosis"].abs())
    return [
        claim(
            "mean",
            "the mean of the noise is zero: batch gradients average to the full gradient",
            f"largest distance {CAVEAT}, in standard errors; above the bound by chance {CHANCE:g} "
            "for normal means",
            exact["mean_error"].max(),
            "<=",
            bound,
            kind="theorem",
        ),
        claim(
            "variance",
            "the variance falls as π(B) = (n − B)/(B(n − 1))",
            "largest distance of variance / (π(B) C_g) from 1, over the bound that chance "
            f"{CHANCE:g} allows",
            ((exact["variance_ratio"] - 1).abs() / spread).max(),
            "<=",
            1.0,
            kind="theorem",
        ),
        claim(
            "closer-to-gaussian",
            "the noise comes closer to a Gaussian as the batch grows",
            f"rank correlation of B and |excess kurtosis| {CAVEAT}, in layers, mean over networks",
            trend(away, "batch_size", "away", within=["leaf"]),
            "<",
            0.0,
        ),
        claim(
            "gaussian",
            f"at B = {largest} the noise is Gaussian",
            f"fraction {CAVEAT}, that a test of normality at level 5 % rejects, mean over networks",
            mean_over(rows[rows["batch_size"] == largest], "rejected"),
            "<=",
            0.1,
        ),
    ]


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="cifar10", model="vgg", n_train=50_000, batch_size=100, max_steps=1_000_000,
        noise_batch_sizes=(1, 10, 100, 1000), batches=20_000, components=200, seeds=5,
    ),
    "tiny": Settings(
        n_train=40, batch_size=10, seeds=2, loss_tolerance=0.5, noise_batch_sizes=(2, 10, 20),
        batches=200, components=5, max_steps=500,
    ),
}  # fmt: skip
