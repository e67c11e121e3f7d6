"""Where SGD settles: exact, four factors, three (Luo, Wang 2020, sections 2 and 3)."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from jaxstab import plots, trees
from jaxstab.experiments import problems, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import ProblemSettings, setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.landscape import langevin_chains
from jaxstab.measurement import loss_and_gradient_norm
from jaxstab.stability import diffusion, exact, linearized, variance_factor
from jaxstab.training import mean_loss, train

HEAVY = 0.98  # fourth moments that grow by more a step: the mean of a sample has no usable error
DEVIATIONS = 5  # standard errors, passed once in 1e5 times by one of a dozen comparisons
LIMIT = 0.02  # relative, at the smallest step: terms of first order in η are some 5 η/η*_var


@dataclass(frozen=True)
class Settings(ProblemSettings):
    """A quadratic of n examples and a minimum of a network, and how SGD is run around both."""

    model: str = setting("fnn-tiny", "model, too small to interpolate its data")
    fractions: tuple[float, ...] = setting(
        (0.001, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9), "learning rates over the exact threshold"
    )
    runs: int = setting(2000, "runs of SGD on the quadratic")
    run_steps: int = setting(600, "steps of each")
    search_steps: int = setting(1000, "steps of L-BFGS to the minimum of the network")
    rank: int = setting(50, "sharpest directions of the minimum that are followed")
    learning_rates: tuple[float, ...] = setting((0.05, 0.1, 0.2, 0.4), "around the minimum")
    batch_size: int = setting(10, "batch size around the minimum")
    chains: int = setting(8, "runs of SGD from the minimum")
    burn_in: int = setting(500, "steps before a run is looked at")
    draws: int = setting(12, "how often each run is looked at")
    thin: int = setting(150, "steps between two looks")


def run(settings: Settings, context: Context) -> Outcome:
    """Solves, predicts and runs; formulas beside what SGD did."""
    problem = problems.load(settings, context.data_dir)
    found = context.remember_all(
        {
            "quadratic": lambda: on_a_quadratic(settings),
            "network": lambda: on_a_network(settings, problem),
        }
    )
    quadratic, network = (pd.DataFrame(rows) for rows in found)
    seen = settle_table(network)
    rows = pd.concat([quadratic.assign(around="quadratic"), network.assign(around="network")])
    return Outcome(
        rows=rows,
        tables=[table("quadratic", quadratic), table("network", seen)],
        claims=[*theorems(quadratic), *claims(network)],
        figures={"diffusion": draw(quadratic, seen, settings)},
        notes=[
            "Simulated where fourth moments stay bounded, so that a mean has a standard error. "
            f"Around the minimum everything is within its {settings.rank} sharpest directions; "
            "`full excess` is the whole rise of the training loss."
        ],
    )


def noisy_quadratic(n: int = 8, p: int = 3) -> linearized.Quadratic:
    """Random positive semi-definite H_i and gradients whose covariance is not H."""
    rng = np.random.default_rng(1)
    roots, gradients = rng.normal(size=(n, p, p)), 2 * rng.normal(size=(n, p))
    return linearized.quadratic(roots @ roots.swapaxes(1, 2) / p, gradients - gradients.mean(0))


def on_a_quadratic(settings: Settings) -> list[dict[str, float]]:
    """Excess loss by every formula and by simulation, one row a learning rate."""
    found, size = [], 2
    with jax.enable_x64(True):
        problem = noisy_quadratic()
        aligned = linearized.with_noise(problem, problem.hessian)
        reduced = exact.reduce_hessians(problem.hessians)
        key, pi = jax.random.key(0), variance_factor(problem.n, size)
        edge = exact.mean_square_threshold(reduced, batch_size=size, key=key).value
        for fraction in settings.fractions:
            eta = fraction * edge
            options: Any = {"learning_rate": eta, "batch_size": size}
            row = {"x": fraction, "learning_rate": eta, "batch_size": size}
            row |= formulas(problem, eta, pi, diffusion.stationary_covariance(problem, **options))
            own = diffusion.stationary_covariance(aligned, **options)
            row["aligned"] = float(own.excess_loss) / row["three factors"] - 1
            square, fourth = (linearized.moment_growth(problem, order=order, **options)
                              for order in (2, 4))  # fmt: skip
            row |= {"fourth_growth": fourth, "seen": math.nan, "seen_error": math.nan}
            if fourth < HEAVY and square**settings.run_steps < 1e-3:
                options |= {"steps": settings.run_steps, "runs": settings.runs}
                path = linearized.simulate(problem, np.zeros(3), **options, key=key)
                losses = np.einsum("rp,pq,rq->r", path[:, -1], problem.hessian, path[:, -1]) / 2
                row |= {"seen": losses.mean(), "seen_error": losses.std() / len(losses) ** 0.5}
            found.append({name: float(value) for name, value in row.items()})
    return found


def formulas(problem: Any, eta: float, pi: float, law: Any) -> dict[str, float]:
    """Excess loss and square gradient by Theorem 12, four factors and three."""
    first = diffusion.small_rate_covariance(
        problem.hessian, problem.noise, learning_rate=eta, variance_factor=pi
    )
    return {
        "exact": float(law.excess_loss),
        "four factors": float(first.excess_loss),
        "three factors": eta * pi / 4 * float(np.trace(problem.hessian)),
        "trace_ratio": float(np.trace(problem.hessian) / np.trace(problem.noise)),
        "exact_gradient": float(law.gradient_square),
        "four_gradient": float(first.gradient_square),
    }


def on_a_network(settings: Settings, problem: Problem) -> list[dict[str, float]]:
    """Predicted and seen excess loss around a minimum, one row a learning rate and chain."""
    given = problem.loss, problem.init(jax.random.key(0), 1.0), problem.train
    at = train(
        *given,
        optimizer=optax.lbfgs(memory_size=30),
        batch_size=problem.n,
        key=jax.random.key(1),
        max_steps=settings.search_steps,
        loss_tolerance=None,
    ).params
    size, found = min(settings.batch_size, problem.n), []
    bottom, slope = (float(x) for x in loss_and_gradient_norm(problem.loss, at, problem.train))
    minimum = diffusion.noisy_minimum(
        problem.loss, at, problem.train, rank=settings.rank, key=jax.random.key(2)
    )
    look = jax.tree_util.Partial(_look, problem.loss, problem.train, at, minimum.directions)
    start = jax.tree.map(lambda leaf: jnp.stack([leaf] * settings.chains), at)
    for eta in settings.learning_rates:
        law = diffusion.reduced_stationary_covariance(minimum, learning_rate=eta, batch_size=size)
        told = formulas(minimum, eta, variance_factor(problem.n, size), law)
        draws = langevin_chains(
            problem.loss,
            start,
            problem.train,
            learning_rate=eta,
            temperature=0.0,
            batch_size=size,
            draws=settings.draws,
            burn_in=settings.burn_in,
            thin=settings.thin,
            key=jax.random.key(3),
            observe=look,
        ).values
        squares = np.asarray(draws["squares"], np.float64).mean(1)
        rise = np.asarray(draws["loss"], np.float64).mean(1) - bottom
        for chain, square in enumerate(squares):
            row = {"x": eta, "learning_rate": eta, "batch_size": size, "chain": chain} | told
            row |= {"seen": square @ minimum.curvatures / 2, "full_excess": rise[chain]}
            row |= {"seen_gradient": square @ minimum.curvatures**2, "minimum_slope": slope}
            found.append({name: float(value) for name, value in row.items()})
    return found


def _look(loss: Any, data: Any, at: Any, directions: Any, params: Any) -> dict[str, jax.Array]:
    away = jax.tree.map(jnp.subtract, params, at)
    along = jax.vmap(lambda v: trees.dot(v, away))(directions)
    return {"squares": along**2, "loss": mean_loss(loss, params, data)}


def settle_table(network: pd.DataFrame) -> pd.DataFrame:
    """One line a learning rate: means over chains, and the standard error of what was seen."""
    groups = network.groupby("learning_rate")
    lines = groups.mean().reset_index()
    return lines.assign(seen_error=groups["seen"].sem().to_numpy())


def table(name: str, lines: pd.DataFrame) -> Table:
    """The excess loss of every formula beside the one seen."""
    columns = [Column("x", "η/η*_var", format=".3f")] if name == "quadratic" else []
    columns += [tables.LEARNING_RATE, tables.batch_size()]
    columns += [Column(formula, format=".3e") for formula in plots.FORMULAS]
    columns += [
        Column("seen", format=".3e"),
        Column("seen_error", "± standard error", format=".1e"),
    ]
    if name == "network":
        columns += [Column("full_excess", format=".3e")]
        columns += [Column(f"{who}_gradient", f"|∇L|², {who}", format=".3e")
                    for who in ("exact", "four", "seen")]  # fmt: skip
    return Table(name, lines, columns, title=f"Excess loss around the minimum of a {name}")


def theorems(found: pd.DataFrame) -> list[Claim]:
    """The exact law, its limit, and where three factors are enough."""
    deviation = ((found["seen"] - found["exact"]).abs() / found["seen_error"]).max()
    first = found.loc[found["x"].idxmin()]
    three = first["three factors"] / first["exact"] / first["trace_ratio"] - 1
    off = f"relative deviation at η = {first['x']:g} η*_var"
    four = first["four factors"] / first["exact"] - 1
    limits = {
        "four-factors": ("E L − L* tends to (ηπ/4) tr C_g", four),
        "three-where-aligned": ("with C_g = H it tends to (ηπ/4) tr H", first["aligned"]),
        "three-elsewhere": ("else (ηπ/4) tr H is off by the factor tr H / tr C_g", three),
    }
    return [
        claim(
            "exact-covariance",
            "SGD on a quadratic settles to the covariance of Theorem 12",
            f"largest deviation of the excess loss over {found['seen'].notna().sum()} learning "
            "rates, in standard errors",
            deviation,
            "<=",
            DEVIATIONS,
            kind="theorem",
        ),
        *(
            claim(name, statement, off, value, "=", 0, within=LIMIT, kind="theorem")
            for name, (statement, value) in limits.items()
        ),
    ]


def claims(network: pd.DataFrame) -> list[Claim]:
    """The same around the minimum of a network, where they are observations."""
    largest = network[network["x"] == network["x"].max()]
    rows = network.assign(exact_ratio=network["seen"] / network["exact"])
    largest = largest.assign(ratio=largest["seen"] / largest["four factors"])
    three = rows.assign(three=rows["three factors"] / rows["seen"])
    return [
        claim(
            "predicted-at-a-minimum",
            "the exact law of the linearised dynamics predicts SGD around a minimum of a network",
            "excess loss seen over predicted, within the sharpest directions, mean over chains",
            mean_over(rows, "exact_ratio", by="chain"),
            "=",
            1,
            within=0.15,
        ),
        claim(
            "four-factors-fall-short",
            "at large learning rates four factors predict too little",
            f"seen over (ηπ/4) tr C_g at η = {largest['x'].max():g}, mean over chains",
            mean_over(largest, "ratio", by="chain"),
            ">",
            1,
        ),
        claim(
            "three-factors-predict",
            "(ηπ/4) tr H predicts it, as three factors say",
            "(ηπ/4) tr H over what was seen, mean over chains",
            mean_over(three, "three", by="chain"),
            "=",
            1,
            within=0.15,
        ),
    ]


def draw(quadratic: pd.DataFrame, network: pd.DataFrame, settings: Settings) -> Any:
    """Excess loss and relative errors against the learning rate, on both problems."""
    quadratic.attrs["xlabel"] = "η / η*_var  [1]"
    network.attrs["xlabel"] = plots.LEARNING_RATE
    where = f"minimum of {settings.model} on {settings.dataset}, B = {settings.batch_size}"
    panels = {"quadratic, n = 8, p = 3, B = 2": quadratic, where: network}
    return plots.settling(panels, title="Where SGD settles")


PRESETS = {
    "quick": Settings(),
    "paper": Settings(runs=20_000, run_steps=2000, chains=32, burn_in=2000, draws=50, rank=100),
    "tiny": Settings(
        n_train=40,
        fractions=(0.001, 0.3),
        runs=100,
        search_steps=20,
        rank=3,
        learning_rates=(0.01, 0.02),
        batch_size=4,
        chains=2,
        burn_in=2,
        draws=2,
        thin=2,
    ),
}
