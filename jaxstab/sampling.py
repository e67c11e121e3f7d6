"""Random draws: batches without replacement, independent from step to step; resampling."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxstab import checks


def batch_indices(
    key: jax.Array, n: int, batch_size: int, *, replacement: bool = False
) -> jax.Array:
    """Returns the indices of one batch, every subset of that size equally likely.

    This is the sampling that pi(B) = (n - B) / (B (n - 1)) describes (docs/formulas.md, section 0).
    Two schemes, both exact, chosen by the sizes alone:

    - small batches, B^2 <= 8 n: draw with replacement and redraw the later member of every
      coinciding pair until all differ. O(B^2) comparisons, independent of n.
    - others: the B largest of n random numbers; drawn again if the B-th and the next one tie.

    Neither treats one example differently from another, so the law of the resulting set is
    invariant under every permutation of the examples, and hence uniform. The order within a batch
    is not: do not split a batch by position.

    Args:
      key: random key; use a fresh one for every step (`jax.random.fold_in(key, step)`).
      n: number of examples.
      batch_size: B in 1..n.
      replacement: if true, B independent uniform draws (variance factor 1/B).

    Returns:
      int32 array of shape (batch_size,) with entries in 0..n-1.

    Raises:
      ValueError: if `batch_size` is not in 1..n.

    Example:
      >>> sorted(batch_indices(jax.random.key(0), n=4, batch_size=4).tolist())
      [0, 1, 2, 3]
    """
    checks.check_batch_size(batch_size, n, replacement=replacement)
    if replacement:
        return jax.random.randint(key, (batch_size,), 0, n)
    if batch_size == n:
        return jnp.arange(n, dtype=jnp.int32)
    if batch_size**2 <= 8 * n:
        return _redraw_duplicates(key, n, batch_size)
    return _largest_of_random(key, n, batch_size)


def take(data: Any, indices: jax.Array) -> Any:
    """Returns the examples of `data` at `indices` (all in range: nothing is clipped or filled)."""
    return jax.tree.map(lambda x: x.at[indices].get(mode="promise_in_bounds"), data)


def resample(choice: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns as many indices as weights, index i drawn in proportion to w_i ≥ 0 on average.

    Systematic resampling (Douc, Cappé and Moulines, 2005): one uniform number in [0, 1), a comb of
    equidistant points, so that i comes up ⌊m w_i / Σ w⌋ or ⌈m w_i / Σ w⌉ times.
    """
    count = len(weights)
    ends = jnp.cumsum(weights)
    comb = (jnp.arange(count) + choice) / count
    return jnp.minimum(jnp.searchsorted(ends / ends[-1], comb), count - 1)


def _redraw_duplicates(key: jax.Array, n: int, batch_size: int) -> jax.Array:
    position = jnp.arange(batch_size)
    later = position[:, None] > position[None, :]

    def repeats_earlier(indices):
        return jnp.any((indices[:, None] == indices[None, :]) & later, axis=1)

    def redraw(carry):
        key, indices, repeated = carry
        key, draw_key = jax.random.split(key)
        fresh = jax.random.randint(draw_key, (batch_size,), 0, n)
        indices = jnp.where(repeated, fresh, indices)
        return key, indices, repeats_earlier(indices)

    key, draw_key = jax.random.split(key)
    indices = jax.random.randint(draw_key, (batch_size,), 0, n)
    if batch_size == 1:
        return indices
    start = key, indices, repeats_earlier(indices)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[2]), redraw, start)[1]


def _largest_of_random(key: jax.Array, n: int, batch_size: int) -> jax.Array:
    def draw(key):
        key, draw_key = jax.random.split(key)
        numbers = jax.random.uniform(draw_key, (n,), jnp.float32)
        # one more than needed: a tie across the edge would favour the smaller index
        values, indices = jax.lax.top_k(numbers, batch_size + 1)
        return key, indices[:batch_size], values[batch_size - 1] == values[batch_size]

    start = draw(key)
    return jax.lax.while_loop(lambda carry: carry[2], lambda carry: draw(carry[0]), start)[1]
