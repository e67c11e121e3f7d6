"""The Hessian of a loss and of every example: the definition that all else is tested against.

With `loss(params, example) -> scalar` = ℓ_i and data of n examples,

    H v = (1/n) Σ_i H_i v,        H_i v = d/dt ∇ℓ_i(θ + t v) at t = 0,

by forward-over-reverse differentiation (`jvp` of `grad`), no matrix ever formed. An operator is a
frozen dataclass that is also a pytree: call it as a function `v -> A v` on parameter pytrees, eager
or inside jit, vmap and scan, or pass it to a compiled solver, where its parameters and data are
operands and not constants.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxstab.callables import as_pytree, register, static
from jaxstab.checks import check_loss, check_params, data_size
from jaxstab.examples import layout_of, shapes_of, with_layout
from jaxstab.operators.chunks import chunk_shape, map_over_chunks, scale_like, sum_over_chunks
from jaxstab.operators.linearised import LinearisedChunks, fitting_chunk
from jaxstab.precision import HasPrecision, check_precision, with_own_precision

Params = Any
Loss = Callable[[Params, Any], jax.Array]
Class = TypeVar("Class")


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def operator(cls: type[Class]) -> type[Class]:
    """Registers a frozen dataclass as a callable pytree; fields marked static are not leaves.

    What it computes is traced at its `precision`, and lies on the devices as its parameters do.
    """
    for name in {"product", "prepare"} & vars(cls).keys():
        setattr(cls, name, with_own_precision(_with_own_sharding(vars(cls)[name])))
    return register(dataclasses.dataclass(frozen=True, repr=False)(cls))  # type: ignore[arg-type]


def _with_own_sharding(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an operator whose vectors, in and out, are spread as its parameters are."""

    @functools.wraps(method)
    def spread(self: "Operator", *vectors: Any) -> Any:
        if self.sharding is None:
            return method(self, *vectors)
        result = method(self, *(_constrained(v, self.sharding) for v in vectors))
        if isinstance(result, Operator):
            return dataclasses.replace(result, sharding=self.sharding)
        return _constrained(result, self.sharding)

    return spread


def _constrained(v: Params, sharding: tuple[Any, ...]) -> Params:
    leaves, structure = jax.tree.flatten(v)
    if [leaf.ndim for leaf in leaves] != [len(s.spec) for s in sharding]:
        return v  # all H_i v, with their leading axis
    placed = map(jax.lax.with_sharding_constraint, leaves, sharding)
    return jax.tree.unflatten(structure, list(placed))


def _sharding_of(params: Params) -> tuple[Any, ...] | None:
    """How concrete parameters are spread over a mesh; None where all lie on every device."""
    leaves = jax.tree.leaves(params)
    if not all(isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) for x in leaves):
        return None
    found = [leaf.sharding for leaf in leaves]
    if not any(isinstance(s, NamedSharding) and not s.is_fully_replicated for s in found):
        return None
    mesh = next(s.mesh for s in found if isinstance(s, NamedSharding))
    mesh = Mesh(mesh.devices, mesh.axis_names)  # all axes XLA's to place
    return tuple(
        NamedSharding(mesh, _padded(s.spec if isinstance(s, NamedSharding) else (), leaf.ndim))
        for s, leaf in zip(found, leaves, strict=True)
    )


def _padded(spec: Any, ndim: int) -> PartitionSpec:
    return PartitionSpec(*spec, *(None,) * (ndim - len(spec)))


@functools.partial(jax.jit, inline=True)
def apply(matvec: Callable[[Params], Params], v: Params) -> Params:
    """Returns `matvec(v)` compiled with the arrays of `matvec` as operands."""
    return matvec.product(v)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True, repr=False)
class HasSharding(HasPrecision):
    """Base of operators whose vectors are spread over devices as their parameters are."""

    sharding: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.sharding is None:
            object.__setattr__(self, "sharding", _sharding_of(self.params))  # type: ignore[attr-defined]


class Operator(HasSharding):
    """A linear operator v ↦ A v on pytrees shaped like the parameters."""

    loss: Any
    params: Any
    data: Any

    def __call__(self, v: Params) -> Params:
        """Returns A v; `v` has the structure, shapes and dtypes of the parameters."""
        _check_vector(self.params, v)
        return apply(self, v)

    def product(self, v: Params) -> Params:
        """Returns A v, uncompiled."""
        raise NotImplementedError

    def prepare(self) -> "Operator":
        """Returns an equal operator with what its products share computed once, where that helps.

        For use inside jit, before a loop of products.
        """
        return self

    def __repr__(self) -> str:
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(self.params))
        return f"{type(self).__name__}(p={size}, n={data_size(self.data)})"


def _check_vector(params: Params, v: Params) -> None:
    expected: Any = jax.tree.structure(params)
    got: Any = jax.tree.structure(v)
    if expected != got:
        raise ValueError(f"v must have the tree structure of params, {expected}; got {got}")
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(v), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"v{jax.tree_util.keystr(path)} has shape {jnp.shape(other)}, "
                f"params has {jnp.shape(leaf)} there"
            )


def check_problem(loss: Loss, params: Params, data: Any) -> tuple[Any, Params, Any]:
    """Checks (loss, params, data) before any computation and returns them as pytrees of arrays.

    Raises:
      TypeError: if `loss` is not callable or a parameter is not real floating point.
      ValueError: if data are empty, their leading axes differ, params hold NaN, or `loss` does not
        return one scalar for one example or has a primitive that JAX cannot batch.
    """
    loss = as_pytree(loss)
    check_params(params)
    data_size(data)
    params, data = jax.tree.map(jnp.asarray, (params, with_layout(data)))
    params = beside(data, params)
    check_loss(loss, params, shapes_of(data))
    return loss, params, data


def beside(data: Any, params: Params) -> Params:
    """Returns parameters that lie on one device copied to all devices of data that are spread."""
    layout = layout_of(data)
    if layout is None:
        return params
    everywhere = NamedSharding(layout.mesh, PartitionSpec())

    def place(leaf: Any) -> Any:
        alone = not isinstance(leaf, jax.core.Tracer) and len(leaf.sharding.device_set) == 1
        return jax.device_put(leaf, everywhere) if alone else leaf

    return jax.tree.map(place, params)


def total_loss(loss: Loss, params: Params, data: Any) -> jax.Array:
    """Returns Σ_i ℓ_i(θ) over the examples of `data`."""
    return jnp.sum(jax.vmap(loss, (None, 0))(params, data))


def _example_product(loss: Loss, params: Params, example: Any, v: Params) -> Params:
    """Returns H_i v for one example."""
    return jax.jvp(lambda params: jax.grad(loss)(params, example), (params,), (v,))[1]


@operator
class Hessian(Operator):
    """v ↦ H v, H = (1/n) Σ H_i. Cost: one Hessian-vector product of the data."""

    loss: Any
    params: Any
    data: Any
    chunk_size: int | None = static(default=None)

    def _chunks(self) -> LinearisedChunks:
        def make(chunk: Any) -> Any:
            gradient = jax.grad(lambda params: total_loss(self.loss, params, chunk))
            return jax.linearize(gradient, self.params)[1]

        size = fitting_chunk(make, self.data, self.chunk_size)
        return LinearisedChunks(make, self.data, size, None)

    def product(self, v: Params) -> Params:
        """Returns H v, uncompiled."""

        def chunk_product(chunk: Any) -> Params:
            gradient = jax.grad(lambda params: total_loss(self.loss, params, chunk))
            return jax.jvp(gradient, (self.params,), (v,))[1]

        total = sum_over_chunks(chunk_product, self.data, self._chunks().chunk_size)
        return scale_like(total, data_size(self.data), self.params)

    def prepare(self) -> Operator:
        """Returns the operator with ∇L linearised at θ, if the residuals fit the memory."""
        chunks = self._chunks().keep()
        if chunks.kept is None:
            return self
        return PreparedHessian(self.params, self.data, chunks.kept, chunks.chunk_size)


@operator
class PreparedHessian(Operator):
    """`Hessian` with the linearisation of ∇L kept: no primal pass per product."""

    params: Any
    data: Any
    kept: Any
    chunk_size: int = static()

    def product(self, v: Params) -> Params:
        """Returns H v, uncompiled."""
        chunks = LinearisedChunks(None, self.data, self.chunk_size, self.kept)
        total, _ = chunks.reduce(lambda linear, _: (linear(v), None))
        return scale_like(total, data_size(self.data), self.params)


@operator
class PerExampleHessian(Operator):
    """v ↦ (H_i v)_i with leading axis n: n × p numbers, so for small problems and tests."""

    loss: Any
    params: Any
    data: Any
    chunk_size: int | None = static(default=None)

    def product(self, v: Params) -> Params:
        """Returns (H_i v)_i, uncompiled."""
        product = jax.vmap(lambda example: _example_product(self.loss, self.params, example, v))
        return map_over_chunks(product, self.data, self.chunk_size)


@operator
class VmapSecondMoment(Operator):
    """v ↦ (1/n) Σ H_i² v from H_i (H_i v), example by example under vmap: the definition.

    Cost: two per-example products whose weights differ from example to example, tens to hundreds
    of Hessian-vector products; memory chunk × p.
    """

    loss: Any
    params: Any
    data: Any
    chunk_size: int | None = static(default=None)

    def product(self, v: Params) -> Params:
        """Returns (1/n) Σ H_i² v, uncompiled."""

        def square(example: Any) -> Params:
            product = functools.partial(_example_product, self.loss, self.params, example)
            return product(product(v))

        def chunk_sum(chunk: Any) -> Params:
            return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(square)(chunk))

        total = sum_over_chunks(chunk_sum, self.data, self.chunk_size)
        return scale_like(total, data_size(self.data), self.params)


def hessian(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> Hessian:
    """Returns the operator v ↦ H v of L(θ) = (1/n) Σ ℓ_i(θ).

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: pytree of real floating-point arrays, the point θ.
      data: pytree of arrays with a common leading axis n; one slice of it is an `example`.
      chunk_size: examples differentiated at once (any remainder is weighted correctly); None
        takes as many as about 1 GiB of residuals allows.
      precision: of the matrix products and convolutions in float32: "highest", full float32;
        "high" and "default", faster and coarser on GPU and TPU (`jax.lax.Precision`); None, what
        JAX is set to. One that the loss asks for itself stays as it is, see `explain`.

    Returns:
      A callable pytree; `hessian(...)(v)` has the structure, shapes and dtypes of `params`.

    Raises:
      TypeError, ValueError: see `check_problem`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda params, x: 0.5 * jnp.sum((params * x) ** 2)
      >>> operator = hessian(loss, jnp.ones(2), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
      >>> operator(jnp.array([1.0, 1.0])).tolist()
      [5.0, 10.0]
    """
    loss, params, data = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    return Hessian(loss, params, data, chunk_size, precision=check_precision(precision))


def per_example_hessian(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> PerExampleHessian:
    """Returns the operator v ↦ (H_i v)_i, leading axis n (`jvp` of `grad`, vmapped).

    Arguments and errors as for `hessian`. The result holds n × p numbers.
    """
    loss, params, data = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    return PerExampleHessian(loss, params, data, chunk_size, precision=check_precision(precision))
