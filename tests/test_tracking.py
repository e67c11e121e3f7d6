"""The tracker's values are those of fresh certified measurements, for fewer products."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from jaxstab import transforms as jt
from jaxstab.measurement import measure
from jaxstab.stability.batch_sharpness import batch_sharpness
from jaxstab.stability.criteria import verdict
from jaxstab.tracking import (
    _update,
    adam_preconditioner,
    rmsprop_preconditioner,
    tracker,
)
from jaxstab.training import train

as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # as Flax called it at first

KEY = jax.random.key(11)


def loss(w, example):
    x, y = example
    return jnp.mean((jnp.tanh(x @ w["in"]) @ w["out"] - y) ** 2)


def problem(n=24, hidden=6):
    keys = jax.random.split(KEY, 4)
    data = jax.random.normal(keys[0], (n, 4)), jax.random.normal(keys[1], (n, 2))
    w = {
        "in": jax.random.normal(keys[2], (4, hidden)),
        "out": jax.random.normal(keys[3], (hidden, 2)),
    }
    return w, data


def training_step(optimizer, data):
    def step(w, opt_state):
        g = jt.batch_gradient(loss, data)(w)
        updates, opt_state = optimizer.update(g, opt_state, w)
        return optax.apply_updates(w, updates), opt_state

    return step


def scan_run(tracked, data, optimizer, w, steps, extra=False):
    """Trains and tracks in one compiled scan; returns parameters per step, infos, last state."""
    step = training_step(optimizer, data)

    @jax.jit
    def run(tracked, w, data):
        def body(carry, _):
            w, opt_state, state = carry
            w, opt_state = step(w, opt_state)
            more = {"opt_state": opt_state} if extra else {}
            state, info = tracked.update(state, w, data, **more)
            return (w, opt_state, state), (w, opt_state, info)

        carry = w, optimizer.init(w), tracked.init(w)
        (_, _, state), history = jax.lax.scan(body, carry, None, length=steps)
        return state, history

    return run(tracked, w, data)


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def test_values_equal_fresh_certified_measurements_with_fewer_products():
    w, data = problem()
    fresh_products = 0
    tracked = tracker(loss, every=10, key=KEY)
    state, (path, _, info) = scan_run(tracked, data, jt.sgd(0.1), w, 40)
    np.testing.assert_array_equal(np.flatnonzero(info.measured) + 1, [10, 20, 30, 40])
    np.testing.assert_array_equal(info.step, np.arange(1, 41))
    for i in (9, 19, 29, 39):
        fresh = measure(loss, at(path, i), data, key=jax.random.key(i))
        fresh_products += int(fresh.sharpness.matvecs + fresh.nonuniformity.matvecs)
        for name in ("sharpness", "nonuniformity"):
            got, want = at(getattr(info, name), i), getattr(fresh, name)
            assert bool(want.converged) and bool(got.converged)
            # Both are Rayleigh quotients with residuals within tol = 1e-3 of the value.
            np.testing.assert_allclose(got.value, want.value, rtol=1e-3)
            assert got.interval.lower <= want.interval.upper
            assert got.interval.upper >= want.interval.lower
        np.testing.assert_allclose(info.loss[i], fresh.loss, rtol=1e-5)
        np.testing.assert_allclose(info.gradient_norm[i], fresh.gradient_norm, rtol=1e-4)
    assert int(state.matvecs) == int(jnp.sum(info.matvecs))
    # 42 against 77 products when this was written
    assert int(state.matvecs) < 0.75 * fresh_products


def test_between_measurements_everything_says_so():
    w, data = problem()
    tracked = tracker(loss, every=3, key=KEY, batch_size=4)
    state = tracked.init(w)
    before = state
    for _ in range(2):
        state, info = tracked.update(state, w, data)
        assert not info.measured and not info.sharpness.converged and info.matvecs == 0
        numbers = (info.sharpness.value, info.nonuniformity.interval.upper, info.loss)
        assert np.all(np.isnan([*numbers, info.batch_sharpness.value]))
        assert int(info.n) == 24
    assert int(state.updates) == 2
    np.testing.assert_array_equal(state.sharpness_vector["in"], before.sharpness_vector["in"])
    state, info = tracked.update(state, w, data)
    assert info.measured and info.sharpness.converged
    chex.assert_trees_all_equal_shapes_and_dtypes(state, before)


def diagonal_loss(w, x):
    return 0.5 * jnp.sum(x * w**2)


def test_a_warm_start_finds_the_new_top_when_eigenvalues_cross():
    """The last eigenvector is orthogonal to the new one: only the random part can find it."""
    p = 40
    before = jnp.linspace(0.1, 1.0, p).at[0].set(3.0)
    after = before.at[1].set(5.0)
    tracked = tracker(diagonal_loss, key=KEY, every=1, nonuniformity=False)

    @jax.jit
    @jax.vmap
    def run(key):
        state = tracked.init(jnp.ones(p))._replace(key=key)
        update = functools.partial(tracked.update, params=jnp.ones(p))
        data = jnp.stack([before, after])[:, None]
        return jax.lax.scan(lambda state, x: update(state, data=x), state, data)[1].sharpness.value

    first, second = run(jax.random.split(KEY, 50)).T
    np.testing.assert_allclose(first, 3.0, rtol=1e-3)
    np.testing.assert_allclose(second, 5.0, rtol=1e-3)


def test_certified_values_have_narrow_intervals():
    w, data = problem()
    tracked = tracker(loss, every=1, key=KEY, certify=True)
    state = tracked.init(w)
    for _ in range(2):
        state, info = tracked.update(state, w, data)
        for result in (info.sharpness, info.nonuniformity):
            assert result.converged
            assert result.interval.upper - result.interval.lower <= 2e-3 * result.value


def test_one_compilation_serves_a_python_loop_and_new_trackers():
    w, data = problem()
    tracked = tracker(loss, every=2, key=KEY, nonuniformity=False, max_matvecs=30)
    state = tracked.init(w)
    tracked.update(state, w, data)
    size = _update._cache_size()
    for seed in range(3):
        tracked = tracker(
            loss, every=2, key=jax.random.key(seed), nonuniformity=False, max_matvecs=30
        )
        state, _ = tracked.update(state, w, jax.tree.map(lambda x: x + 1, data))
    assert _update._cache_size() == size


@jax.jit
def _dense_hessian(w, data):
    flat, unravel = jax.flatten_util.ravel_pytree(w)

    def mean_loss(flat):
        return jnp.mean(jax.vmap(loss, (None, 0))(unravel(flat), data))

    return jax.hessian(mean_loss)(flat)


def dense_hessian(w, data):
    return np.asarray(_dense_hessian(w, data), np.float64)


def flatten(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


@pytest.mark.parametrize(
    ("optimizer", "preconditioner"),
    [
        (optax.adam(0.01, b2=0.99, eps=1e-2), adam_preconditioner(b2=0.99, eps=1e-2)),
        (
            optax.chain(optax.clip(9.0), optax.scale_by_adam(eps_root=0.1), optax.scale(-0.01)),
            adam_preconditioner(eps_root=0.1),
        ),
        (
            jt.swa(optax.rmsprop(0.01, decay=0.95, eps=0.1)),
            rmsprop_preconditioner(decay=0.95, eps=0.1),
        ),
        (
            optax.chain(optax.scale_by_rms(0.95, 0.1, eps_in_sqrt=False), optax.scale(-0.01)),
            rmsprop_preconditioner(eps=0.1, eps_in_sqrt=False),
        ),
        (
            optax.chain(optax.scale_by_rms(0.95, bias_correction=True), optax.scale(-0.01)),
            rmsprop_preconditioner(decay=0.95),
        ),
    ],
)
def test_the_preconditioner_is_what_the_optimizer_divides_by(optimizer, preconditioner):
    w = jnp.arange(3.0)
    opt_state = optimizer.init(w)
    for i in range(4):
        gradient = jnp.sin(i + w) + 1.5
        updates, opt_state = optimizer.update(gradient, opt_state, w)
    adam = [s for s in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(s)]
    mean = adam[0].mu / (1 - 0.9**4) if adam else gradient
    np.testing.assert_allclose(preconditioner(opt_state), -0.01 * mean / updates, rtol=2e-5)


def test_the_preconditioned_sharpness_is_the_largest_eigenvalue_of_p_inverse_h():
    w, data = problem(n=8, hidden=3)
    optimizer, preconditioner = optax.adam(0.01), adam_preconditioner()
    _, opt_state = optimizer.update(jt.batch_gradient(loss, data)(w), optimizer.init(w), w)
    tracked = tracker(loss, every=1, key=KEY, nonuniformity=False, preconditioner=preconditioner)
    state, info = tracked.update(tracked.init(w), w, data, opt_state=opt_state)
    diagonal = flatten(preconditioner(opt_state))
    want = np.linalg.eigvals(dense_hessian(w, data) / diagonal[:, None]).real.max()
    assert info.preconditioned.converged
    assert float(info.preconditioned.value) == pytest.approx(want, rel=1e-3)
    assert int(state.matvecs) == int(info.sharpness.matvecs + info.preconditioned.matvecs)


def is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_batch_sharpness_is_the_mean_of_ratios_over_all_batches():
    w, data = problem(n=5, hidden=3)
    ratios = []
    for pair in itertools.combinations(range(5), 2):
        batch = jax.tree.map(lambda x, pair=pair: x[np.array(pair)], data)
        g = flatten(jt.batch_gradient(loss, batch)(w))
        ratios.append(g @ dense_hessian(w, batch) @ g / (g @ g))
    tracked = tracker(loss, every=1, key=KEY, nonuniformity=False, batch_size=2, batches=2000)
    _, info = tracked.update(tracked.init(w), w, data)
    got = info.batch_sharpness
    assert np.std(ratios) / np.sqrt(2000) == pytest.approx(float(got.standard_error), rel=0.1)
    # chance of failure 6e-7
    assert abs(float(got.value) - np.mean(ratios)) < 5 * float(got.standard_error)

    options = {"batch_size": 5, "batches": 2}
    tracked = tracker(loss, every=1, key=KEY, nonuniformity=False, **options)
    _, info = tracked.update(tracked.init(w), w, data)
    g = flatten(jt.batch_gradient(loss, data)(w))
    want = g @ dense_hessian(w, data) @ g / (g @ g)
    assert float(info.batch_sharpness.value) == pytest.approx(want, rel=1e-4)
    alone = batch_sharpness(loss, w, data, key=KEY, **options)
    assert float(alone.value) == pytest.approx(want, rel=1e-4)
    with pytest.raises(ValueError, match="batch"):
        batch_sharpness(loss, w, data, key=KEY, batch_size=6)


def test_a_diverged_run_gives_nan_and_no_false_certainty():
    w, data = problem()
    tracked = tracker(loss, every=1, key=KEY, nonuniformity=False)
    nan = jax.tree.map(lambda x: x * jnp.nan, w)
    state, info = jax.jit(tracked.update)(tracked.init(w), nan, data)
    assert info.measured and not info.sharpness.converged and np.isnan(info.sharpness.value)
    # and it recovers: a vector that is not finite is no start
    state, info = jax.jit(tracked.update)(state, w, data)
    assert info.sharpness.converged


def test_it_is_an_observer_of_train_and_its_info_goes_to_verdict():
    w, data = problem()
    tracked = tracker(loss, every=1, key=KEY, certify=True)
    run = train(
        loss, w, data, optimizer=jt.sgd, learning_rate=0.1, batch_size=4, key=KEY,
        max_steps=60, check_every=20, loss_tolerance=None, observer=tracked,
    )  # fmt: skip
    np.testing.assert_array_equal(run.observations.measured, [True] * 3)
    last = at(run.observations, -1)
    fresh = measure(loss, run.params, data, key=KEY)
    np.testing.assert_allclose(last.sharpness.value, fresh.sharpness.value, rtol=1e-3)
    options = {"learning_rate": 0.1, "batch_size": 4}
    assert verdict(last, **options).status == verdict(fresh, **options).status


def test_nnx_state_and_a_checkpoint(tmp_path):
    w, data = problem()
    state = nnx.State({name: nnx.Param(x) for name, x in w.items()})
    plain, boxed = (
        tracker(loss_of, every=1, key=KEY, nonuniformity=False) for loss_of in (loss, nnx_loss)
    )
    _, want = plain.update(plain.init(w), w, data)
    carried, got = boxed.update(boxed.init(state), state, data)
    np.testing.assert_allclose(got.sharpness.value, want.sharpness.value, rtol=1e-4)
    with ocp.StandardCheckpointer() as checkpointer:
        pure = as_pure(carried)
        checkpointer.save(tmp_path / "state", pure)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", pure)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(pure), strict=True):
        assert x.dtype == y.dtype and bool(jnp.all(x == y))


def nnx_loss(state, example):
    return loss(nnx.to_pure_dict(state), example)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batches": 1}, ValueError, "batches must be at least 2"),
        ({"tol": 0.0}, ValueError, "tol must be finite and positive"),
        ({"method": "vmpa"}, ValueError, "did you mean 'vmap'"),
        ({"preconditioner": 3}, TypeError, "expected a function"),
        ({"key": 0}, TypeError, r"jax.random.key\(seed\)"),
    ],
)
def test_wrong_inputs_say_what_to_do(arguments, error, message):
    with pytest.raises(error, match=message):
        tracker(loss, **{"key": KEY, **arguments})


def test_wrong_calls_say_what_to_do():
    w, data = problem()
    tracked = tracker(loss, key=KEY, preconditioner=adam_preconditioner())
    state = tracked.init(w)
    with pytest.raises(ValueError, match="opt_state=opt_state"):
        tracked.update(state, w, data)
    with pytest.raises(ValueError, match="found 0 states of Adam"):
        tracked.update(state, w, data, opt_state=optax.rmsprop(0.1).init(w))
    with pytest.raises(ValueError, match="batch_size 30 is above the number of examples 24"):
        tracked = tracker(loss, key=KEY, batch_size=30)
        tracked.update(tracked.init(w), w, data)
