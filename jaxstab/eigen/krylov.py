"""One step of the Lanczos process, shared by the eigenvalue solver and the spectral density."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.eigen import vectors


class Extension(NamedTuple):
    """The basis and the projected operator after one product."""

    basis: Any  # (M+1, ...) pytree, row j+1 new; zero if the space is invariant
    t: jax.Array  # (M, M) with row and column j filled
    beta: jax.Array  # () norm of the rest; 0 if the space is invariant
    invariant: jax.Array  # () bool: nothing but rounding was left
    length: jax.Array  # () ‖A v_j‖
    stray: jax.Array  # () norm of what should have vanished: v_iᵀ A v_j − t_ij


def extend(
    apply: Callable[[Any], Any],
    basis: Any,
    t: jax.Array,
    j: Any,
    *,
    first: Any = 0,
    begin: Any = None,
    scale: jax.Array,
    eps: float,
) -> Extension:
    """Multiplies v_j and orthogonalises the product against rows 0 … j.

    w = A v_j − Σ t_ij v_i with the known t_ij (i ≥ begin: two vectors, or all after a restart),
    then one Gram–Schmidt pass over all rows. That makes two passes where they count: the first
    leaves w orthogonal up to ε ‖A‖, and the second leaves ε of that.

    Args:
      apply: the operator.
      basis: rows 0 … j orthonormal (rows of zeros are harmless).
      t: (M, M), known in rows and columns below j, and in column j above the diagonal.
      j: row to multiply.
      first: rows below are not part of this Krylov space, though w is kept orthogonal to them.
      begin: first row with t_ij ≠ 0; None: the one before j.
      scale: lower bound of ‖A‖ so far, sets with `eps` what counts as rounding.
      eps: machine epsilon of the operator's dtype.

    Cost: one product, one reading of rows 0 … j.
    """
    w = apply(vectors.row(basis, j))
    return absorb(w, basis, t, j, first=first, begin=begin, scale=scale, eps=eps)


def absorb(
    w: Any,
    basis: Any,
    t: jax.Array,
    j: Any,
    *,
    first: Any = 0,
    begin: Any = None,
    scale: jax.Array,
    eps: float,
    write: Any = True,
) -> Extension:
    """`extend` with the product w = A v_j at hand; the basis is left as it is unless `write`."""
    rows = jnp.arange(t.shape[0])
    v = vectors.row(basis, j)
    length = vectors.norm(w)
    alpha = vectors.dot(v, w)
    begin = jnp.maximum(j - 1, first) if begin is None else begin
    w = vectors.subtract(w, basis, jnp.where(rows == j, alpha, t[:, j]), begin, j + 1)
    w, h = vectors.orthogonalize(w, basis, j + 1)
    h = h[: t.shape[0]]
    direction, beta = vectors.unit(w)
    invariant = beta <= 8 * eps * jnp.maximum(scale, length)
    beta = jnp.where(invariant, 0, beta)
    t = t.at[j, j].set(alpha + h[j])
    t = t.at[j, j + 1].set(beta, mode="drop").at[j + 1, j].set(beta, mode="drop")
    direction = vectors.scale(~invariant, direction)
    if write is not True:
        old = vectors.row(basis, j + 1)
        direction = jax.tree.map(lambda new, old: jnp.where(write, new, old), direction, old)
    return Extension(
        basis=vectors.set_row(basis, j + 1, direction),
        t=t,
        beta=beta,
        invariant=invariant,
        length=length,
        stray=jnp.sqrt(jnp.sum(jnp.where((rows >= first) & (rows < j), h, 0) ** 2)),
    )
