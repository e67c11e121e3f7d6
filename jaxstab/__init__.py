"""jaxstab: which minima SGD can stay at, for a learning rate and a batch size, and why.

    import jaxstab as js

    result = js.measure(loss, params, data, key=key)     # sharpness and non-uniformity, certified
    print(js.verdict(result, learning_rate=0.1, batch_size=32))

`loss(params, example) -> scalar` takes one example; `data` is the same pytree with a leading axis
n. See the README for the command line, and `jaxstab.experiments` for the papers' results.
"""

from importlib.metadata import version as _version

from jaxstab import data, eigen, landscape, losses, models, operators, stability, transforms
from jaxstab.eigen import EigenResult
from jaxstab.losses import ModelLoss
from jaxstab.measurement import Measurement, measure, nonuniformity, sharpness
from jaxstab.operators import (
    explain,
    gradient_covariance,
    hessian,
    hessian_second_moment,
    hessian_variance,
    per_example_hessian,
)
from jaxstab.stability import Verdict, verdict
from jaxstab.sweeps import sweep
from jaxstab.tracking import tracker
from jaxstab.training import train

__version__ = _version("jaxstab")

__all__ = [
    "EigenResult",
    "Measurement",
    "ModelLoss",
    "Verdict",
    "data",
    "eigen",
    "explain",
    "gradient_covariance",
    "hessian",
    "hessian_second_moment",
    "hessian_variance",
    "landscape",
    "losses",
    "measure",
    "models",
    "nonuniformity",
    "operators",
    "per_example_hessian",
    "sharpness",
    "stability",
    "sweep",
    "tracker",
    "train",
    "transforms",
    "verdict",
]
