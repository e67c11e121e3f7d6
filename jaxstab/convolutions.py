"""Convolutions that XLA's CPU backend runs fast inside loops.

XLA rewrites a convolution to the layout that its fast CPU kernel takes (NHWC, HWIO, NHWC) only in
the entry computation. Inside `scan` or `while_loop`, where training and Krylov iterations live, the
convolutions that differentiation writes (by the kernel, by the input) keep their layouts and fall
to a naive loop, 10 to 100 times slower. The cure is to write them in that layout with explicit
transposes, after differentiation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core


def fast_in_loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` with every convolution in the layout of XLA's fast CPU kernel.

    Apply it to the differentiated function that goes into a loop, not before differentiation. On
    other backends, which choose layouts themselves, it returns `function` unchanged.
    """
    if jax.default_backend() != "cpu":
        return function

    @functools.wraps(function)
    def rewritten(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        if "conv_general_dilated" not in _primitives(closed.jaxpr):
            return jax.jit(function)(*args)  # as it was traced: tracing takes seconds
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return rewritten


def _primitives(jaxpr: Any) -> set[str]:
    names = {eqn.primitive.name for eqn in jaxpr.eqns}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "jit":
            names |= _primitives(eqn.params["jaxpr"].jaxpr)
    return names


def _evaluate(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    """Evaluates a jaxpr, opening jit, with convolutions replaced."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == "jit":
            inner = eqn.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, inputs)
        elif eqn.primitive.name == "conv_general_dilated":
            results = [_canonical(*inputs, **eqn.params)]
        else:
            results = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            results = results if eqn.primitive.multiple_results else [results]
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _canonical(lhs: jax.Array, rhs: jax.Array, **params: Any) -> jax.Array:
    """The same convolution as NHWC × HWIO → NHWC between transposes."""
    numbers, ndim = params.pop("dimension_numbers"), lhs.ndim
    space = range(1, ndim - 1)
    lhs_batch, lhs_feature, *lhs_space = numbers.lhs_spec
    rhs_out, rhs_in, *rhs_space = numbers.rhs_spec
    out_batch, out_feature, *out_space = numbers.out_spec
    out = lax.conv_general_dilated(
        lax.transpose(lhs, (lhs_batch, *lhs_space, lhs_feature)),
        lax.transpose(rhs, (*rhs_space, rhs_in, rhs_out)),
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, ndim - 1, *space), (ndim - 1, ndim - 2, *range(ndim - 2)), (0, ndim - 1, *space)
        ),
        **params,
    )
    order = [out_batch, *out_space, out_feature]
    return lax.transpose(out, [order.index(axis) for axis in range(ndim)])
