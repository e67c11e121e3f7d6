"""Batch sharpness: the curvature that a batch's own gradient sees, on average over batches."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, check_batch_size, data_size
from jaxstab.examples import check_in_memory, local
from jaxstab.precision import at
from jaxstab.sampling import batch_indices, take
from jaxstab.trees import dot


class BatchMean(NamedTuple):
    """A mean over random draws."""

    value: jax.Array  # ()
    standard_error: jax.Array  # (), of the draws


def batch_sharpness(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    *,
    batch_size: int,
    key: jax.Array,
    batches: int = 32,
) -> BatchMean:
    """Returns E_B[g_Bᵀ H_B g_B / |g_B|²] at a point, over random batches; a mean of ratios.

    Andreyev & Beneventano 2024, arXiv 2412.20553, definition 1; it hovers at 2/η where SGD trains
    at its edge. `jaxstab.tracker` follows it along a run.

    Args:
      loss: `loss(params, example) -> scalar` of one example.
      params: the point.
      data: pytree of arrays with a leading axis n.
      batch_size: B, in 1..n, without replacement.
      key: random key of the batches.
      batches: how many, at least 2.

    Raises:
      ValueError: for a batch size or number of batches that cannot be.
    """
    check_in_memory("batch_sharpness", data)
    check_batch_size(batch_size, data_size(data))
    check_at_least("batches", batches, 2)
    sizes = {"batch_size": batch_size, "batches": batches}
    return _at(as_pytree(loss), params, data, key, **sizes)


@functools.partial(jax.jit, static_argnames=("batch_size", "batches"))
def _at(
    loss: Any, params: Any, data: Any, key: jax.Array, *, batch_size: int, batches: int
) -> BatchMean:
    return mean_of_ratios(loss, params, data, key, batch_size, batches)


def mean_of_ratios(
    loss: Any, params: Any, data: Any, key: jax.Array, batch_size: int, batches: int
) -> BatchMean:
    """Mean over random batches of g_Bᵀ H_B g_B / ‖g_B‖²; batches without gradient do not count."""
    n, arrays = data_size(data), local(data)

    def ratio(key: jax.Array) -> jax.Array:
        batch = take(arrays, batch_indices(key, n, batch_size))
        gradient = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, batch)))
        g = gradient(params)
        _, product = jax.jvp(gradient, (params,), (g,))
        return dot(g, product) / dot(g, g)

    with at("highest"):
        ratios = jax.lax.map(ratio, jax.random.split(key, batches))
    used = ~jnp.isnan(ratios)
    count = jnp.sum(used)
    mean = jnp.sum(jnp.where(used, ratios, 0)) / count
    variance = jnp.sum(jnp.where(used, (ratios - mean) ** 2, 0)) / (count - 1)
    return BatchMean(mean, jnp.sqrt(variance / count))
