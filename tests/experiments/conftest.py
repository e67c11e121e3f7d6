"""Made-up records of runs, as a sweep returns them."""

import pytest


def make_record(
    a, s, *, batch_size=4, eta=0.5, seed=0, status="converged", width=0.0, certain=True
):
    """A run that ended at sharpness a and non-uniformity s, certified to a relative width."""
    row = {"batch_size": batch_size, "learning_rate": eta, "init_scale": 1.0, "seed": seed}
    row |= {"status": status, "steps": 100, "loss": 1e-5, "gradient_norm": 1e-4}
    for name, value in (("sharpness", a), ("nonuniformity", s)):
        row |= {name: value, f"{name}_lower": value, f"{name}_upper": value * (1 + width)}
        row |= {f"{name}_residual": 0.0, f"{name}_matvecs": 9, f"{name}_converged": certain}
    return row


@pytest.fixture
def record():
    return make_record
