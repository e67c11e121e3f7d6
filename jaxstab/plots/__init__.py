"""Figures: one function per kind, arrays in, a matplotlib `Figure` out."""

from jaxstab.plots.common import (
    COLORS,
    LEARNING_RATE,
    MARKERS,
    NONUNIFORMITY,
    SHARPNESS,
    STYLE,
    Line,
    Series,
    draw_series,
    label_axes,
    mean_std,
    new_figure,
    png,
    published_series,
    styled,
)
from jaxstab.plots.diffusion import FORMULAS, settling
from jaxstab.plots.escape import optimizers, outcomes, trajectories
from jaxstab.plots.langevin import Histogram, curves, groups, marginals, noise, triangles
from jaxstab.plots.minima import batch_size, edge, plane, selection
from jaxstab.plots.panels import Panel, panels
from jaxstab.plots.stability import boundary, stability_diagram, toy_escape
from jaxstab.plots.thresholds import criteria, stability_map
from jaxstab.plots.training import along_training

__all__ = [
    "COLORS",
    "FORMULAS",
    "LEARNING_RATE",
    "MARKERS",
    "NONUNIFORMITY",
    "SHARPNESS",
    "STYLE",
    "Histogram",
    "Line",
    "Panel",
    "Series",
    "along_training",
    "batch_size",
    "boundary",
    "criteria",
    "curves",
    "draw_series",
    "edge",
    "groups",
    "label_axes",
    "marginals",
    "mean_std",
    "new_figure",
    "noise",
    "optimizers",
    "outcomes",
    "panels",
    "plane",
    "png",
    "published_series",
    "selection",
    "settling",
    "stability_diagram",
    "stability_map",
    "styled",
    "toy_escape",
    "trajectories",
    "triangles",
]
