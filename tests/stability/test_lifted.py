"""Upper bounds of λ* from Z = S + τI, against the dense generalised eigenproblem in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from jaxstab.operators import output_factors
from jaxstab.stability import lifted, variance_factor


def linear_loss(w, example):
    """H_i = F_iᵀ F_i."""
    rows, y = example
    return jnp.sum((rows @ w - y) ** 2) / 2


def problem(shape, seed):
    """F_i of curvatures that differ a lot, as linear maps."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=shape) * np.exp(rng.normal(size=(shape[0], 1, 1)))
    w = jnp.asarray(rng.normal(size=shape[2]))
    return f, output_factors(linear_loss, w, (jnp.asarray(f), jnp.asarray(f) @ w))


def largest(f, pi):
    """λ* = λ_max(C⁺D) and its maximiser S, dense, in the span of the rows."""
    _, scale, right = np.linalg.svd(f.reshape(-1, f.shape[2]), full_matrices=False)
    right = right[scale > 1e-9 * scale[0]]
    each = np.einsum("nkp,rp,nkq,sq->nrs", f, right, f, right)
    h, one = each.mean(0), np.eye(len(right))
    c = (np.kron(h, one) + np.kron(one, h)) / 2
    d = (1 - pi) * np.kron(h, h) + pi * np.mean([np.kron(x, x) for x in each], 0)
    values, vectors = linalg.eigh(d, c)
    s = vectors[:, -1].reshape(h.shape)
    s = (s + s.T) * np.sign(np.trace(s))
    return values[-1], right.T @ s @ right / np.linalg.norm(s)


def bound(f, factors, pi, s=None):
    """λ_max of the operator, applied to the identity."""
    n, k, _ = f.shape
    rows = f.reshape(n * k, -1)
    if s is None:
        operator = lifted.identity(factors, factors.blocks(), pi)
    else:
        values, vectors = np.linalg.eigh(s)
        kept = values > 1e-9 * values[-1]
        values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
        coefficients = np.linalg.pinv(rows.T) @ vectors  # V = Fᵀ W
        operator = lifted.lift(
            factors, factors.blocks(), pi,
            coefficients=coefficients, images=rows @ vectors, weights=values,
        )  # fmt: skip
    columns = [operator(jnp.asarray(e.reshape(n, k))) for e in np.eye(n * k)]
    dense = np.array(columns, float).reshape(n * k, n * k)
    np.testing.assert_allclose(dense, dense.T, atol=1e-9 * np.abs(dense).max())
    return np.linalg.eigvalsh(dense)[-1]


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 14)])  # under- and over-parametrised
@pytest.mark.parametrize("seed", range(3))
def test_every_positive_z_bounds_from_above(shape, seed, x64):
    f, factors = problem(shape, seed)
    rng = np.random.default_rng(seed)
    _, _, right = np.linalg.svd(f.reshape(-1, shape[2]), full_matrices=False)
    for size in (1, 3):
        pi = variance_factor(shape[0], size)
        truth, best = largest(f, pi)
        eq8 = bound(f, factors, pi)
        assert truth <= eq8 * (1 + 1e-9)
        low = right.T @ rng.normal(size=(len(right), 2))
        for s in (best, low @ low.T):  # the maximiser, and any other of low rank
            assert truth <= bound(f, factors, pi, s) * (1 + 1e-9)


def test_the_maximiser_brings_the_bound_closer_than_eq8(x64):
    ratios = []
    for seed in range(6):
        f, factors = problem((6, 2, 15), seed)
        pi = variance_factor(6, 2)
        truth, best = largest(f, pi)
        eq8 = bound(f, factors, pi)
        ratios.append((min(bound(f, factors, pi, best), eq8) - truth) / (eq8 - truth))
    assert np.median(ratios) < 0.8, ratios


def test_only_so_many_eigenvectors_count(x64):
    """Z may be any matrix, so that cutting S short leaves a bound."""
    f, factors = problem((10, 2, 24), 0)
    pi = variance_factor(10, 2)
    truth, best = largest(f, pi)
    full = best + 1e-3 * np.eye(len(best))  # rank 20 in the span, above `RANK`
    assert truth <= bound(f, factors, pi, full)
