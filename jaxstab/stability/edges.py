"""The largest curvature at which each optimizer is stable on a quadratic: 2/η and its kin.

Each function returns the edge of sharpness in 1/step size: on f = a x² / 2 the optimizer's linear
recursion contracts for 0 < a below the edge and diverges above it. All are arithmetic only, so a
learning rate or gradient norm may be a float, an array or a traced value.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab import trees
from jaxstab.callables import as_pytree, register
from jaxstab.checks import check_name, check_positive, data_size
from jaxstab.eigen import EigenResult, lanczos
from jaxstab.examples import check_in_memory
from jaxstab.operators import hessian
from jaxstab.precision import at
from jaxstab.stability.criteria import variance_factor

MOMENTUM_KINDS = ("heavy_ball", "nesterov", "ema")


def gradient_descent(learning_rate: Any) -> Any:
    """Returns 2/η, the edge of x ← x - η g (and of RMSProp's preconditioned sharpness).

    Example:
      >>> gradient_descent(0.5)
      4.0
    """
    return 2 / check_positive("learning_rate", learning_rate)


def momentum(learning_rate: Any, momentum: Any, kind: str = "heavy_ball") -> Any:
    """Returns the edge of gradient descent with momentum b (Cohen et al. 2021, section 2).

    - "heavy_ball", v ← b v + g, x ← x - η v: (2 + 2b) / η (Polyak);
    - "nesterov", the same with the gradient taken ahead: (2 + 2b) / ((1 + 2b) η);
    - "ema", v ← b v + (1-b) g, x ← x - η v: (2 + 2b) / ((1 - b) η).

    Args:
      learning_rate: η.
      momentum: b, in [0, 1).
      kind: which of the three.

    Raises:
      ValueError: for b outside [0, 1), an unknown kind, or a learning rate that is not positive.

    Example:
      >>> round(momentum(0.1, 0.9), 9)
      38.0
    """
    check_positive("learning_rate", learning_rate)
    check_name("kind of momentum", kind, MOMENTUM_KINDS)
    _check_momentum("momentum", momentum)
    scale = {"heavy_ball": 1.0, "nesterov": 1 + 2 * momentum, "ema": 1 - momentum}[kind]
    return (2 + 2 * momentum) / (scale * learning_rate)


def adam(learning_rate: Any, b1: Any = 0.9) -> Any:
    """Returns 2 (1 + b1) / ((1 - b1) η), the edge of λ_max(P⁻¹ H) for Adam.

    P = diag(sqrt(ν̂)) + eps is the preconditioner of the moment (Cohen et al. 2022, arXiv
    2207.14484); with P held fixed Adam is momentum in its EMA form. See `preconditioned`.

    Example:
      >>> round(adam(1.0), 9)
      38.0
    """
    return momentum(learning_rate, b1, "ema")


rmsprop = gradient_descent


def sam(learning_rate: Any, rho: Any, gradient_norm: Any) -> Any:
    """Returns the edge of SAM, where η a (1 + ρ a / |g|) = 2.

    Long & Bartlett 2024 (arXiv 2309.12488), Prop. 2: (|g|/2ρ)(sqrt(1 + 8 ρ/(η |g|)) - 1),
    written here without the cancellation at small ρ; 2/η as ρ → 0, and 0 at |g| = 0.

    Args:
      learning_rate: η.
      rho: ρ, radius of the ascent step, ρ g/|g|.
      gradient_norm: |g| of the full gradient at the point.

    Raises:
      ValueError: if η is not positive or ρ negative.

    Example:
      >>> round(sam(0.5, 0.25, 1.0), 6)
      2.472136
    """
    check_positive("learning_rate", learning_rate)
    check_positive("rho", rho, allow_zero=True)
    check_positive("gradient_norm", gradient_norm, allow_zero=True)
    if not isinstance(rho, jax.core.Tracer) and rho == 0:
        return gradient_descent(learning_rate)
    root = gradient_norm**0.5
    return (4 / learning_rate) * root / (root + (gradient_norm + 8 * rho / learning_rate) ** 0.5)


def unnormalized_sam(learning_rate: Any, rho: Any) -> Any:
    """Returns the edge of SAM with ascent step ρ g, where η a (1 + ρ a) = 2.

    Example:
      >>> round(unnormalized_sam(0.5, 0.25), 6)
      2.472136
    """
    return sam(learning_rate, rho, 1.0)


def _check_momentum(name: str, value: Any) -> None:
    check_positive(name, value, allow_zero=True)
    if not isinstance(value, jax.core.Tracer) and value >= 1:
        raise ValueError(f"{name} must be below 1, got {value!r}")


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Preconditioned:
    """v ↦ D^(-1/2) H D^(-1/2) v: symmetric, with the eigenvalues of D⁻¹ H. Cost: one product."""

    hessian: Callable[[Any], Any]
    scale: Any
    """D^(-1/2), shaped like the parameters."""

    @property
    def sharding(self) -> Any:
        """How vectors are spread over devices, as `hessian` says it."""
        return getattr(self.hessian, "sharding", None)

    def __call__(self, v: Any) -> Any:
        """Returns the product with `v`."""
        inner = self.hessian(jax.tree.map(jnp.multiply, self.scale, v))
        return jax.tree.map(jnp.multiply, self.scale, inner)


def preconditioned(hessian: Callable[[Any], Any], diagonal: Any) -> Preconditioned:
    """Returns the operator whose largest eigenvalue an adaptive method keeps below its edge.

    For x ← x - η D⁻¹ g the condition is λ_max(D⁻¹ H) ≤ 2/η (Wu, Ma, E 2018,
    section 5). D⁻¹ H is not symmetric; D^(-1/2) H D^(-1/2) is, and has the same eigenvalues.

    Args:
      hessian: v ↦ H v.
      diagonal: D > 0, a pytree shaped like the parameters: sqrt(ν̂) + eps for Adam and RMSProp.

    Raises:
      ValueError: if an entry of D is not positive.
    """
    scale = jax.tree.map(lambda d: 1 / jnp.sqrt(d), diagonal)
    for path, leaf in jax.tree_util.tree_leaves_with_path(scale):
        if isinstance(leaf, jax.core.Tracer):
            continue
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(
                f"diagonal{jax.tree_util.keystr(path)} has entries that are not positive: "
                "add the optimizer's epsilon"
            )
    return Preconditioned(as_pytree(hessian), scale)


def preconditioned_sharpness(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    diagonal: Any,
    *,
    key: jax.Array,
    tol: float = 1e-3,
    max_matvecs: int = 1000,
) -> EigenResult:
    """Returns λ_max(D⁻¹H) of a training loss, in the unit of the edge of an adaptive method.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: where the Hessian is taken.
      data: pytree of arrays with a leading axis n.
      diagonal: D > 0, shaped like the parameters; see `preconditioned`.
      key: random key of the start vector.
      tol: relative accuracy to which it is certified.
      max_matvecs: products that it may cost, one Hessian-vector product over all data each.

    Raises:
      ValueError: if an entry of D is not positive.
    """
    operator = preconditioned(hessian(loss, params, data), diagonal)
    return lanczos(tol=tol, max_matvecs=max_matvecs)(operator, params, key=key)


class StochasticGap(NamedTuple):
    """How far below 2/η the noise of SGD holds the sharpness, and what that is made of."""

    value: float
    """Δa = η β σ²/(4α), 1/step size; NaN where a does not rise (α ≤ 0)."""
    rise: float
    """α = −⟨∇L, ∇a⟩: how fast gradient flow sharpens."""
    curvature: float
    """β = |∇a|²."""
    noise: float
    """σ² = π uᵀC_g u: variance of the batch gradient along u."""


def stochastic_gap(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    vector: Any,
    *,
    learning_rate: float,
    batch_size: int,
    replacement: bool = False,
) -> StochasticGap:
    """Returns the gap Δa below 2/η at which the sharpness of SGD settles, a ≈ 2/η − Δa.

    Self-stabilisation (Damian, Nichani & Lee, arXiv 2209.15594): with u the top eigenvector of H, x
    the distance along it and y = a − 2/η,

        x' = −(1 + ηy) x − η ξ,     y' = y + η (α − β x²/2),     Var ξ = σ²

    (there without noise). At rest E x² = 2α/β by the second and E x² ≈ ησ²/(2|y|) by the first,
    for η|y| ≪ 1: |y| = ηβσ²/(4α), the formula of Liao, Kolomvaki & Kyrillidis (arXiv 2604.21016).

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: a point of the run.
      data: pytree of arrays with a leading axis n.
      vector: u, shaped like the parameters, of any length: `sharpness(...).vector`.
      learning_rate: η.
      batch_size: B.
      replacement: whether batches are drawn with replacement.

    Returns:
      `StochasticGap`. Cost: about two Hessian-vector products.

    Raises:
      ValueError: for a learning rate or batch size that cannot be.
    """
    check_positive("learning_rate", learning_rate)
    check_in_memory("stochastic_gap", data, "it is read no other way yet")
    pi = variance_factor(data_size(data), batch_size, replacement)
    found = [float(x) for x in _self_stabilisation(as_pytree(loss), params, data, vector)]
    rise, curvature, noise = found[0], found[1], pi * found[2]
    gap = learning_rate * curvature * noise / (4 * rise) if rise > 0 else math.nan
    return StochasticGap(gap, rise, curvature, noise)


@jax.jit
def _self_stabilisation(
    loss: Any, params: Any, data: Any, vector: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """α, β and uᵀC_g u."""

    def each(params: Any) -> jax.Array:
        return jax.vmap(loss, (None, 0))(params, data)

    def along(function: Any) -> Any:
        return lambda params: jax.jvp(function, (params,), (u,))[1]

    with at("highest"):
        length = trees.norm(vector)
        u = jax.tree.map(lambda leaf: leaf / length, vector)
        slope = jax.grad(lambda params: jnp.mean(each(params)))(params)
        sharpening = jax.grad(lambda params: jnp.mean(along(along(each))(params)))(params)
        rise = -trees.dot(slope, sharpening)
        return rise, trees.dot(sharpening, sharpening), jnp.var(along(each)(params))
