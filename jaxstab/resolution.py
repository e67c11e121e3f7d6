"""What the products of a computation resolve, read from its jaxpr: the basis of a rounding model.

Three numbers: the coarsest unit roundoff u, by the precision that every product asks for on the
machine that runs it and by the dtypes of all values; how many products stand one after the other;
and how many numbers are added up. What no jaxpr shows (a kernel of one's own) is not seen here.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_PRODUCTS = ("dot_general", "conv_general_dilated")

# Unit roundoff of float32 products by machine and `jax.lax.Precision`. TF32 counts as cut off, not
# rounded, which is what a tensor core does with operands that nobody rounds for it. A machine that
# is not listed is taken for the coarsest.
_FLOAT32, _TF32, _BFLOAT16, _THREE_PASS, _SIX_PASS = 2**-24, 2**-10, 2**-8, 2**-15, 2**-22
_MACHINES: dict[str, tuple[float, float, float]] = {
    "cpu": (_FLOAT32, _FLOAT32, _FLOAT32),
    "gpu": (_TF32, _TF32, _FLOAT32),
    "tpu": (_BFLOAT16, _THREE_PASS, _SIX_PASS),
}
# Unit roundoff by what the name of a dot algorithm says of its operands; the first that fits.
_ALGORITHMS = (
    ("F8", 2**-3),
    ("BF16_BF16_F32_X9", _FLOAT32),
    ("BF16_BF16_F32_X6", _SIX_PASS),
    ("BF16_BF16_F32_X3", _THREE_PASS),
    ("BF16", _BFLOAT16),
    ("TF32_TF32_F32_X3", 2**-20),
    ("TF32", _TF32),
    ("F16", 2**-11),
    ("F64", 2**-53),
    ("F32", _FLOAT32),
)


@dataclasses.dataclass(frozen=True)
class Resolution:
    """How accurate the products of a computation are, as read from its jaxpr.

    Attributes:
      unit: the coarsest unit roundoff of a product's operands, or of any floating-point value.
      depth: matrix products on the longest chain of one after the other.
      terms: numbers added up along a chain, at most.
    """

    unit: float
    depth: int
    terms: int


def default_machine() -> str:
    """The kind of device that computes unless told otherwise: a key of the roundoff table."""
    platform = jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)


def read_resolution(closed: Any, machine: str) -> Resolution:
    """Returns what a `ClosedJaxpr` resolves when run on `machine`."""
    reader = _Reader(machine)
    outputs = reader.run(closed.jaxpr, [(0, 0)] * len(closed.jaxpr.invars))
    depth, terms = (max((chain[i] for chain in outputs), default=0) for i in (0, 1))
    return Resolution(reader.unit, depth, terms)


def describe_products(closed: Any) -> list[str]:
    """Returns, in words, the products of a jaxpr that ask for a precision or dtype of their own.

    To be traced where JAX is set to no precision: what is there then, the author asked for.
    """
    found: dict[str, None] = {}
    for eqn in _equations(closed.jaxpr):
        if eqn.primitive.name in _PRODUCTS:
            said = _asked_for(eqn)
            if said:
                found[f"{eqn.primitive.name}: {said}; it is left as it is"] = None
    return list(found)


def _asked_for(eqn: Any) -> str:
    precision, wanted = eqn.params["precision"], eqn.params["preferred_element_type"]
    parts = []
    if isinstance(precision, tuple):
        parts.append("precision " + "/".join(sorted({p.name for p in precision})))
    elif precision is not None:
        parts.append(f"algorithm {getattr(precision, 'name', precision)}")
    dtypes = [var.aval.dtype for var in eqn.invars]
    coarse = {d.name for d in dtypes if jnp.issubdtype(d, jnp.floating) and _unit(d) > _FLOAT32}
    if coarse:
        parts.append("operands in " + ", ".join(sorted(coarse)))
    if wanted is not None and _unit(wanted) > max(map(_unit, dtypes)):
        parts.append(f"result in {jnp.dtype(wanted).name}")
    return ", ".join(parts)


def _equations(jaxpr: Any) -> Any:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _bodies(eqn):
            yield from _equations(inner)


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    flat = jax.tree.leaves(
        list(eqn.params.values()),
        is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr),
    )
    inner = [x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in flat]
    return [x for x in inner if isinstance(x, core.Jaxpr)]


def _unit(dtype: Any) -> float:
    """Unit roundoff of a dtype; 0 for exact ones."""
    return float(jnp.finfo(dtype).eps) / 2 if jnp.issubdtype(dtype, jnp.inexact) else 0.0


class _Reader:
    """Follows chains of products through a jaxpr: (depth, terms) for every value."""

    def __init__(self, machine: str) -> None:
        self.units = _MACHINES.get(machine, _MACHINES["tpu"])
        self.unit = 0.0

    def run(self, jaxpr: Any, chains: list[tuple[int, int]]) -> list[tuple[int, int]]:
        env = dict(zip(jaxpr.invars, chains, strict=True))

        def read(atom: Any) -> tuple[int, int]:
            return (0, 0) if isinstance(atom, core.Literal) else env.get(atom, (0, 0))

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            for var in eqn.outvars:
                if hasattr(var.aval, "dtype"):
                    self.unit = max(self.unit, _unit(var.aval.dtype))
            env.update(zip(eqn.outvars, self._step(eqn, inputs), strict=True))
        return [
            (0, 0) if isinstance(x, core.Literal) else env.get(x, (0, 0)) for x in jaxpr.outvars
        ]

    def _step(self, eqn: Any, inputs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        name, count = eqn.primitive.name, len(eqn.outvars)
        bodies = _bodies(eqn)
        if name == "scan":
            return self._scan(eqn, bodies[0], inputs)
        if name == "while":
            return self._while(eqn, inputs)
        if name == "cond":
            branches = [self.run(body, inputs[1:]) for body in bodies]
            return [_longest(values) for values in zip(*branches, strict=True)]
        if len(bodies) == 1 and len(bodies[0].invars) == len(inputs):
            outputs = self.run(bodies[0], inputs)
            if len(outputs) == count:
                return outputs
        depth, terms = _longest(inputs)
        for body in bodies:  # opaque: a chain through it is as long as the longest inside
            inner = _longest(self.run(body, [(0, 0)] * len(body.invars)))
            depth, terms = depth + inner[0], terms + inner[1]
        if name in _PRODUCTS:
            self.unit = max(self.unit, self._product_unit(eqn))
            depth, terms = depth + 1, terms + _contracted(eqn)
        elif name == "reduce_sum":
            terms += eqn.invars[0].aval.size // max(1, eqn.outvars[0].aval.size)
        return [(depth, terms)] * count

    def _scan(self, eqn: Any, body: Any, inputs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """A chain grows with every turn by what the second turn adds to the first."""
        fixed, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        length = max(1, eqn.params["length"])
        first = self.run(body, inputs)
        carry = [_longest(pair) for pair in zip(inputs[fixed:], first[:carried])]
        second = self.run(body, [*inputs[:fixed], *carry, *inputs[fixed + carried :]])
        adds = length if carried else 0
        outputs = []
        for before, after in zip(first, second, strict=True):
            grown = tuple(
                b + (length - 1) * max(0, a - b) for b, a in zip(before, after, strict=True)
            )
            outputs.append((grown[0], grown[1] + adds))
        return outputs

    def _while(self, eqn: Any, inputs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Unknown how many turns: two are counted."""
        skip = eqn.params["cond_nconsts"]
        fixed = skip + eqn.params["body_nconsts"]
        body, carry = eqn.params["body_jaxpr"].jaxpr, inputs[fixed:]
        for _ in range(2):
            out = self.run(body, [*inputs[skip:fixed], *carry])
            carry = [_longest(pair) for pair in zip(carry, out, strict=True)]
        return carry

    def _product_unit(self, eqn: Any) -> float:
        """Unit roundoff of one product, from its precision and the dtypes of its operands."""
        own = max(_unit(var.aval.dtype) for var in eqn.invars)
        precision = eqn.params["precision"]
        if precision is None:
            precision = (jax.lax.Precision.DEFAULT,)
        if isinstance(precision, tuple):
            if own > 2**-25:  # float64 is computed as such
                order = list(jax.lax.Precision)
                own = max(own, self.units[min(map(order.index, precision))])
            return own
        name = getattr(precision, "name", str(precision)).upper()
        if name == "DEFAULT":
            return max(own, self.units[0])
        return max(own, next((unit for key, unit in _ALGORITHMS if key in name), _BFLOAT16))


def _longest(chains: Any) -> tuple[int, int]:
    chains = list(chains)
    return max((c[0] for c in chains), default=0), max((c[1] for c in chains), default=0)


def _contracted(eqn: Any) -> int:
    """Terms of each sum in a product."""
    right = eqn.invars[1].aval
    if eqn.primitive.name == "dot_general":
        (_, axes), _ = eqn.params["dimension_numbers"]
        return math.prod(right.shape[axis] for axis in axes)
    return right.size // max(1, right.shape[eqn.params["dimension_numbers"].rhs_spec[0]])
