"""What sharpness, non-uniformity, H and Sigma say about an optimizer at a minimum."""

from jaxstab.stability import boundary, diffusion, edges, exact, linearized
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
    max_learning_rate,
    second_moment_growth,
    second_moment_operator,
)

__all__ = [
    "Box",
    "LearningRateLimit",
    "Margins",
    "Verdict",
    "boundary",
    "box",
    "diffusion",
    "edges",
    "exact",
    "linearized",
    "margins",
    "max_learning_rate",
    "second_moment_growth",
    "second_moment_operator",
    "variance_factor",
    "verdict",
]
