"""SGD escapes a minimum at which gradient descent stays (Wu, Ma, E 2018, Fig. 2)."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import plots
from jaxstab.checks import check_at_least, check_positive
from jaxstab.experiments.base import Claim, Context, Experiment, Outcome, judge, setting
from jaxstab.measurement import Measurement, measure
from jaxstab.stability import Verdict, verdict
from jaxstab.stability.escape import escape_steps
from jaxstab.stability.two_wells import (
    COEFFICIENTS,
    QUADRATIC_RADIUS,
    N,
    first_exit,
    loss,
    mean_loss,
    predict,
    simulate,
)


@dataclass(frozen=True)
class Settings:
    """Settings of `toy-escape`."""

    learning_rate: float = setting(0.7, "learning rate")
    offset: float = setting(1e-5, "distance of the start from the minimum")
    seeds: int = setting(2000, "runs of SGD from each start")
    steps: int = setting(1000, "steps of each run")
    rate_steps: int = setting(12, "steps over which the growth of E x^2 is measured")
    rate_runs: int = setting(200_000, "runs that measure it")


class Found(NamedTuple):
    """Everything measured, as arrays on the host."""

    measurements: dict[int, Measurement]
    """At x = 0 and x = 1."""
    verdicts: dict[tuple[int, int], Verdict]
    """By minimum and batch size."""
    sgd: dict[int, np.ndarray]
    """Runs of SGD, B = 1, by the minimum that they start near, (seeds, steps + 1)."""
    gd: dict[int, np.ndarray]
    """Runs of gradient descent, from both sides, (2, steps + 1)."""
    growth: np.ndarray
    """Mean of ((x_t - 1)/offset)^2, (rate_steps + 1,)."""
    growth_error: np.ndarray
    """Its standard error."""


def compute(settings: Settings) -> Found:
    """Measures both minima, judges them, then runs SGD and gradient descent from near each."""
    eta, offset = settings.learning_rate, settings.offset
    keys = jax.random.split(jax.random.key(0), 5)
    # Float64, for this computation only: 1e-5 away from 1 float32 has three digits left.
    with jax.enable_x64(True):
        data = jnp.asarray(COEFFICIENTS)
        at = {x: measure(loss, jnp.asarray(float(x)), data, key=keys[0]) for x in (0, 1)}
        judged = {
            (x, b): verdict(at[x], learning_rate=eta, batch_size=b) for x in (0, 1) for b in (1, N)
        }
        sides = jnp.asarray([-offset, offset])
        run = functools.partial(simulate, learning_rate=eta, steps=settings.steps)
        sgd, gd = {}, {}
        for x in (0, 1):
            starts = x + jnp.resize(sides, (settings.seeds,))
            sgd[x] = np.asarray(run(starts, batch_size=1, key=keys[1 + x]))
            gd[x] = np.asarray(run(x + sides, batch_size=N, key=keys[3]))
        starts = 1 + jnp.resize(sides, (settings.rate_runs,))
        steps = settings.rate_steps
        path = simulate(starts, learning_rate=eta, batch_size=1, steps=steps, key=keys[4])
        squares = np.asarray(((path - 1) / offset) ** 2)
    error = squares.std(0) / np.sqrt(len(squares))
    return Found(jax.device_get(at), judged, sgd, gd, squares.mean(0), error)


def run(settings: Settings, context: Context) -> Outcome:
    """Predicts, runs, compares."""
    check_positive("learning_rate", settings.learning_rate)
    check_positive("offset", settings.offset)
    for name in ("seeds", "steps", "rate_steps", "rate_runs"):
        check_at_least(name, getattr(settings, name), 2)
    context.progress(0, 2, "running")
    found = compute(settings)
    context.progress(1, 2, "drawing")
    figure = draw(found, settings)
    saved = [context.save(figure, "toy-escape")]
    context.progress(2, 2, "done")
    return Outcome(rows(found, settings), claims(found, settings), saved, describe(found, settings))


def ends_at(path: np.ndarray, x: int) -> np.ndarray:
    """Whether each run ended within 1e-3 of the minimum x."""
    return np.abs(path[:, -1] - x) < 1e-3


def rows(found: Found, settings: Settings) -> list[dict[str, Any]]:
    """One row per minimum and method: what was predicted and where the runs ended."""
    table = []
    for x in (1, 0):
        measured = found.measurements[x]
        for method, size, paths in (("SGD", 1, found.sgd[x]), ("GD", N, found.gd[x])):
            judged = found.verdicts[x, size]
            table.append(
                {
                    "start_near": x,
                    "method": method,
                    "batch_size": size,
                    "learning_rate": settings.learning_rate,
                    "sharpness": float(measured.sharpness.value),
                    "sharpness_bound": judged.box.sharpness,
                    "nonuniformity": float(measured.nonuniformity.value),
                    "nonuniformity_bound": judged.box.nonuniformity,
                    "verdict": judged.status,
                    "basis": judged.basis,
                    "runs": len(paths),
                    "fraction_at_0": float(ends_at(paths, 0).mean()),
                    "fraction_at_1": float(ends_at(paths, 1).mean()),
                    "largest_loss": float(np.max(mean_loss(paths))),
                }
            )
    return table


def _fate(name: str, statement: str, ends: np.ndarray, predicted: float | None) -> Claim:
    """A claim on where all runs end; without a prediction at this learning rate it stays open."""
    share = float(ends.mean())
    return Claim(
        name,
        statement,
        "theorem",
        f"fraction of {len(ends)} runs that end there (within 1e-3)",
        "none at this learning rate" if predicted is None else predicted,
        share,
        None,
        judge(None if predicted is None else share == predicted),
    )


def claims(found: Found, settings: Settings) -> list[Claim]:
    """The theorems of the figure; each depends on the learning rate, and says so."""
    eta = settings.learning_rate
    near_1, near_0 = (predict(x, learning_rate=eta) for x in (1, 0))
    gd_stays = None if eta == 1 else float(abs(1 - 2 * eta) < 1)
    result = []
    for x, s in ((1, 1.8), (0, 0.0)):
        for symbol, value, expected in (
            ("a", found.measurements[x].sharpness, 2.0),
            ("s", found.measurements[x].nonuniformity, s),
        ):
            low, high = (float(end) for end in value.interval)
            result.append(
                Claim(
                    f"{symbol}-at-{x}",
                    f"{symbol} = {expected:g} at x = {x}",
                    "theorem",
                    f"certified {symbol}, 1/step size",
                    expected,
                    float(value.value),
                    {"interval": [low, high]},
                    judge(low - 1e-6 <= expected <= high + 1e-6),
                )
            )
    leaves = 1.0 if near_1.exponent > 0 > near_0.exponent else None
    result += [
        _fate("sgd-leaves-1", "SGD started near x = 1 ends at 0", ends_at(found.sgd[1], 0), leaves),
        _fate(
            "sgd-stays-at-0",
            "SGD started near x = 0 stays at 0",
            ends_at(found.sgd[0], 0),
            1.0 if near_0.exponent < 0 else None,
        ),
        _fate(
            "gd-stays-at-1", "GD started near x = 1 stays there", ends_at(found.gd[1], 1), gd_stays
        ),
        _fate(
            "gd-stays-at-0", "GD started near x = 0 stays there", ends_at(found.gd[0], 0), gd_stays
        ),
        _growth_claim(found, near_1.growth),
    ]
    return result


def _growth_claim(found: Found, growth: float) -> Claim:
    """E (x-1)^2 grows by the left side of eq. 8 each step, until a run leaves the quadratic."""
    expected = growth ** np.arange(len(found.growth))
    steps = len(found.growth) - 1
    rate = float(found.growth[-1] ** (1 / steps))
    error = rate * float(found.growth_error[-1] / found.growth[-1]) / steps
    deviation = np.abs(found.growth - expected)[1:] / found.growth_error[1:]
    return Claim(
        "escape-rate",
        "E (x-1)^2 multiplies by (1 - eta a)^2 + eta^2 s^2 each step",
        "theorem",
        f"geometric mean growth per step over {steps} steps; largest deviation over the steps is "
        f"{deviation.max():.1f} standard errors",
        growth,
        rate,
        {"standard error": error},
        # Twelve correlated comparisons: five standard errors are passed once in 1e5 times.
        judge(bool(np.all(deviation < 5))),
    )


def describe(found: Found, settings: Settings) -> str:
    """The verdicts, which were made before the runs, and what happened."""
    eta = settings.learning_rate
    near_1 = predict(1, learning_rate=eta)
    lines = []
    for row in rows(found, settings):
        place = f"near x = {row['start_near']}, {row['method']:>3} (B = {row['batch_size']})"
        bounds = [
            f"{symbol} = {row[name]:.3f} (bound {row[name + '_bound']:.3f})"
            for symbol, name in (("a", "sharpness"), ("s", "nonuniformity"))
        ]
        ends = f"{row['fraction_at_1']:.1%} end at 1, {row['fraction_at_0']:.1%} at 0"
        lines.append(
            f"{place}: predicted {row['verdict']:>8} | {', '.join(bounds)} | {row['runs']} runs: "
            f"{ends}; largest loss {row['largest_loss']:.2g}"
        )
    times = first_exit(found.sgd[1])
    radius, start = QUADRATIC_RADIUS, settings.offset
    rms = escape_steps(near_1.growth, factor=(radius / start) ** 2)
    typical = np.log(radius / start) / near_1.exponent if near_1.exponent > 0 else np.inf
    lines.append(
        f"E (x-1)^2 grows by {near_1.growth:.4f} each step in theory: its root reaches {radius} "
        f"after {rms:.0f} steps. A typical run grows by exp(E log|1 - eta h|) = "
        f"{np.exp(near_1.exponent):.4f} each step, which takes {typical:.0f} steps"
    )
    if np.isfinite(times).any():
        low, middle, high = np.nanpercentile(times, [10, 50, 90])
        lines.append(
            f"measured first exit: median {middle:.0f} steps, 10-90 % {low:.0f}-{high:.0f}"
        )
    return "\n".join(lines)


def draw(found: Found, settings: Settings) -> Any:
    """Landscape, trajectories, loss burst and growth."""
    x = np.linspace(-0.8, 2.2, 601)
    losses = np.asarray(loss(x[:, None], COEFFICIENTS[None]))
    escaped = first_exit(found.sgd[1])
    # The run that takes the median time is drawn, together with a few others in grey.
    order = np.argsort(escaped)
    shown = found.sgd[1][order[np.linspace(0, len(order) - 1, 9).astype(int)[1:-1]]]
    steps = np.arange(settings.rate_steps + 1)
    growth = predict(1, learning_rate=settings.learning_rate).growth
    last = int(np.nanmax(first_exit(shown))) if np.isfinite(first_exit(shown)).any() else 0
    length = min(settings.steps, last + 25) + 1
    return plots.toy_escape(
        x=x,
        losses=losses.T,
        sgd=shown[:, :length],
        gd=found.gd[1][1][:length],
        sgd_loss=np.asarray(mean_loss(shown[:, :length])),
        gd_loss=np.asarray(mean_loss(found.gd[1][1][:length])),
        growth=found.growth,
        growth_error=found.growth_error,
        growth_theory=growth**steps,
        learning_rate=settings.learning_rate,
        measured={
            x: (float(at.sharpness.value), float(at.nonuniformity.value))
            for x, at in found.measurements.items()
        },
    )


EXPERIMENT = Experiment(
    name="toy-escape",
    source="Wu, Ma, E 2018, Fig. 2",
    summary="two minima of equal sharpness in one dimension: GD stays at both, SGD leaves one",
    run=run,
    presets={
        "quick": Settings(),
        "paper": Settings(seeds=20_000, rate_runs=2_000_000),
    },
)
