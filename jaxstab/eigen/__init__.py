"""Eigenvalue solvers for any symmetric operator on pytrees; they know nothing of Hessians."""

from jaxstab.eigen.lanczos import lanczos
from jaxstab.eigen.result import EigenResult, Interval

__all__ = ["EigenResult", "Interval", "lanczos"]
