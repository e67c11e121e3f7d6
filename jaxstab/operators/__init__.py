"""Matrix-free operators on parameter pytrees: H, H_i, (1/n) Σ H_i², Σ."""

from jaxstab.operators.hessian import Hessian, PerExampleHessian, hessian, per_example_hessian
from jaxstab.operators.variance import explain, hessian_second_moment, hessian_variance

__all__ = [
    "Hessian",
    "PerExampleHessian",
    "explain",
    "hessian",
    "hessian_second_moment",
    "hessian_variance",
    "per_example_hessian",
]
