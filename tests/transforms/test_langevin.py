"""Langevin noise has the temperature it was asked for, and every draw is independent.

All tests of chance use fixed keys and state the chance that a correct program would fail them.
"""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxstab import transforms as jt

KEY = jax.random.key(2024)


def simulate(optimizer, gradient, x, steps):
    def body(_, carry):
        x, state = carry
        updates, state = optimizer.update(gradient(x), state, x)
        return optax.apply_updates(x, updates), state

    return jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, (x, optimizer.init(x)))[0])(x)


def chi_square_band(count, chance):
    """Bounds of sample variance / true variance for `count` normal draws of known mean."""
    return stats.chi2.ppf([chance / 2, 1 - chance / 2], count) / count


@pytest.mark.parametrize("form", ["temperature", "noise"])
def test_the_stationary_variance_on_a_quadratic_is_exact(form):
    """T / (λ(1 − ηλ/2)); chance of failure 3 · 1e-6 for each form."""
    eta, temperature, chains = 0.5, 0.3, 100_000
    # Where ηλ/2 is 0.05, 0.5 and 0.9, the limit T/λ would be off by 5 %, 50 % and 90 %.
    curvature = {"flat": 0.2, "middle": 2.0, "sharp": 3.6}
    amount = {"temperature": temperature, "noise": np.sqrt(2 * eta * temperature)}[form]
    optimizer = jt.langevin(eta, key=KEY, **{form: amount})
    x = {name: jnp.zeros(chains) for name in curvature}

    def gradient(x):
        return {name: curvature[name] * x[name] for name in x}

    # (1 − ηλ)^2·150 < 1e-13: stationary from any start.
    x = simulate(optimizer, gradient, x, 150)
    low, high = chi_square_band(chains, 1e-6)
    for name, h in curvature.items():
        want = temperature / (h * (1 - eta * h / 2))
        assert low < float(jnp.mean(x[name] ** 2)) / want < high
    # Independent leaves: the correlation of 1e5 pairs is N(0, 1e-5); chance 3 · 6e-7.
    for a, b in (("flat", "middle"), ("flat", "sharp"), ("middle", "sharp")):
        assert abs(np.corrcoef(x[a], x[b])[0, 1]) < 5 / np.sqrt(chains)


def test_boltzmann_occupancy_of_a_tilted_double_well():
    """P(right well) = ∫ exp(−V/T) over it; chance of failure 1e-6."""
    temperature, eta, chains = 0.2, 0.02, 40_000

    def potential(x):
        return x**4 / 4 - x**2 / 2 + 0.1 * x

    grid = np.linspace(-3, 3, 1501)
    density = np.exp(-potential(grid) / temperature)
    boltzmann = density[grid > 0].sum() / density.sum()
    # The chain's own stationary law, from its transition kernel on the grid: the discretisation
    # bias, which is no fault of the transform, is known and small.
    mean = grid - eta * (grid**3 - grid + 0.1)
    kernel = np.exp(-((grid[None] - mean[:, None]) ** 2) / (4 * eta * temperature))
    kernel /= kernel.sum(axis=1, keepdims=True)
    law = density / density.sum()
    for _ in range(40):
        law = law @ kernel
    discrete = law[grid > 0].sum()
    assert abs(discrete - boltzmann) < 0.004

    optimizer = jt.langevin(eta, temperature=temperature, key=KEY)
    # Relaxation takes about 400 steps (Kramers); after 4000 the start is forgotten to e^-10.
    x = simulate(optimizer, lambda x: x**3 - x + 0.1, jnp.zeros(chains), 4000)
    count = int(jnp.sum(x > 0))
    assert 0.25 < boltzmann < 0.35
    assert stats.binomtest(count, chains, discrete).pvalue > 1e-6


def test_the_gamma_schedules_of_sgdl_are_read_at_each_step():
    gamma = optax.piecewise_constant_schedule(0.1, {1: 10.0})

    def noise(count):
        return jnp.where(count == 0, 0.0, 2.0)

    optimizer = jt.langevin(gamma, noise=noise, key=KEY)
    gradient = jnp.ones(50_000)
    state = optimizer.init(gradient)
    updates, state = optimizer.update(gradient, state)
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)
    updates, state = optimizer.update(gradient, state)
    # chance 1e-6 for the variance and 6e-7 for the mean
    low, high = chi_square_band(gradient.size, 1e-6)
    assert low < float(jnp.mean((updates + 1.0) ** 2)) / 4 < high
    assert abs(float(jnp.mean(updates)) + 1.0) < 5 * 2 / np.sqrt(gradient.size)


def test_temperature_zero_is_gradient_descent():
    optimizer = jt.langevin(0.1, temperature=0.0, key=KEY)
    updates, _ = optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


def test_noise_differs_over_steps_keys_and_named_axes_and_repeats_for_equal_keys():
    zero = jnp.zeros(2000)

    def two_steps(key, axis_name=None):
        optimizer = jt.langevin(0.5, temperature=1.0, key=key, axis_name=axis_name)
        first, state = optimizer.update(zero, optimizer.init(zero))
        return jnp.stack([first, optimizer.update(zero, state)[0]])

    base = two_steps(KEY)
    np.testing.assert_array_equal(base, two_steps(KEY))
    keys = jnp.stack([KEY, jax.random.key(5)])
    chains = jax.vmap(two_steps)(keys)
    named = jax.vmap(lambda _: two_steps(KEY, "chains"), axis_name="chains")(jnp.arange(2))
    replicas = jax.vmap(lambda _: two_steps(KEY))(jnp.arange(2))
    np.testing.assert_array_equal(replicas[0], replicas[1])
    for draws in (chains.reshape(4, -1), named.reshape(4, -1)):
        correlation = np.corrcoef(draws) - np.eye(4)
        assert np.abs(correlation).max() < 5 / np.sqrt(zero.size)  # chance 6 · 6e-7


def test_raw_keys_work_too():
    raw = jax.random.PRNGKey(3)
    states = [jt.langevin(0.1, temperature=1.0, key=k).init(None) for k in (raw, KEY)]
    assert states[0].key.dtype == jnp.uint32
    update = jt.langevin(0.1, temperature=1.0, key=raw).update(jnp.zeros(2), states[0])[0]
    assert np.all(np.isfinite(update))


def test_data_parallel_replicas_share_noise_and_chains_on_devices_do_not():
    """On two devices, in a process of its own: the number of devices is fixed at the start."""
    code = textwrap.dedent(
        """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import PartitionSpec as P
        from jaxstab import transforms as jt

        mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        key, data = jax.random.key(0), jnp.arange(4.0)

        def step(data, axis_name):
            w = jnp.zeros(500)
            optimizer = jt.swa(
                jt.langevin(0.1, temperature=1.0, key=key, axis_name=axis_name), every=2
            )
            state = optimizer.init(w)
            g = jax.lax.pmean(jnp.mean(data) * jnp.ones(500), "d")
            updates, state = optimizer.update(g, state, w)
            return updates[None], state.average[None]

        def on_two(axis_name):
            mapped = jax.shard_map(
                lambda d: step(d, axis_name), mesh=mesh, in_specs=P("d"), out_specs=P("d"),
                check_vma=False,
            )
            return np.asarray(jax.jit(mapped)(data)[0])

        assert jax.device_count() == 2
        same, different = on_two(None), on_two("d")
        np.testing.assert_array_equal(same[0], same[1])
        assert abs(np.corrcoef(different)[0, 1]) < 5 / np.sqrt(500)  # chance 6e-7
        """
    )
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1.0"),
        ({"noise": -0.1}, "noise must be finite and not negative"),
        ({"temperature": 1.0, "noise": 1.0}, "exactly one of temperature"),
        ({}, "exactly one of temperature"),
        ({"temperature": 1.0, "learning_rate": -1.0}, "learning_rate must be"),
    ],
)
def test_wrong_numbers_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        jt.langevin(**{"learning_rate": 0.1, "key": KEY, **arguments})


@pytest.mark.parametrize("key", [0, None, jnp.ones(2), jax.random.split(KEY, 3)])
def test_a_wrong_key_says_what_to_do(key):
    with pytest.raises(TypeError, match=r"jax.random.key\(seed\)"):
        jt.langevin(0.1, temperature=1.0, key=key)
