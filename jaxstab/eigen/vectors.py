"""Linear algebra on pytrees: vectors, and bases stored as one pytree with a leading axis.

Nothing is flattened into one long array: a vector of p parameters stays as it is. Inner products
(`jaxstab.trees`) are accumulated in float32 or wider, and matrix products ask for full
float32 precision, which accelerators do not give unasked.
"""

import functools
import itertools
import operator as operators
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxstab.precision import at
from jaxstab.trees import dot as dot
from jaxstab.trees import norm as norm
from jaxstab.trees import random_signs as signs_like

_HIGHEST = lax.Precision.HIGHEST

WARM_NOISE = 0.1  # of a random direction in a warm start: a tenth of its length

Signature = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...], Any]


def signature(like: Any, matvec: Any = None) -> Signature:
    """Structure, shapes and dtypes of a vector: hashable, so that it can be a static argument.

    And how vectors are spread over devices, where `matvec` says so: `matvec.sharding`, a tuple of
    one `NamedSharding` for each leaf.
    """
    leaves, treedef = jax.tree.flatten(like)
    if not leaves:
        raise ValueError("like has no arrays: give a pytree such as the parameters")
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"like{jax.tree_util.keystr(path)} has dtype {dtype}: "
                "eigenvectors need real floating-point arrays"
            )
    shapes = tuple((tuple(jnp.shape(x)), jnp.result_type(x)) for x in leaves)
    described = treedef, shapes, getattr(matvec, "sharding", None)
    if size(described) == 0:
        raise ValueError("like has no entries: every array in it is empty")
    return described


def size(sig: Signature) -> int:
    """The dimension p."""
    return sum(_count(shape) for shape, _ in sig[1])


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def working_dtype(sig: Signature) -> Any:
    """The dtype of scalars: the widest of the leaves, at least float32."""
    return jnp.result_type(jnp.float32, *(dtype for _, dtype in sig[1]))


def precision(sig: Signature) -> float:
    """Machine epsilon of the coarsest leaf: what a product with the operator can resolve."""
    return max(float(jnp.finfo(dtype).eps) for _, dtype in sig[1])


def basis_bytes(sig: Signature) -> int:
    """Bytes of one stored basis vector."""
    return sum(
        _count(shape) * jnp.result_type(dtype, jnp.float32).itemsize for shape, dtype in sig[1]
    )


def structs(sig: Signature) -> Any:
    """The vector as a pytree of `jax.ShapeDtypeStruct`."""
    return sig[0].unflatten([jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in sig[1]])


def working_structs(sig: Signature) -> Any:
    """The same in working precision: at least float32."""
    return jax.eval_shape(widen, structs(sig))


def operator(
    matvec: Callable[[Any], Any],
    sig: Signature,
    sign: int,
    matmul_precision: str | None = "highest",
) -> Callable[[Any], Any]:
    """Returns v ↦ sign · A v on vectors of working precision, checked when it is traced."""
    wanted = structs(sig)

    def apply(v: Any) -> Any:
        with at(matmul_precision):
            out = matvec(jax.tree.map(lambda x, s: x.astype(s.dtype), v, wanted))
        check_same("matvec(v)", out, wanted)
        return jax.tree.map(lambda x, b: sign * x.astype(b.dtype), out, v)

    return apply


def check_same(name: str, got: Any, wanted: Any) -> None:
    """Raises unless two vectors have the same structure, shapes and a real dtype."""
    come: Any = jax.tree.structure(got)
    expected: Any = jax.tree.structure(wanted)
    if come != expected:
        raise ValueError(f"{name} has structure {come}, expected that of like: {expected}")
    for (path, x), w in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        where = name + jax.tree_util.keystr(path)
        if jnp.shape(x) != jnp.shape(w):
            raise ValueError(f"{where} has shape {jnp.shape(x)}, expected {jnp.shape(w)}")
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"{where} has dtype {jnp.result_type(x)}, expected a real float")


def widen(v: Any) -> Any:
    """Casts every leaf to at least float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, jnp.float32)), v)


def cast_like(v: Any, sig: Signature) -> Any:
    """Casts every leaf to the dtype of `like`."""
    return jax.tree.map(lambda x, s: x.astype(s.dtype), v, structs(sig))


def normal(key: jax.Array, sig: Signature) -> Any:
    """A vector of independent standard normal entries, in working precision.

    Drawn flat: one generator in the compiled code instead of one a leaf halves what there is to
    compile, and the numbers do not depend on how they lie. Of a vector that is spread over devices
    no device has more than its part and, for a moment, one leaf: XLA cannot move a part of a flat
    array to where a part of a leaf belongs in any other way, and is told so.
    """
    flat = _flat_normal(key, sig)
    ends = itertools.accumulate(_count(shape) for shape, _ in sig[1])
    leaves = []
    for i, (end, (shape, dtype)) in enumerate(zip(ends, sig[1], strict=True)):
        leaf = _spread(flat[end - _count(shape) : end], sig).reshape(shape)
        if sig[2] is not None:
            leaf = lax.with_sharding_constraint(leaf, sig[2][i])
        leaves.append(leaf.astype(jnp.result_type(dtype, jnp.float32)))
    return sig[0].unflatten(leaves)


def _flat_normal(key: jax.Array, sig: Signature) -> jax.Array:
    """At least p standard normal numbers, of which every device has as many."""
    if sig[2] is None:
        return jax.random.normal(key, (size(sig),), working_dtype(sig))
    mesh = sig[2][0].mesh
    padded = -(-size(sig) // mesh.size) * mesh.size  # which leaves the first p as they are
    return _spread(jax.random.normal(key, (padded,), working_dtype(sig)), sig, mesh.axis_names)


def _spread(flat: jax.Array, sig: Signature, axes: Any = ()) -> jax.Array:
    """A flat array over these axes of the mesh of `sig`, or on every device of it."""
    if sig[2] is None:
        return flat
    return lax.with_sharding_constraint(flat, NamedSharding(sig[2][0].mesh, PartitionSpec(axes)))


def signs(key: jax.Array, sig: Signature) -> Any:
    """A vector of independent signs ±1, in working precision."""
    return signs_like(key, jax.eval_shape(widen, structs(sig)))


def start(key: jax.Array, sig: Signature, v0: Any, noise: float) -> tuple[Any, jax.Array]:
    """A vector to start from, and the standard deviation of its random part.

    Cold: standard normal g. Warm: v0/‖v0‖ + noise · g/√p. For any fixed u, P(|uᵀx| ≤ t) of the
    warm one is at most P(|N(0, 1)| ≤ t/spread): moving the centre of a normal variable away from
    0 only makes small values less likely. A zero or non-finite v0 is ignored.
    """
    x = normal(key, sig)
    one = jnp.ones((), working_dtype(sig))
    if v0 is None:
        return x, one
    warm, length = unit(widen(v0))
    usable = jnp.isfinite(length) & (length > 0)
    noise = noise / size(sig) ** 0.5
    mixed = add(warm, noise, x)
    return jax.tree.map(lambda a, b: jnp.where(usable, a, b), mixed, x), jnp.where(
        usable, noise, one
    ).astype(one.dtype)


def _total(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operators.add, terms)


def scale(c: Any, v: Any) -> Any:
    """c · v, leaf by leaf."""
    return jax.tree.map(lambda x: (c * x).astype(x.dtype), v)


def add(v: Any, c: Any, w: Any) -> Any:
    """v + c · w."""
    return jax.tree.map(lambda x, y: (x + c * y).astype(x.dtype), v, w)


def unit(v: Any) -> tuple[Any, jax.Array]:
    """v/‖v‖ and ‖v‖; the zero vector stays zero."""
    length = norm(v)
    return scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), v), length


def empty_basis(rows: int, sig: Signature) -> Any:
    """A basis of zero vectors: every leaf has a leading axis `rows`."""
    return sig[0].unflatten(
        [jnp.zeros((rows, *shape), jnp.result_type(dtype, jnp.float32)) for shape, dtype in sig[1]]
    )


def row(basis: Any, i: Any) -> Any:
    """Vector i of a basis."""
    return jax.tree.map(lambda b: lax.dynamic_index_in_dim(b, i, keepdims=False), basis)


def set_row(basis: Any, i: Any, v: Any) -> Any:
    """The basis with vector i replaced."""
    return jax.tree.map(lambda b, x: lax.dynamic_update_index_in_dim(b, x, i, 0), basis, v)


def subtract(w: Any, basis: Any, coefficients: jax.Array, start: Any, stop: Any) -> Any:
    """w − Σ c_i v_i over start ≤ i < stop; reads only those vectors."""
    return lax.fori_loop(start, stop, lambda i, w: add(w, -coefficients[i], row(basis, i)), w)


def orthogonalize(w: Any, basis: Any, stop: Any) -> tuple[Any, jax.Array]:
    """One Gram–Schmidt pass of w against vectors 0 … stop−1: returns the rest and coefficients.

    On CPU vector by vector: none beyond `stop` is read. Elsewhere as two
    matrix products with the whole basis, the unused coefficients set to zero: launching 2·stop
    small kernels would cost more than reading it.
    """
    return lax.platform_dependent(
        w, basis, stop, cpu=_orthogonalize_rows, default=_orthogonalize_matrix
    )


def _orthogonalize_rows(w: Any, basis: Any, stop: Any) -> tuple[Any, jax.Array]:
    rows = jax.tree.leaves(basis)[0].shape[0]
    h = lax.fori_loop(
        0,
        stop,
        lambda i, h: h.at[i].set(dot(row(basis, i), w)),
        jnp.zeros(rows, jax.eval_shape(dot, w, w).dtype),
    )
    return subtract(w, basis, h, 0, stop), h


def _orthogonalize_matrix(w: Any, basis: Any, stop: Any) -> tuple[Any, jax.Array]:
    h = _total(
        jnp.tensordot(b, x, axes=x.ndim, precision=_HIGHEST)
        for b, x in zip(jax.tree.leaves(basis), jax.tree.leaves(w), strict=True)
    )
    h = jnp.where(jnp.arange(h.shape[0]) < stop, h, 0)
    return jax.tree.map(lambda x, y: x - y, w, combine(basis, h)), h


def combine(basis: Any, coefficients: jax.Array) -> Any:
    """Σ_i c_i v_i for coefficients (rows,), or one such vector for each column of (rows, r)."""

    def leaf(b):
        c = coefficients.astype(b.dtype)
        return jnp.tensordot(c.T, b, axes=1, precision=_HIGHEST)

    return jax.tree.map(leaf, basis)


def rotate(basis: Any, q: jax.Array) -> Any:
    """The basis with its first r vectors replaced by the r columns of q (rows, r), in place."""
    return jax.tree.map(
        lambda b, new: lax.dynamic_update_slice_in_dim(b, new, 0, 0), basis, combine(basis, q)
    )
