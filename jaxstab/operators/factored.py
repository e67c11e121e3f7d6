"""(1/n) Σ H_i² v and Σ v from activations and cotangents, for about one Hessian-vector product.

docs/formulas.md, section 8. Per example, the gradient by a factored leaf is XᵀD (`sites`), so

    H_i v = Ẋᵀ D + Xᵀ Ḋ

with tangents (Ẋ, Ḋ) = A v along θ + t v: A is one linear map, shared by all examples. The function
½ [(1/n) Σ ‖H_i v‖² − ‖H v‖²] has gradient Σ v, so with u_i = H_i v − H v

    Σ v = (1/n) Σ H_i u_i = (1/n) Aᵀ (D u_iᵀ, X u_i)_i:

one pass forward, one back. Explicit leaves enter the same formulas with their per-example gradient
in place of (X, D).

Cost in matrix products per layer: A 4, Aᵀ 4, H v 2, subtracting it 2: 12 for Σ, 8 for the second
moment, against 9 for one Hessian-vector product by jvp of grad (which makes its primal pass anew).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.callables import static
from jaxstab.checks import data_size
from jaxstab.operators import sites as site_forms
from jaxstab.operators.chunks import scale_like
from jaxstab.operators.hessian import Operator, operator
from jaxstab.operators.linearised import LinearisedChunks, automatic_chunk, memory_limit, tree_bytes
from jaxstab.operators.structure import Leaf, Site, Structure, analyse, evaluate, read_program

Params = Any


def read_structure(loss: Any, params: Params, data: Any) -> Structure:
    """Returns how every parameter leaf enters `loss(params, example)`."""
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
    program = read_program(loss, params, example)
    return Structure(program, analyse(program, site_forms.recognised))


class Factors(NamedTuple):
    """What moves with θ, per example: one entry a site or explicit leaf.

    Attributes:
      inputs: X of each site, (b, T, K), or x, (b, S, C), where it has dual rows; None where it does
        not depend on θ.
      cotangents: D of each site, (b, T, M).
      explicit: per-example gradient of each leaf that is not factored.
    """

    inputs: tuple[jax.Array | None, ...]
    cotangents: tuple[jax.Array, ...]
    explicit: tuple[jax.Array, ...]


def _sites(leaves: tuple[Leaf, ...]) -> list[tuple[int, Site]]:
    return [(i, site) for i, leaf in enumerate(leaves) for site in leaf.sites]


def _weight(site: Site, leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(site.view.apply, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


class Constants(NamedTuple):
    """What of each site is read at θ alone: X where `Factors` has it not, Δ where there is one."""

    inputs: tuple[jax.Array | None, ...]
    duals: tuple[jax.Array | None, ...]


def example_factors(
    structure: Structure, params: list[jax.Array], example: list[jax.Array], covector: Any = 1.0
) -> tuple[Factors, Constants]:
    """Returns the factors of one example and the constants beside them.

    They are those of the program's output times `covector`, a constant: 1 for a loss.
    """
    sites = _sites(structure.leaves)
    number = {id(site.equation): s for s, (_, site) in enumerate(sites)}
    explicit = [i for i, leaf in enumerate(structure.leaves) if leaf.form != "factored"]
    avals = structure.program.avals
    dual = [_has_dual(site, avals) for _, site in sites]

    def loss(shifts: list[jax.Array], moved: list[jax.Array]) -> tuple[jax.Array, list[Any]]:
        rows: list[Any] = [None] * len(sites)

        def visit(equation: Any, inputs: list[Any], outputs: list[Any]) -> list[Any]:
            s = number.get(id(equation))
            if s is None:
                return outputs
            site = sites[s][1]
            x = site_forms.input_rows(site, inputs)
            if dual[s]:
                rows[s] = site_forms.plain_rows(site, inputs), x
            else:
                rows[s] = (x, None) if site.moving else (None, x)
                if site_forms.by_rows(equation, x):
                    outputs = [site_forms.product(site, x, inputs[site.operand], outputs[0])]
            return [outputs[0] + shifts[s]]

        values = list(params)
        for i, value in zip(explicit, moved, strict=True):
            values[i] = value
        output = evaluate(structure.program, values, example, visit)
        return jnp.sum(output * covector), rows

    outputs = [avals[site.equation.outputs[0]] for _, site in sites]
    shifts = [jnp.zeros(aval.shape, aval.dtype) for aval in outputs]
    (cotangents, gradients), rows = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        shifts, [params[i] for i in explicit]
    )
    rows_of_cotangents = tuple(
        site_forms.cotangent_rows(site, cotangent, len(_weight(site, params[i]).shape))
        for (i, site), cotangent in zip(sites, cotangents, strict=True)
    )
    duals = tuple(
        site_forms.dual_rows(site, avals, cotangent) if has else None
        for (_, site), cotangent, has in zip(sites, cotangents, dual, strict=True)
    )
    moving, fixed = zip(*rows, strict=True) if rows else ((), ())
    return Factors(moving, rows_of_cotangents, tuple(gradients)), Constants(fixed, duals)


class Linearised(NamedTuple):
    """One chunk linearised at θ: factors, constants and the map A, all with leading axis n."""

    factors: Factors
    constants: Constants
    linear: Callable[[Params], Factors]

    def inputs(self, s: int) -> jax.Array:
        """X of site s, whether it moves or not."""
        fixed = self.constants.inputs[s]
        return self.factors.inputs[s] if fixed is None else fixed  # type: ignore[return-value]


def linearise(
    structure: Structure, params: Params, chunk: Any, covectors: Any = None
) -> Linearised:
    """Linearises one chunk; `covectors`, leading axis n, as in `example_factors`."""

    def batched(params: Params) -> tuple[Factors, Any]:
        def single(example: Any, covector: Any) -> Any:
            leaves = jax.tree.leaves(params), jax.tree.leaves(example)
            return example_factors(structure, *leaves, covector)

        if covectors is None:
            return jax.vmap(lambda example: single(example, 1.0))(chunk)
        return jax.vmap(single)(chunk, covectors)

    factors, linear, constants = jax.linearize(batched, params, has_aux=True)
    return Linearised(factors, constants, linear)


# --- Per-example vectors of one site -------------------------------------------------------------
# H_i v at a site is Σ over pairs of rowsᵀ·rows: kept as pairs where T is small (products of T × T
# Grams), multiplied out to (b, K, M) where that takes fewer operations.


class Pair(NamedTuple):
    """xᵀd, d unfolded over so many kernel positions (1: plain rows)."""

    x: jax.Array
    d: jax.Array
    shifts: int = 1


def _gram(x: jax.Array, y: jax.Array) -> jax.Array:
    """x yᵀ over the last axis, (n, b, T, T)."""
    if x.shape[-2] == 1:  # a batch of 1 × 1 products is a sum, and faster written as one
        return jnp.sum(x * y, axis=-1, keepdims=True)
    return jnp.einsum("nbtk,nbsk->nbts", x, y)


def _mix(gram: jax.Array, y: jax.Array) -> jax.Array:
    """gram · y, (n, b, T, K)."""
    return gram * y if gram.shape[-1] == 1 else jnp.einsum("nbts,nbsk->nbtk", gram, y)


def _keeps_pairs(positions: int, inputs: int, outputs: int) -> bool:
    """Whether Gram matrices cost less than the products: 6 T²(K + M) < 8 T K M operations."""
    return 3 * positions * (inputs + outputs) < 4 * inputs * outputs


def _has_dual(site: Site, avals: dict[int, Any]) -> bool:
    """Whether a convolution's cotangent is unfolded: where u_i is multiplied out."""
    if site.equation.name != "conv_general_dilated" or not site.moving:
        return False
    return not _keeps_pairs(*site_forms.row_sizes(site, avals))


def _sizes(linearised: Linearised, s: int) -> tuple[int, int, int]:
    """T, K and M of site s."""
    x, d = linearised.inputs(s), linearised.factors.cotangents[s]
    return x.shape[-2], x.shape[-1], d.shape[-1]


def _multiply(pairs: list[Pair]) -> jax.Array:
    """The products summed, (n, b, K, M)."""
    products = ((jnp.einsum("nbtk,nbtm->nbkm", p.x, p.d), p.shifts) for p in pairs)
    return sum(site_forms.from_dual(*product) for product in products)  # type: ignore[return-value]


def _pairs(linearised: Linearised, tangent: Factors | None, s: int) -> list[Pair]:
    """Rows of g_i (no tangent) or of H_i v at site s."""
    x, d = linearised.inputs(s), linearised.factors.cotangents[s]
    if tangent is None:
        return [Pair(x, d)]
    moved, pair = tangent.inputs[s], Pair(x, tangent.cotangents[s])
    if moved is None:
        return [pair]
    dual = linearised.constants.duals[s]
    return [
        Pair(moved, d) if dual is None else Pair(moved, dual, x.shape[-1] // moved.shape[-1]),
        pair,
    ]


def _site_sum(pairs: list[Pair]) -> jax.Array:
    """Σ over examples of the products, (b, K, M): ordinary matrix products."""
    sums = ((_contract_rows(p.x, p.d), p.shifts) for p in pairs)
    return sum(site_forms.from_dual(*part) for part in sums)  # type: ignore[return-value]


def _contract_rows(x: jax.Array, d: jax.Array) -> jax.Array:
    """Σ over examples and positions of x dᵀ, (b, K, M)."""
    if x.shape[1] == 1:  # one plain matrix product: XLA gives it no transposes
        return (x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1]))[None]
    return jnp.einsum("nbtk,nbtm->bkm", x, d)


def _times(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Rows times one matrix for all examples: (n, b, T, K) and (b, K, M) give (n, b, T, M)."""
    if x.shape[1] == 1:
        rows = x.reshape(-1, x.shape[-1]) @ matrix[0]
        return rows.reshape(*x.shape[:-1], matrix.shape[-1])
    return jnp.einsum("nbtk,bkm->nbtm", x, matrix)


def _inner(keep: bool, left: list[Pair], right: list[Pair]) -> jax.Array:
    """Inner product of two per-example vectors at one site, shape (n,)."""
    if keep:
        grams = (_gram(p.x, q.x) * _gram(p.d, q.d) for p in left for q in right)
        return sum(jnp.sum(g, axis=(1, 2, 3)) for g in grams)  # type: ignore[return-value]
    return jnp.sum(_multiply(left) * _multiply(right), axis=(1, 2, 3))


def _pull_site(
    linearised: Linearised, tangent: Factors, s: int, mean: jax.Array | None
) -> tuple[jax.Array | None, jax.Array]:
    """(D u_iᵀ, X u_i) with u_i = H_i v − mean at site s; the first None where X does not move."""
    x, d = linearised.inputs(s), linearised.factors.cotangents[s]
    pairs = _pairs(linearised, tangent, s)
    moves = linearised.factors.inputs[s] is not None
    if _keeps_pairs(*_sizes(linearised, s)):
        to_d: Any = sum(_mix(_gram(x, p.x), p.d) for p in pairs)
        to_x: Any = sum(_mix(_gram(d, p.d), p.x) for p in pairs) if moves else None
        if mean is not None:
            to_d = to_d - _times(x, mean)
            to_x = to_x - _times(d, jnp.swapaxes(mean, 1, 2)) if moves else None
        return to_x, to_d
    u = _multiply(pairs)
    if mean is not None:
        u = u - mean
    to_d = jnp.einsum("nbtk,nbkm->nbtm", x, u)
    if not moves:
        return None, to_d
    dual = linearised.constants.duals[s]
    if dual is None:
        return jnp.einsum("nbtm,nbkm->nbtk", d, u), to_d
    u = site_forms.to_dual(u, pairs[0].shifts)
    return jnp.einsum("nbtm,nbkm->nbtk", dual, u), to_d


# --- All leaves ------------------------------------------------------------------------------


def example_sum(
    leaves: tuple[Leaf, ...], params: Params, linearised: Linearised, tangent: Any
) -> Params:
    """Returns Σ_i H_i v (or Σ_i g_i without a tangent) over one chunk, shaped like `params`."""
    flat, tree = jax.tree.flatten(params)
    total: list[Any] = [None] * len(flat)
    for s, (i, site) in enumerate(_sites(leaves)):
        matrix = _site_sum(_pairs(linearised, tangent, s))
        weight = _weight(site, flat[i])
        part = site_forms.from_matrix(site, matrix, weight).astype(weight.dtype)
        (part,) = jax.linear_transpose(site.view.apply, flat[i])(part)
        total[i] = part if total[i] is None else total[i] + part
    explicit = linearised.factors.explicit if tangent is None else tangent.explicit
    others = [i for i, leaf in enumerate(leaves) if leaf.form != "factored"]
    for i, gradient in zip(others, explicit, strict=True):
        total[i] = jnp.sum(gradient, axis=0)
    return jax.tree.unflatten(tree, total)


def example_inner(
    linearised: Linearised,
    left: Factors | None,
    right: Factors | None,
    other: Linearised | None = None,
) -> jax.Array:
    """Returns ⟨l_i, r_i⟩, shape (n,), of per-example vectors: H_i v of a tangent, g_i of None.

    The right-hand vector is that of `other`, if one is given.
    """
    other = linearised if other is None else other
    parts = [
        _inner(
            _keeps_pairs(*_sizes(linearised, s)),
            _pairs(linearised, left, s),
            _pairs(other, right, s),
        )
        for s in range(len(linearised.factors.cotangents))
    ]
    of_left = (linearised.factors if left is None else left).explicit
    of_right = (other.factors if right is None else right).explicit
    for a, b in zip(of_left, of_right, strict=True):
        parts.append(jnp.sum((a * b).reshape(a.shape[0], -1), axis=1))
    return sum(parts)  # type: ignore[return-value]


def apply_to_deviations(
    leaves: tuple[Leaf, ...],
    params: Params,
    linearised: Linearised,
    tangent: Factors,
    mean: Params | None,
) -> Params:
    """Returns Σ_i H_i (H_i v − mean) over one chunk; `mean` None stands for zero."""
    flat = None if mean is None else jax.tree.leaves(mean)
    inputs, cotangents = [], []
    for s, (i, site) in enumerate(_sites(leaves)):
        x, d = linearised.inputs(s), linearised.factors.cotangents[s]
        shape = (x.shape[1], x.shape[-1], d.shape[-1])
        matrix = None
        if flat is not None:
            matrix = site_forms.to_matrix(site, site.view.apply(flat[i]), shape)
        to_x, to_d = _pull_site(linearised, tangent, s, matrix)
        inputs.append(to_x)
        cotangents.append(to_d)
    others = [i for i, leaf in enumerate(leaves) if leaf.form != "factored"]
    explicit = [
        u if flat is None else u - flat[i] for i, u in zip(others, tangent.explicit, strict=True)
    ]
    covector = Factors(tuple(inputs), tuple(cotangents), tuple(explicit))
    covector = jax.tree.map(lambda c, f: c.astype(f.dtype), covector, linearised.factors)
    (result,) = jax.linear_transpose(linearised.linear, params)(covector)
    return result


# --- Operators -------------------------------------------------------------------------------


def linearise_chunks(loss: Any, params: Params, data: Any, chunk_size: int | None) -> Any:
    """Returns (leaves, chunks) of a loss at θ, nothing computed yet."""
    structure = read_structure(loss, params, data)

    def make(chunk: Any) -> Linearised:
        return linearise(structure, params, chunk)

    size = automatic_chunk(make, data) if chunk_size is None else chunk_size
    return structure.leaves, LinearisedChunks(make, data, size, None)


def _moment_product(
    leaves: tuple[Leaf, ...], chunks: LinearisedChunks, params: Params, v: Params, centred: bool
) -> Params:
    """(1/n) Σ H_i (H_i v − m) with m = H v if `centred`, else 0."""
    n = data_size(chunks.data)
    if not centred:

        def square(linearised: Linearised, _: Any) -> Any:
            return apply_to_deviations(leaves, params, linearised, linearised.linear(v), None), None

        return scale_like(chunks.reduce(square)[0], n, params)

    keep = chunks.single or _tangents_fit(chunks, params)

    def first(linearised: Linearised, _: Any) -> Any:
        tangent = linearised.linear(v)
        return example_sum(leaves, params, linearised, tangent), tangent if keep else None

    total, tangents = chunks.reduce(first)
    mean = scale_like(total, n, params)

    def second(linearised: Linearised, tangent: Any) -> Any:
        tangent = linearised.linear(v) if tangent is None else tangent
        return apply_to_deviations(leaves, params, linearised, tangent, mean), None

    return scale_like(chunks.reduce(second, tangents)[0], n, params)


def _tangents_fit(chunks: LinearisedChunks, params: Params) -> bool:
    """Whether the tangents of all chunks, besides what is kept, fit the memory limit."""
    if chunks.kept is None:
        return False
    factors = [linearised.factors for linearised in chunks.kept if linearised is not None]
    return tree_bytes(chunks.kept) + tree_bytes(factors) <= memory_limit()


@operator
class FactoredMoment(Operator):
    """v ↦ Σ v (`centred`) or (1/n) Σ H_i² v, from the factors of every leaf."""

    loss: Any
    params: Any
    data: Any
    centred: bool = static()
    chunk_size: int | None = static(default=None)

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        leaves, chunks = linearise_chunks(self.loss, self.params, self.data, self.chunk_size)
        if chunks.single:
            chunks = chunks.keep()
        return _moment_product(leaves, chunks, self.params, v, self.centred)

    def prepare(self) -> Operator:
        """Returns the same operator with its linearisation kept, if it fits the memory.

        For use inside jit, before a loop of products.
        """
        leaves, chunks = linearise_chunks(self.loss, self.params, self.data, self.chunk_size)
        chunks = chunks.keep()
        if chunks.kept is None:
            return self
        return PreparedMoment(
            self.params, self.data, chunks.kept, leaves, chunks.chunk_size, self.centred
        )


@operator
class PreparedMoment(Operator):
    """`FactoredMoment` with the linearisation at θ kept: every product is A v and Aᵀ q alone."""

    params: Any
    data: Any
    kept: Any
    leaves: Any = static()
    chunk_size: int = static()
    centred: bool = static()

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        chunks = LinearisedChunks(None, self.data, self.chunk_size, self.kept)
        return _moment_product(self.leaves, chunks, self.params, v, self.centred)
