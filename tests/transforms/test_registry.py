"""Every transform through the same checks: scan, jit, dtype, vmap, containers, checkpoints."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from jax.sharding import PartitionSpec as P

from jaxstab import transforms as jt

as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # as Flax called it at first

KEY = jax.random.key(7)
OPTIMIZERS = {
    "sgd": lambda lr: jt.sgd(lr),
    "sgd_schedule": lambda lr: jt.sgd(lambda count: lr / (1 + count)),
    "heavy_ball": lambda lr: jt.sgd(lr, momentum=0.9),
    "nesterov": lambda lr: jt.sgd(lr, momentum=0.9, kind="nesterov", weight_decay=0.01),
    "ema_momentum": lambda lr: jt.sgd(lr, momentum=0.9, kind="ema"),
    "swa": lambda lr: jt.swa(optax.adam(lr), start=1, every=2),
    "swa_ema": lambda lr: jt.swa(jt.sgd(lr), decay=0.5),
    "swa_lawa": lambda lr: jt.swa(jt.sgd(lr), window=2),
    "swa_masked": lambda lr: jt.swa(jt.sgd(lr), mask=jt.leaves_named("b")),
    "sam": lambda lr: jt.sam(jt.sgd(lr, momentum=0.9), rho=0.1),
    "asam": lambda lr: jt.sam(optax.adam(lr), rho=0.1, adaptive=True),
    "usam": lambda lr: jt.sam(jt.sgd(lr), rho=0.1, normalize=False),
    "m_sam": lambda lr: jt.sam(jt.sgd(lr), rho=0.1, parts=2),
    "penalty": lambda lr: jt.gradient_penalty(jt.sgd(lr), strength=0.1, parts=2),
    "penalty_exact": lambda lr: jt.gradient_penalty(
        jt.sgd(lr, momentum=0.9), strength=lambda t: 0.1 / (1 + t), epsilon=None
    ),
    "langevin": lambda lr: jt.langevin(lr, temperature=0.1, key=KEY),
    "sgdl": lambda lr: jt.langevin(lambda t: lr, noise=lambda t: 0.1 / (1 + t), key=KEY),
    "chain": lambda lr: optax.chain(
        optax.clip_by_global_norm(1.0), jt.swa(jt.sam(jt.sgd(lr, momentum=0.5)), every=2)
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def loss(params, example):
    x, y = example
    w, b = jax.tree.leaves(params)[::-1]  # sorted by name: b, w
    return jnp.sum((x @ w.reshape(3, 2) + b.reshape(2) - y) ** 2)


def start(dtype=jnp.float32):
    x = jnp.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)
    y = jnp.stack([x[:, 0] - x[:, 1], x[:, 2] ** 2], axis=1)
    params = {"w": jnp.linspace(0.1, 0.6, 6, dtype=dtype).reshape(3, 2), "b": jnp.ones(2, dtype)}
    return params, (x, y)


def step(optimizer, params, state, batch):
    grad_fn = jt.batch_gradient(loss, batch)
    updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
    return optax.apply_updates(params, updates), state


def run(optimizer, params, batch, steps):
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(optimizer, params, state, batch)
    return params, state


def is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assert_close(a, b, rtol=2e-5):
    """Same structure and dtypes, and close in every leaf; keys by their data."""
    a, b = (jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, t) for t in (a, b))
    chex.assert_trees_all_equal_dtypes(a, b)
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=rtol)


@every_optimizer
def test_eager_and_scan_agree(name):
    optimizer = OPTIMIZERS[name](0.1)
    params, batch = start()
    eager = run(optimizer, params, batch, 2)

    @jax.jit
    def scanned(params, batch):  # scan itself refuses a carry whose shapes or dtypes change
        def body(carry, _):
            return step(optimizer, *carry, batch), None

        return jax.lax.scan(body, (params, optimizer.init(params)), None, length=2)[0]

    compiled = scanned(params, batch)
    assert_close(eager, compiled)
    assert not np.allclose(compiled[0]["w"], params["w"])


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_dtypes_stay_under_a_traced_learning_rate(name, dtype, x64):
    params, batch = start(dtype)

    def carry(lr):
        optimizer = OPTIMIZERS[name](lr)
        before = params, optimizer.init(params)
        return before, step(optimizer, *before, batch)

    def strip(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    # A strong float32 or float64, as a sweep hands it over.
    for lr in (jnp.float32(0.1), jnp.float64(0.1)):
        before, after = jax.eval_shape(carry, lr)
        assert strip(after) == strip(before)
        assert {x.dtype for x in jax.tree.leaves(after[0])} == {jnp.dtype(dtype)}


@every_optimizer
def test_unknown_extra_arguments_are_ignored(name):
    params, batch = start()
    optimizer, grad_fn = OPTIMIZERS[name](0.1), jt.batch_gradient(loss, batch)
    state = optimizer.init(params)

    def update(**extra):
        return optimizer.update(params, state, params, grad_fn=grad_fn, **extra)

    plain, extra = jax.make_jaxpr(update)(), jax.make_jaxpr(update)(value=1.0, unheard_of=2.0)
    assert plain.eqns and len(plain.eqns) == len(extra.eqns)


@every_optimizer
def test_one_compilation_serves_all_learning_rates_batches_and_steps(name):
    chex.clear_trace_counter()  # which cannot tell the functions of two parameters apart

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train_step(lr, params, state, batch):
        return step(OPTIMIZERS[name](lr), params, state, batch)

    params, batch = start()
    state = OPTIMIZERS[name](jnp.float32(0.1)).init(params)
    for lr in (0.1, 0.2, 0.3):
        params, state = train_step(jnp.float32(lr), params, state, batch)
        batch = jax.tree.map(lambda x: x + 0.1, batch)


class Nnx(nnx.Module):
    def __init__(self, params):
        self.w, self.b = nnx.Param(params["w"]), nnx.Param(params["b"])


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        w = self.param("w", linen.initializers.ones, (3, 2))
        return x @ w + self.param("b", linen.initializers.ones, (2,))


@every_optimizer
def test_vmap_shard_map_linen_nnx_and_plain_pytrees_give_the_same_run(name):
    params, batch = start()
    optimizer = OPTIMIZERS[name](0.1)
    variables = jax.eval_shape(Linen().init, jax.random.key(0), batch[0])
    linen_params = jax.tree.map(lambda _, p: p, variables["params"], params)
    nnx_params = nnx.split(Nnx(params), nnx.Param)[1]
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    def all_runs(params, linen_params, nnx_params):
        def go(p):
            return run(optimizer, p, batch, 2)[0]

        two = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
        first = jax.tree.map(lambda p: p[0], jax.vmap(go)(two))
        mapped = jax.shard_map(
            lambda p, b: run(optimizer, p, b, 2)[0],
            mesh=mesh,
            in_specs=(P(), P("d")),
            out_specs=P(),
        )
        others = first, mapped(params, batch), go({"params": linen_params}), go(nnx_params)
        return go(params), *others

    plain, *others = all_runs(params, linen_params, nnx_params)
    for other in others:
        assert_close(jax.tree.leaves(other), jax.tree.leaves(plain))


@pytest.mark.parametrize("name", ["nesterov", "swa", "swa_masked", "swa_lawa", "m_sam", "langevin"])
def test_nnx_optimizer_gives_the_same_run(name):
    params, batch = start()
    want, _ = jax.jit(lambda p: run(OPTIMIZERS[name](0.1), p, batch, 2))(params)
    model = Nnx(params)
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name](0.1), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        grad_fn = jt.batch_gradient(loss, batch)
        optimizer.update(model, grad_fn(nnx.state(model, nnx.Param)), grad_fn=grad_fn)

    for _ in range(2):
        train_step(model, optimizer)
    got = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(jax.tree.leaves(got), jax.tree.leaves(want))
    if name.startswith("swa"):
        average = jt.swa_params(as_pure(optimizer.opt_state), nnx.state(model, nnx.Param))
        assert not np.allclose(jax.tree.leaves(average)[0], jax.tree.leaves(want)[0])


def test_states_make_the_round_trip_through_orbax(tmp_path):
    params, batch = start()
    optimizers = {name: make(0.1) for name, make in OPTIMIZERS.items()}

    def init():
        return {name: o.init(params) for name, o in optimizers.items()}

    step_all = jax.jit(
        lambda states: {n: step(o, params, states[n], batch)[1] for n, o in optimizers.items()}
    )
    half = step_all(init())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "half", jax.eval_shape(init))
    assert_close(restored, half, rtol=0)
    # The states hold everything: restored runs go on as if they had never stopped.
    assert_close(step_all(restored), step_all(half), rtol=0)
