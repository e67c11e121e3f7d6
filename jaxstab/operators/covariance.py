"""Gradient covariance C_g = (1/n) Σ g_i g_iᵀ − g gᵀ."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from jaxstab.callables import static
from jaxstab.checks import data_size
from jaxstab.operators.chunks import (
    chunk_shape,
    map_over_chunks,
    scale_like,
    sum_over_chunks,
)
from jaxstab.operators.hessian import Loss, Operator, Params, check_problem, operator
from jaxstab.precision import check_precision


def _dot(left: Params, right: Params) -> jax.Array:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum((jnp.vdot(a, b) for a, b in pairs), jnp.zeros(()))


def _has_reverse_rule(jaxpr: Any) -> bool:
    """Whether a program has a custom_vjp function, which cannot be differentiated forward."""
    return any(
        eqn.primitive.name.startswith("custom_vjp")
        or any(_has_reverse_rule(inner) for inner in jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


@operator
class GradientCovariance(Operator):
    """v ↦ C_g v = (1/n) Σ g_i (g_iᵀv − gᵀv).

    g_iᵀv for all i is one JVP of the vector of losses, the sum one VJP: no per-example gradient.
    """

    loss: Any
    params: Any
    data: Any
    chunk_size: int | None = static(default=None)

    def product(self, v: Params) -> Params:
        """Returns C_g v, uncompiled."""

        def losses(params: Params, chunk: Any) -> jax.Array:
            return jax.vmap(self.loss, (None, 0))(params, chunk)

        def slopes(chunk: Any) -> jax.Array:
            mine = lambda params: losses(params, chunk)  # noqa: E731
            if not reverse_only:
                return jax.jvp(mine, (self.params,), (v,))[1]
            values, back = jax.vjp(mine, self.params)
            along = lambda weights: _dot(back(weights)[0], v)  # noqa: E731
            return jax.grad(along)(jnp.zeros_like(values))  # c ↦ ⟨Σ c_i g_i, v⟩ is linear

        example = jax.tree.map(lambda leaf: leaf[0], self.data)
        reverse_only = _has_reverse_rule(jax.make_jaxpr(self.loss)(self.params, example).jaxpr)
        t = map_over_chunks(slopes, self.data, self.chunk_size)
        t = t - jnp.mean(t)

        def weighted(chunk_and_slopes: Any) -> Params:
            chunk, slopes = chunk_and_slopes
            return jax.vjp(lambda params: losses(params, chunk), self.params)[1](slopes)[0]

        total = sum_over_chunks(weighted, (self.data, t), self.chunk_size)
        return scale_like(total, data_size(self.data), self.params)


def gradient_covariance(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> GradientCovariance:
    """Returns the operator v ↦ C_g v, C_g = (1/n) Σ g_i g_iᵀ − g gᵀ (docs/formulas.md, section 4).

    The gradient of a batch of B drawn without replacement has covariance π(B) C_g. Cost: one JVP
    and one VJP of the losses. Arguments and errors as for `jaxstab.hessian`.
    """
    loss, params, data = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    return GradientCovariance(loss, params, data, chunk_size, precision=check_precision(precision))
