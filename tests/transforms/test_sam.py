"""SAM, ASAM and m-SAM equal their formulas, and SAM settles at its own edge."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxstab import transforms as jt
from jaxstab.stability import edges
from jaxstab.training import train

KEY = jax.random.key(1)


def loss(w, example):
    x, y = example
    return (jnp.tanh(x @ w["in"]) @ w["out"] - y) ** 2


def problem(n=12):
    keys = jax.random.split(KEY, 4)
    batch = jax.random.normal(keys[0], (n, 3)), jax.random.normal(keys[1], (n,))
    w = {"in": jax.random.normal(keys[2], (3, 4)), "out": jax.random.normal(keys[3], (4,))}
    return w, batch


def gradient(w, batch):
    return jax.grad(lambda w: jnp.mean(jax.vmap(loss, (None, 0))(w, batch)))(w)


def update(optimizer, w, batch):
    grad_fn = jt.batch_gradient(loss, batch)
    return optimizer.update(grad_fn(w), optimizer.init(w), w, grad_fn=grad_fn)[0]


def assert_close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


def ascended(w, g, rho, t=None):
    """w + ε, written leaf by leaf with one global norm."""
    t = jax.tree.map(jnp.ones_like, w) if t is None else t
    size = np.sqrt(sum(float(jnp.sum((t[k] * g[k]) ** 2)) for k in w))
    return {k: w[k] + rho * t[k] ** 2 * g[k] / size for k in w}


def test_sam_and_asam_equal_the_two_gradient_formula():
    w, batch = problem()
    g = gradient(w, batch)
    want = gradient(ascended(w, g, 0.3), batch)
    got = update(jt.sam(optax.sgd(1.0), rho=0.3), w, batch)
    assert_close(got, jax.tree.map(lambda x: -x, want), rtol=1e-4, atol=1e-6)
    t = jax.tree.map(lambda p: jnp.abs(p) + 0.01, w)
    want = gradient(ascended(w, g, 0.3, t), batch)
    got = update(jt.sam(optax.sgd(1.0), rho=0.3, adaptive=True), w, batch)
    assert_close(got, jax.tree.map(lambda x: -x, want), rtol=1e-4, atol=1e-6)
    want = gradient(jax.tree.map(lambda p, g: p + 0.3 * g, w, g), batch)
    got = update(jt.sam(optax.sgd(1.0), rho=0.3, normalize=False), w, batch)
    assert_close(got, jax.tree.map(lambda x: -x, want), rtol=1e-5)


def test_m_sam_has_one_perturbation_per_part_and_its_edges_are_sam():
    w, batch = problem()
    parts = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch) for i in range(3)]
    each = [gradient(ascended(w, gradient(w, b), 0.3), b) for b in parts]
    want = jax.tree.map(lambda *g: -sum(g) / 3, *each)
    got = update(jt.sam(optax.sgd(1.0), rho=0.3, parts=3), w, batch)
    assert_close(got, want, rtol=1e-4, atol=1e-6)
    whole = update(jt.sam(optax.sgd(1.0), rho=0.3), w, batch)
    one = update(jt.sam(optax.sgd(1.0), rho=0.3, parts=1), w, batch)
    assert_close(one, whole, rtol=1e-4, atol=1e-6)
    assert not np.allclose(got["in"], whole["in"], rtol=1e-3)


def test_optax_contrib_agrees_where_it_is_right():
    w, batch = problem()
    grad_fn = jt.batch_gradient(loss, batch)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    theirs = optax.contrib.sam(optax.adam(0.1), adversary, opaque_mode=True)
    ours = jt.sam(optax.adam(0.1), rho=0.3)
    states = theirs.init(w), ours.init(w)
    for _ in range(3):
        g = grad_fn(w)
        u, s = theirs.update(g, states[0], w, grad_fn=lambda p, _: grad_fn(p))
        v, t = ours.update(g, states[1], w, grad_fn=grad_fn)
        assert_close(u, v, rtol=1e-5, atol=1e-7)
        states, w = (s, t), optax.apply_updates(w, v)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"adaptive": True}, {"adaptive": True, "offset": 0.0}, {"normalize": False}, {"parts": 2}],
)
def test_a_zero_gradient_perturbs_by_zero_and_never_by_nan(arguments):
    batch = jnp.ones((4, 2))

    def square(w, x):
        return jnp.sum((w * x) ** 2)

    w = jnp.zeros(2)
    grad_fn = jt.batch_gradient(square, batch)
    optimizer = jt.sam(jt.sgd(0.1, momentum=0.9), **arguments)
    updates, state = optimizer.update(grad_fn(w), optimizer.init(w), w, grad_fn=grad_fn)
    np.testing.assert_array_equal(updates, 0.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_a_tiny_half_precision_gradient_keeps_its_direction():
    # Its square underflows in float16: a norm summed in the leaf's dtype would be 0.
    points = []

    def grad_fn(w):
        return points.append(w) or w

    w = jnp.zeros(2, jnp.float16)
    optimizer = jt.sam(optax.sgd(1.0), rho=0.5)
    optimizer.update(jnp.array([3e-5, 4e-5], jnp.float16), optimizer.init(w), w, grad_fn=grad_fn)
    np.testing.assert_allclose(points[0], [0.3, 0.4], rtol=5e-3)


def test_asam_does_not_see_a_rescaling_of_the_weights_and_sam_does():
    # Kwon et al. 2021, definition 3: |u v x| is the same function at (u, v) and (c u, v / c).
    def product(w, x):
        return (w["u"] @ w["v"] * x - 1) ** 2

    batch = jnp.array([0.5, 1.0, 2.0])
    w = {"u": jnp.array([0.7, -1.2]), "v": jnp.array([0.4, 0.9])}

    def perturbed_loss(w, **arguments):
        grad_fn, points = jt.batch_gradient(product, batch), []

        def spy(p):
            return points.append(p) or grad_fn(p)

        optimizer = jt.sam(optax.sgd(0.1), rho=0.2, **arguments)
        optimizer.update(grad_fn(w), optimizer.init(w), w, grad_fn=spy)
        return float(jnp.mean(jax.vmap(product, (None, 0))(points[0], batch)))

    asam = {"adaptive": True, "offset": 0.0}
    base_asam, base_sam = perturbed_loss(w, **asam), perturbed_loss(w)
    for c in (0.1, 7.0):
        rescaled = {"u": c * w["u"], "v": w["v"] / c}
        assert perturbed_loss(rescaled, **asam) == pytest.approx(base_asam, rel=1e-4)
        assert abs(perturbed_loss(rescaled) - base_sam) > 0.05 * base_sam


def run_on_quadratic(optimizer, hessian, w, steps):
    def body(_, carry):
        w, state = carry

        def grad_fn(p):
            return hessian @ p

        updates, state = optimizer.update(grad_fn(w), state, w, grad_fn=grad_fn)
        return optax.apply_updates(w, updates), state

    return jax.jit(lambda w: jax.lax.fori_loop(0, steps, body, (w, optimizer.init(w)))[0])(w)


@pytest.mark.parametrize("eta_lambda", [1.2, 1.7])
def test_sam_settles_where_the_curvature_is_its_edge(eta_lambda, x64):
    """Long & Bartlett 2024: SAM oscillates at the gradient norm whose λ_SAM is λ_max."""
    eta, rho, top = 0.1, 0.3, eta_lambda / 0.1
    basis = jnp.linalg.qr(jax.random.normal(KEY, (5, 5)))[0]
    hessian = (basis * jnp.array([0.02, 0.1, 0.3, 0.5, 1.0]) * top) @ basis.T
    w = run_on_quadratic(jt.sam(jt.sgd(eta), rho=rho), hessian, jnp.ones(5), 4000)
    edge = edges.sam(eta, rho, jnp.linalg.norm(hessian @ w))
    assert float(edge) == pytest.approx(top, rel=1e-6)
    assert top < edges.gradient_descent(eta)


def test_unnormalized_sam_diverges_exactly_past_its_edge(x64):
    eta, rho = 0.1, 0.02
    edge = edges.unnormalized_sam(eta, rho)
    for factor, limit in ((0.99, 0.0), (1.01, np.inf)):
        hessian = jnp.diag(jnp.array([0.3, 1.0])) * edge * factor
        optimizer = jt.sam(jt.sgd(eta), rho=rho, normalize=False)
        w = run_on_quadratic(optimizer, hessian, jnp.ones(2), 3000)
        size = float(jnp.linalg.norm(w))
        assert size < 1e-6 if limit == 0 else size > 1e6


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x)))[:, 0]


def test_linen_batch_statistics_are_those_of_the_first_pass():
    _, (x, y) = problem()
    variables = LinenNet().init(KEY, x, train=True)
    params, stats = variables["params"], variables["batch_stats"]

    def batch_loss(params):
        out, new = LinenNet().apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean((out - y) ** 2), new["batch_stats"]

    @jax.jit
    def step(params):
        g, new_stats = jax.grad(batch_loss, has_aux=True)(params)
        optimizer = jt.sam(jt.sgd(0.1), rho=1.0)

        def grad_fn(p):
            return jax.grad(batch_loss, has_aux=True)(p)[0]

        updates, _ = optimizer.update(g, optimizer.init(params), params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), new_stats

    _, got = step(params)
    assert_close(got, batch_loss(params)[1], rtol=1e-6)


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))[:, 0]


def test_nnx_batch_statistics_are_those_of_the_first_pass():
    _, (x, y) = problem()

    def batch_loss(model):
        return jnp.mean((model(x) - y) ** 2)

    model, reference = NnxNet(), NnxNet()
    optimizer = nnx.Optimizer(model, jt.sam(jt.sgd(0.1), rho=1.0), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        grad_fn = jax.grad(lambda params: batch_loss(nnx.merge(graph, params, rest, copy=True)))
        optimizer.update(model, nnx.grad(batch_loss)(model), grad_fn=grad_fn)

    step(model, optimizer)
    batch_loss(reference)  # one training-mode pass
    assert_close(
        nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)),
        nnx.to_pure_dict(nnx.state(reference, nnx.BatchStat)),
        rtol=1e-5,
    )
    assert not np.allclose(model.last.kernel[...], reference.last.kernel[...])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, "rho must be finite and positive, got 0.0"),
        ({"rho": -1.0}, "rho must be finite and positive"),
        ({"parts": 0}, "parts must be at least 1"),
        ({"adaptive": True, "offset": -1.0}, "offset must be"),
    ],
)
def test_wrong_inputs_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        jt.sam(jt.sgd(0.1), **arguments)


def test_wrong_calls_say_what_to_do():
    w, batch = problem(n=9)
    optimizer = jt.sam(jt.sgd(0.1))
    with pytest.raises(ValueError, match="batch_gradient"):
        optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(ValueError, match=r"update\(gradient, state, params\)"):
        optimizer.update(w, optimizer.init(w), grad_fn=jt.batch_gradient(loss, batch))
    with pytest.raises(ValueError, match="9 examples does not split into 2 equal parts"):
        update(jt.sam(jt.sgd(0.1), parts=2), w, batch)


def test_m_sam_runs_in_train():
    w, batch = problem()
    run = train(
        loss, w, batch, optimizer=lambda lr: jt.sam(jt.sgd(lr), rho=0.3, parts=3),
        learning_rate=0.1, batch_size=12, key=KEY, max_steps=1, loss_tolerance=None,
    )  # fmt: skip
    updates = update(jt.sam(jt.sgd(0.1), rho=0.3, parts=3), w, batch)
    assert_close(run.params, optax.apply_updates(w, updates), rtol=1e-5, atol=1e-6)
