"""Σ = (1/n) Σ H_i² − H² and the second moment it comes from, by the cheapest valid method."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.checks import check_name, data_size
from jaxstab.examples import example_of
from jaxstab.operators.chunks import chunk_shape
from jaxstab.operators.factored import form_of_leaf, linearise_chunks
from jaxstab.operators.gauss_newton import GaussNewtonMoment, split_at_outputs
from jaxstab.operators.hessian import (
    Hessian,
    Loss,
    Operator,
    Params,
    VmapSecondMoment,
    check_problem,
    operator,
)
from jaxstab.operators.linearised import chunk_bytes
from jaxstab.operators.moments import FactoredMoment
from jaxstab.precision import check_precision
from jaxstab.resolution import describe_products

METHODS = ("auto", "factored", "gauss_newton", "vmap")

# Bytes of per-example products that the vmapped definition may hold at once.
_VMAP_MEMORY = 2**29


@operator
class DifferenceVariance(Operator):
    """v ↦ Σ v as second moment minus H (H v): the definition."""

    loss: Any
    params: Any
    data: Any
    second_moment: Any
    hessian: Any

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
    precision: str | None = "highest",
) -> Operator:
    """Returns the operator v ↦ (1/n) Σ_i H_i² v (Wu, Ma, E 2018, section 3).

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ, a pytree of real floating-point arrays.
      data: pytree of arrays with a common leading axis n.
      method: "factored" (docs/formulas.md, section 8; about one Hessian-vector product; exact
        for any loss, parameters that it does not recognise are treated one by one, see `explain`),
        "gauss_newton" (J_iᵀ A_i J_i in place of H_i: exact where the residuals vanish, off by at
        most `gauss_newton_difference` elsewhere), "vmap" (the definition, H_i (H_i v) example by
        example) or "auto": "factored", the cheapest that is exact for every loss at every point.
      chunk_size: examples treated at once; None lets the memory decide.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      A callable pytree, v ↦ (1/n) Σ H_i² v, shaped like `params`.

    Raises:
      ValueError, TypeError: for an unknown method and as `jaxstab.hessian`.
    """
    operator = _moment(loss, params, data, method, chunk_size, centred=False)
    return dataclasses.replace(operator, precision=check_precision(precision))


def hessian_variance(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> Operator:
    """Returns the operator v ↦ Σ v, Σ = (1/n) Σ_i H_i² − H² (Wu, Ma, E 2018, section 3).

    Σ is positive semi-definite; its eigenvalues have units 1 / step size². Arguments and errors as
    for `hessian_second_moment`.
    """
    operator = _moment(loss, params, data, method, chunk_size, centred=True)
    return dataclasses.replace(operator, precision=check_precision(precision))


def _moment(
    loss: Loss, params: Params, data: Any, method: str, chunk_size: int | None, *, centred: bool
) -> Operator:
    check_name("method", method, METHODS)
    loss, params, data = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    if method == "gauss_newton":
        split_at_outputs(loss, params, data)
        return GaussNewtonMoment(loss, params, data, centred, chunk_size)
    if method != "vmap":
        return FactoredMoment(loss, params, data, centred, chunk_size)
    size = _vmap_chunk(params, data_size(data), chunk_size)
    moment = VmapSecondMoment(loss, params, data, size)
    if not centred:
        return moment
    return DifferenceVariance(loss, params, data, moment, Hessian(loss, params, data, chunk_size))


def explain(loss: Loss, params: Params, data: Any) -> str:
    """Returns, line by line, how `method="factored"` treats every parameter leaf, and why.

    "factored": from rows of activations and cotangents. "elementwise": by its per-example
    gradient, which is of activation size. "explicit": by its per-example gradient of the leaf's
    own size, the fall-back, exact but of memory chunk × leaf. "common": it only adds a term that
    all examples share. Then, for each example: the numbers that a product holds, and the leaf's
    estimated share of the work; after the leaves, the chunk that memory allows.

    Products of the loss that ask for a precision or a coarse dtype of their own come last: they
    keep it whatever `precision` says, and the certificate is about the model as so computed.
    """
    loss, params, data = check_problem(loss, params, data)
    structure, chunks = linearise_chunks(loss, params, data, None, warn=False)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = ["params" + jax.tree_util.keystr(path) for path in paths]
    width = max(map(len, names))
    work = max(1, sum(block.operations for block in structure.blocks))
    lines = []
    for i, name in enumerate(names):
        form, reason = form_of_leaf(structure, i)
        mine = [block for block in structure.blocks if block.leaf == i]
        held, share = sum(b.entries for b in mine), sum(b.operations for b in mine) / work
        lines.append(f"{name:<{width}}  {form:<11}  {held:>9,} numbers  {share:4.0%}  {reason}")
    held = chunk_bytes(chunks.make, data, chunks.chunk_size)
    lines.append(
        f"{data_size(data):,} examples, {chunks.chunk_size:,} at once without chunk_size: "
        f"about {held / 1e6:,.0f} MB"
    )
    example = example_of(data)
    with jax.default_matmul_precision(None):
        program = jax.make_jaxpr(lambda *args: args[0](*args[1:]))(loss, params, example)
    return "\n".join([*lines, *describe_products(program)])
