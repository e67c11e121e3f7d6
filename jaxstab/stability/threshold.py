"""The exact mean-square threshold of SGD at a minimum of a real network, for all batch sizes.

Source: Mulayoff & Michaeli, COLT 2024, arXiv 2306.07850 ("the paper" below). SGD linearised at a
minimum is stable in mean square if and only if η ≤ η*_var = 2/λ*, λ* = λ_max(C⁺ D) (Thm 5; C and D
in `exact`). λ* is found here between bounds that hold for certain,

    a  ≤  (17)  ≤  (27)  ≤  ⟨S, D S⟩ / ⟨S, C S⟩  ≤  λ*  ≤  λ_max((1-π) 𝒦/n + π diag(𝒦_ii))
                                                        ≤  (1-π) a + π max_i λ_max(H_i).

From below: a quotient of any moment matrix S; `subspace` finds the best one. From above: with S
positive semi-definite ⟨S, D S⟩ ≤ tr(S² K), K = (1-π) H² + (π/n) Σ H_i², and tr(S² H) = ⟨S, C S⟩, so
that λ* ≤ max_v vᵀKv / vᵀHv: this is eq. 8 of Wu, Ma, E 2018. With u = F v, vᵀHv = |u|²/n and
vᵀKv = uᵀ((1-π) 𝒦/n + π diag(𝒦_ii)) u / n: an ordinary eigenvalue in the space of outputs, equal to
that of eq. 8 where the rows of F are independent (an over-parametrised network), otherwise above
it, and certified by Lanczos without an inverse of H. The last bound is that of the sharpest
example.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_at_least, check_finite, check_positive
from jaxstab.eigen import lanczos
from jaxstab.eigen.result import EigenResult
from jaxstab.operators.hessian import Loss, Params
from jaxstab.operators.outputs import ROWS, OutputFactors, ResidualMoment, output_factors
from jaxstab.operators.statistics import directional_curvatures
from jaxstab.stability import lifted, subspace
from jaxstab.stability.criteria import variance_factor
from jaxstab.stability.subspace import Growing, Subspace

_MEMORY = 2**30  # bytes that coefficients and images of a subspace may take
_MAX_RANK = 400
_START = 30  # sharpest examples whose top eigenvectors the subspace starts from
_ADD = 16  # directions a growth
_COLUMNS = 8  # products with 𝒦 that share one linearisation
_HELD = 8192  # n k² up to which 𝒦 is formed: it then costs no more than a thousand products
_VECTORS = 8  # leading vectors of a moment matrix that are handed out


class Ends(NamedTuple):
    """Where the thresholds lie."""

    lower: np.ndarray  # (m,)
    upper: np.ndarray  # (m,)


@dataclasses.dataclass(frozen=True)
class MeanSquareThreshold:
    """η*_var for several batch sizes, with bounds; arrays have one entry a batch size."""

    batch_sizes: np.ndarray
    """B, (m,)."""
    value: np.ndarray
    """Threshold by the best moment matrix found, (m,); the truth is at most this."""
    interval: Ends
    """Ends, each (m,). Lower: the best of the chain and of `lifted`, certified over the start of
    Lanczos with probability 0.999. Upper: certain up to rounding; the larger of `value` and
    `full_hessian`, so that above it the dynamics with the full H_i are unstable too."""
    converged: np.ndarray
    """Whether two growths of the subspace in turn changed the value by less than tol, (m,)."""
    rank: int
    """Dimension of the subspace in the end."""
    bounds: dict[str, np.ndarray]
    """The chain as thresholds, from below to above, each (m,): "sharpest example" ≤ "eq. 8" ≤
    η*_var ≤ "eq. 27" ≤ "eq. 17" ≤ "2/a"."""
    shares: np.ndarray
    """(π/n) tr(S H_i S H_i) / ⟨S, D S⟩: what each example has in the growth at the edge, (m, n).
    The rest to 1 belongs to the mean curvature."""
    curvature: np.ndarray
    """⟨S, C S⟩ of the best moment matrix, |S| = 1, (m,), 1/step size; see `growth`."""
    weights: np.ndarray
    """Leading eigenvalues of S over its Frobenius norm, decreasing, (m, q)."""
    vectors: Params
    """Their eigenvectors, unit, shaped like the parameters with leading axes (m, q)."""
    example_sharpness: np.ndarray
    """λ_max(H_i), (n,), 1/step size."""
    sharpness: EigenResult
    """a of the Gauss–Newton Hessian; its vector is in the space of outputs."""
    full_hessian: np.ndarray
    """Threshold by the best moment matrix in the span of `vectors` with the exact vᵀ H_i w in place
    of Gauss–Newton's, (m,): linearised SGD with the full H_i is unstable above it, whatever their
    signs."""
    residual: float
    """Upper bound of ε = √λ_max((1/n) Σ E_i²), E_i = H_i minus its Gauss–Newton part: up to the
    threshold, E |x|² with the full H_i grows at most by the factor (√μ + ηε)² a step where it grows
    by μ in one step without E_i."""
    products: int
    """Products with 𝒦, each a reverse and a forward pass over the data where it is not formed."""
    bound_products: int
    """Those of them that a and eq. 8 took."""
    n: int
    replacement: bool

    def index(self, batch_size: int) -> int:
        """Returns where a batch size stands in the arrays.

        Raises:
          ValueError: if the threshold was not computed for it.
        """
        found = np.flatnonzero(self.batch_sizes == batch_size)
        if not len(found):
            known = ", ".join(map(str, self.batch_sizes))
            raise ValueError(f"no threshold for batch size {batch_size}: there is one for {known}")
        return int(found[0])

    def growth(self, learning_rate: float, batch_size: int) -> float:
        """Returns ⟨S, Q S⟩ = 1 − 2ηc (1 − η/η*_var), c = ⟨S, C S⟩: the growth along S per step.

        A lower bound of λ_max(Q), the factor of E |x|² a step in the end; above 1 exactly where
        η is above the threshold.
        """
        i = self.index(batch_size)
        return float(
            1 - 2 * learning_rate * self.curvature[i] * (1 - learning_rate / self.value[i])
        )

    def __str__(self) -> str:
        names = [*list(self.bounds)[:2], "η*_var", *list(self.bounds)[2:]]
        lines = [f"{'B':>6} " + " ".join(f"{name:>16}" for name in names)]
        for i, size in enumerate(self.batch_sizes):
            row = {**{name: bound[i] for name, bound in self.bounds.items()}}
            row["η*_var"] = self.value[i]
            line = f"{size:>6} " + " ".join(f"{row[name]:>16.5g}" for name in names)
            lines.append(line + ("" if self.converged[i] else "  NOT CONVERGED"))
        lines.append(f"rank {self.rank}, {self.products} products with the kernel of n = {self.n}")
        return "\n".join(lines)


class _Kernel:
    """Products with 𝒦 on float64 columns of the host; counts them."""

    def __init__(self, factors: OutputFactors):
        self.factors, self.spent = factors, 0

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        n, k = self.factors.n, self.factors.outputs
        count = columns.shape[1]
        self.spent += count
        rows = np.zeros((-(-count // _COLUMNS) * _COLUMNS, n, k), np.float32)
        rows = rows.astype(self.factors.roots.dtype)
        rows[:count] = columns.T.reshape(count, n, k)
        groups = np.split(rows, len(rows) // _COLUMNS)
        out = np.concatenate([np.asarray(self.factors.kernel(group)) for group in groups])
        return out[:count].reshape(count, n * k).T.astype(float)


def mean_square_threshold(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    batch_sizes: Sequence[int],
    key: jax.Array,
    replacement: bool = False,
    tol: float = 1e-2,
    max_rank: int | None = None,
    chunk_size: int | None = None,
) -> MeanSquareThreshold:
    """Returns η*_var: linearised SGD is stable in mean square if and only if η ≤ η*_var.

    For Gauss–Newton H_i, which are the H_i where the model interpolates (Thm 5 of the paper). It
    does not decrease with B and is 2/a at B = n (Prop. 6). Stable means in the span of the rows of
    F; in its complement nothing moves. One subspace serves all batch sizes; it starts from the top
    eigenvectors of H, of eq. 8 and of the sharpest examples and grows until two growths in turn
    change the value by less than `tol`.

    Args:
      loss: `loss(params, example) -> scalar`, convex in the model's outputs; see
        `operators.output_factors`.
      params: the point, a minimum.
      data: pytree of arrays with a leading axis n.
      batch_sizes: B, each in 1..n.
      key: random key of the certified eigenproblems.
      replacement: whether batches are drawn with replacement.
      tol: relative change that counts as converged. It does not bound the error; the interval does.
      max_rank: dimension at which the subspace stops growing. By default 400, or less if
        coefficients and images, 16 n k r bytes, would take more than 1 GiB.
      chunk_size: examples differentiated at once.

    Returns:
      `MeanSquareThreshold`. Cost: some 200 to 400 products with 𝒦 a batch size, each about one
      Hessian-vector product, and dense work of O(n k r²) a step on the host. Memory: n k r numbers
      and 8 vectors of parameters; nothing of size n p. Where n k² ≤ 8192, 𝒦 is formed instead,
      with 1 GiB of rows of F at a time, and the products are with that matrix.

    Raises:
      TypeError, ValueError: for options out of range, and see `operators.output_factors`.
    """
    check_positive("tol", tol)
    check_finite("data", data)
    factors = output_factors(loss, params, data, chunk_size=chunk_size)
    n, k = factors.n, factors.outputs
    sizes = np.asarray(batch_sizes)
    if sizes.ndim != 1 or not len(sizes):
        raise ValueError(f"batch_sizes must be a list of at least one B, got {batch_sizes!r}")
    pis = np.array([variance_factor(n, size, replacement) for size in sizes])
    limit = min(_MAX_RANK, max(_MEMORY // (16 * n * k), 2 * _ADD)) if max_rank is None else max_rank
    check_at_least("max_rank", limit, 1)
    if n * k**2 <= _HELD and n * k <= ROWS:
        factors = factors.form()
    start = _start(factors, pis, key, limit)
    if not float(start.sharpness.value) > 0:
        raise ValueError("every Gauss–Newton Hessian is zero here: any learning rate is stable")
    kernel = _Kernel(factors)
    kernel.spent = start.products
    space = subspace.extend(None, start.columns, kernel, k)
    solved: dict[int, _Solved] = {}
    for i in np.argsort(pis):
        solved[i] = _solve(space, pis[i], kernel, tol, limit)
        space = solved[i].space
    growing = []
    for i, pi in enumerate(pis):
        moments = subspace.carry(solved[i].found.moments, solved[i].space, space)
        growing.append(subspace.growing(space, pi, tol=1e-4, start=moments))
    converged = np.array([solved[i].converged for i in range(len(pis))])
    return _collect(
        factors, sizes, pis, start, space, growing, converged, kernel.spent, key, replacement
    )


class _Start(NamedTuple):
    """What is known before any subspace: bounds from above, and directions to start from."""

    blocks: np.ndarray
    """𝒦_ii, (n, k, k)."""
    sharpness: EigenResult
    eq8: list[EigenResult]
    columns: np.ndarray
    """(n k, m)."""
    products: int


def _start(factors: OutputFactors, pis: np.ndarray, key: jax.Array, limit: int) -> _Start:
    """Certified top eigenvalues of 𝒦/n and of eq. 8; their vectors and the sharpest examples."""
    n, k = factors.n, factors.outputs
    blocks = factors.blocks()
    solve = lanczos(tol=1e-3, max_matvecs=200)
    like = jnp.zeros((n, k), factors.roots.dtype)
    keys = jax.random.split(key, len(pis) + 1)

    def top(pi: float, key: jax.Array) -> EigenResult:
        return jax.device_get(solve(lifted.identity(factors, blocks, pi), like, key=key))

    sharpness = top(0.0, keys[-1])
    eq8 = [top(pi, key) if pi else sharpness for pi, key in zip(pis, keys)]
    each = np.asarray(blocks, float)
    values, vectors = np.linalg.eigh(each)
    sharpest = np.argsort(-values[:, -1])[:_START]
    single = np.zeros((len(sharpest), n, k))
    single[np.arange(len(sharpest)), sharpest] = vectors[sharpest, :, -1]
    tops = [np.asarray(result.vector, float)[None] for result in [sharpness, *eq8]]
    columns = np.concatenate([*tops, single]).reshape(-1, n * k).T
    spent = sum(int(result.matvecs) for result in {id(r): r for r in [sharpness, *eq8]}.values())
    return _Start(each, sharpness, eq8, columns[:, :limit], spent)


class _Solved(NamedTuple):
    """The moments that grow first at one batch size, in the space that was enough for them."""

    space: Subspace
    found: Growing
    converged: bool


def _solve(space: Subspace, pi: float, kernel: _Kernel, tol: float, limit: int) -> _Solved:
    """Grows the space until two growths in turn change the value by less than tol."""
    found, quiet = subspace.growing(space, pi, tol=tol / 10), 0
    while quiet < 2:
        room = min(_ADD, limit - space.rank)
        if room <= 0:
            return _Solved(space, found, False)
        grown = subspace.grow(space, found, pi, kernel=kernel, add=room)
        if grown.rank == space.rank:  # nothing is left to add
            break
        last, moments = found.value, subspace.carry(found.moments, space, grown)
        space, found = grown, subspace.growing(grown, pi, tol=tol / 10, start=moments)
        quiet = quiet + 1 if found.value - last <= tol * found.value else 0
    return _Solved(space, found, True)


def _collect(
    factors: OutputFactors,
    sizes: np.ndarray,
    pis: np.ndarray,
    start: _Start,
    space: Subspace,
    growing: list[Growing],
    converged: np.ndarray,
    products: int,
    key: jax.Array,
    replacement: bool,
) -> MeanSquareThreshold:
    """Evaluates what was found, and the bounds on both sides."""
    a = start.sharpness
    sharpest = np.linalg.eigvalsh(start.blocks)[:, -1]
    above = (1 - pis) * float(a.interval.upper) + pis * sharpest.max() * (1 + 1e-6)
    eq8 = np.minimum(above, [float(result.interval.upper) for result in start.eq8])
    # Curvatures of all examples along single directions: the top of H, the basis, the top of S.
    top = np.sum(np.square(np.asarray(a.vector, float)), -1)
    eq17 = _along(factors.n * float(a.value) * top[None], pis)
    leading = [np.linalg.eigh(g.moments)[1][:, -1:] for g in growing]
    images = np.concatenate([space.images, *(space.images @ v for v in leading)], 1)
    curvatures = np.sum(images.reshape(space.n, space.outputs, -1) ** 2, 1).T
    eq27 = np.maximum(eq17, _along(curvatures, pis))
    # λ* rises with π (Prop. 6): a bound from below or above at one batch size serves others.
    best = np.maximum([g.value for g in growing], eq27)
    best = np.array([np.max(best[pis <= pi]) for pi in pis])
    raised, spent = _raised(factors, start.blocks, pis, space, growing, key)
    least = np.minimum(eq8, raised)
    least = np.array([np.min(least[pis >= pi]) for pi in pis])
    weights, vectors = _leading(factors, space, growing)
    full = _full_hessian(factors, weights, vectors, pis)
    residual = _residual(factors, key)
    bounds = {"sharpest example": above, "eq. 8": eq8, "eq. 27": eq27, "eq. 17": eq17}
    bounds["2/a"] = np.full(len(pis), float(a.value))
    return MeanSquareThreshold(
        batch_sizes=sizes,
        value=2 / best,
        interval=Ends(2 / least, np.maximum(2 / best, full)),
        converged=converged,
        rank=space.rank,
        bounds={name: 2 / bound for name, bound in bounds.items()},
        shares=np.array([g.shares for g in growing]),
        curvature=np.array([g.curvature for g in growing]),
        weights=weights,
        vectors=vectors,
        example_sharpness=sharpest,
        sharpness=a,
        full_hessian=full,
        residual=residual,
        products=products + spent,
        bound_products=start.products,
        n=factors.n,
        replacement=replacement,
    )


def _along(curvatures: np.ndarray, pis: np.ndarray) -> np.ndarray:
    """Largest m + π Var_i(vᵀH_i v) / m over the rows, m = vᵀHv, for each π: eq. 27 of the paper."""
    mean, variance = curvatures.mean(1), curvatures.var(1)
    return np.max(mean + pis[:, None] * variance / mean, axis=1)


def _raised(
    factors: OutputFactors,
    blocks: np.ndarray,
    pis: np.ndarray,
    space: Subspace,
    growing: list[Growing],
    key: jax.Array,
) -> tuple[np.ndarray, int]:
    """Certified upper bounds of λ* from Z = S + τI, (m,), and the products that they took."""
    solve, n, k = lanczos(tol=1e-3, max_matvecs=200), factors.n, factors.outputs
    like, bounds, spent = jnp.zeros((n, k), factors.roots.dtype), np.full(len(pis), np.inf), 0
    for i in np.flatnonzero(pis):  # at B = n eq. 8 is exact
        values, vectors = np.linalg.eigh(growing[i].moments)
        top = vectors[:, ::-1][:, : lifted.RANK]
        operator = lifted.lift(
            factors,
            blocks,
            pis[i],
            coefficients=space.coefficients @ top,
            images=space.images @ top,
            weights=values[::-1],
        )
        found = jax.device_get(solve(operator, like, key=jax.random.fold_in(key, i)))
        bounds[i] = float(found.interval.upper) * (1 + lifted.ROUNDING)
        spent += int(found.matvecs)
    return bounds, spent


def _leading(
    factors: OutputFactors, space: Subspace, growing: list[Growing]
) -> tuple[np.ndarray, Params]:
    """Leading eigenpairs of the moment matrices, the vectors as parameters."""
    count = min(_VECTORS, space.rank)
    weights, columns = [], []
    for found in growing:
        values, vectors = np.linalg.eigh(found.moments)
        weights.append(values[::-1][:count])
        columns.append(space.coefficients @ vectors[:, ::-1][:, :count])
    shape = (-1, space.n, space.outputs)
    pulled = [factors.pull(column.T.reshape(shape)) for column in columns]
    return np.array(weights), jax.tree.map(lambda *leaves: jnp.stack(leaves), *pulled)


def _full_hessian(
    factors: OutputFactors, weights: np.ndarray, vectors: Params, pis: np.ndarray
) -> np.ndarray:
    """2 ⟨S, C S⟩ / ⟨S, D S⟩ with the exact H_i, the best S in the span of the vectors, (m,)."""
    count, n = weights.shape[1], factors.n

    def along(v: Params) -> np.ndarray:
        options: dict[str, Any] = {"chunk_size": factors.chunk_size}
        found = directional_curvatures(factors.loss, factors.params, factors.data, v, **options)
        return np.asarray(found, float)

    def bound(i: int, pi: float) -> float:
        v = [jax.tree.map(lambda leaf, j=j: leaf[i, j], vectors) for j in range(count)]
        forms = np.zeros((n, count, count))
        for j in range(count):
            forms[:, j, j] = along(v[j])
        for j in range(count):
            for m in range(j):
                both = along(jax.tree.map(jnp.add, v[j], v[m]))
                forms[:, j, m] = forms[:, m, j] = (both - forms[:, j, j] - forms[:, m, m]) / 2
        quotient = subspace.dense_maximum(forms, pi)
        return 2 / quotient if quotient > 0 else np.inf

    return np.array([bound(i, pi) for i, pi in enumerate(pis)])


def _residual(factors: OutputFactors, key: jax.Array) -> float:
    """Upper end of √λ_max((1/n) Σ E_i²)."""
    operator = ResidualMoment(factors.loss, factors.params, factors.data, factors.chunk_size)
    found = lanczos(tol=0.1, max_matvecs=50)(operator, factors.params, key=key)
    return float(np.sqrt(max(float(found.interval.upper), 0.0)))
