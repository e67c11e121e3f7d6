"""The loss around a point: directions to look along, and what is seen there."""

from jaxstab.landscape.asymmetry import (
    Asymmetry,
    Extent,
    FlatSide,
    Probability,
    asymmetry,
    bump,
    flat_side,
    is_asymmetric,
    longest_asymmetry,
    probability,
)
from jaxstab.landscape.bias import (
    AveragingBound,
    BiasBound,
    Valley,
    averaging_bound,
    bias_bound,
    expected_shifted_loss,
    noisy_descent,
)
from jaxstab.landscape.chains import Comparison, Draws, Mixing, compare, diagnose, langevin_chains
from jaxstab.landscape.directions import between, directions, random_subset, resolve_mask
from jaxstab.landscape.evaluation import Reestimated
from jaxstab.landscape.flatness import FlatnessRadius, flatness_radius
from jaxstab.landscape.noise import (
    GradientNoise,
    gradient_noise,
    hill,
    mcculloch,
    noise_statistics,
)
from jaxstab.landscape.potentials import Channel, flat_valley, two_wells
from jaxstab.landscape.shift import ShiftGap, shift_gap
from jaxstab.landscape.simplex import Simplex, simplex
from jaxstab.landscape.slices import (
    Derivatives,
    Plane,
    Slice,
    derivatives,
    plane,
    slice,
)

__all__ = [
    "Asymmetry",
    "AveragingBound",
    "BiasBound",
    "Channel",
    "Comparison",
    "Derivatives",
    "Draws",
    "Extent",
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
    "Valley",
    "asymmetry",
    "averaging_bound",
    "between",
    "bias_bound",
    "bump",
    "compare",
    "derivatives",
    "diagnose",
    "directions",
    "expected_shifted_loss",
    "flat_side",
    "flat_valley",
    "flatness_radius",
    "gradient_noise",
    "hill",
    "is_asymmetric",
    "langevin_chains",
    "longest_asymmetry",
    "mcculloch",
    "noise_statistics",
    "noisy_descent",
    "plane",
    "probability",
    "random_subset",
    "resolve_mask",
    "shift_gap",
    "simplex",
    "slice",
    "two_wells",
]
