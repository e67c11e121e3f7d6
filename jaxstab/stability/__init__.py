"""What sharpness, non-uniformity, H and Sigma say about an optimizer at a minimum."""

from jaxstab.stability import edges
from jaxstab.stability.criteria import (
    Box,
    Margins,
    Verdict,
    box,
    margins,
    variance_factor,
    verdict,
)

__all__ = ["Box", "Margins", "Verdict", "box", "edges", "margins", "variance_factor", "verdict"]
