"""H and the (H_i v)_i against the dense float64 oracle; what every operator refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators

ravel = jax.flatten_util.ravel_pytree


def test_products_equal_the_dense_oracle(problem, dense, random_like, close):
    """In chunks of the problem's choice, most of them uneven; H prepared, all examples at once."""
    _, hessians = dense(problem)
    v = random_like(problem.params)
    flat = np.asarray(ravel(v)[0])
    common = (problem.loss, problem.params, problem.data)
    options = {"chunk_size": problem.chunk_size}
    per_example = operators.per_example_hessian(*common, **options)(v)
    close(jax.vmap(lambda t: ravel(t)[0])(per_example), hessians @ flat)
    prepared = jax.jit(lambda operator, v: operator.prepare().product(v))
    close(ravel(prepared(operators.hessian(*common, **options), v))[0], hessians.mean(0) @ flat)


@pytest.mark.parametrize("name", ["fnn", "convolutions"])
def test_the_definition_equals_the_dense_oracle(problems, dense, random_like, close, name, x64):
    """Not prepared, in uneven chunks."""
    problem = problems[name]()
    _, hessians = dense(problem)
    v = random_like(problem.params)
    operator = operators.hessian(problem.loss, problem.params, problem.data, chunk_size=3)
    close(ravel(operator(v))[0], hessians.mean(0) @ ravel(v)[0])


def test_same_shapes_compile_once(problems, random_like, x64):
    from jaxstab.operators.hessian import apply

    problem = problems["fnn"]()
    v = random_like(problem.params)
    make = lambda scale: operators.hessian_variance(  # noqa: E731
        problem.loss, jax.tree.map(lambda x: scale * x, problem.params), problem.data
    )
    make(1.0)(v)
    before = apply._cache_size()
    make(2.0)(v)
    make(3.0)(v)
    assert apply._cache_size() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "factord"}, "did you mean 'factored'"),
        ({"chunk_size": 0}, "at least 1"),
        ({"data": (np.zeros((0, 3)), np.zeros(0))}, "empty"),
        ({"data": (np.zeros((4, 3)), np.zeros(5))}, "differ"),
        ({"params": {"w": np.ones((3, 4), int), "v": np.ones(4)}}, "floating"),
        ({"params": {"w": np.ones((3, 4)), "v": np.tanh}}, r"\['v'\] is a ufunc.*eqx.partition"),
        ({"params": {"w": np.full((3, 4), np.nan), "v": np.ones(4)}}, "NaN"),
        ({"loss": lambda params, example: example[0] @ params["w"]}, "scalar"),
    ],
)
def test_wrong_input_is_explained(change, message, two_layers):
    given = {
        "loss": two_layers,
        "params": {"w": np.ones((3, 4)), "v": np.ones(4)},
        "data": (np.ones((5, 3)), np.ones(5)),
        **change,
    }
    loss, params, data = given.pop("loss"), given.pop("params"), given.pop("data")
    with pytest.raises((ValueError, TypeError), match=message):
        operators.hessian_variance(loss, params, data, **given)


def test_a_vector_of_another_shape_is_refused():
    operator = operators.hessian(lambda w, x: jnp.sum(w * x), np.ones(3), np.ones((2, 3)))
    with pytest.raises(ValueError, match="shape"):
        operator(np.ones(4))
    with pytest.raises(ValueError, match="structure"):
        operator((np.ones(3),))


def test_a_primitive_that_cannot_be_batched_is_named():
    def loss(params, example):
        rows, sizes = example
        return jnp.sum(jax.lax.ragged_dot(rows, params, sizes) ** 2)

    data = (np.ones((2, 7, 4), np.float32), np.full((2, 3), 2, np.int32))
    with pytest.raises(ValueError, match=r"cannot be batched .* ragged_dot"):
        operators.hessian_variance(loss, np.ones((3, 4, 5), np.float32), data)


def test_arrays_from_outside_are_checked_inside_jit():
    """Also those that are counted on the device, as all are on an accelerator."""
    params, data = jnp.ones(2, jnp.bfloat16), jnp.ones((3, 2), jnp.bfloat16)
    loss = lambda w, x: jnp.sum(w * x) ** 2  # noqa: E731
    product = lambda v: operators.hessian(loss, params, data)(v)  # noqa: E731
    assert jax.eval_shape(product, params).dtype == jnp.bfloat16
    bad = params * jnp.nan
    with pytest.raises(ValueError, match="params holds 2 values"):
        jax.eval_shape(lambda v: operators.hessian(loss, bad, data)(v), params)
