"""Claims, tables and rows of the lecture's experiments, on made-up rows."""

import dataclasses
import math

import jax
import numpy as np
import pandas as pd
import pytest

from jaxstab import testing
from jaxstab.experiments import REGISTRY, published
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.yuan import full_batch, runs, sam, stability_rates
from jaxstab.stability import box, edges


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


def ended(training, seed, **values):
    row = {"training": training, "seed": seed, "loss": 0.1, "gradients": 10.0}
    row |= {"train_accuracy": 100.0, "test_accuracy": 90.0, "gradient_norm": 0.1, "eta_17": 2.0}
    return row | {"sharpness": 1.0, "nonuniformity": 2.0} | values


def sam_rows(better):
    """SAM and its kin with lower test error, a and s where `better` is 1, higher where −1."""
    gain = {"sgd": 0, sam.TWICE: 0, "sam": 1, "asam": 2, "m-sam": 3}
    return pd.DataFrame(
        [
            ended(name, seed, test_accuracy=90 + better * g + 0.01 * seed * g,
                  sharpness=1 - 0.1 * better * g - 0.001 * seed,
                  nonuniformity=2 - 0.1 * better * g - 0.001 * seed * g)
            for name, g in gain.items()
            for seed in range(4)
        ]
    )  # fmt: skip


def test_sam():
    settings = REGISTRY["sam"].settings("quick")
    good = sam.place(sam_rows(1), settings, 1000)
    assert set(status_of(sam.claims(good)).values()) == {"holds"}
    bad = status_of(sam.claims(sam.place(sam_rows(-1), settings, 1000)))  # a = 1.1, edge 1
    assert set(bad.values()) == {"does not hold"}


def test_positions_are_over_the_bounds_of_the_batch_size():
    settings = REGISTRY["sam"].settings("quick")
    row = sam.place(sam_rows(1), settings, 1000).set_index("training").loc["sam"].iloc[0]
    eta = settings.learning_rate
    bounds = box(eta, settings.batch_size, 1000)
    assert row["a_over"] == pytest.approx(0.9 / (2 / eta))
    assert row["s_over"] == pytest.approx(1.9 / bounds.nonuniformity)
    assert row["sam_edge"] == pytest.approx(edges.sam(eta, settings.rho, 0.1))
    lines = sam.table(sam.place(sam_rows(1), settings, 1000)).rows
    assert lines["training"].tolist()[:2] == ["sgd", sam.TWICE]
    assert math.isnan(lines["sam_edge"][0]) and lines["test_error"][0] == pytest.approx(10)


def test_costs_are_equal_where_they_are_said_to_be():
    settings = REGISTRY["sam"].settings("quick")
    ways = sam.ways(settings, 1000)
    cost = {name: way.steps * way.gradients for name, way in ways.items()}
    assert cost["sam"] == cost["asam"] == cost["m-sam"] == cost[sam.TWICE] == 2 * cost["sgd"]


def test_published_tables_stand_beside_the_same_data():
    theirs = published.beside(REGISTRY["sam"].settings("paper"), "foret2021_table1")
    assert len(theirs) == 15 and set(theirs["dataset"]) == {"cifar10"}
    assert "WRN-28-10 (200 epochs)" in sam.published_table(theirs).text()
    assert published.beside(REGISTRY["sam"].settings("quick"), "foret2021_table1").empty
    row = published.load("foret2021_table2", network="resnet152", epochs=200).iloc[0]
    assert (row["sam_top1"], row["sgd_top1"]) == (18.5, 20.3)
    rows = pd.DataFrame([ended("sgd", 0), ended("full_batch", 0)])
    geiping = published.beside(REGISTRY["full-batch"].settings("paper"), "geiping2022_table")
    beside = full_batch.table(rows, geiping).rows
    assert beside["published"].tolist() == [95.70, 75.42]


def full_batch_rows(gains):
    names = full_batch.ways(REGISTRY["full-batch"].settings("tiny"), 40)
    return pd.DataFrame(
        [
            ended(name, seed, test_accuracy=90 + gain + 0.001 * gain * seed,
                  sharpness=5 - gain - 0.001 * gain * seed)
            for name, gain in zip(names, gains, strict=True)
            for seed in range(4)
        ]
    )  # fmt: skip


def test_full_batch():
    good = full_batch_rows([4, 1, 2, 3, 4, 5, 6, 4])
    assert set(status_of(full_batch.claims(good)).values()) == {"holds"}
    bad = status_of(full_batch.claims(full_batch_rows([4, 5, 4, 3, 2, 1, 0, 4])))
    assert set(bad.values()) == {"does not hold"}


def test_the_rows_of_the_full_batch_table_are_those_published():
    names = list(full_batch.ways(REGISTRY["full-batch"].settings("quick"), 1000))
    assert names[:-1] == published.load("geiping2022_table")["training"].tolist()
    assert names[-1] == full_batch.EXACT
    for preset, n in (("quick", 1000), ("paper", 50_000)):  # blocks have to divide the data
        s = REGISTRY["full-batch"].settings(preset)
        assert n % s.batch_size == 0 and n % (s.batch_size // 5) == 0 and n % s.pieces == 0


def test_some_rows_alone():
    """Claims about rows that were not trained are open; an unknown row is named."""
    some = sam_rows(1)[lambda rows: rows["training"].isin(["sgd", "sam"])]
    settings = dataclasses.replace(REGISTRY["sam"].settings("tiny"), ways=("sgd", "asm"))
    found = status_of(sam.claims(sam.place(some, settings, 1000)))
    assert found["m-sam-beats-sam"] == "inconclusive"
    assert found["sam-beats-as-many-steps-of-sgd"] == "holds"
    with pytest.raises(ValueError, match="did you mean 'asam'"):
        sam.run(settings, Context(None))


def test_the_order_of_a_batch_changes_and_nothing_else():
    batch = np.arange(12.0).reshape(6, 2), np.arange(6)
    x, y = runs.augmentation(0, False, True)(jax.random.key(0), batch)
    assert sorted(y.tolist()) == list(range(6)) and y.tolist() != list(range(6))
    np.testing.assert_array_equal(x, batch[0][np.asarray(y)])
    assert runs.augmentation(0, False, False) is None


def test_stability_rates():
    def status(**changes):
        rows = {
            "gd": {"deviation": 0.0},
            "sgd": {"growth": 0.9, "fraction": 0.5, "deviation": 1.0},
            "step": {"deviation": 2.0},
            "square": {"sure": 1, "right_agrees": 1, "slide_agrees": 1},
            "cycles": {"kind": "SAM", "edge": 2.0, "curvature": 2.0, "grew": math.nan},
        }
        tables = {name: pd.DataFrame([row | changes.get(name, {})]) for name, row in rows.items()}
        plain = {"kind": "un-normalised", "edge": 2.0, "curvature": 2.1, "grew": 1.0}
        plain |= changes.get("plain", {})
        tables["cycles"] = pd.concat([tables["cycles"], pd.DataFrame([plain])])
        return status_of(stability_rates.claims(*tables.values()))

    assert set(status().values()) == {"holds"}
    for table, change, name in (
        ("gd", {"deviation": 1e-3}, "gd-rate"),
        ("sgd", {"deviation": 6.0}, "sgd-moments"),
        ("sgd", {"growth": 1.1}, "exact-threshold"),
        ("step", {"deviation": 6.0}, "one-step"),
        ("square", {"right_agrees": 0}, "scalar-right"),
        ("square", {"slide_agrees": 0}, "scalar-slide"),
        ("cycles", {"edge": 2.1}, "sam-edge"),
        ("plain", {"grew": 0.0}, "unnormalised-sam-edge"),
    ):
        found = status(**{table: change})
        assert found.pop(name) == "does not hold" and set(found.values()) == {"holds"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "full-batch"])
def test_paper_presets_read_their_data_and_train_with_batch_norm(tmp_path, name):
    testing.write_tfds("cifar10", tmp_path, n_train=20, n_test=10)
    small = {"model": "resnet8-small-norm", "n_train": 20, "batch_size": 10, "epochs": 1}
    small |= {"seeds": 2, "chunk_size": 10, "measured": 10, "max_matvecs": 3}
    if name == "full-batch":
        small |= {"pieces": 2, "longer": 1, "ways": ("sgd", "full_batch", "full_batch_in_practice")}
    else:
        small |= {"parts": 2, "ways": ("sgd", "m-sam")}
    settings = dataclasses.replace(REGISTRY[name].settings("paper"), **small)
    module = {"sam": sam, "full-batch": full_batch}[name]
    outcome = module.run(settings, Context(tmp_path / "out", data_dir=tmp_path))
    assert outcome.rows["test_accuracy"].notna().all()
    assert "PyramidNet" in outcome.text or "published test" in outcome.text
