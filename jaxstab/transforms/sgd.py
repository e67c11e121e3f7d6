"""Stochastic gradient descent with momentum and weight decay, put together from optax."""

from typing import Any

import optax

from jaxstab.checks import check_name, check_positive
from jaxstab.transforms.common import (
    ScalarOrSchedule,
    check_scalar_or_schedule,
    is_zero,
    keep_dtypes,
)

_MOMENTA = {
    "heavy_ball": lambda momentum: optax.trace(momentum, nesterov=False),
    "nesterov": lambda momentum: optax.trace(momentum, nesterov=True),
    # debias=False: the debiased form differs in its first steps only and has no fixed edge there.
    "ema": lambda momentum: optax.ema(momentum, debias=False),
}


def sgd(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Any = 0.0,
    kind: str = "heavy_ball",
    weight_decay: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD whose edge of stability is known for each form of momentum.

    With gradient :math:`g_t`, momentum :math:`\beta` and learning rate :math:`\eta`, all forms
    start from :math:`m_0 = 0` and move by :math:`\theta_{t+1} = \theta_t - \eta u_t`:

    ============  =========================================  ==================  ===============
    kind          momentum                                   update              edge
    ============  =========================================  ==================  ===============
    (momentum 0)                                             g                   2/η
    heavy_ball    m ← βm + g                                 m                   (2+2β)/η
    nesterov      m ← βm + g                                 g + βm              (2+2β)/((1+2β)η)
    ema           m ← βm + (1−β)g                            m                   2(1+β)/((1−β)η)
    ============  =========================================  ==================  ===============

    The edge is the largest eigenvalue of the Hessian at which full-batch training stays (Cohen et
    al. 2021, arXiv 2103.00065, section 2 and appendix B; `jaxstab.stability.edges` computes it).
    Weight decay μ adds μθ to the gradient before the momentum (as in PyTorch, and unlike AdamW), so
    it adds μ to every eigenvalue: the edge holds for λ_max(H) + μ. With batches the edge is
    necessary, not sufficient; see `jaxstab.verdict`.

    Args:
      learning_rate: η ≥ 0: a float, a scalar array (also traced: a sweep compiles once), or a
        schedule, a function of the step count.
      momentum: β in [0, 1); a float or a scalar array.
      kind: "heavy_ball", "nesterov" or "ema".
      weight_decay: μ ≥ 0, the coefficient of the L2 term (μ/2)‖θ‖².

    Returns:
      An optax transform. `update` needs `params` if there is weight decay. State: the momentum
      (as large as the parameters; nothing for the Python number 0) and a step count for schedules.

    Raises:
      ValueError: if a number is out of its range or `kind` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = sgd(0.1, momentum=0.9)
      >>> params = jnp.array([1.0])
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.array([2.0]), state, params)
      >>> updates, state = optimizer.update(jnp.array([2.0]), state, params)
      >>> print(updates)
      [-0.38]
    """
    check_scalar_or_schedule("learning_rate", learning_rate)
    check_name("kind", kind, _MOMENTA)
    check_positive("momentum", momentum, allow_zero=True)
    if isinstance(momentum, int | float) and momentum >= 1:
        raise ValueError(f"momentum must be below 1, got {momentum!r}: at 1 nothing is forgotten")
    check_positive("weight_decay", weight_decay, allow_zero=True)
    pieces = []
    if not is_zero(weight_decay):
        pieces.append(optax.add_decayed_weights(weight_decay))
    if not is_zero(momentum):
        pieces.append(_MOMENTA[kind](momentum))
    pieces.append(optax.scale_by_learning_rate(learning_rate))
    return keep_dtypes(optax.chain(*pieces))
