"""The stationary covariance: a fixed point of the moments, reached by runs, with its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import diffusion, linearized, variance_factor


@pytest.fixture(autouse=True)
def float64(x64):
    """Theorems are checked in float64."""


def problem_with_noise(n=6, p=3, seed=0, null=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(n, p, p))
    gradients = rng.normal(size=(n, p))
    if null:
        roots[:, -null:] = 0
        gradients[:, -null:] = 0
    return linearized.quadratic(roots @ roots.swapaxes(1, 2) / p, gradients - gradients.mean(0))


@pytest.mark.parametrize("null", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_the_covariance_is_the_fixed_point_that_the_moments_reach(batch_size, null):
    problem, eta = problem_with_noise(null=null), 0.1
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=batch_size)
    path = linearized.moments(
        problem, np.zeros(3), learning_rate=eta, batch_size=batch_size, steps=3000
    )
    np.testing.assert_allclose(found.covariance, path.second[-1], atol=1e-10)
    if batch_size == 6:
        np.testing.assert_array_equal(found.covariance, 0)
    h = problem.hessian
    assert found.excess_loss == pytest.approx(float(jnp.trace(h @ found.covariance)) / 2)
    assert found.gradient_square == pytest.approx(float(jnp.trace(h @ h @ found.covariance)))


def test_runs_settle_to_it():
    problem, eta = problem_with_noise(), 0.15
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=2)
    ends = linearized.simulate(
        problem,
        np.zeros(3),
        learning_rate=eta,
        batch_size=2,
        steps=60,
        runs=10_000,
        key=jax.random.key(0),
    )[:, -1]
    losses = jnp.einsum("rp,pq,rq->r", ends, problem.hessian, ends) / 2
    error = 5 * jnp.std(losses) / np.sqrt(len(losses))
    assert abs(losses.mean() - found.excess_loss) < error
    assert error < 0.1 * found.excess_loss  # the test can tell


def test_in_one_dimension_it_is_the_closed_form():
    # S = (1 - eta h)^2 S + eta^2 pi (s^2 S + c): S = eta pi c / (2 h - eta (h^2 + pi s^2)).
    h, g, eta = np.array([1.0, 2.0, 4.5]), np.array([1.0, -2.0, 1.0]), 0.2
    problem = linearized.quadratic(h, g[:, None])
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=2)
    pi, mean = variance_factor(3, 2), h.mean()
    # The cross moment of H_i x and g_i enters through E x = 0 only.
    expected = eta * pi * np.mean(g**2) / (2 * mean - eta * (mean**2 + pi * h.var()))
    np.testing.assert_allclose(found.covariance, [[expected]], rtol=1e-12)


def test_beyond_the_threshold_there_is_none():
    problem = problem_with_noise()
    eta = 2.1 / float(problem.sharpness)
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=1)
    assert bool(jnp.all(jnp.isnan(found.covariance)))
    free = linearized.quadratic(np.zeros((2, 1, 1)), np.array([[1.0], [-1.0]]))
    found = diffusion.stationary_covariance(free, learning_rate=0.1, batch_size=1)
    assert bool(jnp.isnan(found.excess_loss))  # noise without a restoring force wanders off


def test_lyapunov_solves_its_equation_and_gives_the_trace_formulas():
    problem, eta, pi = problem_with_noise(), 0.05, 0.3
    h = problem.hessian
    noise = problem.gradients.T @ problem.gradients / problem.n
    gamma = diffusion.lyapunov(h, noise)
    np.testing.assert_allclose(gamma @ h + h @ gamma, noise, atol=1e-12)
    found = diffusion.small_rate_covariance(h, noise, learning_rate=eta, variance_factor=pi)
    assert found.excess_loss == pytest.approx(eta * pi / 4 * float(jnp.trace(noise)))  # eq. 4.46
    assert found.gradient_square == pytest.approx(eta * pi / 2 * float(jnp.trace(noise @ h)))
    three = diffusion.small_rate_covariance(h, h, learning_rate=eta, variance_factor=pi)
    assert three.excess_loss == pytest.approx(eta * pi / 4 * float(jnp.trace(h)))  # three factors
    np.testing.assert_allclose(three.covariance, eta * pi / 2 * np.eye(3), atol=1e-12)


def test_the_exact_law_tends_to_the_first_order_one():
    problem = problem_with_noise()
    noise = problem.gradients.T @ problem.gradients / problem.n
    gaps = []
    for eta in (1e-2, 1e-3):
        exact = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=2)
        first = diffusion.small_rate_covariance(
            problem.hessian, noise, learning_rate=eta, variance_factor=variance_factor(6, 2)
        )
        gaps.append(float(exact.excess_loss / first.excess_loss - 1))
    assert 0 < gaps[1] < gaps[0] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)  # the relative error is O(eta)


# ---- theorems on random quadratics, d = 2 … 6 and n = 2 … 8 -------------------------------------

SIZES = pytest.mark.parametrize(("n", "p"), [(2, 2), (8, 3), (5, 6)])


def dense_maps(problem, pi):
    """C and D of section 2 as p² × p² matrices, and the threshold 2 / λ_max(C⁺ D)."""
    h, eye = np.asarray(problem.hessian), np.eye(problem.hessians.shape[1])
    c = (np.kron(h, eye) + np.kron(eye, h)) / 2
    each = np.mean([np.kron(one, one) for one in np.asarray(problem.hessians)], 0)
    d = (1 - pi) * np.kron(h, h) + pi * each
    values = np.linalg.eigvals(np.linalg.pinv(c, rcond=1e-10) @ d)
    return c, d, 2 / values.real.max()


@SIZES
@pytest.mark.parametrize("fraction", [0.1, 0.8])
def test_theorem_12_by_its_own_equation(n, p, fraction):
    """vec S = ηπ (2C − ηD)⁺ vec Σ_g with dense Kronecker products, up to 0.8 of the threshold."""
    problem, pi = problem_with_noise(n, p, seed=n * p), variance_factor(n, 1)
    c, d, threshold = dense_maps(problem, pi)
    eta, h = fraction * threshold, np.asarray(problem.hessian)
    noise = np.asarray(problem.gradients.T @ problem.gradients / n).ravel()
    dense = eta * pi * np.linalg.pinv(2 * c - eta * d, rcond=1e-10) @ noise
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=1)
    np.testing.assert_allclose(found.covariance.ravel(), dense, atol=1e-7 * np.abs(dense).max())
    assert float(found.excess_loss) == pytest.approx(h.ravel() @ dense / 2, rel=1e-6)
    assert float(found.gradient_square) == pytest.approx((h @ h).ravel() @ dense, rel=1e-6)


def test_the_law_in_float32_where_curvatures_differ_6000fold():
    rng, n, p = np.random.default_rng(0), 40, 10
    rows, gradients = (rng.normal(size=(n, p)) * np.geomspace(1, 0.01, p) for _ in range(2))
    each, gradients = np.einsum("np,nq->npq", rows, rows), gradients - gradients.mean(0)
    problem = linearized.quadratic(np.float32(each), np.float32(gradients))
    c, d, threshold = dense_maps(linearized.quadratic(each, gradients), pi := variance_factor(n, 1))
    eta = float(0.3 * threshold)  # not of NumPy, which is a float64 to JAX
    noise = (gradients.T @ gradients / n).ravel()
    dense = eta * pi * np.linalg.solve(2 * c - eta * d, noise)
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=1)
    assert found.excess_loss.dtype == np.float32
    assert float(found.excess_loss) == pytest.approx(each.mean(0).ravel() @ dense / 2, rel=1e-5)


@SIZES
def test_small_steps_have_four_factors(n, p):
    """Excess loss (ηπ/4) tr C_g and square gradient (ηπ/2) tr(C_g H), each up to O(η)."""
    problem, eta = problem_with_noise(n, p, seed=n + p), 1e-5
    noise = problem.gradients.T @ problem.gradients / n
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=1)
    pi, slack = variance_factor(n, 1), 20 * eta * float(problem.sharpness) * n
    assert float(found.excess_loss) == pytest.approx(
        eta * pi / 4 * float(jnp.trace(noise)), rel=slack
    )
    square = eta * pi / 2 * float(jnp.trace(noise @ problem.hessian))
    assert float(found.gradient_square) == pytest.approx(square, rel=slack)


@pytest.mark.parametrize("p", [2, 4, 6])
def test_three_factors_only_where_the_noise_is_the_hessian(p):
    """(ηπ/4) tr H: right to O(η) where C_g = H, and off by tr C_g / tr H elsewhere."""
    eta, problem = 1e-5, problem_with_noise(8, p, seed=p)
    problem = linearized.with_noise(problem, problem.hessian)
    noise = problem.gradients.T @ problem.gradients / problem.n
    np.testing.assert_allclose(noise, problem.hessian, atol=1e-12)
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=1)
    three = eta * variance_factor(problem.n, 1) / 4 * float(jnp.trace(problem.hessian))
    assert float(found.excess_loss) == pytest.approx(three, rel=1e-3)
    np.testing.assert_allclose(found.covariance, eta / 2 * np.eye(p), rtol=1e-2, atol=1e-2 * eta)
    other = linearized.with_noise(problem, 4 * problem.hessian)
    found = diffusion.stationary_covariance(other, learning_rate=eta, batch_size=1)
    assert float(found.excess_loss) == pytest.approx(4 * three, rel=1e-3)


@SIZES
def test_the_identity_of_one_step(n, p):
    """E f(x') = r f + (η²/2) tr(H N) over all batches of one, N the covariance of their slopes."""
    problem, eta = problem_with_noise(n, p, seed=3 * n + p), 0.3
    h, x = np.asarray(problem.hessian), np.random.default_rng(p).normal(size=p)
    slopes = np.asarray(problem.hessians) @ x + np.asarray(problem.gradients)
    after = np.mean([(y @ h @ y) / 2 for y in x - eta * slopes])
    found = diffusion.one_step(h, np.cov(slopes.T, bias=True), x, learning_rate=eta)
    assert float(found.next_loss) == pytest.approx(after, rel=1e-12)
    parts = float(found.ratio) * x @ h @ x / 2 + float(found.noise)
    assert parts == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize(("n", "p", "batch_size"), [(2, 2, 1), (5, 2, 2), (4, 3, 3)])
def test_moment_growth_of_order_two_is_the_mean_square_growth(n, p, batch_size):
    problem = problem_with_noise(n, p)
    c, d, _ = dense_maps(problem, variance_factor(n, batch_size))
    for eta in (0.1, 1.0):
        options = {"learning_rate": eta, "batch_size": batch_size}
        dense = np.abs(np.linalg.eigvalsh(np.eye(p * p) - 2 * eta * c + eta**2 * d)).max()
        found = linearized.moment_growth(problem, order=2, **options)
        assert found == pytest.approx(dense, rel=1e-10)
        assert linearized.moment_growth(problem, order=4, **options) >= dense**2 * (1 - 1e-12)
    with pytest.raises(ValueError, match="too many: at most 10000 and 1000"):
        linearized.moment_growth(problem, order=20, **options)


# ---- a minimum of a model, reduced --------------------------------------------------------------


def linear_model(n=8, p=5, k=2, seed=0):
    """Least squares with residuals: the loss, its minimum, data, and the same as a quadratic."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, k, p)), rng.normal(size=(n, k))
    w = np.linalg.lstsq(x.reshape(-1, p), y.ravel(), rcond=None)[0]
    hessians = 2 / k * x.swapaxes(1, 2) @ x
    gradients = 2 / k * np.einsum("nkp,nk->np", x, x @ w - y)
    loss = lambda w, example: jnp.mean((example[0] @ w - example[1]) ** 2)  # noqa: E731
    data = jnp.asarray(x), jnp.asarray(y)
    return loss, jnp.asarray(w), data, linearized.quadratic(hessians, gradients)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_in_the_whole_space_the_reduced_law_is_the_exact_one(fraction):
    loss, w, data, problem = linear_model()
    found = diffusion.noisy_minimum(loss, w, data, rank=5, key=jax.random.key(0))
    values = np.linalg.eigvalsh(problem.hessian)[::-1]
    np.testing.assert_allclose(found.curvatures, values, rtol=1e-8)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(5), atol=1e-8)
    np.testing.assert_allclose(found.drift, 0, atol=1e-8)
    eta = fraction * dense_maps(problem, variance_factor(8, 2))[2]
    options = {"learning_rate": eta, "batch_size": 2}
    ours = diffusion.reduced_stationary_covariance(found, **options)
    dense = diffusion.stationary_covariance(problem, **options)
    v = np.asarray(found.directions)
    np.testing.assert_allclose(v.T @ ours.covariance @ v, dense.covariance, rtol=1e-5, atol=1e-9)
    assert ours.excess_loss == pytest.approx(float(dense.excess_loss), rel=1e-6)
    assert ours.gradient_square == pytest.approx(float(dense.gradient_square), rel=1e-6)
    beyond = {"learning_rate": eta / fraction * 1.1, "batch_size": 2}
    assert np.isnan(diffusion.reduced_stationary_covariance(found, **beyond).excess_loss)


def test_in_a_subspace_small_steps_are_those_of_the_projected_noise():
    loss, w, data, problem = linear_model()
    found = diffusion.noisy_minimum(loss, w, data, rank=3, key=jax.random.key(0))
    v = np.linalg.eigh(problem.hessian)[1][:, :-4:-1]
    noise = np.asarray(problem.gradients.T @ problem.gradients / problem.n)
    assert np.trace(found.noise) == pytest.approx(np.trace(v.T @ noise @ v), rel=1e-8)
    options = {"learning_rate": 1e-5, "batch_size": 2}
    ours = diffusion.reduced_stationary_covariance(found, **options)
    four = 1e-5 * variance_factor(8, 2) / 4 * np.trace(found.noise)
    assert ours.excess_loss == pytest.approx(four, rel=1e-3)
    full = diffusion.reduced_stationary_covariance(found, learning_rate=0.1, batch_size=8)
    assert full.excess_loss == 0  # gradient descent has no noise


def test_gradients_of_a_network_with_cross_entropy_reduce():
    """Singular A_i: the projected gradients are those of the model."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(6, 4))), jnp.eye(3)[np.array([0, 1, 2, 0, 1, 1])]
    w = jnp.asarray(rng.normal(size=(4, 3)))
    loss = lambda w, example: -jnp.sum(example[1] * jax.nn.log_softmax(example[0] @ w))  # noqa: E731
    found = diffusion.noisy_minimum(loss, w, (x, y), rank=4, key=jax.random.key(0))
    gradients = jax.vmap(jax.grad(loss), (None, 0))(w, (x, y))
    along = np.einsum("nab,rab->nr", gradients, found.directions)
    np.testing.assert_allclose(found.drift, along.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.gradients, along - along.mean(0), atol=1e-6)


def test_wrong_ranks():
    loss, w, data, _ = linear_model()
    for rank, message in ((0, "rank must be at least 1"), (16, "below the number of outputs")):
        with pytest.raises(ValueError, match=message):
            diffusion.noisy_minimum(loss, w, data, rank=rank, key=jax.random.key(0))
