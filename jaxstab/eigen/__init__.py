"""Eigenvalue solvers for any symmetric operator on pytrees; they know nothing of Hessians."""

from jaxstab.eigen.density import SpectralDensity, spectral_density
from jaxstab.eigen.lanczos import lanczos
from jaxstab.eigen.power import power_iteration
from jaxstab.eigen.result import EigenResult, Interval, Rounding
from jaxstab.eigen.trace import TraceResult, trace

__all__ = [
    "EigenResult",
    "Interval",
    "Rounding",
    "SpectralDensity",
    "TraceResult",
    "lanczos",
    "power_iteration",
    "spectral_density",
    "trace",
]
