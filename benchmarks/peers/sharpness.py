"""λ_max(H) by three PyTorch libraries, each at the least effort that reaches the asked accuracy.

Each library has one dial (a tolerance or a number of steps). It is turned up until the value is
within `accuracy` of the reference, and the run at that setting is timed. None of them certifies its
value, so that a user would not know where to stop: this is the best case for each.
"""

import contextlib
import io

import curvlinops
import hessian_eigenthings
import numpy as np
import pyhessian
import torch
from common import answer, mean_squared, start, timed
from scipy.sparse.linalg import eigsh


class MeanSquared(torch.nn.Module):
    def forward(self, outputs, targets):
        return mean_squared(outputs, targets)


def by_curvlinops(model, x, y, tolerance):
    operator = curvlinops.HessianLinearOperator(
        model,
        torch.nn.MSELoss(reduction="mean"),
        list(model.parameters()),
        [(x, y)],
        check_deterministic=False,
    )
    scipy_operator = operator.to_scipy(dtype=np.float32)
    values = eigsh(
        scipy_operator, k=1, which="LA", tol=tolerance, return_eigenvectors=False, v0=None
    )
    return float(values[-1])


def by_pyhessian(model, x, y, tolerance):
    model.zero_grad()
    with contextlib.redirect_stdout(io.StringIO()):
        computation = pyhessian.hessian(
            model, MeanSquared(), data=(x, y), cuda=x.device.type == "cuda"
        )
        values, _ = computation.eigenvalues(maxIter=300, tol=tolerance, top_n=1)
    model.zero_grad()
    return float(values[0])


def by_eigenthings(model, x, y, steps):
    operator = hessian_eigenthings.HessianOperator(
        model, [(x, y)], hessian_eigenthings.supervised_loss(mean_squared)
    )
    result = hessian_eigenthings.lanczos(operator, k=1, max_iter=steps, which="LA", seed=0)
    return float(result.eigenvalues[0])


LIBRARIES = {
    "curvlinops + SciPy eigsh": (by_curvlinops, (1e-2, 1e-3, 1e-4, 1e-5)),
    "PyHessian": (by_pyhessian, (1e-3, 1e-4, 1e-5, 1e-6)),
    "hessian-eigenthings": (by_eigenthings, (6, 8, 10, 12, 15, 20, 25, 30, 40, 60)),
}


def main():
    model, x, y, arrays = start()
    reference, accuracy = float(arrays["reference"]), float(arrays["accuracy"])
    results = {}
    for name, (solve, dials) in LIBRARIES.items():
        for dial in dials:
            value = solve(model, x, y, dial)
            if abs(value - reference) <= accuracy * abs(reference):
                break
        seconds, value = timed(
            lambda solve=solve, dial=dial: solve(model, x, y, dial),
            int(arrays["rounds"]),
            warm=False,
        )
        results[name] = {
            "seconds": seconds,
            "value": value,
            "dial": dial,
            "relative_error": (value - reference) / reference,
        }
    answer(results=results)


main()
