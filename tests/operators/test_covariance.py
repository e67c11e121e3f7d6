"""C_g against the covariance of dense per-example gradients."""

import jax
import numpy as np

from jaxstab import operators

ravel = jax.flatten_util.ravel_pytree


def test_covariance_equals_the_dense_oracle(problem, dense, random_like, close):
    """In chunks of the problem's choice, most of them uneven."""
    gradients, _ = dense(problem)
    v = random_like(problem.params)
    operator = operators.gradient_covariance(
        problem.loss, problem.params, problem.data, chunk_size=problem.chunk_size
    )
    close(ravel(operator(v))[0], np.cov(gradients.T, bias=True) @ ravel(v)[0], 1e-9)
