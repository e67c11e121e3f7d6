"""The mean-square threshold in growing subspaces, against the dense one of `exact`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxstab as js
from jaxstab.stability import exact, subspace, threshold, variance_factor

KEY = jax.random.key(0)


def linear_loss(w, example):
    """Squared loss of a linear model with k outputs: H_i = F_iᵀ F_i with any F_i one likes."""
    rows, y = example
    return jnp.sum((rows @ w - y) ** 2) / 2


def linear_problem(shape, seed, dtype):
    """H_i with F_i = scaled rows, of curvatures that differ a lot between examples."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=shape) * np.exp(rng.normal(size=(shape[0], 1, 1)))
    w = rng.normal(size=shape[2])
    f, w = (jnp.asarray(x, dtype) for x in (f, w))
    return linear_loss, w, (f, f @ w), np.asarray(f, float)


SHAPES = [(5, 2, 3), (6, 2, 15)]  # n, k, p: under- and over-parametrised


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_chain_of_bounds(shape, seed, x64):
    """Every inequality, on problems over- and under-parametrised, for every batch size."""
    loss, w, data, f = linear_problem(shape, seed, float)
    n = len(f)
    found = js.mean_square_threshold(loss, w, data, batch_sizes=range(1, n + 1), key=KEY)
    reduced = exact.reduce(f)
    truth = np.array(
        [exact.mean_square_threshold(reduced, batch_size=b, key=KEY).value for b in range(1, n + 1)]
    )
    slack = 1 + 1e-5
    chain = [found.bounds[name] for name in ("sharpest example", "eq. 8")]
    chain += [truth, *(found.bounds[name] for name in ("eq. 27", "eq. 17", "2/a"))]
    for below, above in itertools.pairwise(chain):
        assert np.all(below <= above * slack)
    assert np.all(found.interval.lower <= truth * slack)
    assert np.all(truth <= found.interval.upper * slack)
    assert np.all(found.converged)
    np.testing.assert_allclose(found.value, truth, rtol=1e-4)
    assert np.all(np.diff(found.value) >= -1e-9) and found.value[-1] == pytest.approx(truth[-1])
    # Eq. 8 in the space of outputs: that of eq. 8 itself where F has full row rank, else below it.
    eq8 = [exact.sufficient_learning_rate(reduced, batch_size=b) for b in range(1, n + 1)]
    assert np.all(found.bounds["eq. 8"] <= np.array(eq8) * slack)
    if n * shape[1] <= shape[2]:
        np.testing.assert_allclose(found.bounds["eq. 8"], eq8, rtol=2e-3)


@functools.cache
def digits_network():
    """A network trained on 40 digits of three classes: n k = 120 rows."""
    train = js.data.load("digits", n_train=40, classes=["0", "1", "2"]).train
    loss = js.ModelLoss(js.models.fnn((16,), classes=3))
    params = js.models.initialize(loss.model, KEY, train[0][0], 1.0)

    @jax.jit
    def descend(params):
        mean = lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, train))  # noqa: E731
        step = lambda _, p: jax.tree.map(lambda x, g: x - 0.5 * g, p, jax.grad(mean)(p))  # noqa: E731
        return jax.lax.fori_loop(0, 1000, step, params)

    return loss, descend(params), train


def factors_of(data):
    loss, params, _ = digits_network()
    return exact.squared_loss_factors(lambda p, x: loss.predict(p, x[None])[0], params, data[0])


def test_subspace_against_the_dense_threshold_of_a_network():
    loss, params, train = digits_network()
    sizes = [1, 5, 20]
    reduced = exact.reduce(factors_of(train))
    assert len(reduced.curvatures) > 110
    found = js.mean_square_threshold(loss, params, train, batch_sizes=sizes, key=KEY, max_rank=100)
    for i, size in enumerate(sizes):
        truth = exact.mean_square_threshold(reduced, batch_size=size, key=KEY, tol=1e-4).value
        assert found.converged[i]
        assert found.interval.lower[i] <= truth <= found.interval.upper[i]
        assert truth <= found.value[i] * (1 + 1e-4)
        assert found.value[i] == pytest.approx(truth, rel=1e-2)
    assert found.rank < 110


@pytest.mark.slow
def test_results_depend_neither_on_chunking_nor_on_how_the_kernel_is_held(monkeypatch):
    loss, params, train = digits_network()
    options = {"batch_sizes": [1, 5, 20], "key": KEY, "max_rank": 100}
    whole = js.mean_square_threshold(loss, params, train, **options)
    monkeypatch.setattr(threshold, "_HELD", 0)
    parts = js.mean_square_threshold(loss, params, train, chunk_size=11, **options)
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-4)
    np.testing.assert_allclose(whole.example_sharpness, parts.example_sharpness, rtol=1e-4)
    # Both are upper ends of intervals 10 % wide.
    assert whole.residual == pytest.approx(parts.residual, rel=0.1)


@pytest.mark.slow
def test_moment_vectors_give_the_value_back():
    """The vectors of parameters that are handed out are those that the quotient was taken of."""
    loss, params, train = digits_network()
    found = js.mean_square_threshold(loss, params, train, batch_sizes=[1, 5, 20], key=KEY)
    f = factors_of(train)
    leaves = [np.asarray(x).reshape(-1) for x in jax.tree.leaves(params)]
    q = found.weights.shape[1]
    flat = np.stack(
        [
            np.concatenate([np.asarray(x[0, j]).ravel() for x in jax.tree.leaves(found.vectors)])
            for j in range(q)
        ],
        1,
    )
    assert flat.shape == (sum(map(len, leaves)), q)
    np.testing.assert_allclose(flat.T @ flat, np.eye(q), atol=1e-3)
    s = (flat * found.weights[0]) @ flat.T
    rows = np.asarray(f, float)
    h = [r.T @ r for r in rows]
    mean, pi = np.mean(h, 0), variance_factor(40, 1)
    d = (1 - pi) * mean @ s @ mean + pi * np.mean([hi @ s @ hi for hi in h], 0)
    quotient = np.sum(s * d) / np.sum(s * (mean @ s))
    assert 2 / quotient >= found.value[0] * (1 - 1e-4)  # any S gives a bound
    best = subspace.dense_maximum(np.array([flat.T @ hi @ flat for hi in h]), pi)
    assert quotient <= best * (1 + 1e-6) and 2 / best >= found.value[0] * (1 - 1e-4)
    # The residuals of this network are small: the full Hessians give nearly the same.
    assert found.full_hessian[0] == pytest.approx(2 / best, rel=0.1)
    assert found.interval.upper[0] >= found.full_hessian[0]


@pytest.mark.slow
def test_full_hessian_bound_is_that_of_the_dense_full_hessians(x64):
    """With residuals, the quotient of the exact H_i along the leading vectors; E_i is bounded."""
    rng = np.random.default_rng(0)

    def loss(params, example):
        x, y = example
        return jnp.sum((params["v"] @ jnp.tanh(params["w"] @ x) - y) ** 2)

    params = {"v": jnp.asarray(rng.normal(size=(2, 3))), "w": jnp.asarray(rng.normal(size=(3, 2)))}
    data = tuple(jnp.asarray(rng.normal(size=(6, 2))) for _ in range(2))
    found = js.mean_square_threshold(loss, params, data, batch_sizes=[1], key=KEY)
    flat, unravel = ravel_pytree(params)

    def hessian(example):
        return jax.hessian(lambda flat: loss(unravel(flat), example))(flat)

    h = np.asarray(jax.vmap(hessian)(data))
    v = np.stack(
        [
            ravel_pytree(jax.tree.map(lambda x, j=j: x[0, j], found.vectors))[0]
            for j in range(found.weights.shape[1])
        ],
        1,
    )
    quotient = subspace.dense_maximum(v.T @ h @ v, variance_factor(6, 1))
    assert found.full_hessian[0] == pytest.approx(2 / quotient, rel=1e-6)
    f = jax.vmap(
        lambda e: jax.jacrev(
            lambda flat: (lambda p: p["v"] @ jnp.tanh(p["w"] @ e[0]))(unravel(flat))
        )(flat)
    )(data)
    rest = h - 2 * np.einsum("nkp,nkq->npq", f, f)
    exact_residual = np.sqrt(np.linalg.eigvalsh(np.mean(rest @ rest, 0))[-1])
    assert exact_residual * (1 - 1e-9) <= found.residual <= 1.2 * exact_residual


def test_growth_solves_the_lyapunov_equation():
    """From two examples that are not the sharpest, growths find the maximum from below."""
    rng = np.random.default_rng(0)
    n, k, p = 8, 2, 40
    f = rng.normal(size=(n, k, p)) * np.linspace(0.5, 2, n)[:, None, None] + 2 * rng.normal(size=p)
    rows = f.reshape(n * k, p)
    kernel = lambda columns: rows @ (rows.T @ columns)  # noqa: E731
    space = subspace.extend(None, np.eye(n * k)[:, :2], kernel, k)
    np.testing.assert_allclose(space.coefficients.T @ space.images, np.eye(2), atol=1e-10)
    pi = variance_factor(n, 1)
    truth = 2 / exact.mean_square_threshold(exact.reduce(f), batch_size=1, key=KEY).value
    values = []
    for _ in range(3):
        found = subspace.growing(space, pi, tol=1e-6)
        values.append(found.value)
        assert np.linalg.eigvalsh(found.moments)[0] > -1e-6
        space = subspace.grow(space, found, pi, kernel=kernel, add=6)
    assert np.all(np.diff(values) >= -1e-9) and values[-1] <= truth * (1 + 1e-9)
    assert values[0] < 0.9 * truth and values[-1] > 0.995 * truth


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_sizes": []}, "at least one B"),
        ({"batch_sizes": [7]}, "above the number of examples"),
        ({"batch_sizes": [1], "tol": 0.0}, "tol must be"),
        ({"batch_sizes": [1], "max_rank": 0}, "max_rank must be at least 1"),
    ],
)
def test_wrong_options_are_named(options, words):
    loss, w, data, _ = linear_problem((5, 2, 3), 0, jnp.float32)
    with pytest.raises(ValueError, match=words):
        js.mean_square_threshold(loss, w, data, key=KEY, **options)


def test_too_small_a_rank_is_not_converged_but_bounds():
    loss, w, data, f = linear_problem((6, 2, 15), 0, jnp.float32)
    found = js.mean_square_threshold(loss, w, data, batch_sizes=[2], key=KEY, max_rank=2)
    truth = exact.mean_square_threshold(exact.reduce(f), batch_size=2, key=KEY).value
    assert not found.converged[0] and "NOT CONVERGED" in str(found)
    assert found.interval.lower[0] <= truth <= found.interval.upper[0]
    with pytest.raises(ValueError, match="no threshold for batch size 3"):
        found.index(3)
