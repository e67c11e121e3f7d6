"""The papers' networks: parameter counts, initialisation, pooling, batch statistics."""

import doctest
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import data, losses, models


def count(model, shape):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def residual_formula(depth, norm, width=16, channels=3, classes=10):
    """He et al. (2016), section 4.2, counted layer by layer; shortcuts have no parameters."""
    blocks = (depth - 2) // 6
    layers = [(channels, width)]
    for stage in range(3):
        out = width * 2**stage
        layers += [(out // 2 if stage and i == 0 else out, out) for i in range(2 * blocks)]
    per_channel = 2 if norm == "batch" else 1  # scale and offset, or bias
    convolutions = sum(9 * fan_in * fan_out + per_channel * fan_out for fan_in, fan_out in layers)
    assert len(layers) + 1 == depth
    return convolutions + 4 * width * classes + classes


def test_docstring_examples():
    assert doctest.testmod(models).failed == 0


def test_published_parameter_counts():
    assert count(models.fnn(), (28, 28, 1)) == 898_510
    assert count(models.vgg(), (32, 32, 3)) == 71_410
    # He et al. give 0.85M and 1.7M; public CIFAR implementations print these exact numbers
    assert count(models.resnet(20), (32, 32, 3)) == 269_722
    assert count(models.resnet(56), (32, 32, 3)) == 853_018
    assert count(models.resnet(110), (32, 32, 3)) == 1_727_962


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("depth", [8, 14, 56, 110])
def test_residual_parameter_counts(depth, norm):
    assert count(models.resnet(depth, norm=norm), (32, 32, 3)) == residual_formula(depth, norm)


def test_counts_of_the_deep_networks():
    """As the papers' round (1.7M, 0.8M) and other implementations' exact counts have them."""
    assert count(models.preresnet(164), (32, 32, 3)) == 1_703_258
    assert count(models.densenet(100), (32, 32, 3)) == 769_162


@pytest.mark.parametrize("model", [models.preresnet(11, width=2), models.densenet(10, growth=2)])
def test_deep_networks_train_in_both_modes(model):
    x, y = data.synthetic_images(6, shape=(8, 8, 1), seed=0).train
    params = models.initialize(model, jax.random.key(0), x[0])
    state = models.recompute_batch_stats(model, params, x)
    loss = losses.ModelLoss(model, losses.cross_entropy, state)
    value, moved = jax.jit(lambda p: loss.train_mode(p, (x, y)))(params)
    # all of x is one batch, so its statistics are those of the batch
    each = jax.jit(jax.vmap(loss, (None, 0)))(params, (x, y))
    np.testing.assert_allclose(value, jnp.mean(each), rtol=1e-3)
    assert jax.tree.structure(moved) == jax.tree.structure(state)


def test_residual_counts_with_other_widths_channels_and_classes():
    model = models.resnet(8, norm="batch", width=4, classes=3)
    assert count(model, (8, 8, 1)) == residual_formula(8, "batch", 4, 1, 3)


@pytest.mark.parametrize("name", models.MODELS)
def test_models_by_name_map_batches_to_outputs(name):
    shape = (8, 8, 1) if name.endswith("-small") else (32, 32, 3)
    model = models.by_name(name, 7)
    if (
        name.startswith(("resnet", "densenet")) and name != "resnet8-small"
    ):  # shapes only: slow to compile
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
        out = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((3, *shape), jnp.float32))
        assert out.shape == (3, 7)
        return
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, *shape)), jnp.float32)
    params = models.initialize(model, jax.random.key(0), x[0])
    variables = {"params": params, **models.initial_state(model, x[0])}
    outputs = jax.jit(model.apply)(variables, x)
    assert outputs.shape == (3, 7) and outputs.dtype == jnp.float32
    assert jnp.isfinite(outputs).all() and float(jnp.std(outputs[:, 0])) > 0


def test_fnn_small_has_the_layers_said():
    params = models.initialize(models.by_name("fnn-small"), jax.random.key(0), jnp.zeros((8, 8, 1)))
    shapes = [params[f"Dense_{i}"]["kernel"].shape for i in range(3)]
    assert shapes == [(64, 100), (100, 100), (100, 10)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: models.by_name("fnn_small"),
            "unknown model 'fnn_small': did you mean 'fnn-small'",
        ),
        (lambda: models.resnet(10), "6b \\+ 2.*got 10: did you mean 8"),
        (lambda: models.preresnet(100), "9b \\+ 2.*got 100: did you mean 101"),
        (lambda: models.densenet(99), "6l \\+ 4.*got 99: did you mean 100"),
        (lambda: models.resnet(2), "depth must be at least 8"),
        (lambda: models.resnet(8, norm="bacth"), "did you mean 'batch'"),
        (lambda: models.resnet(8, branch_scale=0.0), "branch_scale must be finite and positive"),
        (lambda: models.vgg((8, "P")), "number of channels or 'M', got 'P'"),
        (lambda: models.vgg((0,)), "number of channels in layers must be at least 1"),
        (lambda: models.fnn((0,)), "width in hidden must be at least 1"),
        (lambda: models.fnn(classes=0), "classes must be at least 1"),
        (
            lambda: models.initialize(models.vgg(), jax.random.key(0), jnp.zeros((8, 8, 1))),
            "even sides, got 1 x 1",
        ),
        (
            lambda: models.initialize(models.fnn((2,)), jax.random.key(0), jnp.zeros(3), -1.0),
            "scale must be finite and not negative",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- pooling ------------------------------------------------------------------------------------


def test_pooling_equals_reduce_window_through_two_derivatives():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 6, 4, 3)), jnp.float32)
    v = jnp.asarray(np.random.default_rng(2).standard_normal(x.shape), jnp.float32)

    def second_derivative(pool):
        gradient = jax.grad(lambda x: jnp.sum(pool(x) ** 3))
        return jax.jvp(gradient, (x,), (v,))

    ours, theirs = (
        second_derivative(pool)
        for pool in (models.max_pool, lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)))
    )
    np.testing.assert_array_equal(
        models.max_pool(x), nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)


# ---- initialisation -----------------------------------------------------------------------------


def test_initialization_is_uniform_with_the_fan_in_of_each_layer():
    model = models.VGG(layers=(16, "M", 32), hidden=(40,), classes=10)
    params = models.initialize(model, jax.random.key(1), jnp.zeros((8, 8, 3)), 2.0)
    fan_in = {"Conv_0": 27, "Conv_1": 144, "Dense_0": 512, "Dense_1": 40}
    for layer, n_in in fan_in.items():
        for leaf in params[layer].values():
            scaled = np.asarray(leaf).ravel() * math.sqrt(n_in) / 2.0
            assert np.abs(scaled).max() <= 1.0
            # U(-1, 1): mean 0 ± √(1/3N), mean square 1/3 ± √(4/45N); five standard errors
            assert abs(scaled.mean()) < 5 * math.sqrt(1 / 3 / scaled.size)
            assert abs(np.mean(scaled**2) - 1 / 3) < 5 * math.sqrt(4 / 45 / scaled.size)


def test_leaves_are_drawn_independently():
    params = models.initialize(models.fnn((5, 5), classes=5), jax.random.key(0), jnp.zeros(5))
    leaves = [np.asarray(leaf).ravel()[:5] for leaf in jax.tree.leaves(params)]
    for i in range(len(leaves)):
        for j in range(i):
            assert not np.allclose(leaves[i], leaves[j])


def test_norm_parameters_keep_their_own_start():
    model = models.resnet(8, width=4)
    params = models.initialize(model, jax.random.key(0), jnp.zeros((8, 8, 1)), 3.0)
    norms = [layer for name, layer in params.items() if name.startswith("BatchNorm")]
    assert len(norms) == 7
    for layer in norms:
        np.testing.assert_array_equal(layer["scale"], 1.0)
        np.testing.assert_array_equal(layer["bias"], 0.0)


def test_scale_and_key_are_operands():
    model = models.fnn((4,), classes=2)
    x = jnp.zeros(3)
    keys = jax.random.split(jax.random.key(0), 3)
    scales = jnp.array([0.0, 1.0, 3.0])
    drawn = jax.vmap(lambda key, scale: models.initialize(model, key, x, scale))(keys, scales)
    assert float(jnp.abs(drawn["Dense_0"]["kernel"][0]).max()) == 0.0
    one = models.initialize(model, keys[2], x, 1.0)
    np.testing.assert_allclose(
        drawn["Dense_0"]["kernel"][2], 3 * one["Dense_0"]["kernel"], rtol=1e-6
    )
    before = models._initialize._cache_size()
    for scale in (0.5, 1.5):
        models.initialize(models.fnn((4,), classes=2), keys[0], x, scale)
    assert models._initialize._cache_size() <= before + 1


@pytest.mark.parametrize("depth", [8, 14])
def test_plain_residual_networks_without_norm_can_be_trained(depth):
    """A few steps of gradient descent with the plain initialisation lower the loss by half."""
    x, y = data.synthetic_images(16, shape=(8, 8, 1), classes=2, noise=0.3, seed=0).train
    model = models.resnet(depth, classes=2, norm="none", width=4)
    params = models.initialize(model, jax.random.key(0), x[0])
    loss = losses.ModelLoss(model)

    def mean_loss(params):
        return jnp.mean(jax.vmap(loss, (None, 0))(params, (x, y)))

    @jax.jit
    def train(params):
        def step(params, _):
            value, gradient = jax.value_and_grad(mean_loss)(params)
            return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient), value

        return jax.lax.scan(step, params, length=150)[1]

    values = train(params)
    assert float(values[-1]) < 0.5 * float(values[0])


def test_branch_scale_scales_the_branches():
    x = jnp.ones((1, 8, 8, 1))
    params = models.initialize(models.resnet(8, norm="none", width=2), jax.random.key(0), x[0])
    small = models.resnet(8, norm="none", width=2, branch_scale=1e-6).apply({"params": params}, x)
    zeroed = {
        name: jax.tree.map(jnp.zeros_like, layer)
        if name in ("Conv_2", "Conv_4", "Conv_6")  # the last convolution of each branch
        else layer
        for name, layer in params.items()
    }
    without = models.resnet(8, norm="none", width=2).apply({"params": zeroed}, x)
    np.testing.assert_allclose(small, without, atol=1e-5)


def test_shortcuts_subsample_and_pad_channels_on_both_sides():
    """With dead branches a network is its first convolution, every fourth position, zero-padded."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 8, 1)), jnp.float32)
    model = models.resnet(8, norm="none", width=2, classes=3)
    params = models.initialize(model, jax.random.key(0), x[0])
    for name in ("Conv_2", "Conv_4", "Conv_6"):
        params[name] = jax.tree.map(jnp.zeros_like, params[name])
    first = nn.relu(nn.Conv(2, (3, 3)).apply({"params": params["Conv_0"]}, x))
    features = jnp.pad(first[:, ::4, ::4].mean(axis=(1, 2)), ((0, 0), (3, 3)))  # 1 and then 2
    expected = features @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    outputs = model.apply({"params": params}, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


# ---- batch statistics ---------------------------------------------------------------------------


class NormFirst(nn.Module):
    momentum: float = 0.7

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
        return nn.Dense(2)(x)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 50])
@pytest.mark.parametrize("momentum", [0.0, 0.7, 0.99])
def test_recomputed_statistics_are_averages_over_batches(batch_size, momentum):
    x = np.random.default_rng(0).normal(2.0, 3.0, (10, 5)).astype(np.float32)
    model = NormFirst(momentum)
    params = models.initialize(model, jax.random.key(0), x[0])
    stats = models.recompute_batch_stats(model, params, x, batch_size=batch_size)["batch_stats"]
    batches = [x[i : i + batch_size] for i in range(0, 10, batch_size)]
    variance = sum(len(b) * b.var(axis=0) for b in batches) / 10
    # 1 - momentum is a difference of float32 numbers: 1e-7/0.01 at momentum 0.99
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(stats["BatchNorm_0"]["var"], variance, rtol=1e-4, atol=1e-4)


def test_recomputed_statistics_of_a_deep_network():
    """Momentum 0 makes Flax keep exactly the last batch: average that by hand."""
    x = data.synthetic_images(10, shape=(8, 8, 1), seed=0).train[0]
    model = models.resnet(8, width=2)
    params = models.initialize(model, jax.random.key(0), x[0])
    state = models.recompute_batch_stats(model, params, x, batch_size=4)
    initial = models.initial_state(model, x[0])

    @jax.jit
    def last_batch(params, batch):
        variables = {"params": params, **initial}
        return model.clone(momentum=0.0).apply(
            variables, batch, train=True, mutable=["batch_stats"]
        )[1]

    total = None
    for start in (0, 4, 8):
        batch = x[start : start + 4]
        new = last_batch(params, batch)
        part = jax.tree.map(functools.partial(jnp.multiply, len(batch) / 10), new)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    assert jax.tree.structure(state) == jax.tree.structure(dict(total))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state, total)


def test_models_without_statistics_have_an_empty_state():
    x = jnp.ones((4, 8, 8, 1))
    model = models.fnn((2,))
    params = models.initialize(model, jax.random.key(0), x[0])
    assert models.initial_state(model, x[0]) == {}
    assert models.recompute_batch_stats(model, params, x) == {}
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        models.recompute_batch_stats(model, params, x, batch_size=0)
