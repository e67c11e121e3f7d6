"""Claims and tables of the experiments of Zhang et al. (2018) on made-up rows."""

import dataclasses
import math

import jax
import numpy as np
import pandas as pd
import pytest

from jaxstab.experiments import REGISTRY, problems, published
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.settings import ProblemSettings
from jaxstab.experiments.zhang2018 import (
    degenerate,
    double_well,
    flatness_radius,
    gradient_noise,
    interpolation,
    networks,
    sgd_vs_langevin,
)


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


def chain_row(d, **changes):
    exact = 2.0**d
    row = {"dimension": d, "dynamics": "Langevin", "mixed": True, "ratio": 1.1 * exact}
    row |= {"log_error": 0.02, "ratio_exact": exact, "step_bias": 1.1, "histogram_p_value": 0.3}
    return row | {"away": 0.0} | changes


def test_double_well():
    def status(*rows):
        return status_of(double_well.claims(pd.DataFrame(rows)))

    assert set(status(chain_row(1), chain_row(2)).values()) == {"holds"}
    assert status(chain_row(2, ratio=9.0))["ratio d=2"] == "does not hold"
    assert status(chain_row(2, log_error=1.0))["ratio d=2"] == "inconclusive"
    assert (
        status(chain_row(1), chain_row(2, histogram_p_value=1e-9))["histogram"] == "does not hold"
    )
    # a run that has not mixed claims nothing, neither for itself nor for all
    unmixed = status(chain_row(1), chain_row(2, mixed=False))
    assert unmixed == {
        "ratio d=1": "holds",
        "ratio d=2": "inconclusive",
        "histogram": "inconclusive",
    }
    assert status(chain_row(1, ratio=math.nan, log_error=math.nan))["ratio d=1"] == "inconclusive"


def test_degenerate():
    def status(**sgd):
        rows = [
            chain_row(d, dynamics=dynamics, **(sgd if dynamics == "SGD" else {}))
            for d in (2, 3)
            for dynamics in degenerate.DYNAMICS
        ]
        return status_of(degenerate.claims(pd.DataFrame(rows)))

    good = status()
    assert set(good.values()) == {"holds"} and len(good) == 7
    assert status(away=0.2)["alike SGD"] == "does not hold"
    assert status(mixed=False)["alike SGD"] == status(mixed=False)["faster-with-d SGD"]
    assert status(mixed=False)["alike SGD"] == "inconclusive"
    assert status(ratio=3.0)["faster-with-d SGD"] == "inconclusive"  # no rise from 2 to 3
    assert status(log_error=1.0)["faster-with-d SGD"] == "inconclusive"
    assert status(ratio=0.5)["faster-with-d SGD"] == "does not hold"


def radii(seeds=4, **factors):
    rows = []
    for seed in range(seeds):
        for labels in networks.LABELS:
            for parameters in flatness_radius.PARAMETERS:
                radius = (3.0 if labels == "natural" else 1.0) * (1 + 0.1 * seed)
                row = {"labels": labels, "seed": seed, "parameters": parameters, "reached": True}
                row |= {"radius": radius, "filter_radius": 1 / radius, "norm": 10.0}
                rows.append(row | {"radius_over_directions": 0.1} | factors)
    return pd.DataFrame(rows)


def test_flatness_radius():
    found = status_of(flatness_radius.claims(radii()))
    assert found["flatter all raw"] == found["flatter top_layer raw"] == "holds"
    assert found["flatter all filter-normalised"] == "does not hold"
    assert set(status_of(flatness_radius.claims(radii(radius=math.inf))).values()) == {
        "inconclusive",
        "does not hold",
    }
    assert set(status_of(flatness_radius.claims(radii(reached=False))).values()) == {"inconclusive"}


def test_the_published_table_stands_beside_the_same_data_only():
    mnist = ProblemSettings(dataset="mnist", model="fnn")
    theirs = published.beside(mnist, "zhang2018_table1")
    lines = flatness_radius.summarize(radii(), theirs)
    shown = flatness_radius.table(lines).text()
    assert "45.4 ± 2.7" in shown and "3 ± 0.1" in shown
    assert "Table 1, natural" in str(
        [
            text.get_text()
            for text in flatness_radius.draw(REGISTRY["flatness-radius"].settings(), lines)
            .axes[0]
            .get_legend()
            .get_texts()
        ]
    )
    ours = flatness_radius.summarize(
        radii(), published.beside(ProblemSettings(), "zhang2018_table1")
    )
    assert "published" not in flatness_radius.table(ours).text()
    assert len(published.load("zhang2018_table1")) == 8


def test_interpolation():
    def rows(gap, reached=True):
        return pd.DataFrame(
            {"labels": labels, "seed": seed, "reached": reached,
             "above": 0.2 + 0.01 * seed + gap * (labels == "natural"),
             "mean_accuracy": 0.5 + 0.01 * seed * (labels == "natural")}
            for labels in networks.LABELS for seed in range(3)
        )  # fmt: skip

    assert status_of(interpolation.claims(rows(0.1), 0.95)) == {
        "larger above": "holds",
        "larger mean_accuracy": "inconclusive",
    }
    assert status_of(interpolation.claims(rows(-0.1), 0.95))["larger above"] == "does not hold"
    assert set(status_of(interpolation.claims(rows(0.1, False), 0.95)).values()) == {"inconclusive"}


@pytest.mark.parametrize("sizes", [(2, 40), (64,), ()])
def test_noise_is_of_batches_below_n(tmp_path, sizes):
    settings = REGISTRY["gradient-noise"].settings("tiny")
    settings = dataclasses.replace(settings, noise_batch_sizes=sizes)
    with pytest.raises(ValueError, match="noise_batch_sizes must be below n = 40"):
        gradient_noise.run(settings, Context(tmp_path))


def test_gradient_noise():
    def status(kurtosis, error=1.0, ratio=1.0, rejected=0.05):
        rows = pd.DataFrame(
            {"seed": seed, "leaf": "w", "batch_size": size,
             "excess_kurtosis": (1 + 0.1 * seed) * value, "rejected": rejected + 0.001 * seed}
            for seed in range(3)
            for size, value in zip((1, 4, 16), kurtosis)
        )  # fmt: skip
        exact = pd.DataFrame(
            {"mean_error": [error], "components": [40], "variance_ratio": [ratio],
             "variance_error": [0.01]}
        )  # fmt: skip
        return status_of(gradient_noise.claims(rows, exact))

    assert set(status((9.0, 3.0, 0.5)).values()) == {"holds"}
    assert status((0.5, 3.0, 9.0))["closer-to-gaussian"] == "does not hold"
    assert status((9.0, 3.0, -0.5), error=8.0)["mean"] == "does not hold"
    assert status((9.0, 3.0, 0.5), ratio=1.1)["variance"] == "does not hold"
    assert status((9.0, 3.0, 0.5), rejected=0.5)["gaussian"] == "does not hold"


def test_sgd_vs_langevin():
    def rows(gap):
        return pd.DataFrame(
            {"seed": seed, "step": step, "dynamics": dynamics,
             "validation_accuracy": 0.9 + (gap if dynamics == "SGDL" else 0.001 * seed)}
            for seed in range(3) for step in (10, 20, 30) for dynamics in ("SGD", "SGDL")
        )  # fmt: skip

    assert set(status_of(sgd_vs_langevin.claims(rows(0.0))).values()) == {"holds"}
    assert status_of(sgd_vs_langevin.claims(rows(0.1)))["final accuracy"] == "does not hold"


def test_random_labels_are_uniform_and_differ_by_seed():
    problem = problems.load(ProblemSettings(n_train=1000))
    first, second = (networks.labelled(problem, "random", seed)[1] for seed in (0, 1))
    natural = networks.labelled(problem, "natural", 0)[1]
    assert natural is problem.train[1]
    assert np.all(first.sum(axis=1) == 1) and not np.array_equal(first, second)
    # right by chance in one of ten: 0.1 ± 0.0095; chance 6e-7
    agree = float(np.mean(np.argmax(first, 1) == np.argmax(natural, 1)))
    assert abs(agree - 0.1) < 5 * 0.0095
    counts = np.asarray(first.sum(axis=0))
    assert np.all(np.abs(counts - 100) < 5 * 9.5)


def test_the_top_layer_is_the_last_dense_one():
    problem = problems.load(ProblemSettings(n_train=10))
    params = problem.init(jax.random.key(0), 1.0)
    assert networks.top_layer(params) == r"\['Dense_2'\]"
    with pytest.raises(ValueError, match="no dense layer by name: there are a, b"):
        networks.top_layer({"a": 1, "b": 2})
