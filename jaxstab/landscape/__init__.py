"""The loss around a point: directions to look along, and what is seen there."""

from jaxstab.landscape.asymmetry import (
    Asymmetry,
    FlatSide,
    Probability,
    ShiftGap,
    asymmetry,
    flat_side,
    is_asymmetric,
    probability,
    shift_gap,
)
from jaxstab.landscape.directions import between, directions, random_subset
from jaxstab.landscape.slices import (
    Derivatives,
    Plane,
    Reestimated,
    Slice,
    derivatives,
    plane,
    slice,
)

__all__ = [
    "Asymmetry",
    "Derivatives",
    "FlatSide",
    "Plane",
    "Probability",
    "Reestimated",
    "ShiftGap",
    "Slice",
    "asymmetry",
    "between",
    "derivatives",
    "directions",
    "flat_side",
    "is_asymmetric",
    "plane",
    "probability",
    "random_subset",
    "shift_gap",
    "slice",
]
