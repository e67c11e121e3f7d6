"""Where stability ends in the plane of a and s: in closed form, exactly, and by simulation.

The problems are one-parameter families H_i = H + s E_i with Σ E_i = 0 and
λ_max((1/n) Σ E_i²) = 1, so that s is their non-uniformity. Both the matrix of eq. 8 and
the moment map Q then are a part without s plus η² π s² times a positive part: their
largest eigenvalues grow with s and cross 1 once. Source: Wu, Ma, E, NeurIPS 2018, Fig. 3.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_at_least, check_positive
from jaxstab.sampling import batch_indices, resample
from jaxstab.stability.criteria import box, variance_factor
from jaxstab.stability.linearized import MomentMap, Quadratic, random_quadratic


def eq8_boundary(
    sharpness: Any, *, learning_rate: float, batch_size: int, n: int, replacement: bool = False
) -> np.ndarray:
    """Returns the s at which eq. 8 becomes an equality in one dimension, for each a.

    (1 - η a)² + η² π s² = 1: an ellipse about a = 1/η that touches the box of eq. 9 at
    its top and ends in its lower corners, a = 0 and a = 2/η. NaN beyond them; infinite at B = n.

    Args:
      sharpness: a, any shape.
      learning_rate: η.
      batch_size: B.
      n: number of examples.
      replacement: whether batches are drawn with replacement.

    Example:
      >>> eq8_boundary([0.0, 2.0, 4.0], learning_rate=0.5, batch_size=1, n=100)
      array([0., 2., 0.])
    """
    top = box(learning_rate, batch_size, n, replacement).nonuniformity
    rest = 1 - (1 - learning_rate * np.asarray(sharpness, float)) ** 2
    with np.errstate(invalid="ignore"):
        root = np.sqrt(np.where(rest >= 0, rest, np.nan))
        return np.where(root > 0, top * np.where(root > 0, root, 1.0), root)


class SimulatedGrowth(NamedTuple):
    """Mean-square growth λ_max(Q), the factor of E |x|² per step, estimated from runs."""

    value: jax.Array
    standard_error: jax.Array
    """Of the value, from the scatter of the runs in each step."""


def simulate_mean_square_growth(
    problem: Quadratic,
    *,
    learning_rate: Any,
    batch_size: int,
    key: jax.Array,
    runs: int = 500,
    steps: int = 40,
    burn_in: int = 10,
    replacement: bool = False,
) -> SimulatedGrowth:
    """Estimates the mean-square growth λ_max(Q) by running linearised SGD many times side by side.

    The plain mean of |x|² over runs is useless: after t steps a few in e^t of them carry it. So
    after each step the runs are drawn anew in proportion to their growth |x'|² / |x|² and set
    back to unit length; the growth averaged over runs and steps estimates λ_max(Q). In one
    dimension the directions do not matter and the estimate is unbiased; in more its bias is O(1 /
    runs).

    Args:
      problem: quadratic losses without gradient noise (`gradients` are ignored).
      learning_rate: η.
      batch_size: B.
      key: random key.
      runs: number of runs side by side.
      steps: steps that are averaged.
      burn_in: steps before that, in which the directions settle.
      replacement: whether batches are drawn with replacement.

    Raises:
      ValueError: for counts, a learning rate or a batch size that cannot be.
    """
    check_positive("learning_rate", learning_rate)
    variance_factor(problem.n, batch_size, replacement)
    check_at_least("runs", runs, 2)
    check_at_least("steps", steps, 2)
    check_at_least("burn_in", burn_in, 0)
    options = {"batch_size": batch_size, "runs": runs, "steps": steps, "burn_in": burn_in}
    return _simulate_mean_square_growth(
        problem, learning_rate, key, replacement=replacement, **options
    )


@functools.partial(
    jax.jit, static_argnames=("batch_size", "runs", "steps", "burn_in", "replacement")
)
def _simulate_mean_square_growth(
    problem: Quadratic,
    eta: Any,
    key: jax.Array,
    *,
    batch_size: int,
    runs: int,
    steps: int,
    burn_in: int,
    replacement: bool,
) -> SimulatedGrowth:
    drawing, walking = jax.random.split(key)
    sizes = {"batch_size": batch_size, "replacement": replacement}
    batches = _draw_batches(drawing, problem.n, (burn_in + steps, runs), **sizes)
    return _walk(problem, eta, walking, batches, burn_in)


def _draw_batches(key: jax.Array, n: int, shape: tuple[int, int], **sizes: Any) -> jax.Array:
    """Batches for all steps of all runs, (steps, runs, B)."""
    keys = jax.random.split(key, shape[0] * shape[1])
    batches = jax.vmap(lambda key: batch_indices(key, n, **sizes))(keys)
    return batches.reshape(*shape, -1)


def _walk(
    problem: Quadratic, eta: Any, key: jax.Array, batches: jax.Array, burn_in: int
) -> SimulatedGrowth:
    """The runs on given batches, (burn_in + steps, runs, B)."""
    total, runs = batches.shape[:2]

    def move(x: jax.Array, batch: jax.Array) -> jax.Array:
        return x - eta * jnp.mean(problem.hessians[batch] @ x, 0)

    def step(x: jax.Array, draws: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        batch, choice = draws
        after = jax.vmap(move)(x, batch)
        growth = jnp.sum(after**2, 1)
        after = after[resample(choice, growth)]
        after = after / jnp.linalg.norm(after, axis=1, keepdims=True)
        return after, (jnp.mean(growth), jnp.var(growth) / runs)

    start, choosing = jax.random.split(key)
    x = jax.random.normal(start, (runs, problem.hessians.shape[1]), problem.hessians.dtype)
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    draws = batches, jax.random.uniform(choosing, (total,))
    values, variances = jax.lax.scan(step, x, draws)[1]
    error = jnp.sqrt(jnp.mean(variances[burn_in:]) / (total - burn_in))
    return SimulatedGrowth(jnp.mean(values[burn_in:]), error)


class Boundary(NamedTuple):
    """The non-uniformity at which each condition becomes an equality, for one family."""

    eq9: jax.Array
    """Top of the box of eq. 9."""
    eq8: jax.Array
    """λ_max{(I - η H)² + η² π s² (1/n) Σ E_i²} = 1."""
    exact: jax.Array
    """λ_max(Q) = 1: the mean-square stability of linearised SGD itself."""
    simulated: jax.Array
    """Where the simulated growth crosses 1."""
    simulated_error: jax.Array
    """Its standard error."""


def find_boundary(
    problem: Quadratic,
    *,
    learning_rate: Any,
    batch_size: int,
    key: jax.Array,
    runs: int = 500,
    steps: int = 40,
    burn_in: int = 10,
    replacement: bool = False,
) -> Boundary:
    """Returns where stability ends for the problems H + s E_i that share mean and pattern with one.

    In one dimension eq. 8 and the exact boundary are the same number. In more, eq. 8 is sufficient
    only, so its boundary lies below the exact one, and the box of eq. 9 may lie on either side.

    Args:
      problem: gives H and E_i = (H_i - H) / s; small, as p² x p² matrices are formed; H needs
        0 < a < 2/η for the boundaries to be positive.
      learning_rate: η.
      batch_size: B < n.
      key: random key of the simulation.
      runs: runs side by side.
      steps: steps that are averaged.
      burn_in: steps before that. In several dimensions the directions settle at the gap between the
        largest eigenvalues of Q, slowly where a is far below 1/η: 100 or more.
      replacement: whether batches are drawn with replacement.

    Raises:
      ValueError: if B = n, where s plays no part, or for counts or rates that cannot be.
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("runs", runs, 2)
    check_at_least("steps", steps, 2)
    pi = variance_factor(problem.n, batch_size, replacement)
    if pi == 0:
        raise ValueError("at B = n the non-uniformity plays no part: give a smaller batch size")
    return _find_boundary(
        problem,
        learning_rate,
        pi,
        key,
        batch_size=batch_size,
        runs=runs,
        steps=steps,
        burn_in=burn_in,
        replacement=replacement,
    )


@functools.partial(
    jax.jit, static_argnames=("batch_size", "runs", "steps", "burn_in", "replacement")
)
def _find_boundary(
    problem: Quadratic,
    eta: Any,
    pi: Any,
    key: jax.Array,
    *,
    batch_size: int,
    runs: int,
    steps: int,
    burn_in: int,
    replacement: bool,
) -> Boundary:
    p = problem.hessians.shape[1]
    mean = problem.hessian
    unit = (problem.hessians - mean) / problem.nonuniformity
    top = 1 / (eta * jnp.sqrt(pi))
    units = jnp.eye(p * p).reshape(p * p, p, p)

    def at(s: jax.Array) -> Quadratic:
        return Quadratic(mean + s * unit, problem.gradients)

    def eq8(s: jax.Array) -> jax.Array:
        once = jnp.eye(p) - eta * mean
        matrix = once @ once + eta**2 * pi * s**2 * jnp.mean(unit @ unit, 0)
        return jnp.linalg.eigvalsh(matrix)[-1]

    def exact(s: jax.Array) -> jax.Array:
        matrix = jax.vmap(MomentMap(at(s), eta, pi))(units).reshape(p * p, p * p)
        return jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]

    # The same batches at every s: the simulated growth is then as good as monotone in s.
    drawing, walking = jax.random.split(key)
    sizes = {"batch_size": batch_size, "replacement": replacement}
    batches = _draw_batches(drawing, problem.n, (burn_in + steps, runs), **sizes)

    def simulated(s: jax.Array) -> SimulatedGrowth:
        return _walk(at(s), eta, walking, batches, burn_in)

    found = _crossing(lambda s: simulated(s).value, top, 14)  # to 2e-4 of the top
    # d growth / d s by the exact map at the crossing.
    slope = (exact(found * 1.01) - exact(found * 0.99)) / (0.02 * found)
    error = simulated(found).standard_error / slope
    return Boundary(top, _crossing(eq8, top), _crossing(exact, top), found, error)


def _crossing(
    growth: Callable[[jax.Array], jax.Array], scale: jax.Array, halvings: int = 45
) -> jax.Array:
    """Returns the s in (0, 3 scale) at which an increasing growth crosses 1, by bisection."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        above = growth(middle) > 1
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = jax.lax.fori_loop(0, halvings, halve, (0.0 * scale, 3 * scale))
    return (low + high) / 2


def boundary_over_sharpness(
    key: jax.Array,
    *,
    n: int,
    p: int,
    learning_rate: float,
    batch_size: int,
    points: int = 9,
    runs: int = 400,
    steps: int = 40,
    burn_in: int = 200,
) -> dict[str, np.ndarray]:
    """Returns the boundary of one random family at several values of a between 0 and 2/η.

    The mean and pattern of `random_quadratic`, scaled to each a; in float64 whatever the JAX
    setting, for the bisections.

    Args:
      key: random key of the family and of the simulation.
      n: number of examples.
      p: number of parameters.
      learning_rate: η.
      batch_size: B < n.
      points: values of a, denser towards both ends.
      runs: see `find_boundary`, also for steps and burn_in.
      steps: steps that the simulation averages.
      burn_in: steps before that; in one dimension none are needed and few are spent.

    Returns:
      Arrays (points,): `sharpness` and the fields of `Boundary`.

    Raises:
      ValueError: if B = n, where s plays no part, or for counts or rates that cannot be.
    """
    check_at_least("points", points, 1)
    check_positive("learning_rate", learning_rate)
    fractions = (1 - np.cos(np.pi * np.arange(1, points + 1) / (points + 1))) / 2
    drawing, walking = jax.random.split(key)
    options: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size}
    options |= {"runs": runs, "steps": steps, "burn_in": min(2, burn_in) if p == 1 else burn_in}
    walking = jax.random.fold_in(walking, batch_size)
    found = []
    with jax.enable_x64(True):
        for a in 2 / learning_rate * fractions:
            problem = random_quadratic(drawing, n=n, p=p, sharpness=float(a), nonuniformity=1.0)
            found.append(jax.device_get(find_boundary(problem, key=walking, **options)))
    columns = {name: np.array([getattr(one, name) for one in found]) for name in Boundary._fields}
    return {"sharpness": 2 / learning_rate * fractions} | columns
