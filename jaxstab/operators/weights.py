"""From the values in which parameters meet the data back to the parameters themselves.

What happens to a parameter before it meets the data is W = φ(θ), a function of parameters alone.
The gradient of one example by W comes as a *content*: `Rows`, XᵀD with X and D of activation size,
or `Dense`, an array. Here contents go back through φ, equation by equation, as cotangents do in
reverse differentiation, and stay rows wherever φ is one of

    views        transpose, reshape, slice, split, expand_dims: other strides, the same rows
    joins        concatenate, stack, pad: some of the columns of X or D
    scalings     W = c ∘ V with c the same along K or along M: X or D scaled
    products     W = A B: rows (X, D Bᵀ) for A and (X A, D) for B
    sums, casts  the same rows

A factor that goes along both K and M (a mask) is kept beside the rows, if it is constant and only
views follow. Through anything else contents go multiplied out, by the derivative of that equation.
All this is part of the differentiated program, so that second derivatives of φ are in A v.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.operators.contents import Content, Dense, OneHot, real_part
from jaxstab.operators.placements import Unplaced, insert, locate, whole
from jaxstab.operators.rules import RULES, Step
from jaxstab.operators.structure import Equation, Literal, Program

_SAME_ADDRESS = {"reshape", "squeeze", "expand_dims", "copy", "copy_p", "convert_element_type"}


def pull_back(
    program: Program, env: dict[int, Any], contents: dict[int, list[Content]]
) -> list[list[Content]]:
    """Returns the contents of every parameter leaf.

    Args:
      program: the loss.
      env: the values that do not depend on the example.
      contents: the gradients of one example by values that depend on parameters alone.
    """
    for equation in reversed(program.shared):
        found = [contents.pop(number, []) for number in equation.outputs]
        operands = [j for j, x in enumerate(equation.inputs) if program.is_weight(x)]
        for index, mine in enumerate(found):
            for content in mine:
                for j in operands:
                    for part in _through(program, env, equation, index, j, content):
                        contents.setdefault(equation.inputs[j], []).append(part)  # type: ignore[arg-type]
    return [contents.get(number, []) for number in program.params]


def _through(
    program: Program,
    env: dict[int, Any],
    equation: Equation,
    index: int,
    j: int,
    content: Content,
) -> list[Content]:
    """What `content` of output number `index` gives to operand number `j`."""
    avals = program.avals
    shape, operand = avals[equation.outputs[index]].shape, avals[equation.inputs[j]]  # type: ignore[index]
    if equation.name == "stop_gradient":
        return []
    if equation.name in _SAME_ADDRESS and _reads_in_order(equation):
        return [_cast(content, operand.dtype)]
    try:
        located = locate(content.placement, shape)
        step = Step(program, env, equation, index, j, content, located)
        rule = RULES.get(equation.name)
        if rule is None:
            raise Unplaced
        return rule(step)
    except Unplaced:
        return _differentiated(program, env, equation, index, j, content)


def _reads_in_order(equation: Equation) -> bool:
    return equation.params.get("dimensions") is None or equation.name != "reshape"


def _cast(content: Content, dtype: Any) -> Content:
    if content.is_complex and not jnp.issubdtype(dtype, jnp.complexfloating):
        content = real_part(content)
    if isinstance(content, Dense):
        return dataclasses.replace(content, value=content.value.astype(dtype))
    x, d = (y if isinstance(y, OneHot) or y.dtype == dtype else y.astype(dtype)
            for y in (content.x, content.d))  # fmt: skip
    return dataclasses.replace(content, x=x, d=d)


def _differentiated(
    program: Program,
    env: dict[int, Any],
    equation: Equation,
    index: int,
    j: int,
    content: Content,
) -> list[Content]:
    """Multiplies out and applies the derivative of the equation."""
    value = content.dense(f"it goes through {equation.name} before it meets the data")
    out = program.avals[equation.outputs[index]]
    located = locate(value.placement, out.shape)
    cotangent = insert(value.value, located, out.shape).astype(out.dtype)
    inputs = [x.value if isinstance(x, Literal) else env[x] for x in equation.inputs]

    def function(operand: jax.Array) -> jax.Array:
        return equation(*inputs[:j], operand, *inputs[j + 1 :])[index]

    (back,) = jax.vjp(function, inputs[j])[1](cotangent)
    aval = program.avals[equation.inputs[j]]  # type: ignore[index]
    why = value.why
    if aval.size > max(out.size, value.value.size):
        why = why or f"{equation.name} makes little of it before it meets the data"
    return [Dense(whole(aval.shape), back.ravel(), value.note, why)]
