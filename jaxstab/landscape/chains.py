"""Many chains of Langevin dynamics or SGD at once, and whether they have mixed.

A chain is `jaxstab.transforms.langevin` on the full gradient (Langevin), on the gradients of
batches (SGDL, CBMM Memo 072, eq. 5), or on those of batches at temperature 0 (SGD). Chains are
independent, so statistics over them have honest standard errors without any autocorrelation time:
that is what `compare` and `diagnose` build on.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from jaxstab import checks
from jaxstab.callables import as_pytree
from jaxstab.examples import check_in_memory
from jaxstab.sampling import batch_indices, take
from jaxstab.transforms import langevin

AXIS = "chains"
RHAT_LIMIT = 1.01
AGREEMENT_LEVEL = 1e-3


class Draws(NamedTuple):
    """What chains went through.

    Attributes:
      values: what `observe` returned, leading axes (chains, draws).
      params: the chains' last points, leading axis (chains,).
    """

    values: Any
    params: Any


class Mixing(NamedTuple):
    """Whether chains have forgotten where they started; see `diagnose`.

    Attributes:
      rhat: rank-normalised split R-hat of the groups, or of the chains if there is one group.
      effective_sample_size: over all chains.
      group_means: mean of the value over the chains of each group, shape (groups,).
      group_errors: their standard errors, over chains.
      p_value: that the groups have one mean (Welch for two, else F); NaN with one group.
      mixed: R-hat is at most its limit and the groups do not differ at the stated level.
    """

    rhat: float
    effective_sample_size: float
    group_means: np.ndarray
    group_errors: np.ndarray
    p_value: float
    mixed: bool


class Comparison(NamedTuple):
    """Measured probabilities or means beside expected ones; see `compare`.

    Attributes:
      mean: shape (k,).
      standard_error: over chains, shape (k,).
      statistic: Hotelling's T².
      p_value: of all k values together.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    statistic: float
    p_value: float


def langevin_chains(
    loss: Callable[..., Any],
    start: Any,
    data: Any = None,
    *,
    learning_rate: float,
    temperature: float,
    draws: int,
    key: jax.Array,
    burn_in: int = 0,
    thin: int = 1,
    batch_size: int | None = None,
    replacement: bool = False,
    observe: Callable[[Any], Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Draws:
    r"""Runs chains :math:`θ ← θ − η ∇L_B(θ) + \sqrt{2ηT} ξ` from many starts at once.

    One compiled scan, vmapped over the chains of a device and sharded over the devices. For small η
    the stationary law is exp(−L/T); on a quadratic of curvature λ the stationary variance is
    exactly T/(λ(1 − ηλ/2)). Batches of B add noise of covariance η² π(B) C_g to each step, that is,
    where C_g is σ² I, the temperature η π(B) σ²/2.

    Args:
      loss: `loss(params, example) -> scalar` with data, or `loss(params) -> scalar` without.
      start: pytree of parameters with a leading axis, one start for each chain.
      data: pytree of arrays with a leading axis n, or None.
      learning_rate: η; an operand, as the temperature, so a new one compiles nothing.
      temperature: T ≥ 0; 0 is (stochastic) gradient descent.
      draws: how many points of each chain to record.
      key: random key; every chain has its own.
      burn_in: steps before the first one that counts.
      thin: steps from one recorded point to the next.
      batch_size: B, drawn anew at every step; None takes the full gradient.
      replacement: draw batches with replacement.
      observe: function of the parameters whose results are recorded; the parameters by default.
        For a network record a few numbers: memory is chains × draws × what is recorded.
      devices: over which the chains are spread, equally; by default as many of this process as
        divide the number of chains.

    Returns:
      `Draws`. Cost: burn_in + draws · thin gradients for each chain.

    Raises:
      ValueError: if a number is out of range, arrays are empty, not finite or of unequal length,
        a batch size is given without data, or the devices do not divide the chains.
      TypeError: if a parameter is not real floating point.

    Example:
      >>> result = langevin_chains(lambda x: x**2 / 2, jnp.zeros(500), learning_rate=0.1,
      ...     temperature=1.0, draws=50, burn_in=50, thin=10, key=jax.random.key(0))
      >>> result.values.shape, bool(0.9 < result.values.var() < 1.2)
      ((500, 50), True)
    """
    checks.check_positive("learning_rate", learning_rate)
    checks.check_positive("temperature", temperature, allow_zero=True)
    checks.check_at_least("draws", draws, 1)
    checks.check_at_least("burn_in", burn_in, 0)
    checks.check_at_least("thin", thin, 1)
    checks.check_params(start)
    count = _leading_axis(start)
    if data is None and batch_size is not None:
        raise ValueError("batch_size without data: give data, or leave batch_size out")
    if data is not None:
        check_in_memory("langevin_chains", data)
        n = checks.data_size(data)
        checks.check_finite("data", data)
        if batch_size is not None:
            checks.check_batch_size(batch_size, n, replacement=replacement)
            batch_size = None if batch_size == n and not replacement else batch_size
    mesh = _mesh(count, devices)
    numbers = (
        jnp.asarray(learning_rate, float),
        jnp.asarray(temperature, float),
        jnp.asarray(burn_in, jnp.int32),
        jnp.asarray(thin, jnp.int32),
    )
    keys = jax.random.split(key, count)
    each = jax.device_put((jax.tree.map(jnp.asarray, start), keys), NamedSharding(mesh, P(AXIS)))
    functions = as_pytree(loss), as_pytree(_itself if observe is None else observe)
    return Draws(*_run(mesh, draws, batch_size, replacement, functions, data, numbers, each))


def diagnose(
    values: Any,
    *,
    groups: Any = None,
    rhat_limit: float = RHAT_LIMIT,
    level: float = AGREEMENT_LEVEL,
) -> Mixing:
    """Tells whether chains have mixed, from one recorded number.

    R-hat and effective sample size are those of Vehtari et al. (2021), from blackjax. Start groups
    of chains in different wells and say which: then the chains of a group count as one long chain,
    which is the nested R-hat for many short chains (Margossian et al. 2024), and besides the means
    of the groups must agree, in a test on the means of the chains, which are independent.

    Args:
      values: shape (chains, draws), at least 4 draws.
      groups: label of each chain, shape (chains,); at least two chains in each.
      rhat_limit: largest R-hat of a mixed run.
      level: smallest p-value of groups that agree: the chance to call a mixed run unmixed.

    Raises:
      ValueError: if shapes do not fit or there are too few chains or draws.
    """
    from blackjax import diagnostics  # imported late: it takes half a second

    values = np.asarray(values)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 4:
        raise ValueError(
            f"values must be (chains, draws), at least 2 and 4, got shape {values.shape}"
        )
    labels = np.zeros(len(values), int) if groups is None else np.asarray(groups)
    if labels.shape != (len(values),):
        raise ValueError(f"groups must be one label for each of {len(values)} chains")
    means = values.mean(axis=1, dtype=np.float64)
    parts = [means[labels == label] for label in np.unique(labels)]
    if min(map(len, parts)) < 2:
        raise ValueError("each group needs at least two chains")
    p_value = math.nan
    if len(parts) > 1:
        spread = any(np.ptp(part) > 0 for part in parts)
        equal = np.ptp([part.mean() for part in parts]) == 0
        p_value = _equal_means(parts) if spread else float(equal)
    rhat = float(diagnostics.rhat(_superchains(values, labels) if len(parts) > 1 else values))
    return Mixing(
        rhat,
        float(diagnostics.effective_sample_size(values)),
        np.array([part.mean() for part in parts]),
        np.array([part.std(ddof=1) / math.sqrt(len(part)) for part in parts]),
        p_value,
        bool(rhat <= rhat_limit and not p_value < level),
    )


def compare(values: Any, expected: Any) -> Comparison:
    """Tests whether means over chains are the expected ones, all together.

    Hotelling's T² = m (x̄ − μ)ᵀ S⁻¹ (x̄ − μ) with the mean x̄ and the covariance S of the m chains'
    own means, so draws within a chain may be dependent: (m − k) T²/(k (m − 1)) has an F(k, m − k)
    distribution for normal means, which averages over many draws nearly are. For the bins of a
    histogram leave one out, since their probabilities sum to 1.

    Args:
      values: shape (chains, draws) or (chains, draws, k): indicators of bins, say.
      expected: shape () or (k,).

    Raises:
      ValueError: unless there are more than k + 1 chains, and every value varies over chains.
    """
    values = np.asarray(values)
    means = values.mean(axis=1, dtype=np.float64).reshape(len(values), -1)
    m, k = means.shape
    expected = np.broadcast_to(np.asarray(expected, float), (k,))
    if m <= k + 1:
        raise ValueError(f"{m} chains are too few for {k} values: take more than {k + 1} chains")
    covariance = np.atleast_2d(np.cov(means, rowvar=False))
    if np.linalg.matrix_rank(covariance) < k:
        raise ValueError(
            "the covariance over chains is singular: leave out values that no chain reached, and "
            "one bin of a complete histogram"
        )
    away = means.mean(axis=0) - expected
    statistic = float(m * away @ np.linalg.solve(covariance, away))
    p_value = float(stats.f.sf((m - k) * statistic / (k * (m - 1)), k, m - k))
    errors = np.sqrt(np.diag(covariance) / m)
    return Comparison(means.mean(axis=0), errors, statistic, p_value)


def _itself(params: Any) -> Any:
    return params


def _leading_axis(start: Any) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(start)}
    if len(sizes) > 1 or () in sizes:
        raise ValueError(
            "every array of start needs the same leading axis, one entry for each chain; got "
            f"shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(start)]}"
        )
    return sizes.pop()[0]


def _mesh(count: int, devices: Sequence[jax.Device] | None) -> Mesh:
    if devices is None:
        local = jax.local_devices()
        devices = local[: max(size for size in range(1, len(local) + 1) if count % size == 0)]
    if not devices or count % len(devices):
        raise ValueError(
            f"{count} chains cannot be spread equally over {len(devices)} devices: take a multiple"
        )
    return Mesh(np.array(devices), (AXIS,))


def _superchains(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The chains of each group one after the other, as many from each group; shape (groups, m)."""
    parts = [values[labels == label] for label in np.unique(labels)]
    fewest = min(map(len, parts))
    return np.stack([part[:fewest].reshape(-1) for part in parts])


def _equal_means(parts: list[np.ndarray]) -> float:
    if len(parts) == 2:
        return float(stats.ttest_ind(*parts, equal_var=False).pvalue)
    return float(stats.f_oneway(*parts).pvalue)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(mesh, draws, batch_size, replacement, functions, data, numbers, each):
    def chain(functions, data, numbers, start, key):
        loss, observe = functions
        rate, temperature, burn_in, thin = numbers
        batch_key, noise_key = jax.random.split(key)
        optimizer = langevin(rate, temperature=temperature, key=noise_key)
        gradient = jax.grad(functools.partial(_batch_loss, loss))

        def step(_, carry):
            params, state = carry
            batch = data
            if batch_size is not None:
                step_key = jax.random.fold_in(batch_key, state.steps)
                n = checks.data_size(data)
                indices = batch_indices(step_key, n, batch_size, replacement=replacement)
                batch = take(data, indices)
            updates, state = optimizer.update(gradient(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        def draw(carry, _):
            carry = jax.lax.fori_loop(0, thin, step, carry)
            return carry, observe(carry[0])

        carry = jax.lax.fori_loop(0, burn_in, step, (start, optimizer.init(start)))
        carry, values = jax.lax.scan(draw, carry, length=draws)
        return values, carry[0]

    def on_one_device(functions, data, numbers, each):
        return jax.vmap(lambda start, key: chain(functions, data, numbers, start, key))(*each)

    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(AXIS)),
        out_specs=P(AXIS),
        check_vma=False,
    )(functions, data, numbers, each)


def _batch_loss(loss, params, batch):
    if batch is None:
        return loss(params)
    return jnp.mean(jax.vmap(loss, (None, 0))(params, batch))
