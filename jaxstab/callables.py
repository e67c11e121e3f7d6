"""Functions as pytrees: the one mechanism that keeps data out of compiled constants.

A loss, an operator or a matvec is any callable. If it carries arrays (parameters, data, frozen
batch statistics) it is a registered pytree, so that it can be *passed* to a compiled function: its
arrays are operands, its code is static, and equal shapes never compile twice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax

Class = TypeVar("Class")


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the code, not of the arrays."""
    return dataclasses.field(default=default, metadata={"static": True})


def register(cls: type[Class]) -> type[Class]:
    """Registers a dataclass as a pytree; those of its fields that are `static` are not leaves.

    Not by `jax.tree_util.register_dataclass`: with JAX 0.10.2 the tree structures of *different*
    dataclasses with equal static fields compare equal, so that whenever their hashes collide one
    runs the function compiled for the other.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    code = [field.name for field in fields if field.metadata.get("static")]
    arrays = [field.name for field in fields if not field.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in arrays]

    def flatten(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(tree, name) for name in arrays], tuple(getattr(tree, name) for name in code)

    def flatten_with_keys(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
        leaves, meta = flatten(tree)
        return list(zip(keys, leaves, strict=True)), meta

    def unflatten(meta: tuple[Any, ...], leaves: Any) -> Any:
        return cls(**dict(zip(arrays, leaves)), **dict(zip(code, meta)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` as a callable pytree: itself if it is one, else wrapped without leaves.

    Two wrapped functions have the same tree structure exactly when the functions are equal, so a
    function defined once is compiled once; a lambda written anew at every call is not.

    Raises:
      TypeError: if `function` is not callable.
    """
    if not callable(function):
        raise TypeError(f"expected a function, got {type(function).__name__}: {function!r}")
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(function))
    return jax.tree_util.Partial(function) if is_leaf else function
