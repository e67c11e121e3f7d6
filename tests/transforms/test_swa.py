"""SWA, EMA and LAWA equal their definitions on the list of iterates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import transforms as jt
from jaxstab.models import recompute_batch_stats

STEPS = 40


def iterates_and_state(optimizer, dtype=jnp.float32):
    """All parameters of a noisy run, initial ones first, and the last state."""
    params = {"a": jnp.ones(3, dtype), "b": jnp.full((2, 2), -1.0, dtype)}
    state = optimizer.init(params)

    def body(carry, key):
        params, state = carry
        keys = dict(zip(params, jax.random.split(key), strict=True))
        gradient = jax.tree.map(lambda p, k: jax.random.normal(k, p.shape, p.dtype), params, keys)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    keys = jax.random.split(jax.random.key(0), STEPS)
    (last, state), history = jax.jit(lambda c, k: jax.lax.scan(body, c, k))((params, state), keys)
    full = jax.tree.map(
        lambda p, h: np.concatenate([p[None], h], dtype=np.float64), params, history
    )
    return full, last, state


def chosen(start, every):
    return [t for t in range(STEPS + 1) if t >= start and (t - start) % every == 0]


@pytest.mark.parametrize(("start", "every"), [(0, 1), (0, 7), (1, 1), (13, 5), (40, 3)])
def test_swa_is_the_arithmetic_mean_to_rounding(start, every):
    optimizer = jt.swa(jt.sgd(0.3), start=start, every=every)
    history, last, state = iterates_and_state(optimizer)
    times = chosen(start, every)
    assert int(state.averaged) == len(times)
    average = jt.swa_params(state, last)
    for name, path in history.items():
        # Each of the m running updates rounds by at most 3 ulp of the largest iterate.
        bound = 3 * len(times) * np.finfo(np.float32).eps * np.abs(path).max()
        np.testing.assert_allclose(average[name], path[times].mean(axis=0), atol=bound, rtol=0)


def test_ema_and_lawa_equal_their_definitions():
    history, last, state = iterates_and_state(jt.swa(jt.sgd(0.3), start=4, every=3, decay=0.8))
    want = history["a"][4]
    for t in chosen(4, 3)[1:]:
        want = 0.8 * want + 0.2 * history["a"][t]
    np.testing.assert_allclose(jt.swa_params(state, last)["a"], want, rtol=1e-5)

    for window in (1, 4, 100):  # 100: the window is never full
        optimizer = jt.swa(jt.sgd(0.3), start=4, every=3, window=window)
        history, last, state = iterates_and_state(optimizer)
        want = history["a"][chosen(4, 3)[-window:]].mean(axis=0)
        np.testing.assert_allclose(jt.swa_params(state, last)["a"], want, rtol=1e-5)


def test_before_the_start_the_average_reads_as_the_current_parameters():
    _, last, state = iterates_and_state(jt.swa(jt.sgd(0.3), start=STEPS + 1))
    for got, want in zip(jax.tree.leaves(jt.swa_params(state, last)), jax.tree.leaves(last)):
        np.testing.assert_array_equal(got, want)


def test_a_long_bfloat16_average_does_not_stall():
    optimizer = jt.swa(optax.sgd(1.0), start=1)

    def body(carry, target):
        params, state = carry
        updates, state = optimizer.update(params - target, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.zeros((), jnp.bfloat16)
    targets = jnp.concatenate([jnp.zeros(1000), jnp.ones(1000)]).astype(jnp.bfloat16)
    (params, state), _ = jax.lax.scan(body, (params, optimizer.init(params)), targets)
    average = jt.swa_params(state, params)
    assert average.dtype == jnp.bfloat16
    assert float(average) == pytest.approx(0.5, rel=2**-8)


@pytest.mark.parametrize(
    "mask", [{"a": True, "b": False}, lambda p: {"a": True, "b": False}, jt.leaves_named("a")]
)
def test_a_mask_averages_only_its_leaves_and_stores_only_them(mask):
    history, last, state = iterates_and_state(jt.swa(jt.sgd(0.3), mask=mask))
    average = jt.swa_params(state, last)
    np.testing.assert_allclose(average["a"], history["a"].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(average["b"], last["b"])
    assert [x.shape for x in jax.tree.leaves(state.average)] == [(3,)]


def test_a_mask_may_be_a_prefix():
    params = {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}, "dense": {"w": jnp.ones(3)}}
    optimizer = jt.swa(optax.sgd(1.0), mask={"norm": True, "dense": False})
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    params = optax.apply_updates(params, updates)
    average = jt.swa_params(state, params)
    np.testing.assert_allclose(average["norm"]["scale"], 0.5)
    np.testing.assert_allclose(average["dense"]["w"], 0.0)


def test_the_average_does_not_change_the_run_and_is_found_inside_a_chain():
    plain, _, _ = iterates_and_state(optax.chain(optax.clip(0.5), jt.sgd(0.3)))
    history, last, state = iterates_and_state(optax.chain(optax.clip(0.5), jt.swa(jt.sgd(0.3))))
    np.testing.assert_array_equal(plain["a"], history["a"])
    average = jt.swa_params(state, last)["a"]
    np.testing.assert_allclose(average, history["a"].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_the_cyclic_schedule_is_that_of_the_paper():
    high, low, c = 0.05, 0.01, 5
    schedule = jt.cyclic_schedule(high, low, c)
    for i in range(1, 16):  # Izmailov et al. 2018, section 3.1, steps counted from 1
        t = ((i - 1) % c + 1) / c
        assert float(schedule(jnp.int32(i - 1))) == pytest.approx((1 - t) * high + t * low)
    # The parameters averaged are those reached by the step with the lowest rate.
    optimizer = jt.swa(jt.sgd(schedule), start=c, every=c)
    history, last, state = iterates_and_state(optimizer)
    want = history["a"][c::c].mean(axis=0)
    np.testing.assert_allclose(jt.swa_params(state, last)["a"], want, rtol=1e-5)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


def test_batch_statistics_are_recomputed_for_the_average():
    x = jax.random.normal(jax.random.key(1), (20, 4))
    model = Normed()
    params = model.init(jax.random.key(2), x)["params"]
    optimizer = jt.swa(jt.sgd(0.5))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    average = jt.swa_params(state, params)
    stats = recompute_batch_stats(model, average, x, batch_size=20)["batch_stats"]
    inside = x @ average["Dense_0"]["kernel"] + average["Dense_0"]["bias"]
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], inside.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(stats["BatchNorm_0"]["var"], inside.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"start": -1}, "start must be at least 0"),
        ({"window": 0}, "window must be at least 1"),
        ({"decay": 1.5}, "decay must be at most 1"),
        ({"decay": 0.5, "window": 2}, "not both"),
    ],
)
def test_wrong_inputs_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        jt.swa(jt.sgd(0.1), **arguments)


def test_wrong_calls_say_what_to_do():
    params = {"a": jnp.ones(2)}
    optimizer = jt.swa(jt.sgd(0.1))
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"update\(gradient, state, params\)"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="found 0 SwaState"):
        jt.swa_params(jt.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="found 2 SwaState"):
        jt.swa_params((state, state), params)
    with pytest.raises(ValueError, match="no parameter matches 'BatchNorm'"):
        jt.swa(jt.sgd(0.1), mask=jt.leaves_named("BatchNorm")).init(params)
    with pytest.raises(ValueError, match="period must be at least 1"):
        jt.cyclic_schedule(0.1, 0.01, 0)
    with pytest.raises(TypeError, match="every must be an integer"):
        jt.swa(jt.sgd(0.1), every=2.5)
