"""The gradient of one example by a value of parameters alone: rows of a product, or an array."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.callables import register, static
from jaxstab.operators.placements import Placement, Unplaced


@register
@dataclasses.dataclass(frozen=True, eq=False)
class OneHot:
    """Rows of an identity matrix: row t is 1 at column ids[t] and 0 elsewhere; never formed."""

    ids: Any  # (..., b, T)
    columns: int = static()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that this stands for."""
        return (*self.ids.shape, self.columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """XᵀD for one example: x (b, T, K), d (b, T, M), placed with groups (b, K, M).

    Attributes:
      moves: whether x depends on the parameters (d always may).
      note: the primitive in which data were met.
      factor: None, or an array (b, K, M), the same for all examples, that multiplies XᵀD entry by
        entry; `factor_moves` if it depends on the parameters.
      plain, dual: of a convolution, its other rows (see `sites`); gone once rows were changed.
    """

    placement: Placement
    x: Any
    d: Any
    moves: bool
    note: str
    factor: Any = None
    factor_moves: bool = False
    plain: Any = None
    dual: Any = None

    @property
    def is_complex(self) -> bool:
        """Whether any of its numbers is complex."""
        return any(jnp.iscomplexobj(y) for y in (self.x, self.d) if not isinstance(y, OneHot))

    def changed(self, **changes: Any) -> "Rows":
        """The same with other rows."""
        if self.factor is not None:
            raise Unplaced
        return dataclasses.replace(self, plain=None, dual=None, **changes)

    def dense(self, why: str) -> "Dense":
        """The same multiplied out."""
        x = expand(self.x, self.d.dtype)
        value = jnp.einsum("btk,btm->bkm", x, expand(self.d, x.dtype))
        if self.factor is not None:
            value = value * self.factor
        axes = tuple(axis for group in self.placement.groups for axis in group)
        return Dense(Placement(self.placement.offset, (axes,)), value.ravel(), self.note, why)


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """The gradient of one example as an array (entries,), placed with one group.

    Attributes:
      note: the primitive in which data were met.
      why: empty, or why it is larger than the activations that it comes from.
    """

    placement: Placement
    value: Any
    note: str
    why: str = ""

    @property
    def is_complex(self) -> bool:
        """Whether its numbers are complex."""
        return jnp.iscomplexobj(self.value)

    def dense(self, why: str) -> "Dense":
        """Itself."""
        return self


Content = Rows | Dense


def expand(x: Any, dtype: Any) -> jax.Array:
    """Rows as an array."""
    return jax.nn.one_hot(x.ids, x.columns, dtype=dtype) if isinstance(x, OneHot) else x


def real_part(content: Content) -> Content:
    """The real part of a content: Re(XᵀD) has the rows (Re X, −Im X) and (Re D, Im D)."""
    if isinstance(content, Rows) and content.factor is not None:
        content = content.dense("it is multiplied entry by entry by complex numbers")
    if isinstance(content, Dense):
        return dataclasses.replace(content, value=jnp.real(content.value))
    x, d = content.x, content.d
    if isinstance(x, OneHot):
        return content.changed(d=jnp.real(d))
    x = jnp.concatenate([jnp.real(x), -jnp.imag(x)], axis=1)
    return content.changed(x=x, d=jnp.concatenate([jnp.real(d), jnp.imag(d)], axis=1))
