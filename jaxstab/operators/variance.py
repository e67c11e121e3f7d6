"""Σ = (1/n) Σ H_i² − H² and the second moment it comes from, by the cheapest valid method."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.checks import check_name
from jaxstab.operators.chunks import chunk_shape
from jaxstab.operators.hessian import (
    Hessian,
    Loss,
    Operator,
    Params,
    VmapSecondMoment,
    check_problem,
    operator,
)

METHODS = ("auto", "factored", "gauss_newton", "vmap")

# Bytes of per-example products that the vmapped definition may hold at once.
_VMAP_MEMORY = 2**29


@operator
class DifferenceVariance(Operator):
    """v ↦ Σ v as second moment minus H (H v): the definition."""

    second_moment: Any
    hessian: Any

    @property
    def params(self) -> Params:  # type: ignore[override]
        """The point θ."""
        return self.hessian.params

    @property
    def data(self) -> Any:  # type: ignore[override]
        """The examples."""
        return self.hessian.data

    def product(self, v: Params) -> Params:
        """Returns Σ v, uncompiled."""
        square = self.hessian.product(self.hessian.product(v))
        return jax.tree.map(jnp.subtract, self.second_moment.product(v), square)


def _vmap_chunk(params: Params, n: int, chunk_size: int | None) -> int:
    """The chunk of the vmapped definition: what the user said, else what fits the memory."""
    if chunk_size is not None:
        return chunk_size
    size = sum(leaf.size * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(params))
    return max(1, min(n, _VMAP_MEMORY // (4 * size)))


def hessian_second_moment(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
) -> Operator:
    """Returns the operator v ↦ (1/n) Σ_i H_i² v (Wu, Ma, E 2018, section 3)."""
    check_name("method", method, METHODS)
    loss, params, data = check_problem(loss, params, data)
    _, _, _ = chunk_shape(data, chunk_size)
    n = jax.tree.leaves(data)[0].shape[0]
    return VmapSecondMoment(loss, params, data, _vmap_chunk(params, n, chunk_size))


def hessian_variance(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
) -> Operator:
    """Returns the operator v ↦ Σ v, Σ = (1/n) Σ_i H_i² − H² (Wu, Ma, E 2018, section 3)."""
    second_moment = hessian_second_moment(loss, params, data, method=method, chunk_size=chunk_size)
    return DifferenceVariance(
        second_moment,
        Hessian(second_moment.loss, second_moment.params, second_moment.data, chunk_size),
    )
