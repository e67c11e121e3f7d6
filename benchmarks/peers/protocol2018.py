"""The protocol of the 2018 paper for Σ, in PyTorch: one example's Hessian at a time.

One power step applies H_i twice for every example, by double backpropagation, in a Python loop. The
graph of an example's gradient is built once and used for both products, which is the fastest that
such a loop can be. H (H v) is one product of the full batch. Only `examples` of the n examples are
timed; the time of the loop is linear in their number.
"""

import numpy as np
import torch
from common import answer, mean_squared, start, timed


def split(v, params):
    parts = torch.split(v, [p.numel() for p in params])
    return [part.view_as(p) for part, p in zip(parts, params)]


def second_moment_sum(model, params, x, y, v):
    """Returns Σ_i H_i (H_i v) and Σ_i H_i v over the examples of x, one after another."""
    squares = [torch.zeros_like(p) for p in params]
    products = [torch.zeros_like(p) for p in params]
    for i in range(x.shape[0]):
        loss = mean_squared(model(x[i : i + 1]), y[i : i + 1])
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        once = torch.autograd.grad(gradient, params, v, retain_graph=True)
        twice = torch.autograd.grad(gradient, params, once)
        for total, part in zip(squares, twice):
            total += part
        for total, part in zip(products, once):
            total += part
    return squares, products


def full_product(model, params, x, y, v):
    gradient = torch.autograd.grad(mean_squared(model(x), y), params, create_graph=True)
    return torch.autograd.grad(gradient, params, v)


def main():
    model, x, y, arrays = start()
    params = list(model.parameters())
    v = split(torch.from_numpy(arrays["v"]).to(x.device), params)
    examples = int(arrays["examples"])
    rounds = int(arrays["rounds"])
    loop, (squares, _) = timed(
        lambda: second_moment_sum(model, params, x[:examples], y[:examples], v), rounds
    )
    hvp, _ = timed(lambda: full_product(model, params, x, y, v), rounds)
    norm = float(torch.sqrt(sum((part**2).sum() for part in squares)))
    reference = torch.from_numpy(np.asarray(arrays["reference"])).to(x.device) * examples
    difference = torch.cat([part.flatten() for part in squares]) - reference
    answer(
        seconds_per_example=loop / examples,
        seconds_hvp=hvp,
        seconds_step=loop * x.shape[0] / examples + hvp,
        examples=examples,
        relative_difference=float(difference.norm()) / norm,
    )


main()
