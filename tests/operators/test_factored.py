"""The factored form at other precisions and at many minima at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators

ravel = jax.flatten_util.ravel_pytree


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lower_precision_agrees_to_its_own_rounding(problems, random_like, dtype):
    with jax.enable_x64(True):
        problem = problems["fnn"]()
        exact = operators.hessian_variance(problem.loss, problem.params, problem.data)
        v = random_like(problem.params)
        expected = np.asarray(ravel(exact(v))[0])
        cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)  # noqa: E731
        operator = operators.hessian_variance(
            problem.loss, cast(problem.params), cast(problem.data)
        )
        got = operator(cast(v))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(got))
    got = np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(got)])
    # Σ v is a difference of terms a few times its size, each with a few tens of roundings.
    tolerance = 300 * float(jnp.finfo(dtype).eps)
    assert np.linalg.norm(got - expected) < tolerance * np.linalg.norm(expected)


def test_many_minima_at_once(problems, random_like, x64, close):
    problem = problems["vgg"]()
    several = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), problem.params)
    v = random_like(problem.params)

    def product(params):
        return operators.hessian_variance(problem.loss, params, problem.data)(v)

    batched = jax.vmap(product)(several)
    for i in range(2):
        params, got = jax.tree.map(lambda x, i=i: x[i], (several, batched))
        close(ravel(got)[0], ravel(product(params))[0])
