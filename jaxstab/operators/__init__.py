"""Matrix-free operators on parameter pytrees: H, H_i, (1/n) Σ H_i², Σ, C_g, and what they give.

How a product with Σ is made (`factored`):

    loss(params, example)
        │  structure   read the loss's jaxpr: where does each parameter leaf meet the data?
        ▼
    leaves and sites
        │  linearised  for each chunk of examples (`chunks`), once at θ
        ▼
    factors X, D and the linear map A : v ↦ (Ẋ, Ḋ)       kept if they fit the memory
        │  factored    for every v
        ▼
    A v  →  H v = (1/n) Σ H_i v  →  u_i = H_i v − H v  →  Σ v = (1/n) Aᵀ (D u_iᵀ, X u_i)

Words:

- *leaf*: one array of the parameters. *factored*: its per-example gradient is kept as XᵀD and never
  multiplied out to the leaf's size; *explicit*: it is formed by differentiation; *elementwise*:
  formed too, but of activation size.
- *site* (`sites`): one product or convolution in which a leaf, or a view of it, meets data. Its
  rows X come from the data side, its rows D from the derivative of the loss by its output.
- *factors*: X and D of every site, and the gradients of explicit leaves, for each example.
- *linearised chunk* (`linearised`): factors and A at one point θ for one chunk of examples.
- *view* (`structure`): a re-arrangement of a leaf, such as a transpose, a slice or a reshape.
- *definition*: H_i (H_i v) by `jvp` of `grad` for each example under `vmap` (`hessian`), which
  every other form is tested against.
"""

from jaxstab.operators.covariance import gradient_covariance
from jaxstab.operators.gauss_newton import gauss_newton_difference
from jaxstab.operators.hessian import hessian, per_example_hessian
from jaxstab.operators.statistics import (
    directional_curvatures,
    gradient_covariance_trace,
    hessian_frobenius,
    per_example_gradient_norms,
    per_example_hessian_norms,
)
from jaxstab.operators.variance import explain, hessian_second_moment, hessian_variance

__all__ = [
    "directional_curvatures",
    "explain",
    "gauss_newton_difference",
    "gradient_covariance",
    "gradient_covariance_trace",
    "hessian",
    "hessian_frobenius",
    "hessian_second_moment",
    "hessian_variance",
    "per_example_gradient_norms",
    "per_example_hessian",
    "per_example_hessian_norms",
]
