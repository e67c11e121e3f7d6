"""One run: the same numbers as a plain Python loop, its ends, its hooks, and no re-compilation."""

import doctest
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import losses, models, training, transforms
from jaxstab.sampling import batch_indices, take
from jaxstab.training import Status, train

N = 12


def loss(params, example):
    x, y = example
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return (hidden @ params["out"] - y) ** 2


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3))
    return jnp.asarray(x), jnp.asarray(np.sin(x).sum(1))


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    shapes = {"in": (3, 4), "bias": (4,), "out": (4,)}
    return {name: jnp.asarray(rng.normal(size=shape) / 2) for name, shape in shapes.items()}


def mean(params, data):
    return jnp.mean(jax.vmap(loss, (None, 0))(params, data))


def plain_loop(params, data, optimizer, batch_size, key, steps):
    draw = jax.jit(lambda key: batch_indices(key, N, batch_size))
    gradient = jax.jit(jax.grad(mean))
    state = optimizer.init(params)
    for step in range(steps):
        grad = gradient(params, take(data, draw(jax.random.fold_in(key, step))))
        update, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, update)
    return params


def assert_close(ours, theirs, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), ours, theirs)


@pytest.mark.parametrize("batch_size", [3, 11, N])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.02, momentum=0.9), optax.adam(0.01)])
@pytest.mark.usefixtures("x64")
def test_agrees_with_a_plain_loop(params, data, optimizer, batch_size):
    params, data = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, data))
    key = jax.random.key(3)
    run = train(
        loss, params, data, optimizer=optimizer, batch_size=batch_size, key=key, max_steps=23,
        check_every=5,
    )  # fmt: skip
    # 23 steps of float64 arithmetic, fused differently: far below 1e-11
    assert_close(run.params, plain_loop(params, data, optimizer, batch_size, key, 23), 1e-11)
    assert run.status is Status.STEP_LIMIT and run.steps == 23
    assert run.history_steps.tolist() == [0, 5, 10, 15, 20, 23]
    assert run.history[-1] == run.loss == pytest.approx(float(mean(run.params, data)), rel=1e-12)
    assert run.history[0] == pytest.approx(float(mean(params, data)), rel=1e-12)


def test_batches_of_all_examples_are_gradient_descent():
    x = jnp.array([1.0, 2.0, 3.0])
    run = train(
        lambda w, x: (w * x) ** 2 / 2, jnp.array(1.0), x, optimizer=optax.sgd, learning_rate=0.1,
        batch_size=3, key=jax.random.key(0), max_steps=7,
    )  # fmt: skip
    assert float(run.params) == pytest.approx((1 - 0.1 * 14 / 3) ** 7, rel=1e-5)


def well(w, x):
    return x * w**2 / 2


def quadratic(learning_rate, **arguments):
    settings = {"max_steps": 50, "check_every": 5, "batch_size": 1} | arguments
    return train(
        well, jnp.array(1.0), jnp.ones(2), optimizer=optax.sgd, learning_rate=learning_rate,
        key=jax.random.key(0), **settings,
    )  # fmt: skip


def test_stops_at_the_first_check_below_the_tolerance():
    run = quadratic(0.5, loss_tolerance=4e-4)  # loss 4^-t / 2: 4.9e-4 after 5 steps
    assert run.status is Status.CONVERGED and run.steps == 10
    assert run.history_steps.tolist() == [0, 5, 10]
    assert quadratic(0.5, loss_tolerance=10.0).steps == 0
    assert quadratic(0.5, loss_tolerance=None).status is Status.STEP_LIMIT


def test_divergence_is_a_status():
    run = quadratic(3.0, divergence=1e3)  # loss grows by 4 each step
    assert run.status is Status.DIVERGED and run.steps == 5 and math.isfinite(run.loss)
    run = quadratic(1e9, divergence=math.inf)
    assert run.status is Status.DIVERGED and not math.isfinite(run.loss)
    assert quadratic(3.0, divergence=math.inf).status is Status.STEP_LIMIT


def test_compiles_once_for_all_learning_rates_seeds_parameters_and_data(params, data):
    traces = []

    def counted(params, example):
        traces.append(1)
        return loss(params, example)

    def run(learning_rate=0.1, seed=0, batch_size=4, scale=1.0, tolerance=1e-4, factor=1e6):
        train(
            counted, jax.tree.map(lambda x: scale * x, params), (scale * data[0], data[1]),
            optimizer=optax.sgd, learning_rate=learning_rate, batch_size=batch_size,
            key=jax.random.key(seed), max_steps=20, loss_tolerance=tolerance, divergence=factor,
        )  # fmt: skip

    run()
    first = len(traces)
    assert first > 0
    run(learning_rate=0.01)
    run(seed=1, scale=2.0, tolerance=1e-3, factor=1e4)
    assert len(traces) == first
    run(batch_size=5)
    assert len(traces) > first


def test_nothing_leaves_the_device_before_the_end(params, data):
    loop = training.Loop(optax.sgd, 4, 100, 10)
    settings = training.check_settings(0.1, 1e-4, 1e6)
    operands = jax.tree_util.Partial(loss), params, data, settings, jax.random.key(0), None, None
    compiled = training._run.lower(loop, *operands).compile().as_text()
    assert "while" in compiled
    assert not any(word in compiled for word in ("callback", "outfeed", "send("))


class Seen(NamedTuple):
    value: jax.Array
    grad: jax.Array
    value_again: jax.Array
    grad_again: jax.Array


def test_optimizers_get_value_gradient_and_their_functions():
    def update(updates, state, params, *, value, grad, value_fn, grad_fn):
        return -0.1 * updates, Seen(value, grad, value_fn(params), grad_fn(params))

    zero = jnp.zeros(())
    spy = optax.GradientTransformationExtraArgs(lambda _: Seen(zero, zero, zero, zero), update)
    run = train(
        lambda w, x: (w - x) ** 2, jnp.array(0.0), jnp.array([1.0, 5.0]), optimizer=spy,
        batch_size=1, key=jax.random.key(0), max_steps=1,
    )  # fmt: skip
    seen = run.opt_state
    x = math.sqrt(float(seen.value))
    assert x in (1.0, 5.0)
    assert [float(v) for v in seen] == pytest.approx([x * x, -2 * x, x * x, -2 * x])


def test_a_run_can_be_continued(params, data):
    settings = {"optimizer": optax.sgd(0.02, momentum=0.9), "batch_size": N}
    settings |= {"key": jax.random.key(0), "check_every": 5}
    whole = train(loss, params, data, max_steps=20, **settings)
    half = train(loss, params, data, max_steps=10, **settings)
    rest = train(loss, half.params, data, max_steps=10, opt_state=half.opt_state, **settings)
    assert_close(rest.params, whole.params, 1e-6)


class CountingObserver:
    """Counts its updates and reports the norm of the parameters."""

    def init(self, params):
        return jnp.zeros((), jnp.int32)

    def update(self, state, params, data, *, opt_state):
        assert len(opt_state) == len(optax.sgd(0.1).init(params))
        return state + 1, {"count": state + 1, "norm": optax.tree.norm(params)}


def test_an_observer_sees_every_check(params, data):
    run = train(
        loss, params, data, optimizer=optax.sgd, learning_rate=0.01, batch_size=4, max_steps=22,
        key=jax.random.key(0), check_every=5, observer=CountingObserver(), chunk_size=5,
    )  # fmt: skip
    assert run.observations["count"].tolist() == [1, 2, 3, 4, 5]
    assert run.observations["norm"].shape == (5,)
    norm = float(optax.tree.norm(run.params))
    assert float(run.observations["norm"][-1]) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 30])
def test_chunks_do_not_change_the_mean_loss(params, data, chunk_size):
    ours = training.mean_loss(loss, params, data, chunk_size=chunk_size)
    assert float(ours) == pytest.approx(float(mean(params, data)), rel=1e-6)


def test_batches_with_replacement_may_be_larger_than_the_data():
    run = quadratic(0.5, batch_size=5, replacement=True)
    assert run.status is Status.CONVERGED


def test_the_default_distance_between_checks_divides_the_step_limit():
    assert training.choose_check_every(None, 1000, 4, 50_000) == 1000
    assert training.choose_check_every(None, 1000, 1000, 50_000) == 10
    assert training.choose_check_every(None, 1437, 100, 30_000) == 50
    assert training.choose_check_every(None, 1000, 4, 7) == 7
    assert training.choose_check_every(70, 1000, 4, 100) == 70


WRONG = {
    "batch size above n": ({"batch_size": 13}, ValueError, "batch_size 13"),
    "batch size zero": ({"batch_size": 0}, ValueError, "batch_size"),
    "batch size not an integer": ({"batch_size": 2.0}, TypeError, "batch_size"),
    "negative learning rate": ({"learning_rate": -0.1}, ValueError, "learning_rate"),
    "infinite learning rate": ({"learning_rate": math.inf}, ValueError, "learning_rate"),
    "zero tolerance": ({"loss_tolerance": 0.0}, ValueError, "loss_tolerance"),
    "no steps": ({"max_steps": 0}, ValueError, "max_steps"),
    "no checks": ({"check_every": 0}, ValueError, "check_every"),
    "divergence below one": ({"divergence": 0.5}, ValueError, "divergence"),
    "NaN divergence": ({"divergence": math.nan}, ValueError, "divergence"),
    "zero chunk": ({"chunk_size": 0}, ValueError, "chunk_size"),
    "rate given to a transformation": ({"optimizer": optax.sgd(0.1)}, TypeError, "learning_rate"),
    "factory without a rate": ({"learning_rate": None}, TypeError, "learning_rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(params, data, case):
    changed, error, match = WRONG[case]
    settings = {
        "optimizer": optax.sgd, "learning_rate": 0.1, "batch_size": 4, "max_steps": 10,
        "key": jax.random.key(0),
    } | changed  # fmt: skip
    with pytest.raises(error, match=match):
        train(loss, params, data, **settings)


@pytest.mark.parametrize(
    ("params", "data", "error", "match"),
    [
        (jnp.array(1), jnp.ones(3), TypeError, "int32"),
        (jnp.array(jnp.nan), jnp.ones(3), ValueError, "params"),
        (jnp.array(1.0), jnp.array([1.0, jnp.nan, 2.0]), ValueError, "data"),
        (jnp.array(1.0), jnp.ones(0), ValueError, "empty"),
        (jnp.array(1.0), (jnp.ones(3), jnp.ones(4)), ValueError, "leading axes"),
    ],
)
def test_wrong_data_and_parameters_are_refused(params, data, error, match):
    with pytest.raises(error, match=match):
        train(
            lambda w, x: w, params, data, optimizer=optax.sgd(0.1), batch_size=1, max_steps=1,
            key=jax.random.key(0),
        )  # fmt: skip


def test_a_loss_of_several_numbers_is_refused_and_an_error_in_it_says_how_it_was_called():
    common = {"optimizer": optax.sgd(0.1), "batch_size": 1, "max_steps": 1,
              "key": jax.random.key(0)}  # fmt: skip
    with pytest.raises(ValueError, match="must return a scalar for one example"):
        train(lambda w, x: w * x, jnp.ones(()), jnp.ones((3, 2)), **common)
    with pytest.raises(ValueError, match="matmul") as caught:  # written for a batch
        train(lambda w, x: jnp.mean(x.T @ x @ w), jnp.ones(2), jnp.ones((3, 2)), **common)
    notes = " ".join(caught.value.__notes__)
    assert "called with one example, whose arrays have the shapes (2,)" in notes


def test_examples_in_docstrings():
    found = doctest.testmod(training, extraglobs={"jax": jax, "jnp": jnp, "optax": optax})
    assert found.attempted > 0 and found.failed == 0


# ---- batch norm ---------------------------------------------------------------------------------


class NormNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.tanh(x))


@pytest.fixture
def norm_problem(data):
    x, _ = data
    model = NormNet()
    params = models.initialize(model, jax.random.key(0), x[0])
    loss = losses.ModelLoss(model, losses.squared, models.initial_state(model, x[0]))
    return loss, params, (x, jnp.stack([x[:, 0] > 0, x[:, 0] <= 0], 1).astype(float))


@pytest.mark.parametrize("batch_size", [4, N])
def test_batch_norm_trains_as_a_plain_loop_does(norm_problem, batch_size):
    loss, params, data = norm_problem
    key, optimizer = jax.random.key(5), optax.sgd(0.1, momentum=0.9)
    run = train(
        loss, params, data, optimizer=optimizer, batch_size=batch_size, key=key, max_steps=7,
        check_every=3, batch_norm="batch",
    )  # fmt: skip

    @jax.jit
    def step(params, state, opt_state, key):
        batch = take(data, batch_indices(key, N, batch_size))
        mean = lambda p: loss.with_state(state).train_mode(p, batch)  # noqa: E731
        gradient, state = jax.grad(mean, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    theirs, state, opt_state = params, loss.state, optimizer.init(params)
    for i in range(7):
        theirs, state, opt_state = step(theirs, state, opt_state, jax.random.fold_in(key, i))
    # float32, fused differently: 7 steps of rounding 1e-7 on numbers of order 1
    assert_close(run.params, theirs, 2e-5)
    assert_close(run.state, state, 2e-5)
    trained = loss.with_state(run.state)
    full = jnp.mean(jax.vmap(trained, (None, 0))(run.params, data))
    assert run.loss == pytest.approx(float(full), rel=1e-5)


def test_frozen_statistics_stay(norm_problem):
    loss, params, data = norm_problem
    common = {"optimizer": optax.sgd, "learning_rate": 0.1, "batch_size": 4, "max_steps": 3}
    run = train(loss, params, data, key=jax.random.key(0), **common)
    assert run.state is None
    other = train(loss, params, data, key=jax.random.key(0), batch_norm="batch", **common)
    assert not np.allclose(run.params["Dense_0"]["kernel"], other.params["Dense_0"]["kernel"])


def test_sam_and_swa_train_networks_with_batch_norm(norm_problem):
    loss, params, data = norm_problem
    optimizer = transforms.swa(transforms.sam(optax.sgd(0.1), rho=0.05, parts=2), every=2)
    run = train(
        loss, params, data, optimizer=optimizer, batch_size=4, key=jax.random.key(0), max_steps=20,
        batch_norm="batch",
    )  # fmt: skip
    assert run.loss < run.history[0]
    average = transforms.swa_params(run.opt_state, run.params)
    state = models.recompute_batch_stats(loss.model, average, data[0])
    assert jnp.isfinite(jax.vmap(loss.with_state(state), (None, 0))(average, data)).all()


def test_batches_are_augmented_step_by_step(data, params):
    def augment(key, batch):
        x, y = batch
        return x + jax.random.normal(key, x.shape), y

    key = jax.random.key(2)
    run = train(loss, params, data, optimizer=optax.sgd(0.05), batch_size=3, key=key, max_steps=5,
                augment=augment)  # fmt: skip

    @jax.jit
    def step(params, step_key):
        batch = take(data, batch_indices(step_key, N, 3))
        gradient = jax.grad(mean)(params, augment(jax.random.fold_in(step_key, 1), batch))
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)

    theirs = params
    for i in range(5):
        theirs = step(theirs, jax.random.fold_in(key, i))
    assert_close(run.params, theirs, 1e-5)


def test_moving_statistics_need_a_loss_that_has_them(data, params, norm_problem):
    common = {"optimizer": optax.sgd(0.1), "batch_size": 4, "max_steps": 1}
    with pytest.raises(ValueError, match=r"this one has none.*initial_state"):
        train(loss, params, data, key=jax.random.key(0), batch_norm="batch", **common)
    with pytest.raises(ValueError, match="did you mean 'batch'"):
        train(*norm_problem, key=jax.random.key(0), batch_norm="bach", **common)
