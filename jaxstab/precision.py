"""The precision of matrix products: one choice for everything inside a product with an operator.

For float32 operands JAX's default is one bfloat16 pass on a TPU and TF32 on recent NVIDIA GPUs: 8
and 11 significant bits in place of 24. What a certificate says must not depend on that, so every
operator and solver sets the precision around all that it traces, "highest" unless told otherwise.
The setting (`jax.default_matmul_precision`) is part of JAX's own cache key. A product in the
user's model that asks for a precision, an algorithm or a dtype of its own keeps it.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxstab.checks import check_name

PRECISIONS = ("highest", "high", "default")
Function = TypeVar("Function", bound=Callable[..., Any])


def check_precision(precision: str | None) -> str | None:
    """Returns the name of a precision, or None for whatever JAX is set to.

    Raises:
      ValueError: for any other name.
    """
    return None if precision is None else check_name("precision", precision, PRECISIONS)


def at(precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which products without a precision of their own are traced with this one."""
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def at_given(function: Function) -> Function:
    """A function with a keyword `precision`, all of which runs and is traced at the one it gets."""
    default = inspect.signature(function).parameters["precision"].default

    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with at(check_precision(options.get("precision", default))):
            return function(*args, **options)

    return traced  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, repr=False)
class HasPrecision:
    """Base of operators: a field that is part of the code, None where another operator decides."""

    precision: str | None = dataclasses.field(default=None, kw_only=True, metadata={"static": True})


def with_own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an operator, traced at the operator's precision; so is an operator it returns."""

    @functools.wraps(method)
    def at_own(self: HasPrecision, *args: Any) -> Any:
        with at(self.precision):
            result = method(self, *args)
        if isinstance(result, HasPrecision) and result is not self:
            return dataclasses.replace(result, precision=self.precision)
        return result

    return at_own
