"""How often the intervals of `measure_population` hold the truth, on data with heavy tails.

Examples with diagonal Hessians, whose a and s are known: each entry is a draw of one law, times 1
or 3. An interval of confidence 0.9 has two ends, each to hold in at least 95 % of the repetitions.
"""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import jaxstab as js
from benchmarks import harness
from benchmarks.harness import Row

CONFIDENCE = 0.9
SCALES = (1.0, 3.0)
FIRST_SEED = 10_000  # apart from those of the tests


class Law(NamedTuple):
    """Draws of shape (count, entries), and their mean and variance."""

    draw: Callable[[jax.Array, tuple[int, int]], jax.Array]
    mean: float
    variance: float


def lognormal(sigma: float) -> Law:
    """exp(σ z), z standard normal."""
    mean = math.exp(sigma**2 / 2)
    draw = lambda key, shape: jnp.exp(sigma * jax.random.normal(key, shape))  # noqa: E731
    return Law(draw, mean, mean**2 * math.expm1(sigma**2))


def student(degrees: int) -> Law:
    """|t|, t of Student's law with so many degrees: its fourth moment is infinite up to four."""
    mean = 2 * math.sqrt(degrees / math.pi) / (degrees - 1)
    mean *= math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
    draw = lambda key, shape: jnp.abs(jax.random.t(key, degrees, shape))  # noqa: E731
    return Law(draw, mean, degrees / (degrees - 2) - mean**2)


def groups(share: float) -> Law:
    """Uniform on 0 to 1, and ten times that for a share of the examples, in all entries."""

    def draw(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        large = jax.random.uniform(jax.random.fold_in(key, 1), (shape[0], 1)) < share
        return jax.random.uniform(key, shape) * jnp.where(large, 10, 1)

    mean = (1 + 9 * share) / 2
    return Law(draw, mean, (1 + 99 * share) / 3 - mean**2)


LAWS = {
    "lognormal, σ = 0.5": lognormal(0.5),
    "lognormal, σ = 1": lognormal(1.0),
    "|t|, 9 degrees": student(9),
    "|t|, 5 degrees": student(5),
    "|t|, 3 degrees": student(3),
    "5 % of the examples ten times larger": groups(0.05),
    "1 % of the examples ten times larger": groups(0.01),
}


def loss(params: jax.Array, example: jax.Array) -> jax.Array:
    """H_i = diag(x_i)."""
    return 0.5 * jnp.sum(example * params**2)


def held(law: Law, m: int, repetitions: int) -> np.ndarray:
    """How often the lower end, the upper end, and both hold: (3, 2), for a and s."""
    truth = max(SCALES) * law.mean, max(SCALES) * math.sqrt(law.variance)
    scales = jnp.array(SCALES)
    count = np.zeros((3, 2), int)
    draw = jax.jit(lambda key: scales * law.draw(key, (m, len(SCALES))))
    for seed in range(FIRST_SEED, FIRST_SEED + repetitions):
        found = js.measure_population(
            loss,
            jnp.ones(len(SCALES)),
            lambda key, _: draw(key),
            key=jax.random.key(seed),
            initial=m,
            max_examples=m,
            confidence=CONFIDENCE,
        )
        for i, value in enumerate((found.sharpness, found.nonuniformity)):
            below, above = value.interval.lower <= truth[i], truth[i] <= value.interval.upper
            count[:, i] += below, above, below and above
    return count


def rows_of(name: str, law: Law, m: int, repetitions: int) -> list[Row]:
    """Share of intervals that hold, with its 95 % binomial interval, and of each end."""

    def said(count: int) -> str:
        found = stats.binomtest(int(count), repetitions).proportion_ci(method="exact")
        return f"{count / repetitions:.3f} [{found.low:.3f}, {found.high:.3f}]"

    # What so many repetitions of a true 0.9 may come out below, 5 % of the time.
    slack = 1.645 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / repetitions)
    rows = []
    for symbol, (lower, upper, both) in zip("as", held(law, m, repetitions).T, strict=True):
        rows.append(
            Row(
                f"{symbol} from {m:,} examples: {name}",
                both / repetitions,
                unit="",
                at_least=round(CONFIDENCE - slack, 3) if repetitions >= 100 else None,
                note=f"both {said(both)}, lower end {said(lower)}, upper end {said(upper)}",
                details={"lower": int(lower), "upper": int(upper), "both": int(both)},
            )
        )
    return rows


def run(settings: argparse.Namespace) -> list[Row]:
    """Shares of intervals that hold a and s of each law, from 256 and 2,048 examples."""
    tiny = settings.size == "tiny"
    repetitions = {"tiny": 3, "small": 200, "full": 2000}[settings.size]
    laws = list(LAWS.items())[:1] if tiny else list(LAWS.items())
    rows = []
    for m in (32,) if tiny else (256, 2048):
        for name, law in laws:
            rows += rows_of(name, law, m, repetitions)
    return rows


if __name__ == "__main__":
    harness.main("bench_population", run)
