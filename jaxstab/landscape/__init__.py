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
from jaxstab.landscape.chains import Comparison, Draws, Mixing, compare, diagnose, langevin_chains
from jaxstab.landscape.directions import between, directions, random_subset
from jaxstab.landscape.flatness import FlatnessRadius, flatness_radius
from jaxstab.landscape.noise import (
    GradientNoise,
    gradient_noise,
    hill,
    mcculloch,
    noise_statistics,
)
from jaxstab.landscape.potentials import Channel, flat_valley, two_wells
from jaxstab.landscape.simplex import Simplex, simplex
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
    "Channel",
    "Comparison",
    "Derivatives",
    "Draws",
    "FlatSide",
    "FlatnessRadius",
    "GradientNoise",
    "Mixing",
    "Plane",
    "Probability",
    "Reestimated",
    "ShiftGap",
    "Simplex",
    "Slice",
    "asymmetry",
    "between",
    "compare",
    "derivatives",
    "diagnose",
    "directions",
    "flat_side",
    "flat_valley",
    "flatness_radius",
    "gradient_noise",
    "hill",
    "is_asymmetric",
    "langevin_chains",
    "mcculloch",
    "noise_statistics",
    "plane",
    "probability",
    "random_subset",
    "shift_gap",
    "simplex",
    "slice",
    "two_wells",
]
