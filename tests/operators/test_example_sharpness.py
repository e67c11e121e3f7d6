"""λ_max of every full H_i against dense Hessians in float64; Gauss–Newton: see `test_outputs`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree as ravel

from jaxstab import eigen, operators
from jaxstab.operators import example_sharpness

N, WIDTH = 10, 10  # 40 parameters: more than a process holds, so that it restarts if it has to
TOL = 1e-3


@pytest.fixture
def problem(two_layers, x64):
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(3, WIDTH))),
        "v": jnp.asarray(rng.normal(size=WIDTH)),
    }
    return (
        two_layers,
        params,
        (jnp.asarray(rng.normal(size=(N, 3))), jnp.asarray(rng.normal(size=N))),
    )


def find(problem, scale=1.0, **options):
    loss, params, data = problem
    params = jax.tree.map(lambda leaf: scale * leaf, params)
    solver = eigen.lanczos(tol=TOL, failure_probability=1e-3 / N)  # another object every time
    return operators.per_example_sharpness(
        loss, params, data, solver=solver, key=jax.random.key(0), **options
    )


def test_values_and_intervals_hold_the_dense_eigenvalues(problem):
    loss, params, data = problem
    flat, unravel = ravel(params)
    hessian = jax.hessian(lambda flat, example: loss(unravel(flat), example))
    true = np.linalg.eigvalsh(jax.vmap(hessian, (None, 0))(flat, data))[:, -1]
    found = find(problem)
    assert found.vector is None and bool(found.converged.all())
    for part in (found.value, found.residual, *found.interval, found.matvecs):
        assert part.shape == (N,)
    assert (found.interval.lower <= true).all() and (true <= found.interval.upper).all()
    assert (found.interval.upper - found.interval.lower <= TOL * np.abs(found.value)).all()
    assert (found.matvecs > 2).all() and (found.matvecs < flat.size).all()
    gauss_newton = operators.per_example_sharpness(loss, params, data)
    assert np.abs(gauss_newton - true).max() > 10 * TOL * true.max()  # the residual matters here


def test_one_program_a_shape_whatever_the_chunks(problem):
    whole = find(problem)
    compiled = example_sharpness._solved._cache_size()
    find(problem, scale=0.5)
    assert example_sharpness._solved._cache_size() == compiled
    parts = find(problem, chunk_size=5)
    for name in ("value", "matvecs", "converged"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9)
    np.testing.assert_allclose(parts.interval.upper, whole.interval.upper, rtol=TOL)


def test_large_bases_are_held_for_some_examples_at_a_time(monkeypatch):
    params = jnp.zeros(1000, jnp.float32)
    assert example_sharpness._automatic_chunk(params, 10) == 10
    monkeypatch.setattr(example_sharpness, "CHUNK_MEMORY", 4 * 66 * 4000)
    assert example_sharpness._automatic_chunk(params, 10) == 4  # 4 + 4 + 2
    monkeypatch.setattr(example_sharpness, "CHUNK_MEMORY", 1)
    assert example_sharpness._automatic_chunk(params, 10) == 1


def test_what_cannot_be_done_is_refused_at_once(problem):
    loss, params, data = problem
    with pytest.raises(ValueError, match="give key="):
        operators.per_example_sharpness(loss, params, data, solver=eigen.lanczos())
    with pytest.raises(TypeError, match="'hessian'"):
        operators.per_example_sharpness(loss, params, data, solver="hessian")
    with pytest.raises(ValueError, match="chunk_size"):
        find(problem, chunk_size=0)
