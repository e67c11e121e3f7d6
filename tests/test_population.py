"""The interval of a population covers what is known, as often as it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab as js
from jaxstab import operators, population

RANGES = np.array([1.0, 2.0, 4.0, 4.2])


def loss(params, example):
    """H_i = diag(x_i)."""
    return 0.5 * jnp.sum(example * params**2)


def draw(key, count):
    """x_ij uniform on 1 to 1 + r_j: mean 1 + r/2, standard deviation r/√12."""
    return 1 + jnp.asarray(RANGES, jnp.float32) * jax.random.uniform(key, (count, 4))


TRUE_A = 1 + RANGES.max() / 2
TRUE_S = RANGES.max() / np.sqrt(12)


def skewed(key, count):
    """x_i = h e_i² with e normal, in random directions: mean and spread known, skewness 2.8."""
    return jnp.array([1.0, 3.0]) * jax.random.normal(key, (count, 2)) ** 2


def covered(seeds, data, truth, **options):
    """In how many repetitions a and s lie in their intervals."""
    count = np.zeros(2)
    for seed in seeds:
        found = js.measure_population(loss, jnp.ones(len(RANGES)), data, key=jax.random.key(seed),
                                      **options)  # fmt: skip
        for i, value in enumerate((found.sharpness, found.nonuniformity)):
            count[i] += value.interval.lower <= truth[i] <= value.interval.upper
    return count


def test_deviations_are_those_of_the_products(x64):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=4)}
    data = rng.normal(size=(9, 3)), rng.normal(size=9)

    def model(params, example):
        return (jnp.tanh(example[0] @ params["w"]) @ params["v"] - example[1]) ** 2

    each = operators.per_example_hessian(model, params, data)(params)
    rows = np.concatenate([np.asarray(leaf).reshape(9, -1) for leaf in jax.tree.leaves(each)], 1)
    expected = np.sum((rows - rows.mean(0)) ** 2, 1)
    found = operators.per_example_deviations(model, params, data, params, chunk_size=4)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.slow
def test_interval_covers_as_often_as_it_says_small():
    """20 repetitions at 0.8: fewer than 10 by chance with probability 6e-4 were it no more."""
    count = covered(range(20), draw, (TRUE_A, TRUE_S), initial=64, max_examples=64, confidence=0.8)
    assert np.all(count >= 10)


def test_ends_bracket_and_the_sample_grows_until_the_interval_is_tight():
    found = js.measure_population(
        loss, jnp.ones(4), draw, key=jax.random.key(0), tol=0.25, initial=64, max_examples=256
    )
    assert found.converged and found.n is None and 64 < found.examples <= 256
    sizes = [m for m, _, _ in found.history]
    assert sizes == [64 * 2**i for i in range(len(sizes))] and sizes[-1] == found.examples
    for value in (found.sharpness, found.nonuniformity):
        assert value.interval.lower < value.lower < value.interval.upper
        assert value.interval.lower < value.upper < value.interval.upper
        assert value.width <= 0.25
    assert "confidence 0.95" in str(found)


def test_a_whole_population_is_measured_as_it_is():
    data = draw(jax.random.key(1), 64)
    found = js.measure_population(
        loss, jnp.ones(4), data, key=jax.random.key(0), initial=64, tol=0.03
    )
    assert found.examples == found.n == 64 and found.converged
    exact = np.asarray(data, float)
    low, high = found.sharpness.interval
    assert low <= exact.mean(0).max() <= high and found.sharpness.lower_error == 0
    low, high = found.nonuniformity.interval
    assert low <= exact.std(0).max() <= high


@pytest.mark.parametrize("kind", ["arrays", "sequence", "iterable"])
def test_streamed_data_are_read_as_far_as_the_sample_goes(kind):
    rows = np.asarray(draw(jax.random.key(2), 200))

    class Rows:
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return rows[i]

    class InOrder:
        def __iter__(self):
            return iter(rows)

    source = {"arrays": rows, "sequence": Rows(), "iterable": InOrder()}[kind]
    data = js.data.stream(source, n=200, ahead=0)
    found = js.measure_population(
        loss, jnp.ones(4), data, key=jax.random.key(0), initial=64, max_examples=64
    )
    assert found.examples == 64 and data.source.reads == 64 and not found.converged


def test_sizes_double_and_end_at_the_last():
    assert population._sizes(256, 256) == [256]
    assert population._sizes(256, 1100) == [256, 512, 1100]
    assert population._sizes(17, 60) == [16, 32, 60]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "sample"}, "unknown of .sample.: known are data"),
        ({"confidence": 1.0}, "confidence must be below 1"),
        ({"initial": 4}, "initial must be at least 16"),
        ({"max_examples": 8}, "max_examples must be at least 16"),
        ({"tol": 0.0}, "tol must be finite and positive"),
    ],
)
def test_wrong_options_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        js.measure_population(loss, jnp.ones(4), draw, key=jax.random.key(0), **options)


CASES = {
    # name: data, truth; of independent draws, with a known mean and spread
    "uniform": (draw, (TRUE_A, TRUE_S)),
    "skewed": (
        lambda key, count: jnp.pad(skewed(key, count), ((0, 0), (0, 2))),
        (3.0, 3.0 * np.sqrt(2.0)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("growing", [False, True])
def test_interval_covers_in_200_repetitions(name, growing):
    """At least the stated share, less what 200 repetitions scatter: 1.65 standard deviations."""
    data, truth = CASES[name]
    sizes = (64, 512) if growing else (256, 256)
    count = covered(
        range(200), data, truth, confidence=0.9, initial=sizes[0], max_examples=sizes[1], tol=0.3
    )
    print(name, growing, count / 200)
    assert np.all(count / 200 >= 0.9 - 1.65 * np.sqrt(0.9 * 0.1 / 200))


@functools.cache
def digits():
    """A small network fitted to some digits, and all 1,400 of them as the population."""
    (x, y), _ = js.data.load("digits")[:2]
    model = js.models.fnn((8,), classes=10)
    loss = js.losses.ModelLoss(model, js.losses.squared)
    params = js.models.initialize(model, jax.random.key(0), x[0])
    run = js.train(loss, params, (x, y), optimizer=js.transforms.sgd, learning_rate=0.2,
                   batch_size=50, max_steps=500, key=jax.random.key(1))  # fmt: skip
    return loss, run.params, (x, y)


@pytest.mark.slow
def test_interval_covers_on_digits_in_200_repetitions():
    """The population is finite, so its a and s are known: `measure` of all of it."""
    network, params, data = digits()
    truth = js.measure(network, params, data, key=jax.random.key(0), tol=1e-4)
    truth = float(truth.sharpness.value), float(truth.nonuniformity.value)
    count, repetitions = np.zeros(2), 200
    for seed in range(repetitions):
        found = js.measure_population(network, params, data, key=jax.random.key(seed),
                                      initial=128, max_examples=128, confidence=0.9)  # fmt: skip
        for i, value in enumerate((found.sharpness, found.nonuniformity)):
            count[i] += value.interval.lower <= truth[i] <= value.interval.upper
    print("digits", count / repetitions)
    assert np.all(count / repetitions >= 0.9 - 1.65 * np.sqrt(0.9 * 0.1 / repetitions))
