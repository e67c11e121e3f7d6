"""Matrix products and convolutions in one form: per-example gradient = rowsᵀ · rows.

For one example, one use of a weight W and T positions, with x the data side and δ the derivative of
the loss by the output, the gradient by W is, after re-arrangement,

    G[b] = X[b]ᵀ D[b],      X of shape (b, T, K), D of shape (b, T, M), G of shape (b, K, M),

where b runs over the batch dimensions of the product (or the feature groups of the convolution), K
over what is contracted and M over the other dimensions of W. The rows of a convolution are its
patches: X is unfolded, each input standing once per kernel position. The *dual* rows unfold the
cotangent instead,

    G[b] = the same numbers as x[b]ᵀ Δ[b],   x of shape (b, S, C), Δ of shape (b, S, kernel · M),

with S input positions and C channels. What moves with θ is then never unfolded.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.operators.contents import OneHot
from jaxstab.operators.placements import Placement, extract, locate, place
from jaxstab.operators.structure import Equation, Program


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A product of data with a weight: `equation`, with the weight as operand number `operand`."""

    equation: Equation
    operand: int


def recognised(equation: Equation, operand: int) -> bool:
    """Whether `equation` is a product whose gradient by `operand` has the form above."""
    if equation.name == "dot_general":
        return True
    if equation.name == "conv_general_dilated":
        return operand == 1 and equation.params["batch_group_count"] == 1
    return False


def placement(site: Site, avals: dict[int, Any]) -> Placement:
    """Where the entries (b, K, M) of the gradient lie in the weight."""
    weight = _operand(site, avals, site.operand).shape
    if site.equation.name == "dot_general":
        _, _, _, (batch, contract, free) = _dot_axes(site, 0, len(weight))
        return place(weight, [batch, contract, free])
    out_feature, in_feature, *space = site.equation.params["dimension_numbers"].rhs_spec
    groups = site.equation.params["feature_group_count"]
    placed = place(weight, [[out_feature], [*space, in_feature], []])
    if not placed.groups[0]:
        return placed
    ((size, stride),), k, _ = placed.groups
    per_group = size // groups
    axes = [(groups, per_group * stride)], k, [(per_group, stride)]
    return placed._replace(groups=tuple(tuple(a for a in g if a[0] > 1) for g in axes))


# --- Look-ups --------------------------------------------------------------------------------


def looks_up(program: Program, equation: Equation, operand: int) -> int | None:
    """The axis along which an equation picks entries of a weight by data, if it does just that."""
    if operand or equation.name not in ("gather", "dynamic_slice"):
        return None
    if any(program.is_weight(x) for x in equation.inputs[1:]):
        return None
    shape = program.avals[equation.inputs[0]].shape  # type: ignore[index]
    sizes = equation.params["slice_sizes"]
    if equation.name == "dynamic_slice":
        axes = [a for a, (n, size) in enumerate(zip(shape, sizes, strict=True)) if n != size]
        return axes[0] if len(axes) == 1 else None
    numbers = equation.params["dimension_numbers"]
    axes = [a for a in numbers.start_index_map if sizes[a] != shape[a]]
    full = all(n == size for a, (n, size) in enumerate(zip(shape, sizes)) if a not in axes)
    clipped = equation.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP
    if len(axes) != 1 or sizes[axes[0]] != 1 or numbers.operand_batching_dims or not full:
        return None
    # Where an index has entries for other axes too, they can only be zero.
    return axes[0] if clipped or len(numbers.start_index_map) == 1 else None


def lookup_placement(equation: Equation, axis: int, shape: Sequence[int]) -> Placement:
    """Where the entries (1, K, M) of the gradient of a look-up lie in the weight."""
    return place(shape, [[], [axis], [a for a in range(len(shape)) if a != axis]])


def lookup_rows(equation: Equation, axis: int, inputs: list[Any]) -> tuple[OneHot, jax.Array]:
    """Returns X and, for each row, whether it counts: indices out of bounds may be dropped."""
    columns = inputs[0].shape[axis]
    if equation.name == "dynamic_slice":
        size = equation.params["slice_sizes"][axis]
        start = jnp.clip(inputs[1 + axis], 0, columns - size)
        ids = start + jnp.arange(size)
        return OneHot(ids[None], columns), jnp.ones((1, size), bool)
    column = equation.params["dimension_numbers"].start_index_map.index(axis)
    ids = inputs[1][..., column].reshape(1, -1)
    fill = equation.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    counts = (ids >= 0) & (ids < columns) if fill else jnp.ones(ids.shape, bool)
    return OneHot(jnp.clip(ids, 0, columns - 1), columns), counts


def lookup_cotangents(equation: Equation, axis: int, cotangent: jax.Array) -> jax.Array:
    """Returns D, shape (1, T, M)."""
    if equation.name == "dynamic_slice":
        rows = jnp.moveaxis(cotangent, axis, 0)
        return rows.reshape(1, rows.shape[0], -1)
    offsets = equation.params["dimension_numbers"].offset_dims
    batch = [a for a in range(cotangent.ndim) if a not in offsets]
    rows = jnp.transpose(cotangent, [*batch, *offsets])
    return rows.reshape(1, math.prod(cotangent.shape[a] for a in batch), -1)


# --- Matrix products and convolutions ----------------------------------------------------------


def input_rows(site: Site, inputs: list[Any]) -> jax.Array:
    """Returns X, shape (b, T, K), from the operands of the site's equation."""
    x = inputs[1 - site.operand]
    if site.equation.name == "dot_general":
        contract, batch, free, _ = _dot_axes(site, jnp.ndim(x))
        return _group(x, batch, free, contract)
    params = site.equation.params
    x = _channels_last(x, params["dimension_numbers"].lhs_spec)
    patches = _unfold(x, _window(params, inputs[1].shape))
    return _by_group(patches, params["feature_group_count"])


def plain_rows(site: Site, inputs: list[Any]) -> jax.Array:
    """Returns x of a convolution, shape (b, S, C), from the operands of the site's equation."""
    return _by_position(site, inputs[0], site.equation.params["dimension_numbers"].lhs_spec)


def row_sizes(site: Site, avals: dict[int, Any]) -> tuple[int, int, int]:
    """T, K and M of a convolution."""
    params = site.equation.params
    weight = _operand(site, avals, 1).shape
    outputs = weight[params["dimension_numbers"].rhs_spec[0]]
    positions = math.prod(avals[site.equation.outputs[0]].shape) // outputs
    return positions, math.prod(weight) // outputs, outputs // params["feature_group_count"]


def dual_rows(site: Site, avals: dict[int, Any], cotangent: jax.Array) -> jax.Array:
    """Returns Δ of a convolution, shape (b, S, kernel · M)."""
    params = site.equation.params
    numbers = params["dimension_numbers"]
    d = _channels_last(cotangent, numbers.out_spec)
    x, weight = (_operand(site, avals, number).shape for number in (0, 1))
    sizes = [x[axis] for axis in numbers.lhs_spec[2:]]
    window = _window(params, weight).transposed(sizes, d.shape[1:-1])
    patches = _unfold(d, window)
    return _by_group(patches[:, ::-1], params["feature_group_count"])


def from_dual(matrix: jax.Array, shifts: int) -> jax.Array:
    """Returns xᵀΔ, shape (..., C, kernel · M), as XᵀD, shape (..., K, M)."""
    if shifts == 1:
        return matrix
    *lead, channels, columns = matrix.shape
    split = matrix.reshape(*lead, channels, shifts, columns // shifts)
    return jnp.swapaxes(split, -3, -2).reshape(*lead, shifts * channels, columns // shifts)


def to_dual(matrix: jax.Array, shifts: int) -> jax.Array:
    """The inverse of `from_dual`."""
    if shifts == 1:
        return matrix
    *lead, rows, outputs = matrix.shape
    split = matrix.reshape(*lead, shifts, rows // shifts, outputs)
    return jnp.swapaxes(split, -3, -2).reshape(*lead, rows // shifts, shifts * outputs)


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
    return _by_position(site, cotangent, site.equation.params["dimension_numbers"].out_spec)


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


def product(site: Site, avals: dict[int, Any], rows: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the site's output computed from its input rows."""
    batches = rows.shape[0]
    matrix = extract(weight, locate(placement(site, avals), weight.shape))
    output = avals[site.equation.outputs[0]]
    precision = site.equation.params["precision"]  # what the model asks for itself
    if rows.shape[0] == rows.shape[1] == 1:
        d = jnp.matmul(rows[0, 0], matrix[0], precision=precision)[None, None]
    elif batches == 1:
        d = jnp.matmul(rows[0], matrix[0], precision=precision)[None]
    else:
        d = jnp.einsum("btk,bkm->btm", rows, matrix, precision=precision)
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


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a convolution reads: one entry an axis of space, `base` the dilation of the input."""

    kernel: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def reach(self) -> list[int]:
        """Distance between the first and the last input of one output."""
        return [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]

    def transposed(self, inputs: Sequence[int], outputs: Sequence[int]) -> "Window":
        """The window by which inputs read outputs, kernel positions in reverse."""
        padding = []
        sizes = zip(inputs, outputs, self.base, self.strides, self.reach, strict=True)
        for (low, _), (size, out, base, stride, reach) in zip(self.padding, sizes, strict=True):
            first = reach - low
            padding.append((first, (size - 1) * base + reach - first - (out - 1) * stride))
        return Window(self.kernel, tuple(padding), self.strides, self.base, self.dilation)


def _window(params: dict[str, Any], kernel_shape: Sequence[int]) -> Window:
    kernel = tuple(kernel_shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:])
    names = ("padding", "lhs_dilation", "window_strides", "rhs_dilation")
    return Window(kernel, *(tuple(params[name]) for name in names))


def _operand(site: Site, avals: dict[int, Any], number: int) -> Any:
    return avals[site.equation.inputs[number]]  # type: ignore[index]


def _channels_last(x: jax.Array, spec: Sequence[int]) -> jax.Array:
    batch, feature, *space = spec
    return jnp.transpose(x, (batch, *space, feature))


def _by_position(site: Site, x: jax.Array, spec: Sequence[int]) -> jax.Array:
    """Input or output of a convolution, of layout `spec`, to (groups, positions, channels)."""
    x = _channels_last(x, spec)
    return _by_group(x.reshape(-1, 1, x.shape[-1]), site.equation.params["feature_group_count"])


def _by_group(patches: jax.Array, groups: int) -> jax.Array:
    """(positions, kernel, channels) to (groups, positions, kernel · channels / groups)."""
    positions, kernel, channels = patches.shape
    patches = patches.reshape(positions, kernel, groups, channels // groups)
    return jnp.moveaxis(patches, 2, 0).reshape(groups, positions, -1)


def _unfold(x: jax.Array, window: Window) -> jax.Array:
    """Returns the patches of `x` (batch, space, channels): (positions, kernel, channels).

    Shifted strided slices of the padded input: no convolution, so XLA may run it inside loops.
    """
    padding = [(*pad, base - 1) for pad, base in zip(window.padding, window.base, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    extents = zip(x.shape[1:-1], window.reach, window.strides, strict=True)
    counts = [(size - reach - 1) // stride + 1 for size, reach, stride in extents]
    shifts = []
    for offset in itertools.product(*map(range, window.kernel)):
        start = [o * d for o, d in zip(offset, window.dilation, strict=True)]
        stop = [b + (c - 1) * s + 1 for b, c, s in zip(start, counts, window.strides, strict=True)]
        strides = (1, *window.strides, 1)
        shifts.append(lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), strides))
    return jnp.stack(shifts, axis=-2).reshape(-1, len(shifts), x.shape[-1])
