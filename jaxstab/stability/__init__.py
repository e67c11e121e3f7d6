"""What sharpness, non-uniformity, H and Σ say about an optimizer at a minimum."""

from jaxstab.stability import boundary, diffusion, edges, escape, exact, linearized, two_wells
from jaxstab.stability.criteria import (
    Box,
    Margins,
    Verdict,
    box,
    margins,
    variance_factor,
    verdict,
)
from jaxstab.stability.growth import (
    LearningRateLimit,
    one_step_growth,
    one_step_operator,
    sufficient_learning_rate,
)
from jaxstab.stability.lyapunov import LyapunovExponent, lyapunov_exponent
from jaxstab.stability.threshold import MeanSquareThreshold, mean_square_threshold

__all__ = [
    "Box",
    "LearningRateLimit",
    "LyapunovExponent",
    "Margins",
    "MeanSquareThreshold",
    "Verdict",
    "boundary",
    "box",
    "diffusion",
    "edges",
    "escape",
    "exact",
    "linearized",
    "lyapunov_exponent",
    "margins",
    "mean_square_threshold",
    "one_step_growth",
    "one_step_operator",
    "sufficient_learning_rate",
    "two_wells",
    "variance_factor",
    "verdict",
]
