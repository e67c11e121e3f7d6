"""What floating point may do to an eigenvalue: a model, and what the products are seen to do.

All error of solver and products is treated as a perturbation of the operator A. By Weyl it moves no
eigenvalue by more than its norm, which is taken to be

    R = M + 2 (asymmetry seen) + 256 max(0, linearity defect seen − M/4 − 2 √N u₀ ‖A‖),
    M = (16 u₀ + 32 √d u + √m u₀) ‖A‖.

- u₀ is the unit roundoff of the vectors: the inner products and updates of a step err by a few.
- u is that of the products' operands and d how many products stand one after the other, both read
  from the jaxpr (`jaxstab.resolution`). Each product rounds two operands, and what it is linearised
  at went through as many: 4 d roundings, whose effect grows as λ √(4 d) u, with λ = 4 if they are
  independent and of mean zero (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4). That
  is for the operands; how much an operand matters is up to the network. Of 1,000 small smooth ones
  the variance of the Hessian erred by up to λ = 14 in float32, hence 16.
- m numbers are added up in sequence, at most; one by one, 10⁶ float32 numbers of one sign came out
  wrong by 0.33 √m u₀, so √m u₀ leaves a factor of three.
- A systematic error keeps a computed operator linear, so no test of linearity sees it; but what
  rounds the other operands rounds those that depend on v too. In emulated networks the eigenvalue
  was wrong by 65 times the linearity defect, and with a factor of 64 one interval in 50 was too
  narrow: hence 256. Only what exceeds what the model and the solver's own N steps let expect
  counts, so a right model is not widened.

Where Krylov's products are coarser than those of a `reference`, the norm of the difference of the
two is bounded by products (`difference`), and the model is that of the reference.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxstab.eigen import vectors
from jaxstab.resolution import Resolution, read_resolution

_SOLVER = 16
_PER_PRODUCT = 32
_EXPECTED = 1 / 4  # of the allowance: the largest linearity defect that the model explains
_PER_STEP = 2
_DEFECT = 256


class Model(NamedTuple):
    """The model for one operator, static numbers."""

    unit: float  # u: unit roundoff of the products
    factor: float  # allowance / ‖A‖


def trace(
    matvec: Callable[[Any], Any],
    sig: vectors.Signature,
    sign: int,
    *,
    precision: str | None,
    machine: str,
) -> tuple[Callable[[Any], Any], Resolution]:
    """Returns v ↦ sign · A v, traced at the given precision, and what its products resolve."""
    apply = vectors.operator(matvec, sig, sign, precision)
    closed, shape = jax.make_jaxpr(apply, return_shape=True)(vectors.working_structs(sig))
    run: Any = core.jaxpr_as_fun(closed)
    tree: Any = jax.tree.structure(shape)
    return lambda v: tree.unflatten(run(*jax.tree.leaves(v))), read_resolution(closed, machine)


def model(sig: vectors.Signature, resolution: Resolution) -> Model:
    """Returns the model that value and residual rest on."""
    vector = vectors.precision(sig) / 2
    sums = float(jnp.finfo(vectors.working_dtype(sig)).eps) / 2
    unit = max(vector, resolution.unit)
    factor = _SOLVER * vector + _PER_PRODUCT * math.sqrt(resolution.depth) * unit
    return Model(unit, factor + math.sqrt(resolution.terms) * sums)


def allowance(model: Model, scale: jax.Array, dimension: int) -> jax.Array:
    """What the model allows where ‖A‖ is `scale`.

    Entries below the square root of the smallest number vanish when squared: an operator that small
    cannot be told from 0.
    """
    tiny = float(jnp.finfo(jnp.result_type(scale)).tiny)
    return model.factor * scale + math.sqrt(dimension * tiny)


def beyond(
    defect: jax.Array, allowed: jax.Array, *, eps: float, scale: jax.Array, steps: jax.Array
) -> jax.Array:
    """What a linearity defect adds to the allowance after so many steps of a solver."""
    own = _PER_STEP * jnp.sqrt(steps.astype(scale.dtype)) * (eps / 2) * scale
    return _DEFECT * jnp.maximum(0, defect - _EXPECTED * allowed - own)
