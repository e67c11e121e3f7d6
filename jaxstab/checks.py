"""Checks of what a user hands in: before any computation, saying what came and what to do."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.names import check_name as check_name


def check_positive(name: str, value: Any, *, allow_zero: bool = False) -> Any:
    """Returns a finite positive number unchanged; a traced value passes unchecked."""
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        fine = math.isfinite(value) and (value >= 0 if allow_zero else value > 0)
    except TypeError:
        found = f"{type(value).__name__}: {value!r}"
        raise TypeError(f"{name} must be a number, got {found}") from None
    if not fine:
        wanted = "finite and not negative" if allow_zero else "finite and positive"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return value


def check_at_least(name: str, value: Any, minimum: int) -> int:
    """Returns an integer that is at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}: {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_batch_size(batch_size: Any, n: int, *, replacement: bool = False) -> int:
    """Returns a batch size of at least 1, and at most n unless examples may come twice."""
    check_at_least("batch_size", batch_size, 1)
    if batch_size > n and not replacement:
        raise ValueError(
            f"batch_size {batch_size} is above the number of examples {n}: "
            f"sampling is without replacement, so give at most {n} (which is gradient descent)"
        )
    return int(batch_size)


def data_size(data: Any) -> int:
    """Returns n, the common leading axis of all leaves of `data`."""
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError("data has no arrays: give a pytree of arrays with a leading axis n")
    sizes = {}
    for path, leaf in leaves:
        name = "data" + jax.tree_util.keystr(path)
        if jnp.ndim(leaf) == 0:
            raise ValueError(f"{name} is a scalar: every array of data needs a leading axis n")
        sizes[name] = jnp.shape(leaf)[0]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"the leading axes of data differ ({listed}): all must be n")
    n = next(iter(sizes.values()))
    if n == 0:
        raise ValueError("data is empty: its leading axis has length 0")
    return n


def check_finite(name: str, tree: Any) -> None:
    """Raises if an array of `tree` holds NaN or infinity; traced arrays pass unchecked."""
    found = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not isinstance(leaf, jax.core.Tracer)
        and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    for (path, _), bad in zip(found, _not_finite([leaf for _, leaf in found]), strict=True):
        if bad:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} holds {bad} values that are NaN or infinite: "
                "replace them, or leave out what holds them"
            )


def _not_finite(leaves: list[Any]) -> list[int]:
    """How many values of each array are NaN or infinite."""
    if all(_on_host(leaf) for leaf in leaves):  # nothing to compile
        return [np.size(x) - int(np.sum(np.isfinite(x))) for x in map(np.asarray, leaves)]
    with jax.ensure_compile_time_eval():  # not traced, where arrays from outside reach a jit
        return [int(count) for count in _count_not_finite(leaves)]


def _on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    if leaf.dtype.itemsize < 4:  # bfloat16 and smaller, which NumPy does not know
        return False
    devices = leaf.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


@jax.jit
def _count_not_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.size(leaf) - jnp.sum(jnp.isfinite(leaf)) for leaf in leaves]


def check_params(params: Any) -> None:
    """Raises unless every leaf of `params` is a floating-point array without NaN."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no arrays")
    for path, leaf in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is a {type(leaf).__name__}: parameters must "
                "be arrays; keep the rest of a model apart, with Equinox by "
                "eqx.partition(model, eqx.is_inexact_array), with nnx by nnx.split"
            )
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has dtype {dtype}: parameters must be real "
                "floating-point arrays; move counters and keys out of params"
            )
    check_finite("params", params)


@jax.jit  # never run: it remembers the shapes, which an evaluation anew would trace again
def _losses(loss: Any, params: Any, data: Any) -> Any:
    return jax.vmap(loss, (None, 0))(params, data)


def check_loss(loss: Any, params: Any, data: Any) -> None:
    """Raises unless `loss` gives one number for one example; nothing is computed.

    An error in the loss itself gets a note that says with which shapes it was called.

    Args:
      loss: `loss(params, example)`, a callable pytree.
      params: parameters.
      data: examples, or their shapes and dtypes.
    """
    try:
        value = _losses.eval_shape(loss, params, data)
    except NotImplementedError as error:
        raise ValueError(
            f"the loss cannot be batched over examples by jax.vmap: {error}"
        ) from error
    except Exception as error:
        example = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], data)
        error.add_note(
            "jaxstab: this came from loss(params, example), called with one example, whose arrays "
            f"have the shapes {example}: it has no batch axis"
        )
        raise
    if getattr(value, "shape", (0, None))[1:] != ():
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), value)
        raise ValueError(
            f"loss(params, example) must return a scalar for one example, got {one}: write it "
            "for one example (no batch axis); batching is done here"
        )
