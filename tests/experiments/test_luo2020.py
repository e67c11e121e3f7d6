"""Claims and tables of the experiments on factors and diffusion, on made-up rows."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from jaxstab import testing
from jaxstab.experiments import REGISTRY, published
from jaxstab.experiments.luo2020 import diffusion, factors
from jaxstab.experiments.protocol import Context


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


def curves(accuracy, *, seeds=3, epochs=4):
    """Curves whose accuracy is a function of batch size, learning rate, seed and epoch."""
    rows = [
        {"batch_size": b, "learning_rate": eta, "seed": seed, "epoch": epoch}
        | {"validation": accuracy(b, eta, seed, epoch)}
        for b, eta in ((10, 0.1), (20, 0.2), (20, 0.1), (40, 0.1))
        for seed in range(seeds)
        for epoch in range(epochs)
    ]
    return pd.DataFrame(rows)


def ends(log_ratio, seeds=3):
    rows = {"seed": range(seeds), "log_ratio": log_ratio + 0.01 * np.arange(seeds), "kl_gap": 0.0}
    return pd.DataFrame(rows)


def test_distances_are_means_over_epochs_within_seeds():
    pairs = factors.distances(curves(lambda b, eta, seed, epoch: 0.1 * epoch + math.log(b / eta)))
    assert len(pairs) == 6 * 3
    np.testing.assert_allclose(pairs["distance"], pairs["gap"], atol=1e-6)
    equal = pairs[pairs["equal"]]
    assert set(equal["pair"]) == {"(10, 0.1) and (20, 0.2)"} and (equal["distance"] < 1e-12).all()


def test_factors():
    def status(accuracy, log_ratio):
        pairs = factors.distances(curves(accuracy))
        return status_of(factors.claims(ends(log_ratio), pairs))

    by_ratio = status(lambda b, eta, seed, epoch: 0.1 * math.log(b / eta) + 0.01 * seed, 1.0)
    assert set(by_ratio.values()) == {"holds"}
    by_rate = status(lambda b, eta, seed, epoch: eta, -1.0)
    assert by_rate["equal-ratios-agree-more"] == "does not hold"
    assert by_rate["general-exceeds-special"] == "does not hold"
    assert by_rate["traces-differ"] == "holds"
    gap = ends(1.0).assign(kl_gap=0.1)
    pairs = factors.distances(curves(lambda *_: 0.5))
    assert status_of(factors.claims(gap, pairs))["kl-is-the-log-loss"] == "does not hold"


def test_the_published_ratios_stand_beside_ours_only_in_the_paper_preset():
    names = ["ratio_b_eta", *factors.TRACES, "trace_ratio", "mu", "four", "three", "drop", "loss"]
    rows = pd.DataFrame([dict.fromkeys([*names, "validation"], 1.0)] * 2)
    rows = rows.assign(batch_size=[100, 500], learning_rate=[0.08, 0.5])
    theirs = published.beside(REGISTRY["factors"].settings("paper"), "luo2020_table1")
    beside = factors.table(rows, theirs, 50_000)
    assert beside.rows["published_ratio"].tolist() == [2.4, 10.1]
    assert "published" in beside.text()
    assert published.beside(REGISTRY["factors"].settings("quick"), "luo2020_table1").empty
    assert "published" not in factors.table(rows, theirs.iloc[:0], 1000).text()


def quadratic_rows(**changes):
    row = {"x": 0.001, "exact": 1.0, "four factors": 1.0, "three factors": 2.0, "trace_ratio": 2.0}
    row |= {"aligned": 0.0, "seen": 1.1, "seen_error": 0.1}
    return pd.DataFrame([row | changes, row | {"x": 0.5, "seen": math.nan}])


def test_theorems_of_diffusion():
    def status(**changes):
        return status_of(diffusion.theorems(quadratic_rows(**changes)))

    assert set(status().values()) == {"holds"}
    assert status(seen=1.6)["exact-covariance"] == "does not hold"
    assert status(**{"four factors": 1.1})["four-factors"] == "does not hold"
    assert status(aligned=0.1)["three-where-aligned"] == "does not hold"
    assert status(**{"three factors": 1.0})["three-elsewhere"] == "does not hold"


def test_claims_around_a_network():
    def status(seen, three=1.0):
        rows = [
            {
                "x": x,
                "chain": chain,
                "exact": x,
                "four factors": 0.7 * x,
                "three factors": three * x,
            }
            | {"seen": seen * x * (1 + 0.01 * chain)}
            for x in (0.1, 0.2)
            for chain in range(4)
        ]
        return status_of(diffusion.claims(pd.DataFrame(rows)))

    assert set(status(1.0).values()) == {"holds"}
    assert status(0.5)["predicted-at-a-minimum"] == "does not hold"
    assert status(0.5)["four-factors-fall-short"] == "does not hold"
    assert status(1.0, three=50.0)["three-factors-predict"] == "does not hold"


@pytest.mark.slow
def test_the_paper_preset_reads_its_data_and_trains_with_batch_norm(tmp_path):
    testing.write_tfds("cifar10", tmp_path, n_train=24, n_test=12)
    small = {"model": "resnet8-small-norm", "n_train": 24, "batch_sizes": (12,), "probes": 3}
    small |= {
        "learning_rates": (0.08, 0.2),
        "epochs": 2,
        "drops": (1,),
        "seeds": 2,
        "chunk_size": 12,
    }
    settings = dataclasses.replace(REGISTRY["factors"].settings("paper"), **small)
    outcome = factors.run(settings, Context(tmp_path / "out", data_dir=tmp_path))
    assert len(outcome.rows) == 4 and outcome.rows["covariance_trace"].gt(0).all()
    assert "published_ratio" not in outcome.tables[0].rows  # another network
