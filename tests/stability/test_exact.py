"""The exact mean-square threshold against dense algebra, closed forms and its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import exact, linearized, variance_factor

SHAPES = [(4, 1, 6), (5, 2, 3), (3, 2, 12)]  # n, k, p: n k below, above and far below p


def factors(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def threshold(reduced, batch_size, **options):
    return exact.mean_square_threshold(
        reduced, batch_size=batch_size, key=jax.random.key(0), **options
    )


def dense_threshold(hessians, pi):
    """2 / lambda_max(C^+ D) from the p^2 x p^2 matrices of the definition."""
    p = hessians.shape[1]
    h, one = hessians.mean(0), np.eye(p)
    c = (np.kron(h, one) + np.kron(one, h)) / 2
    d = (1 - pi) * np.kron(h, h) + pi * np.mean([np.kron(hi, hi) for hi in hessians], 0)
    return 2 / np.linalg.eigvals(np.linalg.pinv(c, rcond=1e-10) @ d).real.max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size, replacement", [(1, False), (2, False), (3, True)])
def test_threshold_is_that_of_the_dense_definition(shape, batch_size, replacement):
    f = factors(shape)
    pi = variance_factor(shape[0], batch_size, replacement)
    expected = dense_threshold(np.einsum("nkp,nkq->npq", f, f), pi)
    found = threshold(exact.reduce(f), batch_size, replacement=replacement)
    assert found.converged
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.interval.lower <= expected * (1 + 1e-12)
    assert found.interval.upper >= expected * (1 - 1e-12)
    assert np.linalg.eigvalsh(found.moments)[0] > -1e-4  # Thm 14: it grows as a covariance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_bounds(shape, seed):
    reduced = exact.reduce(factors(shape, seed))
    n, a = shape[0], reduced.curvatures[0]
    values = [threshold(reduced, b).value for b in range(1, n + 1)]
    assert np.all(np.diff(values) > -1e-9)  # Prop. 6: non-decreasing in B
    assert values[-1] == pytest.approx(2 / a, rel=1e-6)  # ... and gradient descent at B = n
    for b, value in enumerate(values, 1):
        assert exact.sufficient_learning_rate(reduced, batch_size=b) <= value * (1 + 1e-6)
        assert value <= exact.trace_bound(reduced, batch_size=b) * (1 + 1e-6)
        directions = np.random.default_rng(1).normal(size=(20, len(reduced.curvatures)))
        for v in [np.eye(len(reduced.curvatures))[0], *directions]:  # eq. 17, then eq. 27
            v = v / np.linalg.norm(v)
            along = np.einsum("r,nrs,s->n", v, reduced.hessians(), v)
            assert value <= exact.direction_bound(along, batch_size=b) * (1 + 1e-6)
        assert value <= 2 / a * (1 + 1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_moments_that_grow_first_are_a_covariance_where_several_do(batch_size):
    """Of equal round H_i every S grows alike: the one handed out is still a covariance."""
    reduced = exact.reduce(np.stack([np.sqrt(2) * np.eye(3)] * 4))
    found = threshold(reduced, batch_size)
    assert found.value == pytest.approx(1, rel=1e-9)
    assert np.linalg.eigvalsh(found.moments)[0] > -1e-9
    assert np.linalg.norm(found.moments) == pytest.approx(1)


def test_in_one_dimension_everything_is_eq_8():
    h = np.array([0.2, 3.8, 1.0])
    reduced = exact.reduce_hessians(h[:, None, None])
    # (1 - eta a)^2 + eta^2 pi s^2 = 1 at eta = 2a / (a^2 + pi s^2)
    expected = 2 * h.mean() / (h.mean() ** 2 + variance_factor(3, 1) * h.var())
    assert threshold(reduced, 1).value == pytest.approx(expected, rel=1e-10)
    assert exact.sufficient_learning_rate(reduced, batch_size=1) == pytest.approx(expected)
    assert exact.direction_bound(h, batch_size=1) == pytest.approx(expected)
    assert exact.trace_bound(reduced, batch_size=1) == pytest.approx(expected)


def test_the_threshold_is_where_the_growth_crosses_one():
    reduced = exact.reduce(factors(SHAPES[0]))
    edge = threshold(reduced, 2).value
    for scale, side in [(0.99, -1), (1.0, 0), (1.01, 1)]:
        growth = exact.mean_square_growth(
            reduced, learning_rate=scale * edge, batch_size=2, key=jax.random.key(0)
        )
        assert np.sign(round(float(growth.value) - 1, 5)) == side
    with jax.enable_x64(True):  # the same growth as that of the dense linearised problem
        problem = linearized.quadratic(reduced.hessians())
        step = linearized.MomentMap(problem, 1.01 * edge, variance_factor(4, 2))
        dense = jax.vmap(step)(jnp.eye(16).reshape(16, 4, 4)).reshape(16, 16)
    assert growth.value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-5)


def test_runs_grow_above_the_threshold_and_shrink_below_it():
    reduced = exact.reduce(factors(SHAPES[0]))
    edge = threshold(reduced, 1).value
    for scale, grows in [(0.8, False), (1.3, True)]:
        second = linearized.moments(
            linearized.quadratic(reduced.hessians()),
            np.ones(4),
            learning_rate=scale * edge,
            batch_size=1,
            steps=100,
        ).second
        assert (np.trace(second[100]) > np.trace(second[50])) == grows


def test_reduction_keeps_the_hessians():
    f = factors((3, 2, 12))
    f[2] = f[0]  # rank 4
    reduced = exact.reduce(f)
    assert reduced.factors.shape == (3, 2, 4) and reduced.basis.shape == (12, 4)
    full = reduced.basis @ reduced.hessians() @ reduced.basis.T
    np.testing.assert_allclose(full, np.einsum("nkp,nkq->npq", f, f), atol=1e-12)
    np.testing.assert_allclose(reduced.hessians().mean(0), np.diag(reduced.curvatures), atol=1e-12)
    again = exact.reduce_hessians(full)
    np.testing.assert_allclose(again.curvatures, reduced.curvatures, rtol=1e-10)


def test_a_flat_problem_has_no_threshold():
    reduced = exact.reduce(np.zeros((3, 1, 4)))
    assert threshold(reduced, 1).value == np.inf
    assert exact.sufficient_learning_rate(reduced, batch_size=1) == np.inf
    assert exact.trace_bound(reduced, batch_size=1) == np.inf
    assert exact.direction_bound(np.zeros(3), batch_size=1) == np.inf


def loss(params, example):
    x, y = example
    return jnp.mean((predict(params, x) - y) ** 2)


def predict(params, x):
    return params["v"] @ jnp.tanh(params["w"] @ x)


def test_factors_and_curvatures_of_a_network(x64):
    rng = np.random.default_rng(0)
    params = {"v": jnp.asarray(rng.normal(size=(2, 3))), "w": jnp.asarray(rng.normal(size=(3, 4)))}
    x = jnp.asarray(rng.normal(size=(5, 4)))
    data = (x, jax.vmap(lambda x: predict(params, x))(x))  # interpolated: no residual
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def hessian_of(example):
        return jax.hessian(lambda flat: loss(unravel(flat), example))(flat)

    hessians = jax.vmap(hessian_of)(data)
    f = exact.squared_loss_factors(predict, params, x)
    assert f.shape == (5, 2, 18)
    np.testing.assert_allclose(jnp.einsum("nkp,nkq->npq", f, f), hessians, atol=1e-12)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: exact.reduce(np.ones((3, 4))), r"shape \(n, k, p\)"),
        (lambda: exact.reduce(np.full((1, 1, 1), np.nan)), "NaN"),
        (lambda: exact.reduce_hessians(np.ones((3, 4))), r"shape \(n, p, p\)"),
        (lambda: exact.reduce_hessians(np.arange(4.0).reshape(1, 2, 2)), "symmetric"),
        (lambda: exact.reduce_hessians(np.diag([1.0, -1.0])[None]), "hessian 0 has the eigenvalue"),
        (lambda: threshold(exact.reduce(np.ones((3, 1, 1))), 4), "above the number of examples 3"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
