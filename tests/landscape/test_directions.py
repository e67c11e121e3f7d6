"""Directions: laws, normalisation, seeds, masks, eigenvectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.landscape.directions import KINDS, _draw, between, directions, random_subset
from jaxstab.transforms import leaves_named

KEY = jax.random.key(3)
RANDOM = [kind for kind in KINDS if kind != "hessian"]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "dense": {"kernel": jnp.asarray(rng.standard_normal((40, 30)), jnp.float32)},
        "norm": {"scale": jnp.ones(30), "bias": jnp.zeros(30)},
    }


def flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def rows(tree):
    return np.stack([flat(jax.tree.map(lambda x, i=i: x[i], tree)) for i in range(3)])


@pytest.mark.parametrize("kind", RANDOM)
def test_directions_have_length_one_and_do_not_depend_on_the_count(params, kind):
    three = rows(directions(params, kind=kind, key=KEY, count=3))
    np.testing.assert_allclose(np.linalg.norm(three, axis=1), 1, rtol=1e-5)
    one = flat(directions(params, kind=kind, key=KEY))
    np.testing.assert_array_equal(one, three[0])
    assert abs(three[0] @ three[1]) < 0.95
    other = flat(directions(params, kind=kind, key=jax.random.key(4)))
    assert not np.array_equal(one, other)


def test_coordinates_have_the_laws_said(params):
    """p = 1260: means and mean squares within five standard errors."""
    drawn = {kind: flat(directions(params, kind=kind, key=KEY, normalize=False)) for kind in RANDOM}
    moments = {
        "uniform_positive": (1 / 2, 1 / 12, 1 / 3),
        "uniform": (0, 1 / 3, 1 / 3),
        "sign_flipped": (0, 1 / 3, 1 / 3),
        "gaussian": (0, 1, 1),
    }
    for kind, (mean, variance, square) in moments.items():
        x = drawn[kind]
        assert abs(x.mean() - mean) < 5 * np.sqrt(variance / x.size), kind
        assert abs(np.mean(x**2) - square) < 5 * np.sqrt(2 * square**2 / x.size), kind
    assert drawn["uniform_positive"].min() >= 0
    positive = drawn["uniform_positive"]
    np.testing.assert_allclose(np.abs(drawn["sign_flipped"]), positive)
    np.testing.assert_allclose(np.abs(drawn["leaf_sign_flipped"]), positive)


def test_leaf_signs_agree_within_arrays_and_not_between(params):
    signs = []
    for i in range(8):
        tree = directions(params, kind="leaf_sign_flipped", key=jax.random.key(i))
        signs.append([np.unique(np.sign(leaf)).item() for leaf in jax.tree.leaves(tree)])
    assert len(np.unique(signs, axis=0)) > 2


def test_filters_have_the_norms_of_the_parameters(params):
    tree = directions(params, kind="filter_normalized", key=KEY, normalize=False)
    np.testing.assert_allclose(
        np.linalg.norm(tree["dense"]["kernel"][0], axis=0),
        np.linalg.norm(params["dense"]["kernel"], axis=0),
        rtol=1e-5,
    )
    assert not tree["norm"]["scale"].any() and not tree["norm"]["bias"].any()


@pytest.mark.parametrize(
    "mask",
    [
        "norm",
        leaves_named("norm"),
        {"dense": False, "norm": True},
        {"dense": {"kernel": jnp.zeros((40, 30), bool)}, "norm": {"scale": True, "bias": True}},
    ],
)
def test_masks_of_every_form_select_the_same(params, mask):
    tree = directions(params, kind="gaussian", key=KEY, mask=mask)
    assert not tree["dense"]["kernel"].any()
    whole = directions(params, kind="gaussian", key=KEY, normalize=False)["norm"]
    expected = flat(whole) / np.linalg.norm(flat(whole))
    np.testing.assert_allclose(flat(tree["norm"]), expected, rtol=1e-5)


def test_random_subsets_have_their_size_and_leave_out_what_is_excluded(params):
    counts = np.zeros(1260)
    for i in range(40):
        subset = random_subset(params, 60, key=jax.random.key(i), exclude="norm")
        assert not flat(subset["norm"]).any()
        counts += flat(subset)
    assert counts.sum() == 40 * 60
    # each of 1200 coordinates is drawn Binomial(40, 1/20) times: P(more than 14) < 1e-8
    assert counts.max() <= 14 and (counts > 0).sum() > 900
    with pytest.raises(ValueError, match="only 60 coordinates are not excluded"):
        random_subset(params, 61, key=KEY, exclude="dense")


def quadratic(params, example):
    x = jnp.concatenate([params["a"], params["b"]])
    return 0.5 * jnp.sum(example * x**2)


@pytest.fixture
def diagonal():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    return params, jnp.array([[1.0, 6.0, 2.0, 5.0, 4.0], [1.0, 6.0, 2.0, 7.0, 4.0]])


def test_eigenvectors_are_those_of_the_hessian_and_of_its_block(diagonal):
    params, data = diagonal
    found = directions(params, kind="hessian", key=KEY, count=2, loss=quadratic, data=data)
    for i in range(2):  # both eigenvalues are 6: any basis of the two coordinates
        row = flat(jax.tree.map(lambda x, i=i: x[i], found))
        np.testing.assert_allclose(row[[0, 2, 4]], 0, atol=0.05)
    block = directions(params, kind="hessian", key=KEY, loss=quadratic, data=data, mask="a")
    np.testing.assert_allclose(flat(block), [0, 1, 0, 0, 0], atol=0.05)
    assert not block["b"].any()


def test_unconverged_eigenvectors_warn(diagonal):
    params, _ = diagonal
    data = jnp.linspace(1.0, 1.01, 5)[None]
    with pytest.warns(RuntimeWarning, match="have not converged after 2"):
        directions(
            params,
            kind="hessian",
            key=KEY,
            loss=quadratic,
            data=data,
            tol=1e-6,
            max_matvecs=2,
        )


def test_between_interpolates(params):
    end = jax.tree.map(lambda x: x + 2, params)
    step = between(params, end)
    np.testing.assert_allclose(flat(step), 2, rtol=1e-5)
    with pytest.raises(ValueError, match="expected"):
        between(params, {"dense": params["dense"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gausian"}, "did you mean 'gaussian'"),
        ({"kind": "uniform", "count": 0}, "count must be at least 1"),
        ({"kind": "hessian"}, "need loss and data"),
        ({"kind": "uniform", "loss": quadratic}, "need no loss"),
        ({"kind": "uniform", "mask": "conv"}, "no parameter matches 'conv'"),
        ({"kind": "uniform", "mask": {"dense": False, "norm": False}}, "selects no coordinate"),
        ({"kind": "uniform", "mask": {"dense": True}}, "does not fit params"),
        ({"kind": "uniform", "mask": {"dense": 1.0, "norm": True}}, "dtype float32"),
    ],
)
def test_wrong_arguments_are_named(params, arguments, message):
    with pytest.raises(ValueError, match=message):
        directions(params, key=KEY, **arguments)


def test_shapes_compile_once_and_dtypes_are_kept(params):
    directions(params, kind="uniform", key=KEY)
    before = _draw._cache_size()
    for seed in range(3):
        moved = jax.tree.map(lambda x, seed=seed: x + seed, params)
        directions(moved, kind="uniform", key=jax.random.key(seed))
    assert _draw._cache_size() == before
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    drawn = directions(half, kind="uniform", key=KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype(jnp.bfloat16)}
