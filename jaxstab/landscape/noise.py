"""Gradient noise at a fixed point: components of batch gradients, and how Gaussian they are."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxstab import checks
from jaxstab.examples import check_in_memory
from jaxstab.operators.hessian import check_problem
from jaxstab.precision import at_given
from jaxstab.sampling import batch_indices
from jaxstab.stability.criteria import variance_factor

# McCulloch (1986), J. Business & Economic Statistics 15, table III for symmetric laws: the ratio
# (q95 − q05)/(q75 − q25) of a stable law of index α. Recomputed from the integral of Zolotarev.
_INDEX = np.array([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
_RATIO = np.array([
    2.4387, 2.5128, 2.6099, 2.7394, 2.9140, 3.1498, 3.4656, 3.8865, 4.4509, 5.2229, 6.3138, 7.9285,
    10.4791, 14.8938, 23.6122, 44.6351,
])  # fmt: skip


class GradientNoise(NamedTuple):
    """Sampled components of gradients at one point; see `gradient_noise`.

    Attributes:
      batch_sizes: B, shape (b,).
      batch_gradients: one array (batches, m) for each batch size.
      gradient: the same components of the full gradient, shape (m,).
      variance: their variance over examples, the diagonal of C_g, shape (m,).
      leaf: index into `leaf_names` of each component, shape (m,).
      leaf_names: paths of the parameter arrays.
      n: number of examples.
      replacement: whether batches were drawn with replacement.
    """

    batch_sizes: tuple[int, ...]
    batch_gradients: tuple[np.ndarray, ...]
    gradient: np.ndarray
    variance: np.ndarray
    leaf: np.ndarray
    leaf_names: tuple[str, ...]
    n: int
    replacement: bool


class TailIndex(NamedTuple):
    """A tail index α; its standard error for independent values, where the estimator has one."""

    value: float
    standard_error: float


@at_given
def gradient_noise(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    batch_sizes: Sequence[int],
    batches: int,
    key: jax.Array,
    components: int = 100,
    replacement: bool = False,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> GradientNoise:
    """Returns components of the gradients of many batches at fixed parameters.

    The noise of CBMM Memo 072, eq. 7, ξ = g_B − g with E ξ = 0, and covariance π(B) C_g. The
    sampled components of all per-example gradients are computed once; every batch is then a mean
    of rows, so thousands of batches of any size cost no further differentiation.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: pytree of real floating-point arrays.
      data: pytree of arrays with a leading axis n.
      batch_sizes: B of each set of batches.
      batches: how many batches of each size, independent of each other.
      key: random key.
      components: how many to sample of each parameter array, without repetition; all of a
        smaller one.
      replacement: draw the examples of a batch with replacement.
      chunk_size: examples differentiated at once; by default as many as 2²⁴ gradient numbers take.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      `GradientNoise`. Cost: one gradient of every example; memory: chunk_size gradients, and
      n × m and batches × m numbers for the m components.

    Raises:
      ValueError: if a number is out of range or there is no example.

    Example:
      >>> noise = gradient_noise(lambda w, x: jnp.sum((w - x) ** 2) / 2, jnp.zeros(2),
      ...     jnp.eye(4, 2), batch_sizes=(2,), batches=5, key=jax.random.key(0))
      >>> noise.gradient.tolist(), noise.batch_gradients[0].shape
      ([-0.25, -0.25], (5, 2))
    """
    check_in_memory("gradient_noise", data)
    loss, params, data = check_problem(loss, params, data)
    checks.check_finite("data", data)
    n = checks.data_size(data)
    checks.check_at_least("batches", batches, 2)
    checks.check_at_least("components", components, 1)
    for size in batch_sizes:
        checks.check_at_least("batch_size", size, 1)
        if not replacement:
            checks.check_batch_size(size, n)
    named = jax.tree_util.tree_leaves_with_path(params)
    if chunk_size is None:
        chunk_size = max(1, 2**24 // sum(leaf.size for _, leaf in named))
    chunk_size = min(checks.check_at_least("chunk_size", chunk_size, 1), n)
    component_key, *keys = jax.random.split(key, 1 + len(batch_sizes))
    chosen, owner = [], []
    for i, (_, leaf) in enumerate(named):
        order = jax.random.permutation(jax.random.fold_in(component_key, i), leaf.size)
        chosen.append(jnp.sort(order[:components]))
        owner += [i] * len(chosen[-1])
    rows = _rows(loss, params, data, chosen, chunk_size=chunk_size)
    sets = tuple(
        np.asarray(_means(rows, jax.random.split(k, batches), size, replacement))
        for k, size in zip(keys, batch_sizes)
    )
    host = np.asarray(rows, np.float64)
    names = tuple(jax.tree_util.keystr(path) for path, _ in named)
    sizes = tuple(int(size) for size in batch_sizes)
    return GradientNoise(
        sizes, sets, host.mean(0), host.var(0), np.array(owner), names, n, replacement
    )


def noise_statistics(noise: GradientNoise, *, level: float = 0.05) -> list[dict[str, Any]]:
    """Summarises the noise of each batch size and parameter array, one row each.

    For each component, over batches: skewness, excess kurtosis and the normality test of D'Agostino
    and Pearson. For all components of an array together, each divided by its standard deviation:
    tail indices. Components of one batch depend on each other, so the numbers of a row have no
    simple error; batches are independent.

    Args:
      noise: from `gradient_noise`, with at least 20 batches.
      level: of the normality tests.

    Returns:
      Rows with batch_size, leaf, components (those that vary), dead (those that do not over
      examples, or did not over the batches drawn: a dark pixel, an idle unit), skewness
      and excess_kurtosis (means over components), rejected (fraction of components that are found
      not to be Gaussian; `level` if all are), hill and mcculloch (tail indices), variance_ratio
      (measured variance over π(B) C_g, mean over components; 1 by theory), mean_error (largest
      distance of the mean over batches from the full gradient, in standard errors).
    """
    rows = []
    for size, gradients in zip(noise.batch_sizes, noise.batch_gradients):
        if len(gradients) < 20:
            raise ValueError(f"{len(gradients)} batches are too few for a normality test: take 20")
        factor = variance_factor(noise.n, size, noise.replacement)
        for i, name in enumerate(noise.leaf_names):
            mine = noise.leaf == i
            values = gradients[:, mine].astype(np.float64) - noise.gradient[mine]
            expected = factor * noise.variance[mine]
            # not below rounding, where the "noise" is that of float32
            alive = expected > (1e-6 * np.abs(gradients[:, mine]).max(initial=0.0)) ** 2
            alive &= values.var(axis=0) > 1e-6 * expected
            row = {"batch_size": size, "leaf": name, "components": int(alive.sum())}
            row["dead"] = int((~alive).sum())
            rows.append(row | _describe(values[:, alive], expected[alive], level))
    return rows


def _describe(values: np.ndarray, expected: np.ndarray, level: float) -> dict[str, float]:
    """Statistics of components that vary; NaN if there is none."""
    names = ("skewness", "excess_kurtosis", "rejected", "hill", "mcculloch", "variance_ratio")
    if not values.shape[1]:
        return dict.fromkeys((*names, "mean_error"), math.nan)
    spread = values.std(axis=0, ddof=1)
    scaled = (values / spread).ravel()
    found = (
        float(np.abs(stats.skew(values)).mean()),
        float(stats.kurtosis(values).mean()),
        float((stats.normaltest(values).pvalue < level).mean()),
        hill(scaled).value,
        mcculloch(scaled).value,
        float((spread**2 / expected).mean()),
        float(np.abs(values.mean(axis=0) / (spread / math.sqrt(len(values)))).max()),
    )
    return dict(zip((*names, "mean_error"), found))


def hill(values: Any, *, fraction: float = 0.05) -> TailIndex:
    """Hill's estimate of the tail index, P(|x| > t) ~ t^(−α), from the largest |x|.

    1/α̂ = (1/k) Σ_{i≤k} log(x_(i)/x_(k+1)), standard error α̂/√k for independent values (Hill 1975).
    It is finite for every sample: a Gaussian one gives values that rise as `fraction` falls. A law
    with finite variance has α > 2.

    Args:
      values: at least 20 numbers, centred.
      fraction: k as a fraction of them.

    Example:
      >>> sample = 1 / jax.random.uniform(jax.random.key(0), (10_000,)) ** 0.5  # α = 2
      >>> bool(abs(hill(sample).value - 2) < 0.3)
      True
    """
    size = np.sort(np.abs(np.asarray(values, np.float64).ravel()))[::-1]
    checks.check_positive("fraction", fraction)
    k = int(fraction * len(size))
    if not 1 <= k < len(size) or len(size) < 20:
        raise ValueError(
            f"{len(size)} values with fraction {fraction} leave a tail of {k}: take at least 20 "
            "values and a fraction between 1/size and 1"
        )
    if size[k] == 0:
        return TailIndex(math.nan, math.nan)
    gap = float(np.mean(np.log(size[:k] / size[k])))
    return TailIndex(1 / gap, 1 / gap / math.sqrt(k)) if gap > 0 else TailIndex(math.inf, math.nan)


def mcculloch(values: Any) -> TailIndex:
    """McCulloch's (1986) quantile estimate of the index of a symmetric stable law.

    From (q95 − q05)/(q75 − q25), which is 2.439 for a Gaussian (α = 2) and grows as α falls.
    Estimates are cut to [0.5, 2]; a sample lighter than a Gaussian gives 2. It tells α only if the
    values have a stable law: the quantiles lie in the middle, not in the tail.

    Args:
      values: at least 20 numbers.

    Example:
      >>> sample = jax.random.cauchy(jax.random.key(0), (10_000,))  # α = 1
      >>> bool(abs(mcculloch(sample).value - 1) < 0.1)
      True
    """
    values = np.asarray(values, np.float64).ravel()
    if len(values) < 20:
        raise ValueError(f"{len(values)} values are too few for quantiles: take at least 20")
    low, first, third, high = np.quantile(values, [0.05, 0.25, 0.75, 0.95])
    if third == first:
        return TailIndex(math.nan, math.nan)
    return TailIndex(float(np.interp((high - low) / (third - first), _RATIO, _INDEX)), math.nan)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _rows(loss: Any, params: Any, data: Any, chosen: Any, *, chunk_size: int) -> jax.Array:
    """The chosen components of the gradient of every example, (n, m)."""

    def row(example: Any) -> jax.Array:
        leaves = jax.tree.leaves(jax.grad(loss)(params, example))
        return jnp.concatenate([leaf.ravel()[index] for leaf, index in zip(leaves, chosen)])

    return jax.lax.map(row, data, batch_size=chunk_size)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _means(rows: jax.Array, keys: jax.Array, size: int, replacement: bool) -> jax.Array:
    def mean(key: jax.Array) -> jax.Array:
        if size == len(rows) and not replacement:
            return jnp.mean(rows, axis=0)
        return jnp.mean(rows[batch_indices(key, len(rows), size, replacement=replacement)], axis=0)

    return jax.lax.map(mean, keys)
