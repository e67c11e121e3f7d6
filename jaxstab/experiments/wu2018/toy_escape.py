"""SGD escapes a minimum at which gradient descent stays (Wu, Ma, E 2018, Fig. 2)."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxstab import plots
from jaxstab.checks import check_at_least, check_positive
from jaxstab.experiments import tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import Estimate, share
from jaxstab.experiments.tables import Column, Table
from jaxstab.measurement import QUANTITIES, Measurement, measure
from jaxstab.stability import escape, two_wells, verdict

SIZES = {"SGD": 1, "GD": two_wells.N}
NEAR = 1e-3  # a run ends at a minimum if it ends within this distance
# Twelve correlated comparisons: five standard errors are passed once in 1e5 times.
DEVIATIONS = 5


@dataclass(frozen=True)
class Settings:
    """Settings of `toy-escape`."""

    learning_rate: float = setting(0.7, "learning rate")
    offset: float = setting(1e-5, "distance of the start from the minimum")
    seeds: int = setting(2000, "runs of SGD from each start")
    steps: int = setting(1000, "steps of each run")
    rate_steps: int = setting(12, "steps over which the growth of E x² is measured")
    rate_runs: int = setting(200_000, "runs that measure it")


class Found(NamedTuple):
    """Everything that was computed, as arrays on the host."""

    measured: dict[int, Measurement]
    """By minimum, x = 0 and x = 1."""
    paths: dict[tuple[int, str], np.ndarray]
    """By minimum and method: runs from both sides of it, (runs, steps + 1)."""
    growth: pd.DataFrame
    """By step: mean of ((x_t − 1)/offset)², its standard error, and theory."""


def run(settings: Settings, context: Context) -> Outcome:
    """Measures both minima, runs SGD and gradient descent from near each, and compares."""
    check_positive("learning_rate", settings.learning_rate)
    check_positive("offset", settings.offset)
    for name in ("seeds", "steps", "rate_steps", "rate_runs"):
        check_at_least(name, getattr(settings, name), 2)
    context.progress(0, 1)
    found = compute(settings)
    rows = summarize(found, settings)
    told = two_wells.predict(1, learning_rate=settings.learning_rate)
    exits = two_wells.first_exit(found.paths[1, "SGD"])
    some = np.argsort(exits)[np.linspace(0, len(exits) - 1, 9).astype(int)[1:-1]]
    until = int(np.nan_to_num(exits[some]).max()) + 26
    figure = plots.toy_escape(
        sgd=found.paths[1, "SGD"][some, :until],
        gd=found.paths[1, "GD"][1, :until],
        growth=found.growth["mean"],
        growth_error=found.growth["error"],
        growth_theory=found.growth["theory"],
        learning_rate=settings.learning_rate,
        measured={x: (float(at[0].value), float(at[1].value)) for x, at in found.measured.items()},
    )
    ratio = two_wells.RADIUS / settings.offset
    typical = np.log(ratio) / told.exponent if told.exponent > 0 else np.inf
    low, middle, high = pd.Series(exits).quantile([0.1, 0.5, 0.9])
    notes = [
        f"E (x−1)² grows by {told.growth:.4f} each step in theory, out of the well after "
        f"{escape.escape_steps(told.growth, factor=ratio**2):.0f} steps; a typical run by "
        f"exp(E log|1 − ηh|) = {np.exp(told.exponent):.4f}, after {typical:.0f} steps",
        f"measured first exit: median {middle:.0f} steps, 10–90 % {low:.0f}–{high:.0f}",
    ]
    figures = {"toy-escape": figure}
    return Outcome(rows, claims(found, settings), [table(rows)], figures, notes)


def compute(settings: Settings) -> Found:
    """The measurements, the runs, and the growth of E (x−1)² near x = 1."""
    eta, keys = settings.learning_rate, jax.random.split(jax.random.key(0), 5)
    with jax.enable_x64(True):
        data = jnp.asarray(two_wells.COEFFICIENTS)
        at = {x: measure(two_wells.loss, jnp.array(1.0 * x), data, key=keys[0]) for x in (0, 1)}
    simulate = partial(two_wells.simulate, offset=settings.offset, learning_rate=eta)
    several = {"SGD": settings.seeds, "GD": 2}
    paths = {
        (x, name): simulate(
            x, runs=several[name], batch_size=size, steps=settings.steps, key=keys[1 + x]
        )
        for x in at
        for name, size in SIZES.items()
    }
    runs, steps = settings.rate_runs, settings.rate_steps
    path = simulate(1, runs=runs, batch_size=1, steps=steps, key=keys[4])
    theory = two_wells.predict(1, learning_rate=eta).growth ** np.arange(steps + 1)
    growth = dict(zip(("mean", "error"), two_wells.mean_growth(path, 1))) | {"theory": theory}
    return Found(jax.device_get(at), paths, pd.DataFrame(growth))


def ends_at(paths: np.ndarray, x: int) -> np.ndarray:
    """Whether each run ended at the minimum x."""
    return np.abs(paths[:, -1] - x) < NEAR


def summarize(found: Found, settings: Settings) -> pd.DataFrame:
    """One row per minimum and method: what was predicted and where the runs ended."""
    lines = []
    for (x, method), paths in sorted(found.paths.items(), reverse=True):
        eta, size, at = settings.learning_rate, SIZES[method], found.measured[x]
        told = verdict(at, learning_rate=eta, batch_size=size)
        line = {"start_near": x, "method": method, "batch_size": size, "learning_rate": eta}
        line |= at.to_record() | {"verdict": told.status, "basis": told.basis, "runs": len(paths)}
        line |= {f"{name}_bound": bound for name, bound in told.box._asdict().items()}
        line |= {f"fraction_at_{end}": float(ends_at(paths, end).mean()) for end in (0, 1)}
        lines.append(line | {"largest_loss": float(two_wells.mean_loss(paths).max())})
    return pd.DataFrame(lines)


def table(rows: pd.DataFrame) -> Table:
    """The verdicts, which rest on the measurements alone, and where the runs ended."""
    columns = [Column("start_near", "near x"), Column("method"), tables.batch_size()]
    for symbol, name in zip("as", QUANTITIES, strict=True):
        columns += [Column(name, symbol, "1/step size", ".3f")]
        columns += [Column(f"{name}_bound", "bound", "1/step size", ".3f", infinite="none")]
    columns += [Column("verdict", "predicted", status=True), Column("runs")]
    columns += [Column(f"fraction_at_{x}", f"end at {x}", format=".1%") for x in (1, 0)]
    return Table("toy-escape", rows, [*columns, Column("largest_loss", format=".2g")])


def claims(found: Found, settings: Settings) -> list[Claim]:
    """The theorems of the figure; each depends on the learning rate, and says so."""
    theorem = partial(claim, kind="theorem")
    eta, result = settings.learning_rate, []
    for x, curvatures in reversed(two_wells.CURVATURES.items()):
        for symbol, name, true in zip("as", QUANTITIES, (curvatures.mean(), curvatures.std())):
            value, _, _, ends, *_ = getattr(found.measured[x], name)
            known = Estimate(float(value), float(ends.lower), float(ends.upper), "certified")
            result.append(
                theorem(f"{symbol}-at-{x}", f"{symbol} = {true:g} at x = {x}",
                        f"certified {symbol}, 1/step size", known, "=", true, within=1e-6)
            )  # fmt: skip
    of_1, of_0 = (two_wells.predict(x, learning_rate=eta).exponent for x in (1, 0))
    gd_stays = None if eta == 1 else float(abs(1 - 2 * eta) < 1)
    for name, method, x, end, predicted in (
        ("sgd-leaves-1", "SGD", 1, 0, 1.0 if of_1 > 0 > of_0 else None),
        ("sgd-stays-at-0", "SGD", 0, 0, 1.0 if of_0 < 0 else None),
        ("gd-stays-at-1", "GD", 1, 1, gd_stays),
        ("gd-stays-at-0", "GD", 0, 0, gd_stays),
    ):
        ends = ends_at(found.paths[x, method], end)
        result.append(
            theorem(name, f"{method} started near x = {x} ends at {end}",
                    f"fraction of {len(ends)} runs that end there (within {NEAR:g})",
                    share(ends.tolist(), True), "=", predicted)
        )  # fmt: skip
    after, steps = found.growth[1:], len(found.growth) - 1
    rate, theory = (after[name].iloc[-1] ** (1 / steps) for name in ("mean", "theory"))
    deviation = float(((after["mean"] - after["theory"]).abs() / after["error"]).max())
    result.append(
        theorem("escape-rate", "E (x−1)² multiplies by (1 − ηa)² + η²s² each step",
                f"largest deviation of the mean from theory over {steps} steps, in standard errors "
                f"(growth per step {rate:.4f}, in theory {theory:.4f})",
                deviation, "<=", DEVIATIONS)
    )  # fmt: skip
    return result


PRESETS = {
    "quick": Settings(),
    "paper": Settings(seeds=20_000, rate_runs=2_000_000),
    "tiny": Settings(seeds=50, steps=300, rate_runs=10_000, rate_steps=6),
}
