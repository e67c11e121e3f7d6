"""Components of batch gradients: exact moments, and tail indices of known laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab import gradient_covariance
from jaxstab.landscape import gradient_noise, hill, mcculloch, noise_statistics
from jaxstab.stability.criteria import variance_factor

KEY = jax.random.key(3)
N = 40


def loss(params, example):
    x, y = example
    return (jnp.tanh(params["w"] @ x) @ params["v"] - y) ** 2


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(KEY, 4)
    params = {"w": jax.random.normal(keys[0], (5, 3)), "v": jax.random.normal(keys[1], (5,))}
    return params, (jax.random.normal(keys[2], (N, 3)), jax.random.normal(keys[3], (N,)))


@pytest.mark.parametrize("replacement", [False, True])
def test_batches_have_the_mean_and_the_covariance_that_theory_says(problem, replacement):
    """Mean g, variance π(B) diag C_g; 3 × 20 tests of each, chance of failure 1e-5 each."""
    params, data = problem
    noise = gradient_noise(
        loss, params, data, batch_sizes=(1, 4, 16), batches=4000, key=KEY, components=50,
        replacement=replacement, chunk_size=7,
    )  # fmt: skip
    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, data)
    rows = np.concatenate([gradients["v"], gradients["w"].reshape(N, -1)], axis=1)
    np.testing.assert_allclose(noise.gradient, rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(noise.variance, rows.var(0), rtol=1e-4)
    one = jax.tree.map(jnp.zeros_like, params) | {"v": jnp.zeros(5).at[2].set(1.0)}
    covariance = gradient_covariance(loss, params, data)(one)
    assert noise.variance[2] == pytest.approx(float(covariance["v"][2]), rel=1e-4)
    for size, found in zip(noise.batch_sizes, noise.batch_gradients):
        expected = variance_factor(N, size, replacement) * noise.variance
        error = (found.mean(0) - noise.gradient) / np.sqrt(expected / 4000)
        assert np.abs(error).max() < stats.norm.isf(1e-5 / 40)
        # the variance of a sample variance, from the fourth moment found
        ratio = found.var(axis=0) / expected
        spread = np.sqrt((stats.kurtosis(found, fisher=False) - 1) / 4000)
        assert (np.abs(ratio - 1) / spread).max() < stats.norm.isf(1e-5 / 40)


def test_the_full_batch_has_no_noise_and_gives_no_statistics(problem):
    params, data = problem
    noise = gradient_noise(loss, params, data, batch_sizes=(N,), batches=20, key=KEY)
    assert np.ptp(noise.batch_gradients[0], axis=0).max() == 0
    row = noise_statistics(noise)[0]
    assert row["components"] == 0 and row["dead"] == 5 and np.isnan(row["hill"])


def test_components_are_sampled_of_every_array_and_dead_ones_are_counted(problem):
    params, (x, y) = problem
    x = x.at[:, 1].set(0.0)
    noise = gradient_noise(
        loss, params, (x, y), batch_sizes=(2, 20), batches=200, key=KEY, components=15
    )
    assert noise.leaf_names == ("['v']", "['w']") and noise.leaf.tolist() == [0] * 5 + [1] * 15
    rows = noise_statistics(noise)
    assert [(row["batch_size"], row["leaf"]) for row in rows[:2]] == [(2, "['v']"), (2, "['w']")]
    assert rows[1]["dead"] == 5 and rows[1]["components"] == 10
    few = gradient_noise(loss, params, (x, y), batch_sizes=(2,), batches=10, key=KEY, components=4)
    assert len(few.gradient) == 8
    with pytest.raises(ValueError, match="too few for a normality test"):
        noise_statistics(few)


def test_gaussian_noise_is_found_to_be_gaussian():
    """Linear losses with Gaussian slopes: every component of every batch is Gaussian."""
    slopes = jax.random.normal(KEY, (20_000, 60))
    noise = gradient_noise(
        lambda w, c: w @ c, jnp.zeros(60), slopes, batch_sizes=(4,), batches=2000, key=KEY
    )
    row = noise_statistics(noise)[0]
    # 60 components at level 5 %: more than 12 rejections have chance 3e-5
    assert row["rejected"] <= 0.2 and abs(row["excess_kurtosis"]) < 0.1
    assert row["mcculloch"] > 1.95 and 0.97 < row["variance_ratio"] < 1.03


def test_the_excess_kurtosis_falls_as_the_batch_grows():
    """Linear losses with Laplace slopes: 3/B for B independent draws; standard error 0.07."""
    slopes = jax.random.laplace(KEY, (20_000, 20))
    noise = gradient_noise(
        lambda w, c: w @ c, jnp.zeros(20), slopes, batch_sizes=(1, 10), batches=4000, key=KEY,
        replacement=True,
    )  # fmt: skip
    one, ten = noise_statistics(noise)
    exact = stats.kurtosis(np.asarray(slopes)).mean()
    assert one["excess_kurtosis"] == pytest.approx(exact, abs=0.35)
    assert ten["excess_kurtosis"] == pytest.approx(exact / 10, abs=0.1)
    assert one["rejected"] == 1.0 and one["mcculloch"] < 1.8 < ten["mcculloch"]


@pytest.mark.parametrize("alpha", [1.2, 1.6])
def test_tail_indices_of_stable_and_power_laws(alpha):
    stable = stats.levy_stable.rvs(alpha, 0, size=100_000, random_state=1)
    assert mcculloch(stable).value == pytest.approx(alpha, abs=0.03)
    power = stats.pareto.rvs(alpha, size=100_000, random_state=2)
    power[::2] *= -1
    found = hill(power)
    assert abs(found.value - alpha) < 4.5 * found.standard_error  # chance 7e-6
    assert found.standard_error == pytest.approx(found.value / np.sqrt(5000))


def test_quantiles_of_a_gaussian_give_two():
    assert mcculloch(stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)).value > 1.998


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": (N + 1,)}, "above the number of examples"),
        ({"batches": 1}, "batches must be at least 2"),
        ({"components": 0}, "components must be at least 1"),
    ],
)
def test_wrong_arguments_say_what_to_do(problem, arguments, message):
    params, data = problem
    settings = {"batch_sizes": (2,), "batches": 10, "key": KEY} | arguments
    with pytest.raises(ValueError, match=message):
        gradient_noise(loss, params, data, **settings)
    with pytest.raises(ValueError, match="leave a tail"):
        hill(np.ones(5))
