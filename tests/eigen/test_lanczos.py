"""Lanczos on known spectra; docs/peers.md, 1 to 5 and 11 are here by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab.eigen import lanczos, power_iteration

KEY = jax.random.key(0)


def check(result, true, tol=1e-3):
    """Converged to tol, and the interval contains the truth."""
    true = np.asarray(true, float)
    assert np.all(result.converged), str(result)
    lower, upper = (np.asarray(x, float) for x in result.interval)
    assert np.all(lower <= true) and np.all(true <= upper), f"{result} misses {true}"
    slack = 1e-5 * np.max(np.abs(true)) + 1e-15
    assert np.all(np.abs(np.asarray(result.value, float) - true) <= tol * np.abs(true) + slack)
    assert np.all(upper - lower <= tol * np.abs(true) * 1.01 + slack)


def test_large_diagonal_in_float32(diagonal):
    """Defect 1: λ = 20 must not come out as 15 at p = 10⁶."""
    d = np.random.default_rng(0).uniform(0, 1, 1_000_000)
    d[17] = 20
    result = lanczos()(diagonal(d), jnp.zeros(d.size), key=KEY)
    check(result, 20)
    assert result.matvecs < 15
    assert abs(float(result.value) - 20) < 2e-4
    assert abs(abs(float(result.vector[17])) - 1) < 1e-5


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ["low rank", "identity", "zero"])
def test_invariant_subspaces(diagonal, name, k):
    """Defect 2: nothing is invented beyond an invariant subspace."""
    d = {"low rank": np.r_[25, 20, 15, 10, 8, np.full(195, 5.0)], "identity": np.ones(200)}.get(
        name, np.zeros(200)
    )
    result = lanczos(k=k, basis_size=16)(diagonal(d), jnp.zeros(200), key=KEY)
    check(result, d[0] if k == 1 else d[:k])
    if name != "low rank":
        assert result.matvecs == k
        assert np.all(np.abs(np.asarray(result.value) - d[0]) < 1e-5)
    vectors = np.atleast_2d(np.asarray(result.vector, np.float64))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=2e-5)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_tiny_dimensions(diagonal, p):
    d = np.arange(1.0, p + 1)
    for k in {1, p}:
        result = lanczos(k=k)(diagonal(d), jnp.zeros(p), key=KEY)
        check(result, d[-1] if k == 1 else d[::-1][:k])
        assert result.matvecs <= p + 1
    check(lanczos(k=p)(diagonal(np.ones(p)), jnp.zeros(p), key=KEY), 1.0 if p == 1 else np.ones(p))


@pytest.mark.parametrize("seed", range(3))
def test_multiplicity(diagonal, seed):
    """Defect 3: as many copies of an eigenvalue as there are, no more and no fewer."""
    d = np.random.default_rng(seed).uniform(-1, 1, 300)
    d[:4] = [8, 8, 8, 4]
    result = lanczos(k=4)(diagonal(d), jnp.zeros(300), key=jax.random.key(seed))
    check(result, d[:4])
    d[:5] = [8, 4, 2, 1.5, -8]
    check(lanczos(k=4)(diagonal(d), jnp.zeros(300), key=jax.random.key(seed)), d[:4])


def test_indefinite_spectrum(diagonal):
    """Defect 4: the largest algebraic eigenvalue of [−25, 20] is 20, the smallest −25."""
    d = np.r_[np.linspace(-25, 15, 199), 20]
    check(lanczos()(diagonal(d), jnp.zeros(200), key=KEY), 20)
    result = lanczos(which="smallest", k=2, tol=1e-2)(diagonal(d), jnp.zeros(200), key=KEY)
    check(result, d[:2], tol=1e-2)


@pytest.mark.parametrize("ratio", [0.9, 0.99, 0.999])
def test_close_gaps(diagonal, ratio):
    """Defect 5: however close the next eigenvalue and however few the products, the interval
    contains the truth; converged means that it is narrow too."""
    d = np.linspace(0, 2 * ratio, 400)
    d[0] = 2
    for budget, basis_size in ((5, None), (20, 8), (400, None)):
        solve = lanczos(max_matvecs=budget, basis_size=basis_size)
        for seed in range(3):
            result = solve(diagonal(d), jnp.zeros(400), key=jax.random.key(seed))
            assert result.interval.lower <= 2 <= result.interval.upper, str(result)
            if budget == 5:
                assert not result.converged
    check(result, 2)


def test_converged_means_the_residual_too(diagonal):
    d = np.linspace(0, 1, 500)
    result = lanczos(max_matvecs=12)(diagonal(d), jnp.zeros(500), key=KEY)
    assert not result.converged and result.matvecs == 12
    assert "NOT CONVERGED" in str(result) and "NOT CONVERGED" in repr(result)
    y = np.asarray(result.vector, np.float64)
    residual = np.linalg.norm(d * y - float(result.value) * y)
    np.testing.assert_allclose(residual, float(result.residual), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_against_dense_float64(x64, dense, spectrum, which, k):
    values = np.random.default_rng(1).uniform(-3, 5, 60)
    a = spectrum(values)
    true = np.sort(np.linalg.eigvalsh(a))
    true = true[:k] if which == "smallest" else true[::-1][:k]
    solve = lanczos(k=k, which=which, tol=1e-9, max_matvecs=1000, basis_size=12)
    result = solve(dense(a), jnp.zeros(60), key=KEY)
    assert result.converged and result.value.dtype == jnp.float64
    value = np.atleast_1d(result.value)
    np.testing.assert_allclose(value, true, rtol=1e-10)
    y = np.atleast_2d(result.vector)
    residual = np.linalg.norm(y @ a - value[:, None] * y, axis=1)
    assert np.all(residual <= np.atleast_1d(result.residual) + 1e-13)
    lower, upper = np.atleast_1d(*result.interval)
    assert np.all(lower <= true + 1e-13) and np.all(true <= upper + 1e-13)


@pytest.mark.parametrize("budget", [1, 20])
def test_failure_probability_of_the_upper_bound(x64, diagonal, budget):
    """At δ = 0.3 at most 30 % of starts may put the bound below λ; 400 starts, three sigmas.

    With one product of a rank-one operator the bound is sharp, and must fail about that often.
    Basis 6, so that 20 products run over restarts.
    """
    d = np.r_[3.0, np.zeros(99) if budget == 1 else np.linspace(2, 2.9, 99)]
    solve = lanczos(tol=1e-12, max_matvecs=budget, basis_size=6, failure_probability=0.3)
    keys = jax.random.split(jax.random.key(3), 400)
    run = jax.vmap(lambda key: solve(diagonal(d, jnp.float64), jnp.zeros(100), key=key))
    result = run(keys)
    failures = np.mean(np.asarray(result.interval.upper) < 3)
    assert np.all(np.asarray(result.interval.lower) <= 3)
    assert failures <= 0.3 + 3 * np.sqrt(0.3 * 0.7 / 400)
    if budget == 1:
        assert failures > 0.2


def test_rounding_is_inside_the_interval(dense, spectrum):
    """Float32 against float64 truth, 40 starts: no interval may be too narrow for rounding."""
    a = spectrum(np.r_[np.linspace(-1, 1, 59), 3]).astype(np.float32)
    true = np.linalg.eigvalsh(a.astype(np.float64))[-1]
    solve = lanczos(tol=1e-4)
    result = jax.vmap(lambda key: solve(dense(a), jnp.zeros(60), key=key))(
        jax.random.split(KEY, 40)
    )
    check(result, np.full(40, true), tol=1e-4)


def test_scale_of_the_operator_does_not_matter(diagonal):
    """Powers of two change no rounding: everything scales, over restarts as well."""
    d = np.linspace(0, 2, 200)
    solve = lanczos(basis_size=8, max_matvecs=60)
    results = [solve(diagonal(d * c), jnp.zeros(200), key=KEY) for c in (1, 2.0**-12, 2.0**12)]
    one = results[0]
    assert one.matvecs > 20
    for result, c in zip(results[1:], (2.0**-12, 2.0**12), strict=True):
        np.testing.assert_allclose(result.value, one.value * c, rtol=1e-6)
        np.testing.assert_allclose(result.interval.upper, one.interval.upper * c, rtol=1e-4)
        assert abs(int(result.matvecs) - int(one.matvecs)) <= 1


def test_restarts_agree_with_the_large_basis(diagonal):
    d = np.r_[np.linspace(0, 1.9, 300), 2]
    results = [
        lanczos(basis_size=size, max_matvecs=400)(diagonal(d), jnp.zeros(301), key=KEY)
        for size in (6, 100)
    ]
    for result in results:
        check(result, 2)
    matvecs = [int(r.matvecs) for r in results]
    assert matvecs[0] > matvecs[1] > 20  # restarts cost products, and there were several


def test_warm_start(diagonal):
    """From near the eigenvector: fewer products, above all if the residual alone is asked for."""
    rng = np.random.default_rng(0)
    d = np.r_[2, np.linspace(0, 1.8, 199)]
    like = jnp.zeros(200)
    full, quick = lanczos(), lanczos(certify=False)
    cold, cheap = full(diagonal(d), like, key=KEY), quick(diagonal(d), like, key=KEY)
    noise = rng.standard_normal(200).astype(np.float32) / 200**0.5
    for v0 in (cold.vector, 3 * (cold.vector + 0.01 * noise)):
        warm = full(diagonal(d), like, key=KEY, v0=v0)
        check(warm, 2)
        assert warm.matvecs < cold.matvecs
        warm = quick(diagonal(d), like, key=KEY, v0=v0)
        assert warm.converged and warm.matvecs < cheap.matvecs < cold.matvecs
        assert warm.interval.lower <= 2 <= warm.interval.upper
        y = np.asarray(warm.vector, np.float64)
        assert np.linalg.norm(d * y - float(warm.value) * y) <= 1.01e-3 * 2


@pytest.mark.parametrize("start", ["second eigenvector", "zero", "nan"])
def test_warm_start_is_no_trap(diagonal, start):
    d = np.r_[20, 15, np.linspace(0, 1, 98)]
    v0 = jnp.zeros(100)
    v0 = {"zero": v0, "nan": v0 * jnp.nan}.get(start, v0.at[1].set(1.0))
    check(lanczos()(diagonal(d), jnp.zeros(100), key=KEY, v0=v0), 20)
    check(lanczos(k=2)(diagonal(d), jnp.zeros(100), key=KEY, v0=v0), [20, 15])


@pytest.mark.parametrize("factory", [lanczos, power_iteration])
def test_solvers_of_equal_options_are_one_static_argument(factory):
    solver = factory(tol=1e-2)
    assert solver == factory(tol=0.01) and hash(solver) == hash(factory(tol=0.01))
    assert solver != factory(tol=1e-3)


def test_no_recompilation(spectrum):
    traces = []

    def matvec(a, v):
        traces.append(1)
        return a @ v

    for i in range(3):
        a = jnp.asarray(spectrum(np.arange(12.0) + i), jnp.float32)
        solve = lanczos(tol=1e-2)
        check(solve(jax.tree_util.Partial(matvec, a), a[0], key=jax.random.key(i)), 11 + i, 1e-2)
    first = len(traces)
    assert first <= 3
    lanczos(tol=1e-2)(jax.tree_util.Partial(matvec, 2 * a), a[0] + 1, key=KEY)
    assert len(traces) == first
    lanczos(tol=1e-3)(jax.tree_util.Partial(matvec, a), a[0], key=KEY)
    assert len(traces) > first  # the count does count


@pytest.mark.slow
def test_jit_vmap_scan(dense, spectrum):
    matrices = jnp.asarray(
        np.stack([spectrum(np.r_[np.linspace(-1, 1, 19), 3 + i], i) for i in range(3)]),
        jnp.float32,
    )
    solve = lanczos(max_matvecs=60)

    def top(a, key):
        return solve(lambda v: a @ v, jnp.zeros(20), key=key)

    keys = jax.random.split(KEY, 3)
    batched = jax.jit(jax.vmap(top))(matrices, keys)
    assert "3 of 3 solves converged" in str(batched)

    def body(v0, xs):
        a, key = xs
        result = solve(lambda v: a @ v, v0, key=key, v0=v0)
        return result.vector, result

    _, scanned = jax.lax.scan(body, jnp.zeros(20), (matrices, keys))
    for i in range(3):
        single = jax.jit(top)(matrices[i], keys[i])
        eager = solve(dense(matrices[i]), jnp.zeros(20), key=keys[i])
        for result in (
            single,
            eager,
            *(jax.tree.map(lambda x, i=i: x[i], r) for r in (batched, scanned)),
        ):
            check(result, 3 + i)


def test_traced_result_can_be_shown(diagonal):
    seen = []

    @jax.jit
    def f(d):
        result = lanczos()(diagonal(d), d, key=KEY)
        seen.append((repr(result), str(result), repr(result.interval)))
        return result.value

    f(jnp.arange(4.0))
    assert "traced" in seen[0][0]


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_any_pytree(shapes, seed):
    rng = np.random.default_rng(seed)
    tree = {
        str(i): [jnp.asarray(rng.standard_normal(s), jnp.float32)] for i, s in enumerate(shapes)
    }
    result = lanczos()(lambda v: jax.tree.map(lambda d, x: d * x, tree, v), tree, key=KEY)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    check(result, flat.max())
    assert jax.tree.structure(result.vector) == jax.tree.structure(tree)
    assert [x.shape for x in jax.tree.leaves(result.vector)] == [
        x.shape for x in jax.tree.leaves(tree)
    ]


def test_mixed_and_low_precision(x64):
    d = {"a": jnp.linspace(0, 1, 30, dtype=jnp.float32), "b": jnp.array([[3.0]], jnp.float64)}
    result = lanczos()(lambda v: jax.tree.map(jnp.multiply, d, v), d, key=KEY)
    check(result, 3)
    assert [x.dtype for x in jax.tree.leaves(result.vector)] == [jnp.float32, jnp.float64]
    low = jnp.linspace(0, 1, 50, dtype=jnp.bfloat16).at[7].set(4)
    result = lanczos(tol=0.3)(lambda v: low * v, low, key=KEY)
    check(result, 4, 0.3)
    assert result.vector.dtype == jnp.bfloat16 and result.value.dtype == jnp.float32


def test_tolerance_below_rounding_is_not_converged(diagonal):
    d = np.r_[np.linspace(0, 1, 50), 3]
    result = lanczos(tol=1e-8, max_matvecs=40)(diagonal(d), jnp.zeros(51), key=KEY)
    assert not result.converged
    assert result.interval.lower <= 3 <= result.interval.upper


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_products(diagonal, bad):
    d = np.ones(30)
    d[4] = bad
    result = lanczos()(diagonal(d), jnp.zeros(30), key=KEY)
    assert not result.converged and np.isnan(result.value) and result.matvecs == 1
    assert "NaN" in str(result)
    assert result.interval == (-np.inf, np.inf)


def test_asymmetric_operator_does_not_converge(dense):
    a = np.diag(np.arange(30.0)) + np.triu(np.ones((30, 30)))
    result = lanczos()(dense(a.astype(np.float32)), jnp.zeros(30), key=KEY)
    assert not result.converged


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tol": 0}, "tol"),
        ({"tol": -1.0}, "tol"),
        ({"tol": float("nan")}, "tol"),
        ({"max_matvecs": 0}, "max_matvecs"),
        ({"max_matvecs": 2, "k": 3}, "max_matvecs"),
        ({"k": 0}, "k"),
        ({"which": "biggest"}, "largest"),
        ({"basis_size": 3}, "basis_size"),
        ({"failure_probability": 0.0}, "failure_probability"),
        ({"failure_probability": 1.0}, "failure_probability"),
    ],
)
def test_options_out_of_range(options, word):
    with pytest.raises(ValueError, match=word):
        lanczos(**options)


def test_wrong_input():
    solve = lanczos(k=2)
    x = jnp.zeros(5)
    with pytest.raises(ValueError, match="dimension 1"):
        solve(lambda v: v, jnp.zeros(1), key=KEY)
    with pytest.raises(TypeError, match="int32"):
        solve(lambda v: v, jnp.arange(5), key=KEY)
    with pytest.raises(ValueError, match="shape"):
        solve(lambda v: v[:4], x, key=KEY)
    with pytest.raises(ValueError, match="structure"):
        solve(lambda v: (v, v), x, key=KEY)
    with pytest.raises(TypeError, match="complex"):
        solve(lambda v: v + 1j, x, key=KEY)
    with pytest.raises(ValueError, match="v0"):
        solve(lambda v: v, x, key=KEY, v0=jnp.zeros(4))
    with pytest.raises(TypeError, match="function"):
        solve(3, x, key=KEY)
    with pytest.raises(ValueError, match="no arrays"):
        solve(lambda v: v, {}, key=KEY)
