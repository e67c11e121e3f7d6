"""jaxstab: which minima SGD can stay at, for a learning rate and a batch size, and why.

    import jaxstab as js

    result = js.measure(loss, params, data, key=key)     # sharpness and non-uniformity, certified
    print(js.verdict(result, learning_rate=0.1, batch_size=32))

`loss(params, example) -> scalar` takes one example; `data` is the same pytree with a leading axis
n. See the README for the command line, and `jaxstab.experiments` for the papers' results.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the names below are, for type checkers and editors
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
    from jaxstab.population import measure_population
    from jaxstab.stability import Verdict, lyapunov_exponent, mean_square_threshold, verdict
    from jaxstab.sweeps import sweep
    from jaxstab.tracking import tracker
    from jaxstab.training import train

    __version__: str

# Where the public names live. Each is imported when it is first used, so that `jaxstab list`
# answers at once and a program can set JAX up after `import jaxstab`.
_HOMES = {
    "jaxstab": (
        "data",
        "eigen",
        "landscape",
        "losses",
        "models",
        "operators",
        "stability",
        "transforms",
    ),
    "jaxstab.eigen": ("EigenResult",),
    "jaxstab.losses": ("ModelLoss",),
    "jaxstab.measurement": ("Measurement", "measure", "nonuniformity", "sharpness"),
    "jaxstab.population": ("measure_population",),
    "jaxstab.operators": (
        "explain",
        "gradient_covariance",
        "hessian",
        "hessian_second_moment",
        "hessian_variance",
        "per_example_hessian",
    ),
    "jaxstab.stability": ("Verdict", "lyapunov_exponent", "mean_square_threshold", "verdict"),
    "jaxstab.sweeps": ("sweep",),
    "jaxstab.tracking": ("tracker",),
    "jaxstab.training": ("train",),
}

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
    "lyapunov_exponent",
    "mean_square_threshold",
    "measure",
    "measure_population",
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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("jaxstab")
    for home, names in _HOMES.items():
        if name in names:
            if home == "jaxstab":
                return importlib.import_module(f"jaxstab.{name}")
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'jaxstab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
