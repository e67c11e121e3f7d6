"""Matrix-free operators on parameter pytrees: H, H_i, (1/n) Σ H_i², Σ, C_g, and what they give.

How a product with Σ is made (`factored`):

    loss(params, example)
        │  reading      its jaxpr as one flat program (`structure`), loops kept as loops
        ▼
    uses, where values of parameters alone meet data          and a common term R(θ), if any
        │  sites        rows X and D of each use
        │  weights      back through what happened to the parameters before, by `rules`
        ▼
    blocks of every parameter leaf
        │  linearised   for each chunk of examples (`chunks`), once at θ
        ▼
    X, D and the linear map A : v ↦ (Ẋ, Ḋ)                    kept if they fit the memory
        │  factored     for every v
        ▼
    A v  →  H v = (1/n) Σ H_i v  →  u_i = H_i v − H v  →  Σ v = (1/n) Aᵀ (D u_iᵀ, X u_i)

Words:

- *leaf*: one array of the parameters.
- *weight*: any value computed from parameters alone, such as a transposed or scaled leaf.
- *use* (`uses`): one operand of one equation in which a weight meets data. A *site* (`sites`) is a
  use in a matrix product or convolution; a *look-up* picks entries by index.
- *rows*: X from the data side of a use, D from the derivative of the loss by its output; the
  gradient of one example is XᵀD.
- *content* (`contents`): the gradient of one example by a weight, as rows or as an array.
- *placement* (`placements`): which entries of an array a content belongs to, as strides.
- *block* (`blocks`): entries of one leaf with all their contents; different blocks are disjoint.
  Its per-example vectors are sums of products of rows (`pairs`) or arrays.
- *linearised chunk* (`linearised`): rows and A at one point θ for one chunk of examples.
- *factored*, said of a leaf: rows only, never multiplied out to the leaf's size. *elementwise*: an
  array of activation size. *explicit*: multiplied out for each example.
- *definition*: H_i (H_i v) by `jvp` of `grad` for each example under `vmap` (`hessian`), which
  every other form is tested against.
"""

from jaxstab.operators.covariance import (
    NoiseAlignment,
    gradient_covariance,
    gradient_covariance_spectrum,
    noise_alignment,
)
from jaxstab.operators.example_sharpness import per_example_sharpness
from jaxstab.operators.gauss_newton import gauss_newton_difference
from jaxstab.operators.hessian import hessian, per_example_hessian
from jaxstab.operators.outputs import output_factors
from jaxstab.operators.statistics import (
    directional_curvatures,
    gradient_covariance_trace,
    hessian_frobenius,
    per_example_deviations,
    per_example_gradient_norms,
    per_example_hessian_norms,
)
from jaxstab.operators.variance import explain, hessian_second_moment, hessian_variance

__all__ = [
    "NoiseAlignment",
    "directional_curvatures",
    "explain",
    "gauss_newton_difference",
    "gradient_covariance",
    "gradient_covariance_spectrum",
    "gradient_covariance_trace",
    "hessian",
    "hessian_frobenius",
    "hessian_second_moment",
    "hessian_variance",
    "noise_alignment",
    "output_factors",
    "per_example_deviations",
    "per_example_gradient_norms",
    "per_example_hessian",
    "per_example_hessian_norms",
    "per_example_sharpness",
]
