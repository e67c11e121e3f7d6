"""Almost-sure stability: the exponent at which linearised SGD grows or decays in a typical run.

x ← (I - η H_B) x with independent random batches B. By Furstenberg's theorem (1/t) log |x_t| has a
limit γ, the same in almost every run: γ > 0 escapes, γ < 0 converges, whatever E |x|² does
("probabilistic stability", Ziyin et al., arXiv 2303.13093). By Jensen's inequality γ is at most
half the logarithm of the mean-square growth λ_max(Q): between the threshold of E |x|² and that of
γ, rare bursts carry the mean square while almost every run decays. For one parameter
γ = E log |1 - η h_B|.

Directions of the null space of H never move and would give γ = 0 whatever the rest does. The size
of x is therefore measured by √(xᵀHx), which they do not enter.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.checks import check_at_least, check_batch_size, check_finite, check_positive, data_size
from jaxstab.eigen import vectors
from jaxstab.examples import check_in_memory
from jaxstab.operators.gauss_newton import (
    example_curvatures,
    flat_outputs,
    split_at_outputs,
)
from jaxstab.operators.hessian import Loss, Params, check_problem
from jaxstab.precision import at_given
from jaxstab.sampling import batch_indices, take


class LyapunovExponent(NamedTuple):
    """γ, the almost-sure growth of log √(xᵀHx) per step."""

    value: jax.Array
    """Mean over chains, 1/step."""
    standard_error: jax.Array
    """From the scatter of the independent chains."""
    resolution: jax.Array
    """One over the number of steps: directions with ηλ below it do not move within the run, and an
    exponent nearer to 0 cannot be told from 0."""
    chains: jax.Array
    """The exponent of each chain, (chains,)."""
    burst: jax.Array
    """Largest log √(xᵀHx) that each chain reached over its start, (chains,)."""

    @property
    def sign(self) -> int:
        """1 grows almost surely, -1 decays, 0 not told apart at 3 errors and the resolution."""
        margin = 3 * float(self.standard_error) + float(self.resolution)
        return int(float(self.value) > margin) - int(float(self.value) < -margin)


@at_given
def lyapunov_exponent(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    learning_rate: float,
    batch_size: int,
    key: jax.Array,
    chains: int = 16,
    steps: int = 1000,
    every: int = 25,
    replacement: bool = False,
    precision: str | None = "highest",
) -> LyapunovExponent:
    """Returns the almost-sure exponent of SGD linearised at a point of a real network.

    Every chain runs x ← x - η H_B x from x_0 = H z / |H z|, z standard normal (nothing of the null
    space), and is set back to unit length every step. The H_i are Gauss–Newton's, as in
    `mean_square_threshold`: those of an interpolating minimum. Where training stopped short of one,
    the full H_i have slightly negative curvatures along flat directions, in which x would grow
    however small η is, and γ would say nothing about the batch noise.
    log √(xᵀHx) is read every `every` steps with the full data; the first quarter of the steps lets
    the direction settle and does not count.

    Args:
      loss: `loss(params, example) -> scalar`; see `operators.output_factors`.
      params: the point, a minimum.
      data: pytree of arrays with a leading axis n.
      learning_rate: η; an operand, so a new value compiles nothing.
      batch_size: B in 1..n.
      key: random key.
      chains: independent runs side by side; the error is taken over them.
      steps: steps of each.
      every: steps between looks at the seminorm.
      replacement: whether a batch may hold an example more than once.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      `LyapunovExponent`. Cost: steps · chains · B / n + chains · steps / every Hessian-vector
      products. Memory: a few times `chains` vectors of parameters.

    Raises:
      ValueError, TypeError: for numbers out of range, and see `operators.output_factors`.
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("chains", chains, 2)
    check_at_least("every", every, 1)
    if check_at_least("steps", steps, 1) < 4 * every:
        raise ValueError(f"steps must be at least 4 · every = {4 * every}, got {steps}")
    check_in_memory("lyapunov_exponent", data)
    check_finite("data", data)
    loss, params, data = check_problem(loss, params, data)
    split_at_outputs(loss, params, data)  # its checks, before any computation
    check_batch_size(batch_size, data_size(data), replacement=replacement)
    sizes = {"batch_size": batch_size, "looks": steps // every, "every": every}
    logs = _run(
        loss,
        params,
        data,
        jnp.asarray(learning_rate),
        jax.random.split(key, chains),
        replacement=replacement,
        **sizes,
    )
    first, span = sizes["looks"] // 4, (sizes["looks"] - sizes["looks"] // 4) * every
    each = (logs[:, -1] - logs[:, first]) / span
    return LyapunovExponent(
        value=jnp.mean(each),
        standard_error=jnp.std(each, ddof=1) / jnp.sqrt(chains),
        resolution=jnp.asarray(1 / span),
        chains=each,
        burst=jnp.max(logs, 1) - logs[:, 0],
    )


@functools.partial(jax.jit, static_argnames=("batch_size", "looks", "every", "replacement"))
def _run(
    loss: Any,
    params: Params,
    data: Any,
    eta: jax.Array,
    keys: jax.Array,
    *,
    batch_size: int,
    looks: int,
    every: int,
    replacement: bool,
) -> jax.Array:
    """log √(xᵀHx) at the start and at every look, (chains, looks + 1)."""
    n, sig = data_size(data), vectors.signature(params)
    split = split_at_outputs(loss, params, data)

    def outputs(x: Params, examples: Any) -> tuple[jax.Array, jax.Array, Any]:
        """J_i x and A_i J_i x of some examples, and the map u ↦ Σ J_iᵀ u_i."""
        f, linear = jax.linearize(lambda params: flat_outputs(split, params, examples), params)
        moved = linear(x)
        weighted = jnp.einsum("nkl,nl->nk", example_curvatures(split, f, examples), moved)
        return moved, weighted, jax.linear_transpose(linear, params)

    def product(x: Params, examples: Any) -> Params:
        _, weighted, back = outputs(x, examples)
        return vectors.scale(1 / len(weighted), back(weighted)[0])

    def step(carry: tuple[Params, jax.Array], key: jax.Array) -> Any:
        x, log = carry
        batch = take(data, batch_indices(key, n, batch_size, replacement=replacement))
        x, length = vectors.unit(vectors.add(x, -eta, product(x, batch)))
        return (x, log + jnp.log(length)), None

    def seminorm(x: Params) -> jax.Array:
        moved, weighted, _ = outputs(x, data)
        return 0.5 * jnp.log(jnp.sum(moved * weighted) / n)

    def look(carry: tuple[Params, jax.Array], key: jax.Array) -> Any:
        (x, log), _ = jax.lax.scan(step, carry, jax.random.split(key, every))
        return (x, log), log + seminorm(x)

    def chain(key: jax.Array) -> jax.Array:
        start, walk = jax.random.split(key)
        x, _ = vectors.unit(product(vectors.cast_like(vectors.normal(start, sig), sig), data))
        logs = jax.lax.scan(look, (x, jnp.zeros(())), jax.random.split(walk, looks))[1]
        return jnp.concatenate([seminorm(x)[None], logs])

    return jax.vmap(chain)(keys)
