"""Upper bounds of λ* = λ_max(C⁺ D) from a positive definite moment matrix Z.

If D[Z] ⪯ μ C[Z] for a positive definite Z then λ* ≤ μ. For let S* ⪰ 0 be a maximiser, D[S*] =
λ* C[S*] (Mulayoff & Michaeli, arXiv 2306.07850, Thm 14). C and D are self-adjoint, so

    λ* ⟨S*, C[Z]⟩ = ⟨λ* C[S*], Z⟩ = ⟨D[S*], Z⟩ = ⟨S*, D[Z]⟩ ≤ μ ⟨S*, C[Z]⟩,

and ⟨S*, C[Z]⟩ = ⟨D[S*], Z⟩/λ* > 0. (Collatz and Wielandt's bound, for a positive map.) Z = I is
eq. 8 of Wu, Ma, E 2018; Z = S*, were it definite, would give λ* itself. In between lies Z = S + τI
with the best S of a subspace. With S = V diag(s) Vᵀ, V = Fᵀ W and U = F V, v ↦ u = F v turns both
sides into forms in the space of outputs,

    n vᵀC[Z]v = uᵀ A u,   A = τ I + (U s Wᵀ + W s Uᵀ)/2,
    n vᵀD[Z]v = uᵀ B u,   B = (1-π)(U s Uᵀ + τ 𝒦)/n + π diag(U_i s U_iᵀ + τ 𝒦_ii),

so that μ = λ_max(A^(-1/2) B A^(-1/2)) will do where A is positive definite: the identity and a few
columns, whose root is explicit, and one product with 𝒦.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.callables import register
from jaxstab.operators.outputs import OutputFactors

RANK = 16  # of the part of S that is kept: Z may be any matrix
ROUNDING = 1e-4  # relative: what the root of A in float32 may be off


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Lifted:
    """u ↦ A^(-1/2) B A^(-1/2) u in the space of outputs, (n, k)."""

    factors: OutputFactors
    blocks: Any
    """U_i s U_iᵀ + τ 𝒦_ii, (n, k, k)."""
    factor: Any
    """π."""
    tau: Any
    images: Any
    """U √s, (n, k, q)."""
    basis: Any
    """Orthonormal columns that span U and W, (n, k, 2q)."""
    stretch: Any
    """Eigenvalues of (A/τ)^(-1/2) − I along them, (2q,)."""

    def __call__(self, u: jax.Array) -> jax.Array:
        """Returns the product."""
        u = self._root(u)
        low = jnp.einsum("nkq,q->nk", self.images, jnp.einsum("nkq,nk->q", self.images, u))
        mean = (low + self.tau * self.factors.kernel(u[None])[0]) / self.factors.n
        each = jnp.einsum("nkl,nl->nk", self.blocks, u)
        return self._root((1 - self.factor) * mean + self.factor * each)

    def _root(self, u: jax.Array) -> jax.Array:
        along = self.stretch * jnp.einsum("nkq,nk->q", self.basis, u)
        return (u + jnp.einsum("nkq,q->nk", self.basis, along)) / jnp.sqrt(self.tau)


def identity(factors: OutputFactors, blocks: Any, factor: float) -> Lifted:
    """Returns the operator of Z = I: eq. 8. Its shapes are those of `lift`."""
    n, k, dtype = factors.n, factors.outputs, factors.roots.dtype
    none = jnp.zeros((n, k, RANK), dtype), jnp.zeros((n, k, 2 * RANK), dtype)
    numbers = jnp.asarray(factor, dtype), jnp.ones((), dtype)
    return Lifted(factors, jnp.asarray(blocks, dtype), *numbers, *none, jnp.zeros(2 * RANK, dtype))


def lift(
    factors: OutputFactors,
    blocks: np.ndarray,
    factor: float,
    *,
    coefficients: np.ndarray,
    images: np.ndarray,
    weights: np.ndarray,
) -> Lifted:
    """Returns the operator of Z = S + τI, τ the largest eigenvalue of S, or more if A asks for it.

    Args:
      factors: F.
      blocks: 𝒦_ii, (n, k, k).
      factor: π.
      coefficients: W, (n k, q), eigenvectors of S as Fᵀ W; at most `RANK` count.
      images: U = F V, (n k, q).
      weights: s, (q,), decreasing; what is negative is left out.
    """
    n, k, dtype = factors.n, factors.outputs, factors.roots.dtype
    q = min(RANK, len(weights))
    s = np.maximum(weights[:q], 0)
    w, u = coefficients[:, :q], images[:, :q]
    basis, triangle = np.linalg.qr(np.concatenate([u, w], 1))
    core = (triangle[:, :q] * s) @ triangle[:, q:].T / 2
    values, rotation = np.linalg.eigh(core + core.T)
    tau = max(s[0], -2 * values[0])
    stretch = np.sqrt(tau / (tau + values)) - 1
    shape, scaled = (n, k, -1), u * np.sqrt(s)
    each = scaled.reshape(shape)
    own = each @ np.swapaxes(each, 1, 2) + tau * np.asarray(blocks, float)

    def padded(x: np.ndarray, size: int) -> jax.Array:
        return jnp.asarray(np.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, size - x.shape[-1]),)), dtype)

    return Lifted(
        factors,
        jnp.asarray(own, dtype),
        jnp.asarray(factor, dtype),
        jnp.asarray(tau, dtype),
        padded(each, RANK),
        padded((basis @ rotation).reshape(shape), 2 * RANK),
        padded(stretch, 2 * RANK),
    )
