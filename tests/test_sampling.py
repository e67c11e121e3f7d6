"""Batches: every subset equally likely, steps independent, whatever the scheme."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab import sampling
from jaxstab.sampling import batch_indices, take

# Every statistical test below has fixed seeds and this error rate: were the sampler drawn anew, one
# in ten thousand such tests would fail by chance.
ERROR_RATE = 1e-4

SCHEMES = {
    "redraw": sampling._redraw_duplicates,
    "largest": sampling._largest_of_random,
}


def draws(scheme, n, batch_size, count, seed=0):
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(count))
    return np.asarray(jax.jit(jax.vmap(lambda key: scheme(key, n, batch_size)))(keys))


def subset_numbers(indices, n):
    subsets = {s: i for i, s in enumerate(itertools.combinations(range(n), indices.shape[1]))}
    return np.array([subsets[tuple(sorted(row))] for row in indices.tolist()]), len(subsets)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "batch_size"), [(6, 3), (5, 4), (7, 1)])
def test_every_subset_is_equally_likely(scheme, n, batch_size):
    numbers, count = subset_numbers(draws(SCHEMES[scheme], n, batch_size, 20_000), n)
    assert stats.chisquare(np.bincount(numbers, minlength=count)).pvalue > ERROR_RATE


def test_ties_do_not_favour_small_indices(monkeypatch):
    uniform = jax.random.uniform
    coarse = lambda *arguments: jnp.floor(uniform(*arguments) * 8) / 8  # noqa: E731
    monkeypatch.setattr(jax.random, "uniform", coarse)
    numbers, count = subset_numbers(draws(SCHEMES["largest"], 6, 3, 20_000), 6)
    assert stats.chisquare(np.bincount(numbers, minlength=count)).pvalue > ERROR_RATE


@pytest.mark.parametrize("scheme", SCHEMES)
def test_consecutive_batches_are_independent(scheme):
    numbers, count = subset_numbers(draws(SCHEMES[scheme], 4, 2, 40_000), 4)
    table = np.zeros((count, count))
    np.add.at(table, (numbers[:-1:2], numbers[1::2]), 1)
    assert stats.chi2_contingency(table).pvalue > ERROR_RATE


@pytest.mark.parametrize(("n", "batch_size"), [(1000, 4), (1000, 89), (1000, 90), (1000, 999)])
def test_batches_hold_distinct_examples(n, batch_size):
    indices = draws(batch_indices, n, batch_size, 20)
    assert indices.shape == (20, batch_size)
    assert all(len(set(row)) == batch_size for row in indices.tolist())
    assert indices.min() >= 0 and indices.max() < n


@pytest.mark.parametrize("replacement", [False, True])
def test_variance_of_a_batch_mean_is_the_variance_factor(replacement):
    n, batch_size, count = 40, 20, 4000
    values = np.random.default_rng(0).normal(size=n)
    draw = partial(batch_indices, replacement=replacement)
    means = values[draws(draw, n, batch_size, count)].mean(axis=1)
    factor = 1 / batch_size if replacement else (n - batch_size) / (batch_size * (n - 1))
    # the sample variance of `count` nearly normal means has relative standard error sqrt(2/count)
    error = stats.norm.isf(ERROR_RATE / 2) * np.sqrt(2 / count)
    assert np.var(means, ddof=1) == pytest.approx(factor * np.var(values), rel=error)


def test_the_whole_set_is_taken_in_order():
    assert batch_indices(jax.random.key(0), 5, 5).tolist() == [0, 1, 2, 3, 4]


def test_take_handles_pytrees():
    data = {"x": jnp.arange(12.0).reshape(4, 3), "y": jnp.arange(4)}
    batch = take(data, jnp.array([3, 1]))
    assert batch["y"].tolist() == [3, 1]
    np.testing.assert_array_equal(batch["x"], data["x"][np.array([3, 1])])


@pytest.mark.parametrize("batch_size", [0, 6, -1])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        batch_indices(jax.random.key(0), 5, batch_size)


def test_resampling_takes_each_as_often_as_its_weight_says():
    weights = jnp.asarray([0.5, 0.0, 2.25, 1.25, 0.0])
    expected = 5 * weights / jnp.sum(weights)
    counts = [
        np.bincount(np.asarray(sampling.resample(choice, weights)), minlength=5)
        for choice in jnp.linspace(0.001, 0.999, 500)
    ]
    assert (np.floor(expected) <= np.min(counts, 0)).all()
    assert (np.max(counts, 0) <= np.ceil(expected)).all()
    np.testing.assert_allclose(np.mean(counts, 0), expected, atol=0.01)
