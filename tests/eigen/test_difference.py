"""How far apart two operators are, and what a solver makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.eigen import difference, lanczos, vectors

SIZE = 200
LIKE = jnp.zeros(SIZE)
SIG = vectors.signature(LIKE)
KEYS = jax.random.split(jax.random.key(0), 400)
SPECTRA = {
    "one": np.r_[1.0, np.zeros(SIZE - 1)],
    "flat": np.linspace(-1, 1, SIZE),
    "decaying": -np.exp(-np.arange(SIZE)),
    "equal": np.ones(SIZE),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_bound_fails_no_more_often_than_it_says(name):
    """Four standard deviations of 400 draws above the stated rate are allowed for."""
    e = jnp.asarray(SPECTRA[name], jnp.float32)

    def bound(key, probability):
        return difference.measure(lambda v: 0 * v, lambda v: e * v, SIG, key, probability)

    for probability in (0.3, 1e-3):
        found = jax.jit(jax.vmap(lambda key: bound(key, probability)))(KEYS)  # noqa: B023
        failed = float(jnp.mean(found.bound < 1))
        assert failed <= probability + 4 * np.sqrt(probability / len(KEYS))
        assert jnp.all(found.seen <= 1 + 1e-5) and jnp.all(found.products <= 8)
        near = found.bound <= difference.DIFFERENCE * found.seen
        assert jnp.all(near | (found.products == 8))


def test_equal_operators_and_broken_ones():
    measured = jax.jit(
        lambda c: difference.measure(lambda v: v, lambda v: c * v, SIG, KEYS[0], 1e-3)
    )
    assert measured(1.0)[:] == (0, 0, 1)
    assert measured(jnp.nan).bound == jnp.inf


def solve(coarse, fine, **options):
    """The largest eigenvalue of diag(fine) by products with diag(coarse); one compilation."""
    operators = (jax.tree_util.Partial(_times, x) for x in (coarse, fine))
    matvec, reference = operators
    return lanczos(tol=1e-2, **options)(matvec, LIKE, key=KEYS[0], reference=reference)


def _times(d, v):
    return d * v


COARSE = jnp.linspace(0, 1, SIZE).at[-1].set(3)
HIDDEN = COARSE.at[0].set(5)


def test_what_the_coarse_operator_hides_is_in_the_interval():
    """Its largest eigenvector is exact, so that no product with it shows any difference."""
    result = solve(COARSE, HIDDEN)
    assert 2.9 < result.value <= 3 and not result.converged
    assert result.interval.lower <= 3 and result.interval.upper >= 5
    assert result.rounding.difference >= 5
    assert "raise tol or their precision" in result.summary


def test_products_of_both_kinds_are_counted():
    small = 1e-4 * jnp.cos(jnp.arange(SIZE))
    equal, near = solve(COARSE, COARSE), solve(COARSE, COARSE + small)
    assert equal.converged and equal.rounding.difference < 1e-5
    assert near.converged and 1e-4 <= near.rounding.difference <= 1e-3
    assert near.interval.lower <= jnp.max(COARSE + small) <= near.interval.upper
    assert 1 < near.rounding.checks <= 9
    assert near.matvecs < equal.matvecs + 9


@pytest.mark.slow
def test_each_of_several_and_the_smallest_allow_for_what_is_hidden():
    assert not solve(COARSE, HIDDEN, k=2).converged.any()
    smallest = solve(-COARSE, -HIDDEN, which="smallest")
    assert smallest.interval.lower <= -5 and not smallest.converged
