"""Two minima of equal sharpness, of which SGD leaves one (Wu, Ma, E, NeurIPS 2018, Fig. 2).

f = (f_1 + f_2)/2 with f_i = min{x², c_i (x−1)²} and c = (0.1, 1.9): two global minima, x = 0 and
x = 1, of the same sharpness a = 2, but s = 0 at the first and s = 1.8 at the second. With η = 0.7
both lie below 2/η = 2.86, and s = 1.8 lies above 1/η = 1.43: gradient descent stays at both, SGD
with batch size 1 leaves x = 1, in a burst of the loss, and ends at 0.

(The paper's text prints f'' = 1 at both and 0.1, 1.9 for the two losses; the functions that it
defines have f'' = 2 and 0.2, 3.8, which is what goes with its own s = 1.8.)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_at_least, check_batch_size, check_positive
from jaxstab.sampling import batch_indices
from jaxstab.stability.criteria import growth_along

COEFFICIENTS = np.array([0.1, 1.9])
"""c_i, one per example."""
CURVATURES = {0: np.array([2.0, 2.0]), 1: 2 * COEFFICIENTS}
"""f_1'' and f_2'' at each of the minima."""
N = len(COEFFICIENTS)
# Closer to x = 1 than this both losses are exact quadratics: sqrt(1.9) = 1.378 puts the kink of
# f_2 at x = 0.5796, and that of f_1 lies further away.
RADIUS = 0.42


def loss(x: Any, coefficient: Any) -> jax.Array:
    """Returns f_i(x) = min{x², c_i (x−1)²}; the example is c_i."""
    return jnp.minimum(x**2, coefficient * (x - 1) ** 2)


def mean_loss(x: Any) -> np.ndarray:
    """Returns f = (f_1 + f_2)/2 on the host, for x of any shape."""
    x = np.asarray(x)[..., None]
    return np.minimum(x**2, COEFFICIENTS * (x - 1) ** 2).mean(-1)


def simulate(
    minimum: int,
    *,
    offset: float,
    runs: int,
    learning_rate: float,
    batch_size: int,
    steps: int,
    key: jax.Array,
) -> np.ndarray:
    """Returns runs of SGD on f that start on alternating sides of a minimum, (runs, steps + 1).

    In float64 whatever the JAX setting: at a distance of 1e-5 from 1 float32 has three digits left.

    Args:
      minimum: 0 or 1.
      offset: distance of the starts from it.
      runs: number of runs.
      learning_rate: η.
      batch_size: B: 1, or 2, which is gradient descent.
      steps: number of steps.
      key: random key.

    Raises:
      ValueError: for an offset, learning rate, batch size or count that cannot be.
    """
    check_positive("offset", offset)
    check_positive("learning_rate", learning_rate)
    check_batch_size(batch_size, N)
    check_at_least("runs", runs, 1)
    check_at_least("steps", steps, 1)
    with jax.enable_x64(True):  # for this computation only
        starts = minimum + jnp.resize(jnp.array([-offset, offset]), (runs,))
        keys, data = jax.random.split(key, runs), jnp.asarray(COEFFICIENTS)
        path = _simulate(starts, learning_rate, data, keys, batch_size=batch_size, steps=steps)
        return np.asarray(path)


def mean_growth(paths: Any, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of ((x_t − minimum)/(x_0 − minimum))² over runs and its standard error."""
    offsets = np.asarray(paths) - minimum
    squares = (offsets / offsets[:, :1]) ** 2
    return squares.mean(0), squares.std(0) / np.sqrt(len(squares))


@functools.partial(jax.jit, static_argnames=("batch_size", "steps"))
def _simulate(
    starts: jax.Array,
    eta: Any,
    coefficients: jax.Array,
    keys: jax.Array,
    *,
    batch_size: int,
    steps: int,
) -> jax.Array:
    slope = jax.vmap(jax.grad(loss), (None, 0))

    def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = batch_indices(key, N, batch_size)
        x = x - eta * jnp.mean(slope(x, coefficients[batch]))
        return x, x

    def run(x0: jax.Array, key: jax.Array) -> jax.Array:
        path = jax.lax.scan(step, x0, jax.random.split(key, steps))[1]
        return jnp.concatenate([x0[None], path])

    return jax.vmap(run)(starts, keys)


class Prediction(NamedTuple):
    """What theory says of SGD with batch size 1 at a minimum, before any run."""

    growth: float
    """(1 − ηa)² + η²s², the factor of E x² per step."""
    exponent: float
    """E log|1 − ηh|: above 0 almost every run leaves, below 0 almost every one stays."""


def predict(minimum: int, *, learning_rate: float) -> Prediction:
    """Returns both rates at the minimum x = 0 or x = 1.

    Example:
      >>> at_one = predict(1, learning_rate=0.7)
      >>> round(at_one.growth, 4), round(at_one.exponent, 3)
      (1.7476, 0.178)
    """
    h = CURVATURES[minimum]
    with np.errstate(divide="ignore"):
        exponent = float(np.mean(np.log(np.abs(1 - learning_rate * h))))
    # pi(1) = 1 for two examples
    growth = growth_along(h.mean(), h.var(), learning_rate=learning_rate, variance_factor=1.0)
    return Prediction(float(growth), exponent)


def first_exit(paths: Any) -> np.ndarray:
    """Returns the first step at which each run is off the quadratic part of x = 1; NaN if never."""
    outside = np.abs(np.asarray(paths) - 1) > RADIUS
    return np.where(outside.any(1), outside.argmax(1), np.nan)
