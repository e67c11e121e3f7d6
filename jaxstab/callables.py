"""Functions as pytrees: the one mechanism that keeps data out of compiled constants.

A loss, an operator or a matvec is any callable. If it carries arrays (parameters, data, frozen
batch statistics) it is a registered pytree, so that it can be *passed* to a compiled function: its
arrays are operands, its code is static, and equal shapes never compile twice.
"""

from collections.abc import Callable
from typing import Any

import jax


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
