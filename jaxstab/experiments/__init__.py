"""The experiments of the source papers, by name.

Each module ends in `EXPERIMENT`; `REGISTRY` maps the names to them. To add one, import its
module below and list it in `_MODULES`.
"""

from types import ModuleType

from jaxstab.experiments import (
    batch_size,
    correlation,
    cross_entropy,
    diagram,
    escape,
    gd_sharpness,
    lbfgs,
    selection,
    toy_escape,
)
from jaxstab.experiments.base import Claim, Context, Experiment, Outcome, execute

# One line per module, in the order of `jaxstab list`.
_MODULES: tuple[ModuleType, ...] = (
    toy_escape,
    diagram,
    escape,
    gd_sharpness,
    lbfgs,
    batch_size,
    selection,
    correlation,
    cross_entropy,
)

REGISTRY: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in _MODULES}

__all__ = ["REGISTRY", "Claim", "Context", "Experiment", "Outcome", "execute"]
