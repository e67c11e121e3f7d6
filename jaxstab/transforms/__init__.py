"""SGD, stochastic weight averaging, sharpness-aware steps, gradient penalty, Langevin noise."""

from jaxstab.transforms.langevin import LangevinState, langevin
from jaxstab.transforms.penalty import PenaltyState, gradient_penalty
from jaxstab.transforms.sam import batch_gradient, sam
from jaxstab.transforms.sgd import sgd
from jaxstab.transforms.swa import SwaState, cyclic_schedule, leaves_named, swa, swa_params

__all__ = [
    "LangevinState",
    "PenaltyState",
    "SwaState",
    "batch_gradient",
    "cyclic_schedule",
    "gradient_penalty",
    "langevin",
    "leaves_named",
    "sam",
    "sgd",
    "swa",
    "swa_params",
]
