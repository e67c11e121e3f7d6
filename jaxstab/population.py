"""a and s of a population of examples from a sample: both ends, with standard errors.

For a sample S of m examples, λ_max(H_S) is too large on average: E max ≥ max E (Jensen). A vector v
found on one half and evaluated on the other gives vᵀH_{S'}v, whose mean vᵀHv is at most λ_max(H):
too small on average. The truth lies between the two means, and each has a standard error, from the
spread of vᵀH_i v over examples. So it is for s² with the unbiased Σ_S = m/(m−1) · [(1/m) Σ H_i² −
H_S²], of which the other half gives the sample variance of the vectors H_i v.

The upper confidence limit rests on λ_max(H_S) ≥ v*ᵀH_S v*, v* the population's own top vector: a
plain mean of m numbers with expectation a.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxstab.checks import check_at_least, check_name, check_positive, data_size
from jaxstab.examples import Sharded, Streamed
from jaxstab.measurement import nonuniformity, sharpness
from jaxstab.operators.hessian import Loss, Params
from jaxstab.operators.statistics import directional_curvatures, per_example_deviations


class Ends(NamedTuple):
    """A confidence interval."""

    lower: float
    upper: float


class PopulationValue(NamedTuple):
    """One quantity of a population, between two ends, in 1 / step size.

    Attributes:
      lower: by vectors of one half on the other half; below the truth on average.
      lower_error: its standard error over the draw of the sample.
      upper: of the sample itself; above the truth on average.
      upper_error: the standard error of the mean that bounds it from below.
      interval: contains the truth with the stated confidence, by a normal approximation of means
        over examples, and with the probability of the certificate for `upper`.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float
    interval: Ends

    @property
    def width(self) -> float:
        """Width of the interval relative to its upper end."""
        low, high = self.interval
        return float((high - low) / high) if high > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"in [{self.interval.lower:.4g}, {self.interval.upper:.4g}]: other half "
            f"{self.lower:.4g} ± {self.lower_error:.2g}, sample {self.upper:.4g} ± "
            f"{self.upper_error:.2g}"
        )


class PopulationMeasurement(NamedTuple):
    """What a sample says of a population's a and s.

    Attributes:
      sharpness: a = λ_max(H) of the population.
      nonuniformity: s = √λ_max(Σ) of the population.
      examples: m, the examples used in the end.
      n: size of the population, None where it is a distribution.
      confidence: of each interval, for all sizes that were looked at together.
      converged: whether both widths are within the tolerance.
      history: (m, sharpness, nonuniformity) of every size looked at.
    """

    sharpness: PopulationValue
    nonuniformity: PopulationValue
    examples: int
    n: int | None
    confidence: float
    converged: bool
    history: tuple[tuple[int, PopulationValue, PopulationValue], ...]

    def __str__(self) -> str:
        whole = "a distribution" if self.n is None else f"{self.n:,}"
        done = "" if self.converged else "  NOT AS TIGHT AS ASKED"
        return (
            f"a {self.sharpness}\ns {self.nonuniformity}\nfrom {self.examples:,} examples of "
            f"{whole}, confidence {self.confidence:g}{done}"
        )


class _Sample(NamedTuple):
    """How a sample was drawn: m of n, n = None for independent draws."""

    m: int
    n: int | None
    quantile: float

    @property
    def whole(self) -> bool:
        return self.m == self.n

    @property
    def left(self) -> float:
        """√(1 − m/n), the factor of a standard error without replacement."""
        return 1.0 if self.n is None else math.sqrt(1 - self.m / self.n)

    @property
    def unbias(self) -> float:
        """What makes the covariance over m examples, divided by m, unbiased."""
        whole = 1.0 if self.n is None else (self.n - 1) / self.n
        return self.m / (self.m - 1) * whole


def measure_population(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    of: str = "data",
    tol: float = 0.1,
    confidence: float = 0.95,
    initial: int = 256,
    max_examples: int | None = None,
    solver_tol: float = 1e-2,
    max_matvecs: int = 200,
    method: str = "auto",
    chunk_size: int | None = None,
) -> PopulationMeasurement:
    """Estimates a and s of a population from a sample that grows until the intervals are tight.

    At m examples, in two halves S and S': `upper` is λ_max(H_{S ∪ S'}), `lower` the mean of
    vᵀH_{S'}v and v'ᵀH_S v', with v and v' the top vectors of H_S and H_S'; the interval reaches t
    standard errors beyond both, upwards more where the numbers are skewed (docs/formulas.md,
    section 8). The sample doubles, at most to
    `max_examples`; the confidence is divided among all sizes that could be looked at, so that
    looking and stopping costs none of it.

    The limits are those of means of m numbers, vᵀH_iv for a and ‖H_iv − Hv‖² for s, and hold as
    often as they say where such a mean is nearly normal; what fails otherwise is the upper end. Of
    200 repetitions at confidence 0.9 (`python -m benchmarks.bench_population`) the intervals held

    - a in 0.90 to 0.94 from 256 and from 2,048 examples whose curvatures are lognormal (σ up to 1)
      or have Student's tails (3 degrees of freedom and more);
    - s in 0.90 to 0.94 of the same for σ = 0.5 and from 5 degrees on; but 0.79 and 0.88 for σ = 1,
      and 0.72 and 0.81 for 3 degrees, where the curvatures have no fourth moment and no number of
      examples is enough;
    - a in 0.83 and s in 0.78 where 1 % of the examples are ten times larger than the others and
      256 hold two or three of them, 0.92 and 0.98 from 2,048: no sample tells of examples that it
      does not hold. Let `initial` be large enough for ten of the rarest kind that matters.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ. It must not depend on the sample: examples that θ was fitted to are their
        own population (`of="data"`), and no fair draw from another one.
      data: pytree of arrays with a leading axis n; `jaxstab.data.stream(...)`, of which only the
        sample is read (an iterable is taken in its own order, which has to be random); or a
        function `draw(key, count) -> examples` of a distribution.
      key: random key, of the sample and of the solvers.
      of: "data": the n examples are the population, drawn from without replacement; once all are
        used, the interval is the certificate of `jaxstab.measure`. "distribution": the examples are
        independent draws from a population without end.
      tol: width of both intervals asked for, relative to their upper ends.
      confidence: of each interval.
      initial: examples to begin with, at least 16.
      max_examples: not to be exceeded; the n examples by default, 2¹⁶ of a function.
      solver_tol: relative accuracy of eigenvalues; half of `tol` and better.
      max_matvecs: products for each eigenvalue.
      method: as for `jaxstab.nonuniformity`.
      chunk_size: examples differentiated at once.

    Returns:
      `PopulationMeasurement`. Cost: about twice `jaxstab.measure` of the last sample for each size,
      four times in all.

    Raises:
      ValueError, TypeError: for arguments out of range and as `jaxstab.measure`.

    Example:
      >>> loss = lambda w, x: 0.5 * jnp.sum(x * w**2)  # H_i = diag(x_i)
      >>> ranges = jnp.array([1.0, 2.0, 4.0])
      >>> draw = lambda key, count: 1 + ranges * jax.random.uniform(key, (count, 3))
      >>> found = measure_population(loss, jnp.ones(3), draw, key=jax.random.key(0), tol=0.2)
      >>> low, high = found.sharpness.interval
      >>> bool(low <= 3 <= high), found.converged
      (True, True)
    """
    check_name("of", of, ("data", "distribution"))
    check_positive("tol", tol)
    check_positive("confidence", confidence)
    if confidence >= 1:
        raise ValueError(f"confidence must be below 1, got {confidence}")
    check_at_least("initial", initial, 16)
    drawing = callable(data) and not isinstance(data, Sharded | Streamed)
    known = None if drawing else data_size(data)
    limit = known or max_examples or 2**16
    if max_examples is not None:
        limit = min(limit, check_at_least("max_examples", max_examples, 16))
    if limit < 16:
        raise ValueError(f"{limit} examples are too few: a standard error needs at least 16")
    draw_key, solve_key = jax.random.split(key)
    draw = _drawing(data, draw_key, known)
    sizes = _sizes(min(initial, limit), limit)
    n = known if of == "data" else None
    options: dict[str, Any] = {
        "tol": min(solver_tol, tol / 2),
        "max_matvecs": max_matvecs,
        "chunk_size": chunk_size,
    }
    history: list[tuple[int, PopulationValue, PopulationValue]] = []
    for step, m in enumerate(sizes):
        # two ends, and every size that may be looked at
        share = (1 - confidence) / (2 * len(sizes))
        sample = _Sample(m, n, float(stats.t.ppf(1 - share, m // 2 - 1)))
        examples, keys = draw(m), jax.random.split(jax.random.fold_in(solve_key, step), 6)
        solve_a = functools.partial(sharpness, loss, params, **options)
        solve_s = functools.partial(nonuniformity, loss, params, method=method, **options)
        a = _between(
            solve_a,
            lambda examples, v: directional_curvatures(
                loss, params, examples, v, chunk_size=chunk_size
            ),
            examples,
            keys[:3],
            sample,
        )
        s = _between(
            solve_s,
            lambda examples, v: per_example_deviations(
                loss, params, examples, v, chunk_size=chunk_size
            ),
            examples,
            keys[3:],
            sample,
            squared=True,
        )
        history.append((m, a, s))
        if max(a.width, s.width) <= tol:
            break
    done = bool(max(a.width, s.width) <= tol)
    return PopulationMeasurement(a, s, m, n, confidence, done, tuple(history))


def _sizes(first: int, last: int) -> list[int]:
    """Even sizes, doubling; a last one that is less than half as much again takes the place."""
    sizes = [first - first % 2]
    while 2 * sizes[-1] <= last:
        sizes.append(2 * sizes[-1])
    if last > 1.5 * sizes[-1]:
        sizes.append(last)
    elif last > sizes[-1]:
        sizes[-1] = last
    return sizes


def _drawing(data: Any, key: jax.Array, n: int | None) -> Callable[[int], Any]:
    """Returns m ↦ a sample of m examples that contains the smaller ones."""
    if n is None:
        parts: list[Any] = []

        def grown(m: int) -> Any:
            had = sum(map(data_size, parts))
            if m > had:
                parts.append(data(jax.random.fold_in(key, len(parts)), m - had))
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

        return grown
    if isinstance(data, Streamed) and data.source.ordered:
        return lambda m: data.source.get(0, m)
    order = np.asarray(jax.random.permutation(key, n))
    if isinstance(data, Streamed):
        return lambda m: data.source.take(order[:m])
    arrays = data.arrays if isinstance(data, Sharded) else data
    return lambda m: jax.tree.map(lambda leaf: jnp.asarray(leaf)[order[:m]], arrays)


def _reach(mean: float, error: float, deviations: np.ndarray, sample: _Sample) -> float:
    """How far an upper limit is above a mean of numbers that are seldom large.

    Where such a mean comes out low, so does its standard error, and mean + t · error misses too
    often. So the limit is on the scale of the logarithm, with Johnson's correction for skewness
    (JASA 73, 1978). Of 256 fourth powers of normal variables it misses 7 % of the time, mean + t ·
    error 15 %, where 5 % are asked for.
    """
    t, m = sample.quantile, len(deviations)
    spread = deviations.std()
    skewness = max(0.0, float(np.mean(deviations**3)) / spread**3) if spread > 0 else 0.0
    t += skewness * (2 * t**2 + 1) / (6 * math.sqrt(m))
    return mean * math.expm1(t * error / mean) if mean > 0 else t * error


def _between(
    solve: Callable[..., Any],
    each: Callable[[Any, Any], jax.Array],
    examples: Any,
    keys: jax.Array,
    sample: _Sample,
    *,
    squared: bool = False,
) -> PopulationValue:
    """Both ends of λ (of √λ if `squared`); `each` gives the numbers whose mean is vᵀA v."""
    m, half = sample.m, sample.m // 2
    whole = solve(examples, key=keys[0])
    power = 2 if squared else 1
    if sample.whole:
        low, high = (float(end) for end in whole.interval)
        value = float(whole.value)
        return PopulationValue(value, 0.0, value, 0.0, Ends(low, high))
    parts = [
        jax.tree.map(lambda leaf, s=s: leaf[s], examples) for s in (slice(half), slice(half, m))
    ]
    vectors = [solve(part, key=k).vector for part, k in zip(parts, keys[1:], strict=True)]
    found = [
        np.asarray(each(part, v), np.float64)
        for part, v in zip(parts, reversed(vectors), strict=True)
    ]
    unbias = [sample._replace(m=len(x)).unbias if squared else 1.0 for x in found]
    means = [u * x.mean() for u, x in zip(unbias, found, strict=True)]
    errors = [u * x.std(ddof=1) / math.sqrt(len(x)) for u, x in zip(unbias, found, strict=True)]
    # The two halves do not overlap: two independent means. As one, they have m terms.
    error = sample.left * math.hypot(*errors) / 2
    lower = sum(means) / 2
    factor = sample.unbias if squared else 1.0
    upper, certified = (factor * float(x) ** power for x in (whole.value, whole.interval.upper))
    low = lower - sample.quantile * error
    high = certified + _reach(lower, error, np.concatenate([x - x.mean() for x in found]), sample)
    if not squared:
        return PopulationValue(lower, error, upper, error, Ends(low, high))
    root = lambda x: math.sqrt(max(x, 0.0))  # noqa: E731
    slope = lambda x: error / (2 * root(x)) if x > 0 else root(error)  # noqa: E731
    ends = Ends(root(low), root(high))
    return PopulationValue(root(lower), slope(lower), root(upper), slope(upper), ends)
