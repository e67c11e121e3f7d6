"""Directions in parameter space: random ones of every kind that papers use, and eigenvectors.

A set of directions is one pytree like the parameters with a leading axis `count`, as the bases of
`jaxstab.eigen` are. Direction i depends on the key and on i alone, not on `count`.
"""

import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.callables import register
from jaxstab.checks import check_at_least, check_name, check_params
from jaxstab.eigen import lanczos, vectors
from jaxstab.operators import hessian
from jaxstab.transforms import leaves_named

KINDS = (
    "uniform_positive",
    "uniform",
    "gaussian",
    "sign_flipped",
    "leaf_sign_flipped",
    "filter_normalized",
    "hessian",
)


def directions(
    params: Any,
    *,
    kind: str,
    key: jax.Array,
    count: int = 1,
    mask: Any = None,
    normalize: bool = True,
    loss: Any = None,
    data: Any = None,
    tol: float = 1e-2,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
) -> Any:
    """Draws directions u with ‖u‖ = 1 over all parameters together.

    The kinds, before normalisation, coordinate by coordinate and independently:

    - "uniform_positive": U(0, 1), those of He, Huang, Yuan (2019), section 3 and appendix A. All
      coordinates are positive, and so are the scales of batch norm: a known confound, so run the
      controls too.
    - "uniform": U(−1, 1). "gaussian": N(0, 1).
    - "sign_flipped": the "uniform_positive" direction of the same key with a random sign for every
      coordinate: a paired control, of the same law as "uniform".
    - "leaf_sign_flipped": the same with one sign for every array: coordinates of an array still
      agree, arrays do not.
    - "filter_normalized": N(0, 1), then each filter scaled to the norm of that filter in `params`
      (Li et al. 2018, arXiv 1712.09913, section 4); a filter is what feeds one output, the last
      axis as in Flax. Biases, scales and other arrays with fewer than two axes stay 0.
    - "hessian": eigenvectors of the Hessian of the loss with the largest eigenvalues, largest
      first, each with the sign that makes the sum of its coordinates positive. With a mask, those
      of the block of the Hessian that the mask selects (its largest eigenvalues being positive).

    Args:
      params: the point, a pytree of real floating-point arrays; gives shapes and dtypes, for
        "filter_normalized" and "hessian" also values.
      kind: one of the above.
      key: random key.
      count: number of directions.
      mask: coordinates that may move, all by default: a regular expression searched in the paths
        of the arrays (see `js.transforms.leaves_named`), a function of `params` that returns bools,
        or a pytree of bools; a leaf is one bool, or an array of bools shaped like the parameter.
        `random_subset` draws one.
      normalize: False leaves the lengths as drawn, where a step of 1 is as long as the parameters
        of each filter ("filter_normalized"). Eigenvectors have length 1 anyway.
      loss: for "hessian", `loss(params, example) -> scalar`.
      data: for "hessian", a pytree of arrays with a leading axis n.
      tol: for "hessian", relative accuracy of the eigenvalues.
      max_matvecs: for "hessian", Hessian-vector products that may be spent.
      chunk_size: for "hessian", examples differentiated at once.

    Returns:
      A pytree like `params` with a leading axis `count`; `jax.tree.map(lambda x: x[i], ...)` is
      direction i. Memory: count × parameters. Cost: for "hessian" at most `max_matvecs`
      Hessian-vector products, else none.

    Raises:
      ValueError: for an unknown kind, a count below 1, a mask that selects nothing or does not fit
        `params`, a missing or needless loss.
      TypeError: if a parameter is not real floating point.

    Warns:
      RuntimeWarning: if the eigenvalues have not converged; the directions are then Ritz vectors.

    Example:
      >>> u = directions({"w": jnp.zeros(3)}, kind="uniform_positive", key=jax.random.key(0))
      >>> bool((u["w"] > 0).all()), round(float(jnp.linalg.norm(u["w"])), 6)
      (True, 1.0)
    """
    check_params(params)
    check_name("kind of direction", kind, KINDS)
    check_at_least("count", count, 1)
    if kind == "hessian" and (loss is None or data is None):
        raise ValueError("directions of kind 'hessian' need loss and data: give both")
    if kind != "hessian" and (loss is not None or data is not None):
        raise ValueError(f"directions of kind {kind!r} need no loss and no data: leave them out")
    params = jax.tree.map(jnp.asarray, params)
    selected = resolve_mask(params, mask)
    if kind != "hessian":
        return _draw(params, selected, key, kind=kind, count=int(count), normalize=bool(normalize))
    operator = hessian(loss, params, data, chunk_size=chunk_size)
    solve = lanczos(k=int(count), tol=tol, max_matvecs=max_matvecs)
    result = solve(operator if selected is None else _Block(operator, selected), params, key=key)
    if not isinstance(result.converged, jax.core.Tracer) and not bool(jnp.all(result.converged)):
        warnings.warn(
            f"the {count} largest eigenvalues have not converged after {int(result.matvecs)} "
            "products: raise max_matvecs or tol",
            RuntimeWarning,
            stacklevel=2,
        )
    found = result.vector
    if count == 1:
        found = jax.tree.map(lambda x: x[None], found)
    return _oriented(found, selected)


def between(start: Any, end: Any) -> Any:
    """Returns end − start, not normalised: along it, step t is start + t (end − start).

    What an interpolation between two checkpoints moves along.

    Raises:
      ValueError: if the two differ in structure or shapes.
    """
    vectors.check_same("end", end, start)
    return jax.tree.map(lambda a, b: (b - a).astype(jnp.result_type(a)), start, end)


def random_subset(params: Any, count: int, *, key: jax.Array, exclude: Any = None) -> Any:
    """Draws `count` coordinates, every subset of that size equally likely, as a mask.

    For a control with the same number of parameters as a chosen group has (He, Huang, Yuan 2019,
    section 5.2: batch-norm parameters against as many others).

    Args:
      params: pytree of arrays.
      count: number of coordinates.
      key: random key.
      exclude: coordinates that may not be drawn; any `mask` of `directions`.

    Returns:
      A pytree of bool arrays shaped like `params` with `count` entries True.

    Raises:
      ValueError: if fewer than `count` coordinates remain.
    """
    check_at_least("count", count, 1)
    excluded = resolve_mask(params, exclude)
    if excluded is None:
        excluded = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)
    free = int(sum(jnp.sum(~leaf) for leaf in jax.tree.leaves(excluded)))
    if count > free:
        raise ValueError(f"count is {count}, but only {free} coordinates are not excluded")
    leaves, treedef = jax.tree.flatten(excluded)
    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    # integers without repetition and not floats, among 10^6 of which some would tie
    order = jnp.where(flat, -1, jax.random.permutation(key, flat.size))
    chosen = jnp.zeros(flat.size, bool).at[jax.lax.top_k(order, count)[1]].set(True)
    return jax.tree.unflatten(treedef, _split(chosen, [leaf.shape for leaf in leaves]))


def resolve_mask(params: Any, mask: Any) -> Any:
    """Returns a mask as bool arrays shaped like `params`, or None for all coordinates.

    Raises:
      ValueError: if the mask selects nothing, or does not fit `params`.
    """
    if mask is None:
        return None
    if isinstance(mask, str):
        mask = leaves_named(mask)
    marked = mask(params) if callable(mask) else mask
    try:
        full = jax.tree.map(
            lambda m, tree: jax.tree.map(lambda x: _fitted(m, x), tree), marked, params
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the mask does not fit params ({error}): give one bool for every array, or an array "
            "of bools shaped like it"
        ) from error
    leaves = jax.tree.leaves(full)
    if not any(isinstance(leaf, jax.core.Tracer) or bool(jnp.any(leaf)) for leaf in leaves):
        raise ValueError("the mask selects no coordinate: nothing would move")
    return full


def _fitted(marked: Any, leaf: Any) -> jax.Array:
    marked = jnp.asarray(marked)
    if marked.dtype != jnp.bool_:
        raise TypeError(f"a leaf of it has dtype {marked.dtype}")
    if marked.shape not in ((), jnp.shape(leaf)):
        raise ValueError(f"a leaf of it has shape {marked.shape}, the array {jnp.shape(leaf)}")
    return jnp.broadcast_to(marked, jnp.shape(leaf))


@register
@dataclasses.dataclass(frozen=True)
class _Block:
    """v ↦ P A P v, with P the projection on the coordinates that a mask selects."""

    operator: Any
    selected: Any

    def __call__(self, v: Any) -> Any:
        return _project(self.operator(_project(v, self.selected)), self.selected)


def _project(v: Any, selected: Any) -> Any:
    if selected is None:
        return v
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), v, selected)


@functools.partial(jax.jit, static_argnames=("kind", "count", "normalize"))
def _draw(params: Any, selected: Any, key: Any, *, kind: str, count: int, normalize: bool) -> Any:
    def one(i: jax.Array) -> Any:
        drawn = _random(params, jax.random.fold_in(key, i), kind)
        drawn = _project(drawn, selected)
        return vectors.unit(drawn)[0] if normalize else drawn

    sig = vectors.signature(params)
    return jax.tree.map(
        lambda x, w: x.astype(w.dtype), jax.vmap(one)(jnp.arange(count)), vectors.structs(sig)
    )


def _random(params: Any, key: jax.Array, kind: str) -> Any:
    """One direction before projection and normalisation, in working precision."""
    sig = vectors.signature(params)
    if kind in ("gaussian", "filter_normalized"):
        drawn = vectors.normal(key, sig)
        return jax.tree.map(_like_filters, drawn, params) if kind == "filter_normalized" else drawn
    dtype, (treedef, described, _) = vectors.working_dtype(sig), sig
    shapes = [shape for shape, _ in described]
    size = vectors.size(sig)
    flat = jax.random.uniform(key, (size,), dtype, -1.0 if kind == "uniform" else 0.0)
    drawn = treedef.unflatten(_split(flat, shapes))
    sign_key = jax.random.fold_in(key, 1)
    if kind == "sign_flipped":
        signs = jax.random.rademacher(sign_key, (size,), dtype)
        return jax.tree.map(jnp.multiply, drawn, treedef.unflatten(_split(signs, shapes)))
    if kind == "leaf_sign_flipped":
        signs = jax.random.rademacher(sign_key, (len(shapes),), dtype)
        return jax.tree.map(jnp.multiply, drawn, treedef.unflatten(list(signs)))
    return drawn


def _like_filters(drawn: jax.Array, leaf: jax.Array) -> jax.Array:
    """Scales each filter, what feeds one output, to its norm in the parameters."""
    if leaf.ndim < 2:
        return jnp.zeros_like(drawn)
    axes = tuple(range(leaf.ndim - 1))

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(x.astype(drawn.dtype)), axis=axes, keepdims=True))

    return drawn * norm(leaf) / jnp.maximum(norm(drawn), jnp.finfo(drawn.dtype).tiny)


@jax.jit
def _oriented(found: Any, selected: Any) -> Any:
    """Eigenvectors within the mask, of length 1, the sum of their coordinates not negative."""

    def one(v: Any) -> Any:
        unit, _ = vectors.unit(vectors.widen(_project(v, selected)))
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(unit))
        return vectors.scale(jnp.where(total < 0, -1, 1), unit)

    return jax.tree.map(lambda x, w: x.astype(w.dtype), jax.vmap(one)(found), found)


def _split(flat: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    leaves, first = [], 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        leaves.append(flat[first : first + size].reshape(shape))
        first += size
    return leaves
