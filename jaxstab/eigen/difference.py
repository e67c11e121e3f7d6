"""How far apart two operators are: a bound on ‖B − A‖ from a few products with each.

For symmetric E = B − A, a standard normal vector g and u the eigenvector of the λ of E that is
largest in modulus, |λ|^m |uᵀg| ≤ ‖E^m g‖; and P(|uᵀg| ≤ t) ≤ δ for t = δ √(π/2) (`certificate`). So

    ‖E‖ ≤ (‖E^m g‖ / t)^(1/m)      with probability at least 1 − δ, for all m at once.

It knows nothing of A, and so sees what a Krylov process of A hides: a ReLU that rounding puts on
its other side changes A in a direction that none of its large eigenvectors need have. Rounding of
the vectors that are multiplied is not linear; it is in the norms of these products, and never less
than `DIFFERENCE` times the largest of them is allowed for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.eigen import certificate, vectors

DIFFERENCE = 4
_MOST = 8


class Difference(NamedTuple):
    """What is known of B − A."""

    bound: jax.Array  # () of ‖B − A‖, inf if a product was not finite
    seen: jax.Array  # () largest ‖(B − A) x‖ of a unit vector x
    products: jax.Array  # () int32, with each of the two


def none(sig: vectors.Signature) -> Difference:
    """Of an operator to itself."""
    zero = jnp.zeros((), vectors.working_dtype(sig))
    return Difference(zero, zero, jnp.zeros((), jnp.int32))


def measure(
    first: Callable[[Any], Any],
    second: Callable[[Any], Any],
    sig: vectors.Signature,
    key: jax.Array,
    failure_probability: float,
) -> Difference:
    """Bounds ‖second − first‖ by as many products as bring the bound near to what is seen.

    That takes about log(‖g‖_E / t) / log `DIFFERENCE` products with each, 8 at most, where ‖g‖_E
    is the length of g in the directions that E enlarges most.
    """
    x, length = vectors.unit(vectors.normal(key, sig))
    log_nu = jnp.log(length) - certificate.log_quantile(failure_probability)

    def more(carry: Any) -> jax.Array:
        _, _, found = carry
        rough = (found.products < _MOST) & (found.bound > DIFFERENCE * found.seen)
        return (found.products == 0) | rough

    def multiply(carry: Any) -> Any:
        x, log_nu, found = carry
        x, length = vectors.unit(vectors.add(second(x), -1, first(x)))
        products, log_nu = found.products + 1, log_nu + jnp.log(length)
        bound = jnp.exp(log_nu / products).astype(length.dtype)
        bound = jnp.where(jnp.isfinite(length), bound, jnp.inf)
        return x, log_nu, Difference(bound, jnp.maximum(found.seen, length), products)

    return lax.while_loop(more, multiply, (x, log_nu.astype(length.dtype), none(sig)))[-1]


def allowed(found: Difference, defect: jax.Array) -> jax.Array:
    """The norm of B − A to allow for, a difference on a final vector having been seen as well."""
    return jnp.maximum(found.bound, DIFFERENCE * jnp.maximum(found.seen, defect))
