"""H, (1/n) Σ H_i² and Σ: every method against the dense float64 oracle, and their identities."""

import collections

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators
from jaxstab.callables import as_pytree
from jaxstab.operators.factored import read_structure

ravel = jax.flatten_util.ravel_pytree


def close(got, expected, tolerance=1e-10):
    """Relative to the norm: the agreement asked for in float64 is 1e-10."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert np.linalg.norm(got - expected) <= tolerance * (1e-30 + np.linalg.norm(expected))


def test_every_operator_equals_the_dense_oracle(problem, dense, random_like):
    """In chunks of the problem's choice, most of them uneven, and prepared with all at once."""
    gradients, hessians = dense(problem)
    v = random_like(problem.params)
    flat = np.asarray(ravel(v)[0])
    mean = hessians.mean(0)
    square = np.einsum("nij,njk->ik", hessians, hessians) / len(hessians)
    common = (problem.loss, problem.params, problem.data)
    options = {"chunk_size": problem.chunk_size}

    def close_to_variance(got):
        """Where n = 1 it is zero, up to rounding of the two terms."""
        scale = 0 if len(hessians) > 1 else np.linalg.norm(square @ flat)
        expected = (square - mean @ mean) @ flat
        assert np.linalg.norm(got - expected) <= 1e-10 * (scale + np.linalg.norm(expected))

    per_example = operators.per_example_hessian(*common, **options)(v)
    close(jax.vmap(lambda t: ravel(t)[0])(per_example), hessians @ flat)
    covariance = np.cov(gradients.T, bias=True) @ flat
    close(ravel(operators.gradient_covariance(*common, **options)(v))[0], covariance, 1e-9)
    for method in ("vmap", "factored"):
        variance = operators.hessian_variance(*common, method=method, **options)
        close_to_variance(ravel(variance(v))[0])

    prepared = jax.jit(lambda operator, v: operator.prepare().product(v))
    close(ravel(prepared(operators.hessian(*common, **options), v))[0], mean @ flat)
    close(ravel(prepared(operators.hessian_second_moment(*common), v))[0], square @ flat)
    close_to_variance(ravel(prepared(operators.hessian_variance(*common), v))[0])


@pytest.mark.parametrize("name", ["fnn", "convolutions"])
def test_definitions_equal_the_dense_oracle(problems, dense, random_like, name, x64):
    """H and (1/n) Σ H_i² not prepared, in uneven chunks."""
    problem = problems[name]()
    _, hessians = dense(problem)
    v = random_like(problem.params)
    flat = np.asarray(ravel(v)[0])
    common = (problem.loss, problem.params, problem.data)
    close(ravel(operators.hessian(*common, chunk_size=3)(v))[0], hessians.mean(0) @ flat)
    square = np.einsum("nij,njk->ik", hessians, hessians) / len(hessians)
    for method in ("vmap", "factored"):
        moment = operators.hessian_second_moment(*common, method=method, chunk_size=3)
        close(ravel(moment(v))[0], square @ flat)


def test_structure_is_as_expected(problem):
    """What is fast stays fast: the form of every leaf is part of the contract."""
    structure = read_structure(as_pytree(problem.loss), problem.params, problem.data)
    assert dict(collections.Counter(leaf.form for leaf in structure.leaves)) == problem.forms


def test_explain_names_every_leaf_and_the_reason(problems, x64):
    weight_norm = problems["weight_norm"]()
    text = operators.explain(weight_norm.loss, weight_norm.params, weight_norm.data)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "non-linearly" in lines["params['direction']"]
    assert "2 places" in lines["params['tied']"]
    assert "not used" in lines["params['unused']"]
    lstm = problems["scanned_lstm"]()
    assert "scan" in operators.explain(lstm.loss, lstm.params, lstm.data)


@pytest.mark.parametrize("name", ["fnn", "fnn_cross_entropy", "one_output", "vgg"])
def test_gauss_newton_is_its_dense_form(problems, random_like, x64, name):
    problem = problems[name]()
    flat, unravel = ravel(problem.params)
    v = random_like(problem.params)
    x, y = problem.data

    def outputs(flat, x):
        return problem.loss.predict(unravel(flat), x[None])[0]

    jacobians = jax.vmap(jax.jacobian(outputs), (None, 0))(flat, x)
    f = jax.vmap(outputs, (None, 0))(flat, x)
    curvature = jax.vmap(jax.hessian(problem.loss.loss))(f, y)
    g = np.einsum("nkp,nkl,nlq->npq", jacobians, curvature, jacobians)
    square = np.einsum("nij,njk->ik", g, g) / len(g)
    expected = (square - g.mean(0) @ g.mean(0)) @ ravel(v)[0]
    common = (problem.loss, problem.params, problem.data)
    moment = operators.hessian_second_moment(*common, method="gauss_newton", chunk_size=3)
    close(ravel(moment(v))[0], square @ ravel(v)[0])
    variance = operators.hessian_variance(*common, method="gauss_newton")
    prepared = jax.jit(lambda operator, v: operator.prepare()(v))(variance, v)
    close(ravel(prepared)[0], expected, 1e-9)


def test_gauss_newton_refuses_a_loss_without_outputs(problems, x64):
    """A regulariser reaches the loss past the outputs; what follows their sum is linear."""
    problem = problems["weight_norm"]()

    def halved(params, example):
        return 0.5 * problem.loss(params, example)

    for loss in (problem.loss, halved):
        with pytest.raises(ValueError, match="more than one way"):
            operators.hessian_variance(loss, problem.params, problem.data, method="gauss_newton")


def test_gauss_newton_bound_holds_and_vanishes_at_interpolation(problems, dense, x64):
    problem = problems["fnn"]()
    x, y = problem.data
    exact = (x, problem.loss.predict(problem.params, x))
    key = jax.random.key(0)
    arguments = (problem.loss, problem.params)
    assert operators.gauss_newton_difference(*arguments, exact, key=key).value < 1e-12
    # the Frobenius bound itself against dense E_i: 200 probes, 5 standard errors
    estimate = operators.gauss_newton_difference(*arguments, (x, y), key=key, probes=200)
    _, hessians = dense(problem)
    flat, unravel = ravel(problem.params)

    def outputs(flat, x):
        return problem.loss.predict(unravel(flat), x[None])[0]

    jacobians = jax.vmap(jax.jacobian(outputs), (None, 0))(flat, x)
    g = 2 / y.shape[1] * np.einsum("nkp,nkq->npq", jacobians, jacobians)
    bound = np.sqrt(np.mean(np.sum((hessians - g) ** 2, axis=(1, 2))))
    assert abs(estimate.value - bound) < 5 * estimate.standard_error

    def s(h):
        return np.sqrt(np.linalg.eigvalsh(np.einsum("nij,njk->ik", h, h) / len(h) - h.mean(0) @ h.mean(0))[-1])  # noqa: E501  # fmt: skip

    assert abs(s(hessians) - s(g)) <= bound


@hypothesis.given(seed=st.integers(0, 2**16), chunk_size=st.integers(1, 9))
@hypothesis.settings(max_examples=6, deadline=None)
def test_identities(seed, chunk_size):
    """Symmetry, positivity, second moment = H² + Σ, invariance to chunks and to order."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=4))}
        data = (jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.normal(size=9)))
        u, v = ({k: jnp.asarray(rng.normal(size=x.shape)) for k, x in params.items()} for _ in "uv")
        sigma = operators.hessian_variance(_two_layers, params, data)
        h = operators.hessian(_two_layers, params, data)
        moment = operators.hessian_second_moment(_two_layers, params, data)
        dot = lambda a, b: float(ravel(a)[0] @ ravel(b)[0])  # noqa: E731
        scale = abs(dot(v, moment(v))) + abs(dot(u, moment(u)))
        assert abs(dot(u, sigma(v)) - dot(v, sigma(u))) <= 1e-12 * scale
        assert dot(v, sigma(v)) >= -1e-12 * scale
        close(ravel(moment(v))[0], ravel(h(h(v)))[0] + ravel(sigma(v))[0], 1e-12)
        chunked = operators.hessian_variance(_two_layers, params, data, chunk_size=chunk_size)
        close(ravel(chunked(v))[0], ravel(sigma(v))[0], 1e-11)
        order = rng.permutation(9)
        permuted = operators.hessian_variance(
            _two_layers, params, jax.tree.map(lambda x: x[order], data)
        )
        close(ravel(permuted(v))[0], ravel(sigma(v))[0], 1e-11)


def _two_layers(params, example):
    x, y = example
    return (jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2


def test_uneven_chunks_carry_their_weight(x64):
    """A 90/10 split averaged without weights is 68 % wrong (PEERS.md, 6)."""
    x = jnp.concatenate([jnp.ones(9), 10 * jnp.ones(1)])
    operator = operators.hessian(lambda w, x: 0.5 * x * w**2, jnp.ones(()), x, chunk_size=9)
    assert float(operator(jnp.ones(()))) == pytest.approx(1.9)


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


def test_many_minima_at_once(problems, random_like, x64):
    problem = problems["vgg"]()
    several = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), problem.params)
    v = random_like(problem.params)

    def product(params):
        return operators.hessian_variance(problem.loss, params, problem.data)(v)

    for i, one in enumerate((several, several)):
        params = jax.tree.map(lambda x, i=i: x[i], one)
        batched = jax.tree.map(lambda x, i=i: x[i], jax.vmap(product)(several))
        close(ravel(batched)[0], ravel(product(params))[0])


def test_same_shapes_compile_once(problems, random_like):
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
        ({"params": {"w": np.full((3, 4), np.nan), "v": np.ones(4)}}, "NaN"),
        ({"loss": lambda params, example: example[0] @ params["w"]}, "scalar"),
    ],
)
def test_wrong_input_is_explained(change, message):
    given = {
        "loss": _two_layers,
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
