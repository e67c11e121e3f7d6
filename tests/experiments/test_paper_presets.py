"""Paper presets on small prepared data of the same schema: their data sets, kinds of network and
augmentation, at the sizes of the tiny presets."""

import dataclasses

import pytest

from jaxstab import testing
from jaxstab.experiments import REGISTRY
from jaxstab.experiments.protocol import Context

# name to a network that compiles faster than that of the paper, of the same kind
NETWORKS = {
    "gradient-noise": "vgg",
    "flatness-radius": "fnn",
    "swa": "resnet8-small-norm",
    "locality": "resnet8-small-norm",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_paper_preset_runs_on_its_own_kind_of_data(name, tmp_path):
    experiment = REGISTRY[name]
    paper, tiny = experiment.settings("paper"), experiment.settings("tiny")
    count = 2 * tiny.n_train
    testing.write_tfds(paper.dataset, tmp_path, n_train=count, n_test=10, noise=0.1)
    names = {field.name for field in dataclasses.fields(paper)} & {"padding", "flip", "classes"}
    changes = {name: getattr(paper, name) for name in names} | {"model": NETWORKS[name]}
    settings = dataclasses.replace(tiny, dataset=paper.dataset, **changes)
    outcome = experiment.run(settings, Context(tmp_path / "out", data_dir=tmp_path))
    assert len(outcome.rows) and outcome.claims and outcome.figures
