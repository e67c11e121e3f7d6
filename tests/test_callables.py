"""Functions as pytrees: what is a leaf, and which of them share compiled code."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxstab import operators
from jaxstab.callables import as_pytree, register, static


def scaled(name):
    """A class of functions x ↦ factor · x + shift."""

    def call(self, x):
        return self.factor * x + self.shift

    cls = type(
        name,
        (),
        {"__annotations__": {"factor": float, "shift": int}, "shift": static(), "__call__": call},
    )
    return register(dataclasses.dataclass(frozen=True)(cls))


def test_static_fields_are_code_and_others_leaves():
    cls = scaled("Scaled")
    function = cls(2.0, 1)
    assert jax.tree.leaves(function) == [2.0]
    assert jax.tree.map(lambda leaf: 3 * leaf, function) == cls(6.0, 1)
    assert jax.tree.structure(function) == jax.tree.structure(cls(5.0, 1))
    assert jax.tree.structure(function) != jax.tree.structure(cls(2.0, 4))
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(function)
    assert jax.tree_util.keystr(path) == ".factor"
    assert jax.jit(lambda f, x: f(x))(function, 3.0) == 7.0


def test_equal_fields_of_different_classes_are_different_structures():
    """Otherwise one operator may run what was compiled for another."""
    assert jax.tree.structure(scaled("A")(2.0, 1)) != jax.tree.structure(scaled("B")(2.0, 1))
    problem = (lambda params, x: jnp.sum((params * x) ** 2), jnp.ones(2), jnp.ones((3, 2)))
    made = [
        make(*problem)
        for make in (
            operators.hessian,
            operators.per_example_hessian,
            operators.gradient_covariance,
            operators.hessian_second_moment,
            operators.hessian_variance,
        )
    ]
    structures = [jax.tree.structure(operator) for operator in made]
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])


def test_functions_without_leaves_are_wrapped_and_pytrees_are_not():
    assert as_pytree(jnp.sin)(0.0) == 0.0
    assert jax.tree.structure(as_pytree(jnp.sin)) == jax.tree.structure(as_pytree(jnp.sin))
    assert jax.tree.structure(as_pytree(jnp.sin)) != jax.tree.structure(as_pytree(jnp.cos))
    function = scaled("Scaled")(2.0, 1)
    assert as_pytree(function) is function
    with pytest.raises(TypeError, match="expected a function, got int"):
        as_pytree(3)
