"""Products of rows, factor ∘ xᵀd, for all examples of a chunk: sums, inner products, applications.

Leading axes are n and b; T positions, K and M as in `sites`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.operators import sites
from jaxstab.operators.contents import OneHot


class Pair(NamedTuple):
    """factor ∘ xᵀd, d unfolded over so many kernel positions (1: plain rows)."""

    x: Any
    d: Any
    shifts: int = 1
    factor: Any = None

    @property
    def turned(self) -> "Pair":
        """The transpose."""
        factor = None if self.factor is None else jnp.swapaxes(self.factor, 1, 2)
        return Pair(self.d, self.x, 1, factor)


def _gram(x: Any, y: Any) -> jax.Array:
    """x yᵀ over the last axis, (n, b, T, S)."""
    if isinstance(x, OneHot) and isinstance(y, OneHot):
        return x.ids[..., :, None] == y.ids[..., None, :]
    if isinstance(x, OneHot):
        return jnp.swapaxes(_gram(y, x), -1, -2)
    if isinstance(y, OneHot):
        return jnp.take_along_axis(x, y.ids[..., None, :], axis=-1)
    if x.shape[-2] == y.shape[-2] == 1:  # a batch of 1 × 1 products is a sum, and faster as one
        return jnp.sum(x * y, axis=-1, keepdims=True)
    return jnp.einsum("nbtk,nbsk->nbts", x, y)


def _mix(gram: jax.Array, y: Any) -> jax.Array:
    """gram · y, (n, b, T, K)."""
    if isinstance(y, OneHot):
        zeros = jnp.zeros((*gram.shape[:-1], y.columns), gram.dtype)
        ids = jnp.broadcast_to(y.ids[..., None, :], gram.shape)
        add = lambda zero, at, values: zero.at[at].add(values)  # noqa: E731
        return jax.vmap(jax.vmap(jax.vmap(add)))(zeros, ids, gram)
    gram = gram.astype(y.dtype)
    return gram * y if gram.shape[-1] == 1 else jnp.einsum("nbts,nbsk->nbtk", gram, y)


def times(x: Any, matrix: jax.Array) -> jax.Array:
    """Rows times one matrix for all examples: (n, b, T, K) and (b, K, M) give (n, b, T, M)."""
    if isinstance(x, OneHot):
        return jax.vmap(lambda ids: jnp.take_along_axis(matrix, ids[..., None], axis=1))(x.ids)
    if x.shape[1] == 1:
        rows = x.reshape(-1, x.shape[-1]) @ matrix[0]
        return rows.reshape(*x.shape[:-1], matrix.shape[-1])
    return jnp.einsum("nbtk,bkm->nbtm", x, matrix)


def contract(x: Any, d: Any) -> jax.Array:
    """Σ over examples and positions of x dᵀ, (b, K, M)."""
    if isinstance(d, OneHot):
        return jnp.swapaxes(contract(d, x), 1, 2)
    if isinstance(x, OneHot):
        b = jnp.arange(x.shape[1])[None, :, None]
        return jnp.zeros((x.shape[1], x.columns, d.shape[-1]), d.dtype).at[b, x.ids].add(d)
    if x.shape[1] == 1:  # one plain matrix product: XLA gives it no transposes
        return (x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1]))[None]
    return jnp.einsum("nbtk,nbtm->bkm", x, d)


def weigh(product: jax.Array, factor: Any) -> jax.Array:
    """The product entry by entry with a factor, if there is one."""
    return product if factor is None else product * factor


def multiply(pairs: list[Pair]) -> jax.Array:
    """The products summed, (n, b, K, M)."""
    products = (
        weigh(sites.from_dual(jnp.einsum("nbtk,nbtm->nbkm", p.x, p.d), p.shifts), p.factor)
        for p in pairs
    )
    return sum(products)  # type: ignore[return-value]


def _each_with_each(x: jax.Array, y: jax.Array) -> jax.Array:
    """x_t ∘ y_s for all t and s: (n, b, T S, K)."""
    product = x[:, :, :, None] * y[:, :, None]
    return product.reshape(*x.shape[:2], -1, x.shape[-1])


def _joined(*factors: Any) -> Any:
    """The product of those factors that are there."""
    there = [factor for factor in factors if factor is not None]
    return functools.reduce(jnp.multiply, there) if there else None


def inner_product(p: Pair, q: Pair) -> jax.Array:
    """⟨p_i, q_i⟩, shape (n,), by Gram matrices where there is no factor."""
    factor = _joined(p.factor, q.factor)
    if factor is None:
        return jnp.sum(_gram(p.x, q.x) * _gram(p.d, q.d), axis=(1, 2, 3))
    rows = times(_each_with_each(p.x, q.x), factor)
    return jnp.sum(rows * _each_with_each(p.d, q.d), axis=(1, 2, 3))


def back(d: jax.Array, dual: Any, u: jax.Array, shifts: int) -> jax.Array:
    """D uᵀ, from the dual rows if there are any."""
    if dual is None:
        return jnp.einsum("nbtm,nbkm->nbtk", d, u)
    return jnp.einsum("nbtm,nbkm->nbtk", dual, sites.to_dual(u, shifts))


def times_deviation(at: Pair, pairs: list[Pair], mean: Any) -> jax.Array:
    """X (F ∘ u_i)."""
    result: Any = 0
    for p in pairs:
        factor = _joined(at.factor, p.factor)
        if factor is None:
            result += _mix(_gram(at.x, p.x), p.d)
            continue
        n, b, t = at.x.shape[:3]
        rows = times(_each_with_each(at.x, p.x), factor)
        rows = rows.reshape(n, b, t, -1, rows.shape[-1])
        result += jnp.sum(rows * p.d[:, :, None], axis=3)
    return result if mean is None else result - times(at.x, weigh(mean, at.factor))


def factor_covector(at: Pair, pairs: list[Pair], mean: Any) -> jax.Array:
    """Σ_i XᵀD ∘ u_i."""
    result: Any = 0
    for p in pairs:
        each = contract(_each_with_each(at.x, p.x), _each_with_each(at.d, p.d))
        result += weigh(each, p.factor)
    return result if mean is None else result - contract(at.x, at.d) * mean
