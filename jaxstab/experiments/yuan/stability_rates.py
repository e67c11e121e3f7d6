"""Growth and decay of errors around the minimum of a quadratic (lecture; Long, Bartlett 2024)."""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from jaxstab import plots, transforms
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.tables import Column, Table
from jaxstab.plots import Line, Panel, Series
from jaxstab.sampling import batch_indices
from jaxstab.stability import diffusion, edges, exact, linearized, variance_factor

DEVIATIONS = 5  # standard errors; some fifty comparisons exceed them once in 3e4 times
SIZE = 4  # batch size
TAIL = 0.01  # relative variance of |x|² over the number of runs, above which no error is known


@dataclass(frozen=True)
class Settings:
    """How long and how often to run."""

    fractions: tuple[float, ...] = setting(
        (0.3, 0.7, 0.95, 1.05, 1.2), "learning rates, over the edge of GD and the threshold of SGD"
    )
    steps: int = setting(25, "steps of a run")
    runs: int = setting(20_000, "runs of SGD")
    draws: int = setting(100_000, "batches that measure one step")
    points: int = setting(8, "points at which one step is measured")
    radii: tuple[float, ...] = setting((0.01, 0.1, 1.0), "radii ρ of SAM")
    sam_steps: int = setting(3000, "steps of SAM")


def run(settings: Settings, context: Context) -> Outcome:
    """Runs everything in float64 and compares it with theory."""
    parts = {"gd": gd_rates, "sgd": sgd_rates, "one-step": one_step, "scalar": scalar, "sam": sam}
    steps = {name: partial(_in_float64, part, settings) for name, part in parts.items()}
    gd, sgd, step, square, cycles = map(pd.DataFrame, context.remember_all(steps))
    rows = pd.concat([gd, sgd, step, square, cycles], keys=list(parts), names=["part"])
    return Outcome(
        rows=rows.reset_index(level=0),
        tables=[rate_table(sgd), sam_table(cycles)],
        claims=claims(gd, sgd, step, square, cycles),
        figures={"stability-rates": draw(gd, sgd, square)},
    )


def _in_float64(part: Any, settings: Settings) -> Any:
    with jax.enable_x64(True):
        return [{name: _plain(x) for name, x in row.items()} for row in part(settings)]


def _plain(x: Any) -> Any:
    return x if isinstance(x, str | list) else float(x)


def problem() -> linearized.Quadratic:
    """Six random losses in three dimensions, with gradient noise."""
    rng = np.random.default_rng(2)
    roots, gradients = rng.normal(size=(6, 3, 3)), 0.1 * rng.normal(size=(6, 3))
    return linearized.quadratic(roots @ roots.swapaxes(1, 2) / 3, gradients - gradients.mean(0))


def gd_rates(settings: Settings) -> list[dict[str, Any]]:
    """Errors of gradient descent along every eigenvector, over (1 − ηλ)^k."""
    at, found = problem(), []
    values, vectors = np.linalg.eigh(at.hessian)
    for fraction, (value, v) in itertools.product(settings.fractions, zip(values, vectors.T)):
        eta = fraction * 2 / values[-1]
        options: Any = {"learning_rate": eta, "batch_size": at.n, "steps": settings.steps}
        path = linearized.simulate(at, v, **options, key=jax.random.key(0))[0] @ v
        theory = (1 - eta * value) ** np.arange(settings.steps + 1)
        row = {"fraction": fraction, "curvature": value, "rate": 1 - eta * value}
        row["deviation"] = np.max(np.abs(path - theory) / np.maximum(np.abs(theory), 1))
        found.append(row | {"path": np.abs(path).tolist()})
    return found


def sgd_rates(settings: Settings) -> list[dict[str, Any]]:
    """E |x|² over runs beside the exact moments, around the exact threshold."""
    at, found, key = problem(), [], jax.random.key(1)
    reduced = exact.reduce_hessians(at.hessians)
    edge = exact.mean_square_threshold(reduced, batch_size=SIZE, key=key).value
    for fraction in settings.fractions:
        options: Any = {"learning_rate": fraction * edge, "batch_size": SIZE}
        growth, fourth = (linearized.moment_growth(at, order=i, **options) for i in (2, 4))
        tail = (fourth / growth**2) ** settings.steps / settings.runs
        options["steps"] = settings.steps
        path = linearized.simulate(at, np.ones(3), **options, key=key, runs=settings.runs)
        squares = np.sum(np.square(path), 2)
        mean, error = squares.mean(0), squares.std(0) / np.sqrt(settings.runs)
        theory = np.trace(linearized.moments(at, np.ones(3), **options).second, axis1=1, axis2=2)
        deviation = np.abs(mean - theory)[1:] / error[1:]
        row = {"fraction": fraction, "learning_rate": fraction * edge, "growth": growth}
        row["deviation"] = deviation.max() if tail < TAIL else np.nan
        row |= {"tail": tail, "mean": mean.tolist(), "theory": theory.tolist()}
        found.append(row | {"error": error.tolist()})
    return found


def one_step(settings: Settings) -> list[dict[str, Any]]:
    """E f(x') over batches beside r(x) f(x) + (γ²/2) tr(HΣ), at random points."""
    at, eta, found = problem(), 0.3, []
    h = np.asarray(at.hessian)
    keys = jax.random.split(jax.random.key(2), settings.draws)
    batches = np.asarray(jax.vmap(lambda key: batch_indices(key, at.n, SIZE))(keys))
    for x in np.random.default_rng(3).normal(size=(settings.points, 3)):
        slopes = np.asarray(at.hessians) @ x + np.asarray(at.gradients)
        after = x - eta * slopes[batches].mean(1)
        losses = np.einsum("rp,pq,rq->r", after, h, after) / 2
        noise = variance_factor(at.n, SIZE) * np.cov(slopes.T, bias=True)
        told = diffusion.one_step(h, noise, x, learning_rate=eta)
        error = losses.std() / np.sqrt(settings.draws)
        row = {"mean": losses.mean(), "error": error, "theory": told.next_loss, "r": told.ratio}
        found.append(row | {"deviation": abs(losses.mean() - float(told.next_loss)) / error})
    return found


def scalar(settings: Settings) -> list[dict[str, Any]]:
    """p = B = 1: growth of E x² over a plane of γh and γ√Σ, simulated and by two criteria."""
    found, keys = [], iter(jax.random.split(jax.random.key(4), 1000))
    for h, s in itertools.product(np.linspace(0.1, 2.1, 11), np.linspace(0.05, 1.05, 6)):
        at = linearized.quadratic([h - s, h + s])
        options: Any = {"learning_rate": 1.0, "batch_size": 1, "steps": 1}
        path = linearized.simulate(at, [1.0], **options, key=next(keys), runs=settings.runs)
        squares = np.square(path[:, -1, 0])
        growth, error = squares.mean(), squares.std() / np.sqrt(settings.runs)
        right = (1 - h) ** 2 + s**2
        row = {"h": h, "s": s, "growth": growth, "error": error, "right": right}
        sure = abs(growth - 1) > DEVIATIONS * error
        row |= {"sure": sure, "right_agrees": (right <= 1) == (growth <= 1)}
        found.append(row | {"slide_agrees": (h <= 2 * (1 - s)) == (growth <= 1)})
    return found


def sam(settings: Settings) -> list[dict[str, Any]]:
    """Where SAM ends on a quadratic: λ_max over its edge; and the edge without normalisation."""
    at = problem()
    h = np.asarray(at.hessian)
    top, found = np.linalg.eigvalsh(h)[-1], []
    for rho, share in itertools.product(settings.radii, (0.5, 0.9)):
        eta = share * 2 / top
        x = _descend(h, eta, rho, True, jnp.ones(3), settings.sam_steps)
        size = float(np.linalg.norm(h @ x))
        found.append(
            {"kind": "SAM", "rho": rho, "learning_rate": eta, "gradient_norm": size,
             "edge": edges.sam(eta, rho, size), "curvature": top}
        )  # fmt: skip
        edge = edges.unnormalized_sam(eta, rho)
        for factor in (0.99, 1.01):
            x = _descend(h * factor * edge / top, eta, rho, False, jnp.ones(3), 2000)
            grew = float(np.linalg.norm(x)) > 3**0.5
            found.append(
                {"kind": "un-normalised", "rho": rho, "learning_rate": eta, "edge": edge,
                 "curvature": factor * edge, "grew": grew}
            )  # fmt: skip
    return found


@partial(jax.jit, static_argnames=("normalize", "steps"))
def _descend(h: Any, eta: Any, rho: Any, normalize: bool, x: Any, steps: int) -> Any:
    """`steps` steps of SAM on xᵀHx/2."""
    optimizer = transforms.sam(optax.sgd(eta), rho=rho, normalize=normalize)

    def step(_: Any, carry: Any) -> Any:
        x, state = carry
        updates, state = optimizer.update(h @ x, state, x, grad_fn=lambda x: h @ x)
        return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(0, steps, step, (x, optimizer.init(x)))[0]


def rate_table(sgd: pd.DataFrame) -> Table:
    """Growth of E |x|² around the exact threshold."""
    columns = [
        Column("fraction", "η/η*_var"),
        Column("learning_rate", "η", "step size"),
        Column("growth", "growth of E|x|² a step", format=".4f"),
        Column("deviation", "largest deviation from theory", "standard errors", ".2f"),
    ]
    return Table("rates", sgd, columns, title="SGD, B = 4, around the exact threshold")


def sam_table(cycles: pd.DataFrame) -> Table:
    """SAM's two-cycle, and growth around the edge without normalisation."""
    columns = [Column("kind"), Column("rho", "ρ"), Column("learning_rate", "η", "step size")]
    columns += [Column("gradient_norm", "|g| in the end")]
    columns += [Column(name, unit="1/step size", format=".5f") for name in ("edge", "curvature")]
    return Table("sam", cycles, [*columns, Column("grew")], title="SAM on a quadratic")


def claims(gd: Any, sgd: Any, step: Any, square: Any, cycles: Any) -> list[Claim]:
    """Everything here is a theorem but the scalar case of the slide."""
    theorem = partial(claim, kind="theorem")
    worst = "largest deviation, in standard errors"
    sides = (sgd["growth"] > 1) == (sgd["fraction"] > 1)
    sure = square[square["sure"] == 1]
    plain, own = (cycles[cycles["kind"] == kind] for kind in ("un-normalised", "SAM"))
    grows = (plain["curvature"] > plain["edge"]) == (plain["grew"] == 1)
    off = (own["edge"] / own["curvature"] - 1).abs().max()
    return [
        theorem("gd-rate", "along an eigenvector GD multiplies the error by 1 − γλ each step",
                "largest deviation from (1 − γλ)^k, over it or the start",
                gd["deviation"].max(), "<=", 1e-8),
        theorem("sgd-moments", "E |x|² of SGD follows the second-moment map",
                worst, sgd["deviation"].max(), "<=", DEVIATIONS),
        theorem("exact-threshold", "the exact threshold separates growth of E |x|² from decay",
                f"share of {len(sgd)} learning rates", sides.mean(), "=", 1),
        theorem("one-step", "E f(x⁺) = r(x) f(x) + (γ²/2) tr(HΣ)",
                worst, step["deviation"].max(), "<=", DEVIATIONS),
        theorem("scalar-right", "for p = B = 1, E x² decays if and only if (1 − γh)² + γ²Σ ≤ 1",
                f"share of {len(sure)} points where the simulation can tell",
                sure["right_agrees"].mean(), "=", 1),
        claim("scalar-slide", "for p = B = 1, E x² decays if and only if h ≤ 2(1 − s)/γ, s = γ√Σ",
              f"share of {len(sure)} points where the simulation can tell",
              sure["slide_agrees"].mean(), "=", 1),
        theorem("sam-edge", "SAM ends where λ_max is its edge at the gradient norm there",
                f"largest |edge/λ_max − 1| of {len(own)} runs", off, "<=", 1e-6),
        theorem("unnormalised-sam-edge", "without normalisation it is stable up to ηλ(1 + ρλ) = 2",
                f"share of {len(plain)} runs 1 % below and above", grows.mean(), "=", 1),
    ]  # fmt: skip


def draw(gd: pd.DataFrame, sgd: pd.DataFrame, square: pd.DataFrame) -> Any:
    """Errors of GD and of SGD against the step, and the plane of the scalar case."""
    steps = np.arange(len(gd["path"].iloc[0]))
    top = gd[gd["curvature"] == gd["curvature"].max()]
    grows = [
        Series(f"γλ = {2 * f:.2g}", steps, path) for f, path in top[["fraction", "path"]].values
    ]
    lines = [Line("", abs(rate) ** steps, steps) for rate in top["rate"]]
    lines[0] = replace(lines[0], label="theory")
    curves = [Series(f"η/η*_var = {row.fraction:g}", steps, row.mean_, row.error)
              for row in sgd.rename(columns={"mean": "mean_"}).itertuples()]  # fmt: skip
    theory = [Line("", row, steps) for row in sgd["theory"]]
    theory[0] = replace(theory[0], label="theory")
    s = np.linspace(0, 1, 101)
    bounds = [Line("right: (1 − γh)² + s² = 1", s, 1 + np.sqrt(1 - s**2)),
              Line("", s, 1 - np.sqrt(1 - s**2)),
              Line("slide: γh = 2(1 − s)", s, 2 * (1 - s), "#D55E00")]  # fmt: skip
    bounds = [Line(line.label, line.x, line.y, line.color) for line in bounds]
    inside, outside = (square[(square["growth"] <= 1) == held] for held in (True, False))
    points = [Series(name, own["s"], own["h"]) for name, own in
              (("E x² decays", inside), ("E x² grows", outside))]  # fmt: skip
    return plots.panels(
        [
            Panel(
                "GD, top eigenvector",
                grows,
                "step  [1]",
                "|error|  [1]",
                lines,
                log_y=True,
            ),
            Panel("SGD, B = 4", curves, "step  [1]", "E |x|²  [1]", theory, log_y=True),
            Panel("p = B = 1", points, "s = γ√Σ  [1]", "γh  [1]", bounds, points=True),
        ]
    )


PRESETS = {
    "quick": Settings(),
    "paper": Settings(steps=40, runs=200_000, draws=1_000_000, points=32),
    "tiny": Settings(fractions=(0.5, 1.1), steps=4, runs=500, draws=2000, points=2, radii=(0.1,),
                     sam_steps=1500),
}  # fmt: skip
