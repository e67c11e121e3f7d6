"""Matrix-free operators on parameter pytrees: H, H_i, (1/n) Σ H_i², Σ, C_g, and what they give."""

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
