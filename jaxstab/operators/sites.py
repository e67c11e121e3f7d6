"""Matrix products and convolutions in one form: per-example gradient = rowsᵀ · rows.

For one example, one use of a weight W and T positions, with x the data side and δ the derivative of
the loss by the output, the gradient by W is, after re-arrangement,

    G[b] = X[b]ᵀ D[b],      X of shape (b, T, K), D of shape (b, T, M), G of shape (b, K, M),

where b runs over the batch dimensions of the product (or the feature groups of the convolution), K
over what is contracted and M over the other dimensions of W. The rows of a convolution are its
patches.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.operators.structure import Equation, Program, Site


@dataclasses.dataclass(frozen=True, eq=False)
class RowShape:
    """Sizes of one site: b batches of T × K input rows and T × M cotangent rows."""

    batches: int
    positions: int
    inputs: int
    outputs: int


def recognised(program: Program, equation: Equation, operand: int) -> bool:
    """Whether `equation` is a product whose gradient by `operand` has the form above."""
    del program
    if equation.name == "dot_general":
        return True
    if equation.name == "conv_general_dilated":
        return operand == 1 and equation.params["batch_group_count"] == 1
    return False


def input_rows(site: Site, inputs: list[Any]) -> jax.Array:
    """Returns X, shape (b, T, K), from the operands of the site's equation."""
    x = inputs[1 - site.operand]
    if site.equation.name == "dot_general":
        contract, batch, free, _ = _dot_axes(site, jnp.ndim(x))
        return _group(x, batch, free, contract)
    return _patches(site.equation.params, x, inputs[1].shape)


def cotangent_rows(site: Site, cotangent: jax.Array, weight_ndim: int) -> jax.Array:
    """Returns D, shape (b, T, M), from the derivative of the loss by the site's output."""
    if site.equation.name == "dot_general":
        contract, batch, _, _ = _dot_axes(site, 0)
        weight_free = weight_ndim - len(contract) - len(batch)
        data_free = cotangent.ndim - len(batch) - weight_free
        axes = list(range(cotangent.ndim))
        nb = len(batch)
        first, second = axes[nb : nb + data_free], axes[nb + data_free :]
        if site.operand == 0:
            second, first = axes[nb : nb + weight_free], axes[nb + weight_free :]
        return _group(cotangent, axes[:nb], first, second)
    numbers = site.equation.params["dimension_numbers"]
    groups = site.equation.params["feature_group_count"]
    out_batch, out_feature, *out_space = numbers.out_spec
    d = jnp.transpose(cotangent, (out_batch, *out_space, out_feature))
    d = d.reshape(-1, groups, d.shape[-1] // groups)
    return jnp.moveaxis(d, 1, 0)


def from_matrix(site: Site, matrix: jax.Array, weight: Any) -> jax.Array:
    """Returns G, shape (b, K, M), re-arranged to the shape of the weight operand."""
    if site.equation.name == "dot_general":
        _, _, _, (batch, contract, free) = _dot_axes(site, 0, len(weight.shape))
        order = [*batch, *contract, *free]
        shape = [weight.shape[axis] for axis in order]
        inverse = [order.index(axis) for axis in range(len(order))]
        return jnp.transpose(matrix.reshape(shape), inverse)
    out_feature, in_feature, *space = site.equation.params["dimension_numbers"].rhs_spec
    groups = site.equation.params["feature_group_count"]
    kernel = [weight.shape[axis] for axis in space]
    outputs, inputs = weight.shape[out_feature], weight.shape[in_feature]
    # (groups, kernel..., inputs, outputs / groups) -> (kernel..., inputs, groups, outputs / groups)
    g = jnp.moveaxis(matrix.reshape(groups, *kernel, inputs, outputs // groups), 0, -2)
    g = g.reshape(*kernel, inputs, outputs)
    order = [*space, in_feature, out_feature]
    return jnp.transpose(g, [order.index(axis) for axis in range(len(order))])


def to_matrix(site: Site, weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the (b, K, M) matrix of a weight-shaped array: the inverse of `from_matrix`."""
    struct = jax.ShapeDtypeStruct(shape, weight.dtype)
    transpose = jax.linear_transpose(lambda matrix: from_matrix(site, matrix, weight), struct)
    return transpose(weight)[0]


def by_rows(equation: Equation, rows: jax.Array) -> bool:
    """Whether a site's output is computed from its rows instead of by its own primitive.

    One row an example: then a batch is one plain matrix product, without the axes of length 1 for
    which XLA writes transposes.

    On CPU a convolution is: its patches are needed anyway, and matrix products of them are faster
    than XLA's convolutions, which form patches of their own in every pass. Measured on the
    71,410-parameter VGG, `benchmarks/`, this takes a seventh off the second moment.
    """
    single = rows.shape[0] == rows.shape[1] == 1
    patches = equation.name == "conv_general_dilated" and jax.default_backend() == "cpu"
    return single or patches


def product(site: Site, rows: jax.Array, weight: jax.Array, output: jax.Array) -> jax.Array:
    """Returns the site's output computed from its input rows, in the layout of `output`."""
    batches, _, inputs = rows.shape
    matrix = to_matrix(site, weight, (batches, inputs, weight.size // batches // inputs))
    if rows.shape[0] == rows.shape[1] == 1:
        d = (rows[0, 0] @ matrix[0])[None, None]
    elif batches == 1:
        d = (rows[0] @ matrix[0])[None]
    else:
        d = jnp.einsum("btk,bkm->btm", rows, matrix)
    struct = jax.ShapeDtypeStruct(output.shape, d.dtype)
    back = jax.linear_transpose(lambda y: cotangent_rows(site, y, weight.ndim), struct)
    return back(d)[0].astype(output.dtype)


def _dot_axes(site: Site, data_ndim: int, weight_ndim: int = 0) -> Any:
    """Contracted, batch and free axes of the data side, then (batch, contracted, free) of W."""
    contract, batch = site.equation.params["dimension_numbers"]
    data, weight = 1 - site.operand, site.operand
    free = [i for i in range(data_ndim) if i not in contract[data] and i not in batch[data]]
    # Contracted axes are paired with those of the weight, so both sides keep one order.
    of_weight = [
        i for i in range(weight_ndim) if i not in contract[weight] and i not in batch[weight]
    ]
    return (
        list(contract[data]),
        list(batch[data]),
        free,
        (list(batch[weight]), list(contract[weight]), of_weight),
    )


def _group(x: jax.Array, *groups: list[int]) -> jax.Array:
    """Transposes `x` to the given groups of axes and merges each group into one axis."""
    shape = [math.prod(x.shape[axis] for axis in group) for group in groups]
    return jnp.transpose(x, list(itertools.chain(*groups))).reshape(shape)


def _patches(params: dict[str, Any], x: jax.Array, kernel_shape: tuple[int, ...]) -> jax.Array:
    """Returns the patches of `x`, (groups, positions, kernel positions × channels / groups).

    Shifted strided slices of the padded input: no convolution, so XLA may run it inside loops.
    """
    numbers = params["dimension_numbers"]
    batch, feature, *space = numbers.lhs_spec
    x = jnp.transpose(x, (batch, *space, feature))
    padding = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    kernel = [kernel_shape[axis] for axis in numbers.rhs_spec[2:]]
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    counts = [
        (size - r - 1) // s + 1 for size, r, s in zip(x.shape[1:-1], reach, strides, strict=True)
    ]
    shifts = []
    for offset in itertools.product(*(range(k) for k in kernel)):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        stop = [b + (c - 1) * s + 1 for b, c, s in zip(start, counts, strides, strict=True)]
        shifts.append(
            lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1))
        )
    groups = params["feature_group_count"]
    patches = jnp.stack(shifts, axis=-2)  # (batch, positions..., kernel, channels)
    patches = patches.reshape(-1, len(shifts), groups, patches.shape[-1] // groups)
    return jnp.moveaxis(patches, 2, 0).reshape(groups, patches.shape[0], -1)
