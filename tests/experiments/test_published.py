"""Published tables: each with its source, found by the problem that they belong to."""

import dataclasses
from importlib import resources

import pytest

from jaxstab.experiments import REGISTRY, published


@pytest.mark.parametrize("name", published.names())
def test_tables_have_a_source_and_rows(name):
    text = resources.files(published).joinpath(f"{name}.csv").read_text()
    assert text.startswith("# ")
    rows = published.load(name)
    assert len(rows) and not any(column.startswith("Unnamed") for column in rows)


def test_values():
    where = {"dataset": "cifar10", "source": "table2_gd", "learning_rate": 0.01}
    row = published.load("wu2018_grid", **where).iloc[0]
    assert (row["sharpness_mean"], row["sharpness_std"]) == (198.93, 0.6154)
    with pytest.raises(ValueError, match="did you mean 'wu2018_grid'"):
        published.load("wu2018_gird")
    with pytest.raises(ValueError, match="did you mean 'dataset'"):
        published.load("wu2018_grid", data_set="cifar10")


def test_numbers_stand_only_beside_the_same_problem():
    gd = REGISTRY["gd-sharpness"]
    paper = gd.settings("paper")
    table2 = {"name": "wu2018_grid", "source": "table2_gd"}
    assert set(published.beside(paper, **table2)["learning_rate"]) == set(paper.learning_rates)
    assert published.beside(gd.settings("quick"), **table2).empty
    for change in ({"model": "fnn-small"}, {"n_train": 500}, {"loss": "cross_entropy"}):
        assert published.beside(dataclasses.replace(paper, **change), **table2).empty
    cifar = dataclasses.replace(paper, dataset="cifar10", model="vgg")
    assert published.beside(cifar, **table2).empty  # ten classes are another problem
    two = dataclasses.replace(cifar, classes=("airplane", "automobile"))
    assert published.beside(two, **table2)["sharpness_mean"].tolist()[0] == 198.93
