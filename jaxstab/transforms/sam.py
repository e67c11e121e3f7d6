"""Sharpness-aware minimisation (SAM), its scale-invariant form (ASAM) and m-SAM, for optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxstab.checks import check_at_least, check_positive, data_size
from jaxstab.transforms.common import cast_like, check_params_given
from jaxstab.trees import accumulator_dtype, norm


def sam(
    inner: optax.GradientTransformation,
    *,
    rho: Any = 0.05,
    adaptive: bool = False,
    offset: float = 0.01,
    normalize: bool = True,
    parts: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Feeds `inner` with the gradient at a nearby point where the loss is higher.

    With g the gradient of the batch loss at the parameters w, the inner optimizer gets the gradient
    of the same batch at :math:`w + \varepsilon`:

    - SAM (Foret et al. 2021, arXiv 2010.01412, eq. 2): :math:`\varepsilon = \rho\, g/\|g\|`;
    - ASAM (`adaptive`; Kwon et al. 2021, arXiv 2102.11600, section 3, element-wise):
      :math:`\varepsilon = \rho\, t^2 g/\|t g\|` with :math:`t = |w| + \text{offset}`;
    - un-normalised SAM (`normalize=False`): the same without the denominator;
    - m-SAM (`parts`; Foret et al., section 4.1): the batch is cut into equal parts, each part has
      its own ε from its own gradient, and the gradients at those points are averaged.

    Where the gradient is zero, ε is zero. On a quadratic of curvature λ the edge of stability with
    inner SGD is :math:`\lambda = (\|g\|/2\rho)(\sqrt{1 + 8\rho/(\eta\|g\|)} - 1)`, below 2/η (Long
    & Bartlett 2024, arXiv 2309.12488, proposition 2); un-normalised:
    :math:`\eta\lambda(1+\rho\lambda) = 2`.

    The gradient function comes as an extra argument, because it knows the batch:
    `update(gradient, state, params, grad_fn=grad_fn)`. `grad_fn(params)` returns the gradient of
    the batch that `gradient` was taken on; for m-SAM it is called as
    `grad_fn(params, part, parts)` for part = 0, …, parts−1 (a traced integer; `parts` is a Python
    integer) and returns the gradient on that part. `batch_gradient` makes such a function from a
    per-example loss. It returns gradients and nothing else, so the second pass cannot touch batch
    statistics: those of the first pass, at w, stand. (With nnx, write it on split state, since a
    call of a module in training mode changes the module in place.)

    Why not `optax.contrib.sam`: its `normalize` divides 0 by 0 at a zero gradient, its `update`
    refuses extra arguments that it does not know (the contract is to ignore them) and does not
    pass them on to the inner optimizer, its default mode takes the two gradients at two different
    steps and so on different batches, and m-SAM does not fit. Where it is right (opaque mode,
    gradient not zero) the two agree; a test holds us to it.

    Args:
      inner: the optimizer that takes the step from w; extra arguments are passed on to it.
      rho: ρ > 0, the radius; a float or a scalar array.
      adaptive: ASAM, which does not change when weights are rescaled.
      offset: η of the ASAM paper, ≥ 0, which keeps small weights movable. Invariance is exact at 0.
      normalize: whether ε has the fixed size ρ.
      parts: number of parts of m-SAM, m = batch size / parts; None for the whole batch.

    Returns:
      An optax transform. Its state is the state of `inner`. Cost: one more gradient per step; with
      `parts`, two passes over the batch in parts (the first gradient is then not used, and a
      compiled step drops it).

    Raises:
      ValueError: if a number is out of its range; from `update`, if `params` or `grad_fn` is
        missing.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> grad_fn = jax.grad(lambda w: 0.5 * w**2)
      >>> optimizer = sam(optax.sgd(0.1), rho=0.5)
      >>> w = jnp.array(1.0)
      >>> state = optimizer.init(w)
      >>> updates, state = optimizer.update(grad_fn(w), state, w, grad_fn=grad_fn)
      >>> print(updates)  # -0.1 times the gradient at 1.5
      -0.15
    """
    inner = optax.with_extra_args_support(inner)
    check_positive("rho", rho)
    check_positive("offset", offset, allow_zero=True)
    if parts is not None:
        check_at_least("parts", parts, 1)

    def ascend(params, gradient):
        return _ascend(params, gradient, rho, offset if adaptive else None, normalize)

    def update(gradient, state, params=None, *, grad_fn=None, **extra_args):
        check_params_given("sam", params)
        if grad_fn is None:
            raise ValueError(
                "sam needs the gradient function of the batch: call update(gradient, state, "
                "params, grad_fn=grad_fn), where grad_fn(params) is the gradient on this batch; "
                "jaxstab.transforms.batch_gradient(loss, batch) makes one"
            )
        if parts is None:
            ascended = grad_fn(ascend(params, gradient))
        else:
            ascended = mean_over_parts(
                lambda part: grad_fn(ascend(params, grad_fn(params, part, parts)), part, parts),
                gradient,
                parts,
            )
        ascended = cast_like(ascended, gradient)
        return inner.update(ascended, state, params, grad_fn=grad_fn, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _ascend(params: Any, gradient: Any, rho: Any, offset: float | None, normalize: bool) -> Any:
    """Returns w + ε; ASAM if there is an offset."""
    wide = jax.tree.map(lambda g: g.astype(accumulator_dtype(g)), gradient)
    if offset is None:
        scaled = direction = wide
    else:
        t = jax.tree.map(lambda w, g: jnp.abs(w.astype(g.dtype)) + offset, params, wide)
        scaled = jax.tree.map(jnp.multiply, t, wide)  # t g
        direction = jax.tree.map(jnp.multiply, t, scaled)  # t² g
    radius = rho
    if normalize:
        size = norm(scaled)
        # Zero over zero is zero here; the inner where keeps NaN out of derivatives as well.
        radius = jnp.where(size > 0, rho / jnp.where(size > 0, size, 1.0), 0.0)
    return jax.tree.map(lambda w, d: (w + radius * d).astype(w.dtype), params, direction)


def mean_over_parts(gradient_of_part: Callable, like: Any, parts: int) -> Any:
    """Returns the mean gradient over the parts, one part at a time: memory of two gradients."""

    def add(total, part):
        return jax.tree.map(lambda t, g: t + g / parts, total, gradient_of_part(part)), None

    zeros = jax.tree.map(lambda g: jnp.zeros(jnp.shape(g), accumulator_dtype(g)), like)
    return jax.lax.scan(add, zeros, jnp.arange(parts))[0]


def batch_gradient(loss: Callable[[Any, Any], jax.Array], batch: Any) -> Callable:
    """Returns the gradient function of one batch, as `sam` wants it.

    Args:
      loss: `loss(params, example) -> scalar`, of one example.
      batch: pytree of examples, leading axis B.

    Returns:
      `grad_fn(params)`, the gradient of the mean loss over the batch, and
      `grad_fn(params, part, parts)`, the same over the part-th of `parts` equal runs of consecutive
      examples: a batch that is all data in a sorted order wants shuffling, once.

    Raises:
      ValueError: from `grad_fn`, if B is not a multiple of `parts`.
    """
    return gradient_of_parts(
        lambda params, share: jnp.mean(jax.vmap(loss, (None, 0))(params, share)), batch
    )


def gradient_of_parts(mean_loss: Callable[[Any, Any], jax.Array], batch: Any) -> Callable:
    """The same as `batch_gradient` for a loss of a batch: `mean_loss(params, batch) -> scalar`."""
    size = data_size(batch)

    def grad_fn(params, part=0, parts=1):
        if size % parts:
            raise ValueError(
                f"a batch of {size} examples does not split into {parts} equal parts: "
                "choose parts (sam) or the batch size so that it does"
            )
        share = batch
        if parts > 1:
            m = size // parts
            share = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, part * m, m, axis=0), batch
            )
        return jax.grad(mean_loss)(params, share)

    return grad_fn
