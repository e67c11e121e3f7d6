"""SGD, stochastic weight averaging, sharpness-aware minimisation and Langevin noise for optax."""

from jaxstab.transforms.langevin import LangevinState, langevin
from jaxstab.transforms.sam import batch_gradient, sam
from jaxstab.transforms.sgd import sgd
from jaxstab.transforms.swa import SwaState, cyclic_schedule, leaves_named, swa, swa_params

__all__ = [
    "LangevinState",
    "SwaState",
    "batch_gradient",
    "cyclic_schedule",
    "langevin",
    "leaves_named",
    "sam",
    "sgd",
    "swa",
    "swa_params",
]
