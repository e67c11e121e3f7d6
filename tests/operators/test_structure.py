"""How each parameter leaf is treated: the form is part of the contract."""

import collections

import jax
import jax.numpy as jnp

from jaxstab import operators
from jaxstab.callables import as_pytree
from jaxstab.operators.factored import form_of_leaf, read_structure


def test_structure_is_as_expected(problem):
    """What is fast stays fast: the form of every leaf is part of the contract."""
    structure = read_structure(as_pytree(problem.loss), problem.params, problem.data)
    count = len(jax.tree.leaves(problem.params))
    forms = (form_of_leaf(structure, i)[0] for i in range(count))
    assert dict(collections.Counter(forms)) == problem.forms


def test_explain_names_every_leaf_and_the_reason(problems, x64):
    weight_norm = problems["weight_norm"]()
    text = operators.explain(weight_norm.loss, weight_norm.params, weight_norm.data)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "factored" in lines["params['tied']"]
    assert "not used" in lines["params['unused']"]
    assert "all examples share" in lines["params['out']"]
    assert "7 examples, 7 at once" in text


def test_an_empty_leaf_has_no_blocks():
    """A layer of width 0."""
    loss = lambda p, x: jnp.sum(x @ p["w"]) ** 2 + jnp.sum(x @ p["none"])  # noqa: E731
    params = {"none": jnp.ones((3, 0)), "w": jnp.ones((3, 2))}
    structure = read_structure(as_pytree(loss), params, jnp.ones((2, 3)))
    assert {block.leaf for block in structure.blocks} == {1}
