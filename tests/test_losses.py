"""Losses of one example, ModelLoss as a pytree, and the check that examples do not interact."""

import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import data, losses, models


class NormNet(nn.Module):
    """The smallest network with batch norm between two layers."""

    classes: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.classes)(x)


@pytest.fixture(scope="module")
def batch():
    return data.synthetic_images(12, shape=(8, 8, 1), classes=4, seed=1).train


def test_docstring_examples():
    assert doctest.testmod(losses).failed == 0


def test_values_equal_the_formulas():
    rng = np.random.default_rng(0)
    f = rng.standard_normal(5)
    one_hot = np.eye(5)[3]
    soft = rng.dirichlet(np.ones(5))
    log_softmax = f - np.log(np.exp(f).sum())
    close = {"rtol": 1e-6, "atol": 1e-7}
    np.testing.assert_allclose(losses.squared(f, soft), np.mean((f - soft) ** 2), **close)
    np.testing.assert_allclose(losses.cross_entropy(f, one_hot), -log_softmax[3], **close)
    np.testing.assert_allclose(losses.cross_entropy(f, soft), -(soft * log_softmax).sum(), **close)
    np.testing.assert_allclose(
        losses.kl(f, soft), (soft * (np.log(soft) - log_softmax)).sum(), **close
    )


def test_kl_is_cross_entropy_for_one_hot_and_zero_at_the_target():
    f = jnp.array([0.3, -1.0, 2.0])
    one_hot = jnp.array([0.0, 1.0, 0.0])
    np.testing.assert_allclose(losses.kl(f, one_hot), losses.cross_entropy(f, one_hot), rtol=1e-6)
    assert abs(float(losses.kl(f, jax.nn.softmax(f)))) < 1e-6
    assert jnp.isfinite(jax.grad(losses.kl)(f, one_hot)).all()


@pytest.mark.parametrize("name", ["cross_entropy", "kl"])
def test_large_logits_stay_finite(name):
    loss = losses.by_name(name)
    f, y = jnp.array([200.0, -200.0]), jnp.array([0.0, 1.0])
    assert float(loss(f, y)) == pytest.approx(400.0)
    assert jnp.isfinite(jax.hessian(loss)(f, y)).all()


def test_gauss_newton_part_of_squared_is_two_over_k():
    """H_i = (2/k) JᵀJ + ... (docs/formulas.md, section 0): in the outputs it is (2/k) I."""
    hessian = jax.hessian(losses.squared)(jnp.ones(4), jnp.zeros(4))
    np.testing.assert_allclose(hessian, 0.5 * np.eye(4))


def test_unknown_loss():
    with pytest.raises(ValueError, match="unknown loss 'square': did you mean 'squared'"):
        losses.by_name("square")


# ---- ModelLoss ----------------------------------------------------------------------------------


def test_model_loss_of_an_example(batch):
    model = models.fnn((6,), classes=4)
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    loss = losses.ModelLoss(model)
    x, y = batch
    outputs = np.asarray(model.apply({"params": params}, x))
    each = jax.vmap(loss, (None, 0))(params, batch)
    np.testing.assert_allclose(each, np.mean((outputs - y) ** 2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(loss.predict(params, x), outputs, rtol=1e-6)


def test_equal_models_share_one_compilation(batch):
    traces = []

    @jax.jit
    def mean_loss(loss, params, batch):
        traces.append(1)
        return jnp.mean(jax.vmap(loss, (None, 0))(params, batch))

    for seed in range(3):
        model = NormNet()  # made anew, equal
        params = models.initialize(model, jax.random.key(seed), batch[0][0])
        state = models.recompute_batch_stats(model, params, batch[0], batch_size=5 + seed)
        mean_loss(losses.ModelLoss(model, losses.squared, state), params, batch)
    assert len(traces) == 1
    mean_loss(losses.ModelLoss(model, losses.cross_entropy, state), params, batch)
    assert len(traces) == 2


def test_state_is_an_operand_and_matters(batch):
    model = NormNet()
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    initial = losses.ModelLoss(model, losses.squared, models.initial_state(model, batch[0][0]))
    state = models.recompute_batch_stats(model, params, batch[0])
    frozen = losses.ModelLoss(model, losses.squared, state)
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(state)) > 0
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    assert float(initial(params, example)) != float(frozen(params, example))


def test_batch_norm_without_state_is_a_clear_error(batch):
    model = NormNet()
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    with pytest.raises(ValueError, match=r"batch norm.*initial_state.*recompute_batch_stats"):
        losses.ModelLoss(model)(params, example)
    with pytest.raises(ValueError, match="batch norm"):
        losses.accuracy(losses.ModelLoss(model), params, batch)


def test_wrong_shapes_of_targets_are_named(batch):
    model = models.fnn((3,), classes=4)
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    with pytest.raises(ValueError, match=r"outputs of shape \(4,\).*target has shape \(\)"):
        losses.ModelLoss(model)(params, (batch[0][0], jnp.array(2)))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_an_integer_label_is_no_target(name):
    """It would be broadcast, and the number that comes out would mean nothing."""
    with pytest.raises(ValueError, match=r"shape \(3,\).*shape \(\).*jax.nn.one_hot\(labels, k\)"):
        losses.by_name(name)(jnp.zeros(3), 2)


def test_functions_are_models():
    loss = losses.ModelLoss(lambda params, x: x @ params)
    params = jnp.arange(6.0).reshape(3, 2)
    x, y = jnp.ones((4, 3)), jnp.zeros((4, 2))
    np.testing.assert_allclose(jax.vmap(loss, (None, 0))(params, (x, y)), (36 + 81) / 2)
    with pytest.raises(ValueError, match="state is for Flax modules"):
        losses.ModelLoss(loss.model, state={"batch_stats": jnp.ones(1)}).predict(params, x)


def test_a_model_that_cannot_be_static_is_refused():
    class Listy(nn.Module):
        widths: list

    with pytest.raises(TypeError, match="give its fields as tuples"):
        losses.ModelLoss(Listy([1, 2]))


def test_float64(batch, x64):
    model = models.fnn((6,), classes=4)
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    params, double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, batch))
    each = jax.vmap(losses.ModelLoss(model), (None, 0))(params, double)
    assert each.dtype == jnp.float64


# ---- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 5, 12, 100])
def test_accuracy_does_not_depend_on_the_batch_size(batch, batch_size):
    model = models.fnn((6,), classes=4)
    params = models.initialize(model, jax.random.key(3), batch[0][0])
    loss = losses.ModelLoss(model)
    outputs = model.apply({"params": params}, batch[0])
    expected = np.mean(np.argmax(outputs, 1) == np.argmax(batch[1], 1))
    assert 0 < expected < 1
    got = losses.accuracy(loss, params, batch, batch_size=batch_size)
    assert float(got) == pytest.approx(expected)


def test_accuracy_refuses_bad_data(batch):
    model = models.fnn((6,), classes=4)
    params = models.initialize(model, jax.random.key(3), batch[0][0])
    with pytest.raises(ValueError, match="leading axes of data differ"):
        losses.accuracy(losses.ModelLoss(model), params, (batch[0], batch[1][:3]))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        losses.accuracy(losses.ModelLoss(model), params, batch, batch_size=0)


# ---- examples that interact ---------------------------------------------------------------------


def test_training_mode_of_batch_norm_makes_examples_interact(batch):
    model = NormNet()
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    state = models.recompute_batch_stats(model, params, batch[0])
    loss = losses.ModelLoss(model, losses.squared, state)

    def frozen(params, batch):
        return jnp.mean(jax.vmap(losses.squared)(loss.predict(params, batch[0]), batch[1]))

    losses.check_examples_independent(frozen, loss, params, batch)
    with pytest.raises(ValueError, match="Batch norm in training mode"):
        losses.check_examples_independent(
            lambda params, batch: loss.train_mode(params, batch)[0], loss, params, batch
        )


def test_a_sum_in_place_of_a_mean_and_agreement_on_the_whole_alone_are_found(batch):
    loss = losses.ModelLoss(lambda params, x: x.reshape(len(x), -1)[:, :4] * params)

    def mean(params, batch):
        return jnp.mean(jax.vmap(loss, (None, 0))(params, batch))

    with pytest.raises(ValueError, match="examples interact"):
        losses.check_examples_independent(lambda p, b: mean(p, b) * len(b[0]), loss, 1.0, batch)
    with pytest.raises(ValueError, match="batch of 6 is"):  # right for all 12, wrong for the half
        losses.check_examples_independent(
            lambda p, b: mean(p, b) + (len(b[0]) != 12), loss, 1.0, batch
        )
    with pytest.raises(ValueError, match="nan"):
        losses.check_examples_independent(lambda p, b: jnp.nan, loss, 1.0, batch)


def test_train_mode_uses_batch_statistics_and_moves_the_averages(batch):
    model = NormNet()
    params = models.initialize(model, jax.random.key(0), batch[0][0])
    initial = models.initial_state(model, batch[0][0])
    value, state = losses.ModelLoss(model, losses.squared, initial).train_mode(params, batch)
    # one batch: the recomputed statistics are those of that batch, so evaluation with them agrees
    frozen = models.recompute_batch_stats(model, params, batch[0], batch_size=12)
    each = jax.vmap(losses.ModelLoss(model, losses.squared, frozen), (None, 0))(params, batch)
    np.testing.assert_allclose(value, jnp.mean(each), rtol=1e-4)
    moved = jax.tree.map(lambda i, f: 0.9 * i + 0.1 * f, initial, frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state, moved)


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0, 100.0, 3000.0])
def test_output_curvature_is_at_most_twice_the_loss(spread):
    """The theorem, for random logits from nearly equal to far beyond float's range of exp."""
    rng = np.random.default_rng(0)
    logits = spread * rng.standard_normal((500, 7))
    targets = np.eye(7)[rng.integers(7, size=500)]
    assert 0 < losses.output_curvature_ratio(logits, targets) <= 1 + 1e-12


def test_output_curvature_equals_its_definition(x64):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((6, 4))
    targets = np.eye(4)[rng.integers(4, size=6)]
    expected = max(
        float(jnp.linalg.eigvalsh(jax.hessian(losses.cross_entropy)(f, y))[-1])
        / (2 * float(losses.cross_entropy(f, y)))
        for f, y in zip(jnp.asarray(logits), jnp.asarray(targets))
    )
    ratio = losses.output_curvature_ratio(logits, targets)
    assert ratio == pytest.approx(expected, rel=1e-10)


def test_the_bound_is_sharp_for_two_classes_at_small_loss():
    """Two classes: p(1−p)·2 over 2ℓ tends to 1, so a smaller constant than 2 would be wrong."""
    ratio = losses.output_curvature_ratio([[25.0, 0.0]], [[1.0, 0.0]])
    assert ratio == pytest.approx(1.0, abs=1e-9)
