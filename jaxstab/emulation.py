"""A test tool: what matrix products of low precision do to a computation, on any machine.

`emulate(function, machine)` runs the jaxpr of a function with the operands of every `dot_general`
and `conv_general_dilated` rounded as `machine` would: by the precision that the equation asks for,
in float32 only, products and sums left exact to float32. All else is untouched, so what runs is
what an accelerator runs: whoever asks for full precision gets it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

PRODUCTS = ("dot_general", "conv_general_dilated")


@dataclasses.dataclass(frozen=True)
class Format:
    """What becomes of an operand: `mantissa` stored bits, so often split off it.

    Attributes:
      mantissa: bits after the leading one: 10 for TF32, 7 for bfloat16.
      passes: 1 keeps one rounded part; 3 keeps two, x ≈ h + l, and multiplies hh + hl + lh.
      truncate: whether bits are cut off, as tensor cores do with TF32, or rounded to nearest even.
    """

    mantissa: int
    passes: int = 1
    truncate: bool = False

    def round(self, x: jax.Array) -> jax.Array:
        """Returns float32 numbers that the format holds."""
        if self.truncate:
            bits = lax.bitcast_convert_type(x, jnp.uint32)
            mask = jnp.uint32(0xFFFFFFFF << (23 - self.mantissa) & 0xFFFFFFFF)
            return lax.bitcast_convert_type(bits & mask, jnp.float32)
        return lax.reduce_precision(x, 8, self.mantissa)

    def multiply(self, product: Callable[..., Any], x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the bilinear `product(x, y)` as the format computes it."""
        x_high, y_high = self.round(x), self.round(y)
        if self.passes == 1:
            return product(x_high, y_high)
        x_low, y_low = self.round(x - x_high), self.round(y - y_high)
        return product(x_low, y_high) + product(x_high, y_low) + product(x_high, y_high)


FLOAT32 = Format(23)
TF32 = Format(10)
TF32_CUT = Format(10, truncate=True)
BFLOAT16 = Format(7)
BFLOAT16_3X = Format(7, passes=3)

# By machine: the format that float32 operands get under default, high and highest precision.
Machine = Mapping[lax.Precision, Format]
_NAMES = (lax.Precision.DEFAULT, lax.Precision.HIGH, lax.Precision.HIGHEST)
GPU: Machine = dict(zip(_NAMES, (TF32, TF32, FLOAT32), strict=True))
GPU_CUT: Machine = dict(zip(_NAMES, (TF32_CUT, TF32_CUT, FLOAT32), strict=True))
TPU: Machine = dict(zip(_NAMES, (BFLOAT16, BFLOAT16_3X, FLOAT32), strict=True))


def always(form: Format) -> Machine:
    """A machine that has one format and does not listen to the precision asked for."""
    return dict.fromkeys(_NAMES, form)


def emulate(function: Callable[..., Any], machine: Machine) -> Callable[..., Any]:
    """Returns `function` with its products computed as `machine` does, inside loops as well."""

    def emulated(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(closed, machine, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return emulated


def _rewrite(closed: Any, machine: Machine) -> Any:
    return jax.make_jaxpr(lambda *args: _evaluate(closed, machine, args))(*closed.in_avals)


def _evaluate(closed: Any, machine: Machine, args: Any) -> list[Any]:
    jaxpr = closed.jaxpr
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        name, params = eqn.primitive.name, eqn.params
        if name in PRODUCTS and all(x.dtype == jnp.float32 for x in inputs):
            form = _format(params["precision"], machine)
            results = [form.multiply(lambda x, y: eqn.primitive.bind(x, y, **params), *inputs)]  # noqa: B023
        elif name in ("jit", "pjit", "closed_call"):
            results = _evaluate(params.get("jaxpr", params.get("call_jaxpr")), machine, inputs)
        else:
            params = {key: _inside(value, machine) for key, value in params.items()}
            bind_params = eqn.primitive.get_bind_params(params)
            results = eqn.primitive.bind(*inputs, **bind_params)
            results = results if eqn.primitive.multiple_results else [results]
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inside(value: Any, machine: Machine) -> Any:
    """A parameter of an equation, with the bodies of loops and branches rewritten."""
    if isinstance(value, core.ClosedJaxpr):
        return _rewrite(value, machine)
    if isinstance(value, tuple) and any(isinstance(x, core.ClosedJaxpr) for x in value):
        return tuple(_inside(x, machine) for x in value)
    return value


def _format(precision: Any, machine: Machine) -> Format:
    if precision is None:
        return machine[lax.Precision.DEFAULT]
    if isinstance(precision, tuple):
        return machine[max(precision, key=_NAMES.index)]
    raise ValueError(f"no emulation of products with precision {precision}")
