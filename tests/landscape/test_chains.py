"""Chains have the law they should have; every test of chance states its rate of false alarms."""

import functools
import itertools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab.landscape import compare, diagnose, flat_valley, langevin_chains, two_wells
from jaxstab.landscape.chains import _run

KEY = jax.random.key(11)
CHANCE = 1e-6
CHAINS = 512
WELLS = {dimension: two_wells(dimension) for dimension in range(1, 6)}


def starts(potential, chains=CHAINS):
    """Half of the chains in each well, and which."""
    places = [jnp.asarray(minimum.position, jnp.float32) for minimum in potential.minima]
    return jnp.repeat(jnp.stack(places), chains // 2, axis=0), np.repeat([0, 1], chains // 2)


def first(x):
    return x[0]


def occupied(values, potential):
    return np.stack([values < 0, values > potential.corridor], axis=-1)


@functools.cache
def langevin(potential, *, temperature=0.5, learning_rate=0.01, **options):
    """Values of x₁ along chains; run once for all tests that look at them."""
    start, groups = starts(potential)
    # the relaxation takes at most 1,160 steps at this temperature (from the spectrum of the
    # transition matrix of x₁), so the starts are forgotten to exp(−5)
    settings = {"burn_in": 6000, "thin": 100, "draws": 40, "observe": first} | options
    draws = langevin_chains(
        potential,
        start,
        learning_rate=learning_rate,
        temperature=temperature,
        key=KEY,
        **settings,
    )
    return np.asarray(draws.values), groups


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 5])
def test_the_wide_well_is_occupied_w_to_the_d_times_as_much(dimension):
    """Hotelling's T² over 512 chains; chance of failure 1e-6 each, 1e-3 for the mixing."""
    potential = WELLS[dimension]
    values, groups = langevin(potential)
    law = potential.marginal(temperature=0.5, learning_rate=0.01)
    expected = [law.probability(*minimum.region) for minimum in potential.minima]
    # the correction for the learning rate is below 13 %, what is left below its square
    assert expected[1] / expected[0] == pytest.approx(2**dimension, rel=0.13)
    found = compare(occupied(values, potential), expected)
    assert found.p_value > CHANCE
    assert diagnose(values, groups=groups).mixed
    # and the test has power: the law of one dimension more or less is excluded
    wrong = two_wells(dimension + 1).marginal(temperature=0.5, learning_rate=0.01)
    expected = [wrong.probability(*minimum.region) for minimum in potential.minima]
    assert compare(occupied(values, potential), expected).p_value < CHANCE


def test_the_flat_valley_is_occupied_as_its_closed_form_says():
    potential = flat_valley(3)
    values, groups = langevin(potential)
    law = potential.marginal(temperature=0.5, learning_rate=0.01)
    expected = [law.probability(*minimum.region) for minimum in potential.minima]
    assert compare(occupied(values, potential), expected).p_value > CHANCE
    assert diagnose(values, groups=groups).mixed


def test_the_histogram_has_the_exact_marginal_and_that_of_metropolis_adjusted_chains():
    """MALA has no bias of the step; both against the same bins, chance 1e-6 each."""
    potential, temperature, eta = WELLS[2], 0.5, 0.01
    edges = np.array([-3.0, -1.2, -0.9, -0.6, 0.0, 0.5, 1.5, 2.5, 3.5, 8.0])

    def binned(values):
        return np.stack([(values >= a) & (values < b) for a, b in itertools.pairwise(edges)], -1)

    values, _ = langevin(potential)
    corrected = potential.marginal(temperature=temperature, learning_rate=eta)
    expected = corrected.probability(edges[:-1], edges[1:])
    assert compare(binned(values)[..., 1:], expected[1:]).p_value > CHANCE

    kernel = blackjax.mala(lambda x: -potential(x) / temperature, step_size=0.1)
    start, _ = starts(potential)

    @jax.jit
    @jax.vmap
    def chain(x, key):
        def step(i, state):
            return kernel.step(jax.random.fold_in(key, i), state)[0]

        def draw(carry, i):
            state = jax.lax.fori_loop(20 * i, 20 * (i + 1), step, carry)
            return state, state.position[0]

        return jax.lax.scan(draw, kernel.init(x), jnp.arange(100))[1]

    reference = np.asarray(chain(start, jax.random.split(KEY, CHAINS)))[:, 50:]
    exact = potential.marginal(temperature=temperature).probability(edges[:-1], edges[1:])
    assert compare(binned(reference)[..., 1:], exact[1:]).p_value > CHANCE


def quadratic(x, shift=0.0):
    return jnp.sum(jnp.array([0.4, 3.0]) * x**2) / 2 + jnp.sum(shift * x)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_stationary_variance_on_a_quadratic_is_exact(batch_size):
    """T/(λ(1 − ηλ/2)), with T + ηπ(B)σ²/2 for batches; chance of failure 2e-6."""
    eta, temperature, n, chains, sigma = 0.4, 0.3, 20, 20_000, 0.8
    data = None
    if batch_size:
        draws = jax.random.normal(KEY, (n, 2))
        data = sigma * np.sqrt(n) * jnp.linalg.qr(draws - draws.mean(0))[0]
        temperature_total = temperature + eta * (n - 4) / (4 * (n - 1)) * sigma**2 / 2
    else:
        temperature_total = temperature
    # (1 − ηλ)^(2 · 120) < 1e-17
    found = langevin_chains(
        quadratic,
        jnp.zeros((chains, 2)),
        data,
        learning_rate=eta,
        temperature=temperature,
        batch_size=batch_size,
        draws=1,
        burn_in=120,
        key=KEY,
    ).params
    # noise of batches is not Gaussian: the fourth moment of a sum of about 10 steps is near 3
    low, high = stats.chi2.ppf([CHANCE / 2, 1 - CHANCE / 2], chains) / chains
    for i, curvature in enumerate((0.4, 3.0)):
        want = temperature_total / (curvature * (1 - eta * curvature / 2))
        assert low < float(np.mean(np.asarray(found)[:, i] ** 2)) / want < high


def test_sgd_alone_has_the_temperature_of_its_batches():
    """Temperature 0: what is left is the noise of the batches, here isotropic; chance 1e-6."""
    potential, eta, n, batch_size, target = two_wells(2), 0.01, 16, 2, 0.5
    scale = np.sqrt(2 * target / eta * batch_size * (n - 1) / (n - batch_size))
    tilts = potential.tilts(n, scale=scale, key=KEY)
    start, groups = starts(potential)
    draws = langevin_chains(
        potential,
        start,
        tilts,
        learning_rate=eta,
        temperature=0.0,
        batch_size=batch_size,
        burn_in=6000,
        thin=100,
        draws=40,
        observe=first,
        key=KEY,
    )
    values = np.asarray(draws.values)
    law = potential.marginal(temperature=target, learning_rate=eta)
    expected = [law.probability(*minimum.region) for minimum in potential.minima]
    assert compare(occupied(values, potential), expected).p_value > CHANCE
    assert diagnose(values, groups=groups).mixed


def test_chains_that_stay_where_they_started_are_not_called_mixed():
    values, groups = langevin(WELLS[1], temperature=0.05, burn_in=100, thin=10)
    found = diagnose(values, groups=groups)
    assert not found.mixed and found.p_value < 1e-3 and found.rhat > 1.01
    # with every chain in one well and no groups nothing can be seen, which is why to give them
    assert np.isnan(diagnose(values[groups == 0]).p_value)


def test_compare_has_the_rate_of_false_alarms_that_it_states():
    """Dependent draws, 400 data sets of 40 chains: about 5 % below 0.05; chance 1e-5."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        steps = rng.standard_normal((40, 30, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
        p.append(compare(1.0 + np.cumsum(steps, axis=1) / 30, [1.0, 1.0]).p_value)
    assert stats.binomtest(sum(np.array(p) < 0.05), 400, 0.05).pvalue > 1e-5


def test_other_temperatures_learning_rates_and_lengths_compile_nothing():
    def run(**numbers):
        settings = {"learning_rate": 0.01, "temperature": 0.1, "burn_in": 3, "thin": 2} | numbers
        langevin_chains(quadratic, jnp.zeros((4, 2)), draws=5, key=KEY, **settings)

    run()
    before = _run._cache_size()
    run(temperature=0.2)
    run(learning_rate=0.1, burn_in=7, thin=3)
    assert _run._cache_size() == before


def test_any_parameters_and_any_number_to_observe():
    start = {"w": jnp.zeros((6, 2)), "b": jnp.zeros(6)}

    def loss(params, example):
        return (params["w"] @ example + params["b"] - 1) ** 2

    draws = langevin_chains(
        loss, start, jnp.ones((8, 2)), learning_rate=0.1, temperature=0.1, batch_size=3, draws=4,
        key=KEY, observe=lambda params: {"b": params["b"]},
    )  # fmt: skip
    assert draws.values["b"].shape == (6, 4) and draws.params["w"].shape == (6, 2)
    assert len(np.unique(draws.values["b"])) == 24, "every chain has its own noise"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "draws must be at least 1"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"batch_size": 2}, "batch_size without data"),
        ({"data": jnp.ones((3, 2)), "batch_size": 4}, "above the number of examples"),
        ({"start": {"a": jnp.zeros(2), "b": jnp.zeros(3)}}, "same leading axis"),
        ({"start": jnp.zeros((3, 2)), "devices": jax.devices() * 2}, "cannot be spread equally"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, message):
    settings = {"start": jnp.zeros((4, 2)), "learning_rate": 0.1, "temperature": 1.0, "draws": 1}
    settings |= arguments
    with pytest.raises(ValueError, match=message):
        langevin_chains(quadratic, settings.pop("start"), settings.pop("data", None), key=KEY,
                        **settings)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose(np.zeros((3, 2))), r"must be \(chains, draws\)"),
        (lambda: diagnose(np.zeros((3, 8)), groups=[0, 0, 1]), "at least two chains"),
        (lambda: compare(np.zeros((3, 2, 2)), 0.0), "too few"),
        (lambda: compare(np.zeros((9, 2, 2)), 0.0), "singular"),
    ],
)
def test_too_little_to_tell_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
