"""Theorems 1 and 2 of He, Huang, Yuan (2019): they hold where covered, by exact means and by
Monte Carlo with stated error rates, and say nothing where a condition fails."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxstab.landscape import (
    Valley,
    averaging_bound,
    bias_bound,
    expected_shifted_loss,
    noisy_descent,
)

KEY = jax.random.key(0)


# ---- theorem 1 ----------------------------------------------------------------------------------


def valleys(slopes, ratios, phase, amplitude):
    """k asymmetric valleys along orthonormal directions, and an error of at most `amplitude`."""
    k = len(slopes)
    basis = jnp.asarray(np.linalg.qr(np.random.default_rng(k).standard_normal((k + 3, k)))[0].T)

    def loss(w):
        l = basis @ w
        total = jnp.sum(jnp.where(l > 0, slopes * l, -ratios * slopes * l))
        return total + amplitude * jnp.sin(40 * jnp.sum(w) + phase)

    return basis, loss


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("gap", [0.0, 0.02])
def test_the_bias_gains_at_least_the_bound(k, gap):
    rng = np.random.default_rng(k)
    gained = []
    for _ in range(5):
        p, c = rng.uniform(0.5, 2, k), rng.uniform(2, 4, k)
        shift = rng.uniform(1, 2, k)
        bias = rng.uniform(0.3, 0.9, k) * shift
        found = bias_bound(
            p=p * 1.001, c=c / 1.002, r=1e9, zeta=0.0, shift=shift[0], bias=bias[0], gap=gap
        ) if k == 1 else bias_bound(
            p=p * 1.001, c=c / 1.002, r=np.full(k, 1e9), zeta=np.zeros(k), shift=shift, bias=bias,
            gap=gap,
        )  # fmt: skip
        assert found.covered and found.gain > 0
        basis, loss = valleys(jnp.asarray(p), jnp.asarray(c), float(rng.uniform(0, 6)), gap)
        at = [
            float(
                expected_shifted_loss(loss, jnp.zeros(k + 3), directions=basis, shift=shift, bias=l)
            )
            for l in (np.zeros(k), bias)
        ]
        assert at[0] - at[1] >= found.gain - 1e-5
        gained.append((at[0] - at[1]) / found.gain)
    if gap == 0:  # the bound is attained by these valleys
        np.testing.assert_allclose(gained, 1, rtol=0.01)


def test_with_max_as_printed_the_theorem_is_false():
    """The example of the docstring: the flat side reaches far enough, the shift does not."""
    found = bias_bound(p=1.0, c=2.0, r=10.0, zeta=0.0, shift=1.0, bias=9.0)
    assert max(10.0 - 1.0, 1.0 - 0.0) >= 9.0
    assert not found.covered
    assert not found.conditions["the sharp side covers shift − bias"]
    basis, loss = valleys(jnp.ones(1), jnp.full(1, 2.0), 0.0, 0.0)
    before, after = (
        float(expected_shifted_loss(loss, jnp.zeros(4), directions=basis, shift=[1.0], bias=l))
        for l in (0.0, 9.0)
    )
    assert before == pytest.approx(1.5, rel=1e-5) and after == pytest.approx(9.0, rel=1e-5)
    assert found.gain > 0 > before - after


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"bias": 3.5}, "the sharp side covers shift − bias"),
        ({"zeta": 2.5}, "the sharp side covers shift − bias"),
        ({"r": 3.5}, "the flat side reaches shift + bias"),
        ({"gap": 0.6}, "the bias exceeds 4ξ/((c − 1) p)"),
    ],
)
def test_each_condition_of_theorem_1_is_named(changes, failing):
    call = {"p": 1.0, "c": 3.0, "r": 9.0, "zeta": 0.0, "shift": 3.0, "bias": 1.0, "gap": 0.0}
    assert bias_bound(**call).covered
    found = bias_bound(**(call | changes))
    assert not found.covered
    assert [name for name, holds in found.conditions.items() if not holds] == [failing]


def test_expectations_are_over_all_signs():
    def loss(w):
        return jnp.sum(w["a"] ** 3) + w["b"]

    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(0.5)}
    directions = {"a": jnp.eye(2), "b": jnp.zeros(2)}
    found = expected_shifted_loss(
        loss, params, directions=directions, shift=[0.5, 1.0], bias=[0.1, 0.2]
    )
    wanted = np.mean(
        [(1.1 + s * 0.5) ** 3 + (2.2 + t) ** 3 + 0.5 for s in (-1, 1) for t in (-1, 1)]
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


# ---- theorem 2 ----------------------------------------------------------------------------------


def test_valleys_have_the_slopes_said():
    valley = Valley(left=(3.0, 5.0), right=(0.5, 2.0))
    w = jnp.array([-8.0, -1.0, -1e-4, 1e-4, 1.0, 8.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(valley))(w), valley.slope(w), rtol=1e-5)
    np.testing.assert_allclose(
        valley.slope(w)[jnp.array([0, 2, 3, 5])], [-5, -3, 0.5, 2], rtol=1e-2
    )
    assert float(valley(jnp.array(0.0))) == 0 and float(valley.slope(jnp.array(0.0))) == 0.5


def mean_and_error(path):
    """Mean over runs of the mean iterate, and its standard error: the runs are the units."""
    means = np.asarray(path, np.float64).mean(1)
    return means.mean(), means.std(ddof=1) / math.sqrt(means.size)


@pytest.mark.parametrize(
    "valley",
    [
        Valley(left=(16.0, 16.0), right=(1.0, 1.0)),
        Valley(left=(20.0, 30.0), right=(1.0, 0.8)),
        Valley(left=(40.0, 20.0), right=(0.5, 1.0)),
    ],
)
@pytest.mark.parametrize("learning_rate", [0.01, 0.5])
def test_the_mean_iterate_lies_on_the_flat_side(valley, learning_rate):
    """The lower end of a one-sided interval at level 1e-6 is above the explicit c_0."""
    noise = 0.9
    bound = averaging_bound(valley, noise=noise)
    assert bound.covered and bound.lower > 0
    path = noisy_descent(
        valley, 0.0, learning_rate=learning_rate, noise=noise, steps=4000, runs=64, key=KEY
    )
    mean, error = mean_and_error(path[:, 1000:])
    assert mean - scipy.stats.t.isf(1e-6, 63) * error > bound.lower * learning_rate


def test_left_of_the_bottom_it_stays_one_step_at_a_time():
    """The lemma of the proof: after a step to the left always one to the right, by (c−3) u."""
    valley = Valley(left=(14.0, 14.0), right=(1.0, 1.0))
    path = np.asarray(
        noisy_descent(valley, 0.0, learning_rate=1.0, noise=1.0, steps=3000, runs=8, key=KEY)
    )
    left = path[:, :-1] < 0
    assert left.any()
    assert path.min() > -2 and (path[:, 1:][left] > 14 - 3).all()


@pytest.mark.parametrize(
    ("valley", "noise", "failing"),
    [
        (Valley(left=(10.0, 10.0), right=(1.0, 1.0)), 0.5, "c' < exp(c/3)/6"),
        (Valley(left=(16.0, 16.0), right=(1.0, 0.1)), 0.5, "c' < exp(c/3)/6"),
        (Valley(left=(30.0, 30.0), right=(1.0, 1.0)), 1.5, "the noise is at most"),
        (Valley(left=(1.0, 1.0), right=(1.0, 1.0)), 0.5, "c' < exp(c/3)/6"),
    ],
)
def test_each_condition_of_theorem_2_is_named(valley, noise, failing):
    found = averaging_bound(valley, noise=noise)
    assert not found.covered
    failed = [name for name, holds in found.conditions.items() if not holds]
    assert len(failed) == 1 and failed[0].startswith(failing)


def test_without_asymmetry_there_is_no_bias():
    """A symmetric valley: the theorem does not cover it, and the mean is 0 within its error."""
    valley = Valley(left=(1.0, 1.0), right=(1.0, 1.0))
    assert averaging_bound(valley, noise=0.9).lower == -math.inf
    start = jnp.tile(jnp.array([0.25, -0.25]), 64)  # symmetric starts, so the mean is exactly 0
    path = noisy_descent(valley, start, learning_rate=0.5, noise=0.9, steps=1000, runs=128, key=KEY)
    mean, error = mean_and_error(path)
    assert abs(mean) < 5 * error  # two-sided level 2e-6 for 128 runs


def test_symmetric_limits_of_appendix_d():
    """Flat: all iterates on the side of the start. Sharp: around the centre, both sides alike."""
    flat, sharp = (Valley(left=(p, p), right=(p, p)) for p in (1e-3, 2.0))
    # T η (p + ν) = 1000 · 0.1 · 2e-3 = 0.2 < 1: it cannot reach the bottom
    path = noisy_descent(flat, 1.0, learning_rate=0.1, noise=1e-3, steps=1000, runs=16, key=KEY)
    assert float(path.min()) > 0
    path = noisy_descent(sharp, 1.0, learning_rate=0.1, noise=1.9, steps=2000, runs=16, key=KEY)
    right = float((path[:, 500:] > 0).mean())
    assert 0.4 < right < 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bias_bound(p=1, c=1, r=1, zeta=0, shift=1, bias=1), "p > 0, c > 1"),
        (lambda: bias_bound(p=[1, 1], c=2, r=1, zeta=0, shift=1, bias=1), "each of the k"),
        (
            lambda: expected_shifted_loss(
                jnp.sum, jnp.zeros(20), directions=jnp.eye(20), shift=jnp.ones(20)
            ),
            "at most 16",
        ),
        (lambda: averaging_bound(Valley((0.0, 1.0), (1.0, 1.0)), noise=0.1), "slope on the left"),
        (lambda: averaging_bound(Valley((1.0, 1.0), (1.0, 1.0)), noise=-1.0), "noise must be"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
