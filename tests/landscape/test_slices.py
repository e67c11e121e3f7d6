"""Slices and planes against plain loops, derivatives against reverse mode, batch-norm policies."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import data, losses, models
from jaxstab.landscape import Reestimated, between, derivatives, directions, plane, slice
from jaxstab.landscape.slices import _evaluate

KEY = jax.random.key(0)
POSITIONS = jnp.array([-0.7, 0.0, 0.2, 1.1])


class NormNet(nn.Module):
    """Smooth, with batch norm between two layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x.reshape(x.shape[0], -1))
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(4)(x)


def moved(params, *steps):
    for l, u in steps:
        params = jax.tree.map(lambda w, u, l=l: w + l * u, params, u)
    return params


def rows(tree):
    count = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


@jax.jit
def predicted(loss, params, example):
    output = loss.predict(params, example[0][None])[0]
    return output, loss.loss(output, example[1])


def plain(loss, params, examples):
    """Mean loss and accuracy, one example after the other."""
    each = [predicted(loss, params, example) for example in rows(examples)]
    right = [int(f.argmax()) == int(y.argmax()) for (f, _), y in zip(each, examples[1])]
    return np.mean([float(value) for _, value in each]), np.mean(right)


@pytest.fixture(scope="module")
def problem():
    images = data.synthetic_images(13, n_test=7, shape=(4, 4, 1), classes=4, noise=1.5, seed=1)
    model = models.fnn((6,), classes=4)
    params = models.initialize(model, KEY, images.train[0][0], 2.0)
    return losses.ModelLoss(model), params, images


@pytest.fixture(scope="module")
def norm_problem(problem):
    _, _, images = problem
    model = NormNet()
    params = models.initialize(model, KEY, images.train[0][0], 2.0)
    state = models.recompute_batch_stats(model, params, images.train[0])
    return losses.ModelLoss(model, losses.cross_entropy, state), params, images


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("points", [None, 3])
def test_a_slice_equals_a_plain_loop(problem, chunk_size, points):
    loss, params, images = problem
    us = directions(params, kind="gaussian", key=KEY, count=2)
    offsets = directions(params, kind="uniform", key=KEY, count=3)
    found = slice(
        loss,
        params,
        images.train,
        direction=us,
        positions=POSITIONS,
        offsets=offsets,
        test_data=images.test,
        chunk_size=chunk_size,
        points=points,
    )
    assert found.loss.shape == found.test_accuracy.shape == (2, 3, 4)
    assert found.slope is None
    for j, i, t in ((0, 0, 0), (0, 2, 1), (1, 0, 3), (1, 1, 2)):
        here = moved(params, (1.0, rows(offsets)[i]), (POSITIONS[t], rows(us)[j]))
        at = j, i, t
        wanted = *plain(loss, here, images.train), *plain(loss, here, images.test)
        ours = found.loss[at], found.accuracy[at], found.test_loss[at], found.test_accuracy[at]
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_axes_follow_what_was_given(problem):
    loss, params, images = problem
    us = directions(params, kind="gaussian", key=KEY, count=2)
    common = {"positions": POSITIONS, "accuracy": False}
    both = slice(loss, params, images.train, direction=us, **common)
    one = slice(loss, params, images.train, direction=rows(us)[1], **common)
    assert both.loss.shape == (2, 4) and one.loss.shape == (4,) and one.accuracy is None
    np.testing.assert_allclose(both.loss[1], one.loss, rtol=1e-6)


def test_between_two_checkpoints(problem):
    loss, params, images = problem
    other = models.initialize(loss.model, jax.random.key(5), images.train[0][0])
    found = slice(
        loss, params, images.train, direction=between(params, other), positions=[0.0, 1.0]
    )
    for i, each in enumerate((params, other)):
        np.testing.assert_allclose(
            (found.loss[i], found.accuracy[i]), plain(loss, each, images.train), rtol=1e-5
        )


def test_derivatives_equal_those_of_reverse_mode(norm_problem, x64):
    loss, params, images = norm_problem
    loss, params, train = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64), (loss, params, images.train)
    )
    u = rows(directions(params, kind="gaussian", key=KEY))[0]

    def along(t):
        return jnp.mean(jax.vmap(loss, (None, 0))(moved(params, (t, u)), train))

    nested = [along]
    for _ in range(3):
        nested.append(jax.grad(nested[-1]))
    positions = jnp.asarray(POSITIONS[1:3], jnp.float64)
    wanted = jax.jit(lambda x: jax.lax.map(lambda t: [f(t) for f in nested], x))(positions)
    found = slice(
        loss,
        params,
        train,
        direction=u,
        positions=positions,
        derivatives=3,
        batch_norm="frozen",
        chunk_size=4,
    )
    ours = found.loss, found.slope, found.curvature, found.third
    np.testing.assert_allclose(ours, wanted, rtol=1e-9)
    there = derivatives(loss, moved(params, (positions[1], u)), train, direction=u,
                        batch_norm="frozen")  # fmt: skip
    np.testing.assert_allclose(there, [row[1] for row in wanted], rtol=1e-9)


# ---- batch norm ---------------------------------------------------------------------------------


def test_statistics_are_frozen_or_those_of_every_point(norm_problem):
    loss, params, images = norm_problem
    u = rows(directions(params, kind="uniform_positive", key=KEY))[0]
    common = {"direction": u, "positions": POSITIONS * 3, "test_data": images.test}
    frozen = slice(loss, params, images.train, batch_norm="frozen", **common)
    again = slice(loss, params, images.train, batch_norm=Reestimated(images.train[0], 5), **common)
    for i, l in enumerate(POSITIONS * 3):
        here = moved(params, (l, u))
        np.testing.assert_allclose(
            (frozen.loss[i], frozen.accuracy[i]), plain(loss, here, images.train), rtol=1e-4
        )
        # by hand: with momentum 0 Flax keeps the statistics of the last batch
        total = 0.0
        for first in (0, 5, 10):
            batch = images.train[0][first : first + 5]
            kept = _last_batch(loss, here, batch)
            total = jax.tree.map(lambda t, s, b=batch: t + len(b) / 13 * s,
                                 total, kept) if total else jax.tree.map(
                                     lambda s, b=batch: len(b) / 13 * s, kept)  # fmt: skip
        own = dataclasses.replace(loss, state={"batch_stats": total})
        np.testing.assert_allclose(
            (again.test_loss[i], again.test_accuracy[i]), plain(own, here, images.test), rtol=1e-4
        )
    assert not np.allclose(frozen.test_loss, again.test_loss, rtol=1e-2)


@jax.jit
def _last_batch(loss, params, batch):
    """Statistics of one batch, from where the running averages move to with momentum 0.9."""
    zero = jax.tree.map(jnp.zeros_like, loss.state)
    _, new = loss.model.apply(
        {"params": params, **zero}, batch, train=True, mutable=["batch_stats"]
    )
    return jax.tree.map(lambda s: s / 0.1, new["batch_stats"])


def test_slopes_go_through_the_statistics(norm_problem, x64):
    loss, params, images = norm_problem
    loss, params, train = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64), (loss, params, images.train)
    )
    u = rows(directions(params, kind="uniform_positive", key=KEY))[0]
    h = 1e-5
    found = slice(
        loss,
        params,
        train,
        direction=u,
        positions=[0.5 - h, 0.5, 0.5 + h],
        derivatives=1,
        batch_norm=Reestimated(train[0]),
    )
    # error of the central difference: h²/6 times the third derivative, and rounding 1e-16/h
    slope = (found.loss[2] - found.loss[0]) / (2 * h)
    np.testing.assert_allclose(found.slope[1], slope, rtol=1e-7)


def test_any_function_is_a_policy(norm_problem):
    loss, params, images = norm_problem
    u = rows(directions(params, kind="uniform", key=KEY))[0]

    def policy(loss, params):
        state = models.recompute_batch_stats(loss.model, params, images.train[0])
        return dataclasses.replace(loss, state=state)

    found = [
        slice(loss, params, images.train, direction=u, positions=POSITIONS, batch_norm=each).loss
        for each in (policy, Reestimated(images.train[0]))
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)


# ---- planes -------------------------------------------------------------------------------------


def test_a_plane_equals_a_plain_loop(problem):
    loss, params, images = problem
    us = directions(params, kind="filter_normalized", key=KEY, count=2)
    x, y = jnp.array([-1.0, 0.5]), jnp.array([0.0, 0.3, 2.0])
    found = plane(loss, params, images.train, directions=us, x=x, y=y, test_data=images.test)
    assert found.loss.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            here = moved(params, (x[i], rows(us)[0]), (y[j], rows(us)[1]))
            wanted = *plain(loss, here, images.train), *plain(loss, here, images.test)
            ours = (found.loss, found.accuracy, found.test_loss, found.test_accuracy)
            np.testing.assert_allclose([z[i, j] for z in ours], wanted, rtol=1e-5)


# ---- contracts ----------------------------------------------------------------------------------


def test_201_points_of_two_data_sets_compile_once(problem):
    _, params, images = problem
    before = _evaluate._cache_size()
    for seed in range(3):
        u = directions(params, kind="gaussian", key=jax.random.key(seed))
        slice(
            losses.ModelLoss(models.fnn((6,), classes=4)),  # made anew, equal
            moved(params, (0.1 * seed, rows(u)[0])),
            jax.tree.map(lambda leaf, seed=seed: leaf + seed, images.train),
            direction=u,
            positions=jnp.linspace(-1 - seed, 1, 201),
            test_data=images.test,
        )
    assert _evaluate._cache_size() == before + 1


def test_any_loss_and_parameters(x64):
    """A loss that is no model's: several leaves, examples that are a dict."""

    def loss(params, example):
        return jnp.sum(example["a"] * params["w"] ** 3) + example["b"] * params["c"]

    params = {"w": jnp.ones(2), "c": jnp.array(2.0)}
    examples = {"a": jnp.ones((3, 2)), "b": jnp.arange(3.0)}
    u = {"w": jnp.array([1.0, 0.0]), "c": jnp.array(1.0)}
    found = slice(loss, params, examples, direction=u, positions=[0.0, 1.0], derivatives=3)
    np.testing.assert_allclose(found.loss, [4, 12])
    np.testing.assert_allclose(found.slope, [4, 13])
    np.testing.assert_allclose(found.curvature, [6, 12])
    np.testing.assert_allclose(found.third, [6, 6])
    assert found.accuracy is None


def wrong(problem, **changes):
    loss, params, images = problem
    u = directions(params, kind="gaussian", key=KEY)
    call = {"direction": u, "positions": POSITIONS} | changes
    return slice(loss, params, images.train, **call)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": [1.0, 0.0]}, "positions must increase"),
        ({"positions": 1.0}, r"shape \(T,\)"),
        ({"derivatives": 4}, "0, 1, 2 or 3"),
        ({"direction": jnp.ones(3)}, "structure"),
        ({"batch_norm": "moving"}, "'frozen', Reestimated"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"points": 0}, "points must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(problem, changes, message):
    with pytest.raises(ValueError, match=message):
        wrong(problem, **changes)


def test_wrong_shapes_and_missing_policies_are_named(problem, norm_problem):
    loss, params, images = problem
    u = directions(params, kind="gaussian", key=KEY)
    with pytest.raises(ValueError, match="shaped like those of params"):
        wrong(problem, direction=jax.tree.map(lambda x: x[..., :1], u))
    with pytest.raises(ValueError, match="offsets need a leading axis"):
        wrong(problem, offsets=rows(u)[0])
    with pytest.raises(ValueError, match="two directions"):
        plane(loss, params, images.train, directions=u, x=POSITIONS, y=POSITIONS)
    with pytest.raises(ValueError, match="choose batch_norm"):
        slice(*norm_problem[:2], images.train,
              direction=norm_problem[1], positions=POSITIONS)  # fmt: skip
    with pytest.raises(ValueError, match="Reestimated needs a ModelLoss"):
        slice(lambda w, x: w * x, 1.0, jnp.ones(2), direction=1.0, positions=[0.0],
              batch_norm=Reestimated(jnp.ones(2)))  # fmt: skip
    with pytest.raises(ValueError, match="predict"):
        slice(lambda w, x: w * x, 1.0, jnp.ones(2), direction=1.0, positions=[0.0],
              accuracy=True)  # fmt: skip
