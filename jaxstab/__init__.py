"""jaxstab: which minima SGD can stay at, measured. The public face; see README."""

from jaxstab import checks

__all__ = ["checks"]
