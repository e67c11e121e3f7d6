"""What a restarted Lanczos process is asked for, its static sizes, and what its loops carry."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxstab.eigen import vectors
from jaxstab.eigen.rounding import Model

_BASIS_LIMIT = 1 << 30  # bytes; a restart needs up to twice that for a moment
_BASIS_SIZE = 32


@dataclass(frozen=True)
class Options:
    """The static choices of `lanczos`: hashable, so that equal ones share compiled code."""

    k: int
    sign: int
    tol: float
    max_matvecs: int
    basis_size: int | None
    failure_probability: float
    certify: bool
    precision: str | None
    machine: str


class Plan(NamedTuple):
    """Static sizes."""

    sig: vectors.Signature
    options: Options
    dimension: int
    rows: int  # M: capacity of the basis; one more row holds the next vector
    keep: int  # vectors kept at a restart, locked ones included
    phases: bool  # whether there can be a second one; if not, it is not compiled
    eps: float
    model: Model
    closings: int  # products of the process itself with the final vectors: k, or none

    @property
    def restarts(self) -> bool:
        """Whether the basis can ever be left; if not, no restart is compiled."""
        return self.phases or self.rows < self.dimension


class State(NamedTuple):
    """What the loops carry. Rows of the basis: locked | active | next vector."""

    basis: Any  # (M+1, ...) pytree
    t: jax.Array  # (M, M) projected operator of the active rows
    filled: jax.Array  # () rows in use without the next vector
    beta: jax.Array  # () norm of the next vector before it was normalised
    arrow: jax.Array  # () row whose column of t is full, after a restart
    n_locked: jax.Array  # ()
    locked: jax.Array  # (k,) descending, -inf beyond n_locked
    locked_residual: jax.Array  # (k,)
    log_nu: jax.Array  # () log of what P(A) x has as norm; see certificate
    random: jax.Array  # () bool: this phase started from a random vector
    phase: jax.Array  # () number of random phases before this one
    dropped: jax.Array  # (max_matvecs + M,) Ritz values dropped at restarts of this phase
    n_dropped: jax.Array  # ()
    scale: jax.Array  # () largest ‖A v‖ seen, a lower bound of ‖A‖
    asymmetry: jax.Array  # ()
    matvecs: jax.Array  # ()
    invariant: jax.Array  # () bool: the rows in use span an invariant subspace
    bad: jax.Array  # () bool: a product was not finite
    key: jax.Array
    stopping: jax.Array  # () bool: only the final vectors are still to be multiplied
    closed: jax.Array  # () how many of them have been
    quotient: jax.Array  # (k,) their Rayleigh quotients yᵀA y
    rest: jax.Array  # (k,) ‖A y − θ y‖
    defect: jax.Array  # () largest ‖A y − what the process takes for it‖
    noise: jax.Array  # () bound of ‖A − a reference‖; 0 without one


def make_plan(
    sig: vectors.Signature, options: Options, *, warm: bool, model: Model, reference: bool
) -> Plan:
    """The sizes for these vectors and options."""
    dimension = vectors.size(sig)
    size = options.basis_size
    if size is None:
        size = min(_BASIS_SIZE, _BASIS_LIMIT // vectors.basis_bytes(sig))
        size = max(size, 8, 2 * options.k + 4)
    rows = min(size, dimension)
    keep = min(rows, max(options.k + 2, rows // 2))
    phases = options.k > 1 or (warm and options.certify)
    closings = 0 if reference else options.k
    eps = vectors.precision(sig)
    return Plan(sig, options, dimension, rows, keep, phases, eps, model, closings)
